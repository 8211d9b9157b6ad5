//! Normalised words of a text, which deduplication and decontamination compare.
//!
//! A text is brought to NFKC, folded in case, freed of invisible characters and cut at Unicode's word
//! boundaries (UAX 29), so that scripts without spaces have words too. Spaces and punctuation of sentences
//! vanish. Brackets and operators are words of their own: two problems that differ in a sign stay different.

use txtfp::Canonicalizer;
use unicode_segmentation::UnicodeSegmentation;

/// Characters that carry no meaning of their own between words.
const PUNCTUATION: &str = ".,;:!?…\"'`“”‘’„‚«»‹›¡¿—·、。「」『』";

/// The words of a text, joined by single spaces. A text of punctuation alone keeps it, so that `?` and `!`
/// are not the same text.
pub(crate) fn normalize(text: &str) -> String {
    let canonical = Canonicalizer::default().canonicalize(text).replace('’', "'");
    let is_word = |word: &&str| {
        !word.chars().all(char::is_whitespace) && !word.chars().all(|c| PUNCTUATION.contains(c))
    };
    let words = joined(canonical.split_word_bounds().filter(is_word));
    if words.is_empty() { joined(canonical.split_whitespace()) } else { words }
}

fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for word in words {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Number of words of a normalised text.
pub(crate) fn count(normalized: &str) -> usize {
    normalized.split(' ').filter(|word| !word.is_empty()).count()
}

/// Every run of `length` consecutive words of a normalised text, in order. A shorter text has none.
pub(crate) fn ngrams(normalized: &str, length: usize) -> impl Iterator<Item = &str> {
    let mut starts = vec![0];
    starts.extend(normalized.match_indices(' ').map(|(at, _)| at + 1));
    let words = if normalized.is_empty() { 0 } else { starts.len() };
    let runs = if length == 0 { 0 } else { (words + 1).saturating_sub(length) };
    (0..runs).map(move |first| {
        let end = starts.get(first + length).map_or(normalized.len(), |next| next - 1);
        &normalized[starts[first]..end]
    })
}
