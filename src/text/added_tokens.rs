//! Added tokens: where they match in a text, with single matches left out.
//!
//! The rules are those of the `tokenizers` crate, which finds added tokens before the model sees the text:
//! first the tokens with `normalized: false` in the text itself, then the others in the normalised text
//! between them. The crate cannot leave out single matches, and the turn marker guard needs that, so they are
//! written here again. If a match does not count, the text is read as if the tokenizer did not have this
//! token there.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use regex::Regex;
use tokenizers::normalizer::Range as Span;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Token,
};

use super::vocabulary::TokenizerJsonError;

/// Says whether a match of an added token counts, from its id and its bytes in the text. It is also called
/// for tokens that the model makes from pieces of text.
pub(super) type Counts<'c> = &'c dyn Fn(u32, Range<usize>) -> bool;

/// The added tokens of a tokenizer, in the order in which they were added.
#[derive(Default)]
pub(super) struct AddedTokenList {
    special: Vec<AddedToken>,
    /// Tokens that were not special when they were added.
    other: Vec<AddedToken>,
    /// Texts of the special tokens.
    names: HashSet<String>,
    /// The last token that was added with a text.
    last: HashMap<String, AddedToken>,
}

impl AddedTokenList {
    /// Adds tokens as one call of the crate's `add_tokens` does.
    pub(super) fn add(&mut self, tokens: &[AddedToken]) {
        for token in tokens.iter().filter(|token| token.special && !token.content.is_empty()) {
            if self.names.insert(token.content.clone()) {
                self.special.push(token.clone());
            }
        }
        let mut existing: HashMap<&str, Vec<&AddedToken>> = HashMap::new();
        let before = self.last.clone();
        for token in before.values() {
            existing.entry(&token.content).or_default().push(token);
        }
        for token in tokens.iter().filter(|token| !token.content.is_empty()) {
            let known = existing.entry(&token.content).or_default();
            if known.contains(&token) {
                continue;
            }
            known.push(token);
            self.last.insert(token.content.clone(), token.clone());
            if !self.names.contains(&token.content) {
                self.other.push(token.clone());
            }
        }
    }

    /// The tokens in the order in which the crate searches for them.
    fn ordered(&self) -> impl Iterator<Item = &AddedToken> {
        self.special.iter().chain(&self.other)
    }

    /// Whether a token with this text was added as a special one.
    pub(super) fn is_special(&self, text: &str) -> bool {
        self.names.contains(text)
    }

    /// The tokens by text, each with the flags that it was added with last.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &AddedToken> {
        self.last.values()
    }
}

/// Finds the added tokens of a tokenizer.
pub(super) struct AddedTokens {
    /// Finds tokens in the text itself.
    plain: Matcher,
    /// Finds tokens in normalised text.
    normalized: Matcher,
}

impl AddedTokens {
    /// Prepares the search for the tokens of `list`, all of which `inner` has.
    pub(super) fn new(
        list: &AddedTokenList,
        inner: &tokenizers::Tokenizer,
    ) -> Result<Self, TokenizerJsonError> {
        let (mut plain, mut normalized) = (Vec::new(), Vec::new());
        for token in list.ordered() {
            let Some(id) = inner.token_to_id(&token.content) else { continue };
            let flags = list.last.get(&token.content).unwrap_or(token);
            let (single_word, lstrip, rstrip) = (flags.single_word, flags.lstrip, flags.rstrip);
            let mut text = NormalizedString::from(token.content.as_str());
            if token.normalized
                && let Some(normalizer) = inner.get_normalizer()
            {
                normalizer.normalize(&mut text).map_err(|e| TokenizerJsonError::Normalizer(e.to_string()))?;
            }
            if text.is_empty() {
                return Err(TokenizerJsonError::EmptyToken(token.content.clone()));
            }
            let ignored = inner.get_encode_special_tokens() && list.is_special(&token.content);
            let pattern = Pattern { id, text: text.get().to_owned(), ignored, single_word, lstrip, rstrip };
            let patterns = if token.normalized { &mut normalized } else { &mut plain };
            patterns.push(pattern);
        }
        Ok(Self { plain: Matcher::new(plain)?, normalized: Matcher::new(normalized)? })
    }

    /// All matches in a text, in their order, with their ids.
    pub(super) fn find(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
    ) -> tokenizers::Result<Vec<(u32, Range<usize>)>> {
        let split = self.split(inner, text, &|_, _| true)?;
        let parts = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let id = |tokens: &Option<Vec<Token>>| tokens.as_ref()?.first().map(|token| token.id);
        Ok(parts
            .into_iter()
            .filter_map(|(_, (start, end), tokens)| Some((id(tokens)?, start..end)))
            .collect())
    }

    /// Tokenises a text as `inner` does, without the matches that do not count.
    ///
    /// # Errors
    /// A part of the tokenizer fails, or a token that does not count cannot be avoided.
    pub(super) fn tokenize(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        counts: Counts<'_>,
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut split = self.split(inner, text, counts)?;
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split)?;
        }
        split.tokenize(|piece| {
            let counts_here = |token: &Token| {
                let range = original(piece, token.offsets.0..token.offsets.1);
                range.is_some_and(|range| counts(token.id, range))
            };
            piece_tokens(inner, piece.get(), 0, &counts_here)
        })?;
        Ok(split)
    }

    /// Splits a text at the added tokens, and normalises what is between them.
    fn split(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        counts: Counts<'_>,
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut split = PreTokenizedString::from(text);
        split.split(|_, part| self.plain.split(&part, counts))?;
        split.split(|_, mut part| {
            if let Some(normalizer) = inner.get_normalizer() {
                normalizer.normalize(&mut part)?;
            }
            self.normalized.split(&part, counts)
        })?;
        Ok(split)
    }
}

/// The bytes of the whole text that a range of a normalised part of it comes from.
fn original(part: &NormalizedString, range: Range<usize>) -> Option<Range<usize>> {
    let (start, _) = part.offsets_original();
    part.convert_offsets(Span::Normalized(range)).map(|range| start + range.start..start + range.end)
}

/// The model's tokens of a piece that begins `offset` bytes into its part of the text. If some do not count,
/// the piece is divided within them, and each part is tokenised separately.
fn piece_tokens(
    inner: &tokenizers::Tokenizer,
    piece: &str,
    offset: usize,
    counts: &dyn Fn(&Token) -> bool,
) -> tokenizers::Result<Vec<Token>> {
    let mut tokens = inner.get_model().tokenize(piece)?;
    for token in &mut tokens {
        token.offsets = (token.offsets.0 + offset, token.offsets.1 + offset);
    }
    let mut cuts = vec![0];
    for token in tokens.iter().filter(|token| !counts(token)) {
        let (start, end) = (token.offsets.0 - offset, token.offsets.1 - offset);
        let first = piece.get(start..end).and_then(|text| text.chars().next()).map_or(0, char::len_utf8);
        if first == 0 || start + first >= end {
            let why = format!("{:?} has no other token than the chat template's turn marker", token.value);
            return Err(why.into());
        }
        cuts.push(start + first);
    }
    if cuts.len() == 1 {
        return Ok(tokens);
    }
    cuts.push(piece.len());
    let parts =
        cuts.windows(2).map(|cut| piece_tokens(inner, &piece[cut[0]..cut[1]], offset + cut[0], counts));
    Ok(parts.collect::<tokenizers::Result<Vec<_>>>()?.concat())
}

/// Text of an added token, with the flags that the search obeys.
struct Pattern {
    id: u32,
    text: String,
    /// Whether matches are left in the text (`split_special_tokens`).
    ignored: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// Finds patterns, as the crate does: the leftmost match, and the longest of those that begin there.
struct Matcher {
    leftmost: AhoCorasick,
    patterns: Vec<Pattern>,
    /// Index of the first pattern with a text.
    by_text: HashMap<String, usize>,
    /// All lengths of the patterns, in bytes, longest first.
    lengths: Vec<usize>,
    word: Regex,
}

impl Matcher {
    fn new(patterns: Vec<Pattern>) -> Result<Self, TokenizerJsonError> {
        let texts = || patterns.iter().map(|pattern| pattern.text.as_bytes());
        let leftmost = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts())?;
        let mut by_text = HashMap::new();
        for (i, pattern) in patterns.iter().enumerate() {
            by_text.entry(pattern.text.clone()).or_insert(i);
        }
        let mut lengths: Vec<usize> = patterns.iter().map(|pattern| pattern.text.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let word = Regex::new(r"\w").map_err(|e| TokenizerJsonError::Normalizer(e.to_string()))?;
        Ok(Self { leftmost, patterns, by_text, lengths, word })
    }

    /// Divides a part of the text at its matches. `counts` takes positions in the whole text.
    ///
    /// # Errors
    /// A match with `lstrip` lies within the spaces that the match before it takes. The crate panics there.
    fn split(
        &self,
        part: &NormalizedString,
        counts: Counts<'_>,
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let counts =
            |id: u32, range: Range<usize>| original(part, range).is_some_and(|range| counts(id, range));
        let slice = |(id, range): (Option<u32>, Range<usize>)| {
            let slice = part.slice(Span::Normalized(range));
            let slice = slice.ok_or("an added token lies within the spaces that another one takes")?;
            let token = |id| vec![Token::new(id, slice.get().to_owned(), (0, slice.get().len()))];
            let tokens = id.map(token);
            Ok((slice, tokens))
        };
        self.ranges(part.get(), &counts).into_iter().map(slice).collect()
    }

    /// The matches in a text with their ids, and the ranges between them.
    fn ranges(&self, text: &str, counts: Counts<'_>) -> Vec<(Option<u32>, Range<usize>)> {
        let (mut ranges, mut from, mut done) = (Vec::new(), 0, 0);
        while let Some((pattern, found)) = self.next(text, from, counts) {
            from = found.end;
            let (mut start, mut end) = (found.start, found.end);
            let (before, behind) = (text[..start].chars().next_back(), text[end..].chars().next());
            let in_word = pattern.single_word && (self.is_word(before) || self.is_word(behind));
            if pattern.ignored || in_word {
                continue;
            }
            if pattern.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if pattern.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                ranges.push((None, done..start));
            }
            ranges.push((Some(pattern.id), start..end));
            done = end;
        }
        if done < text.len() {
            ranges.push((None, done..text.len()));
        }
        ranges
    }

    /// The first match at or after `from` that counts.
    fn next(&self, text: &str, mut from: usize, counts: Counts<'_>) -> Option<(&Pattern, Range<usize>)> {
        loop {
            let found = self.leftmost.find(Input::new(text).span(from..text.len()))?;
            let pattern = &self.patterns[found.pattern()];
            if counts(pattern.id, found.range()) {
                return Some((pattern, found.range()));
            }
            let start = found.start();
            let longest = self.lengths.iter().find_map(|length| {
                let range = start..start + length;
                let pattern = &self.patterns[*self.by_text.get(text.get(range.clone())?)?];
                counts(pattern.id, range.clone()).then_some((pattern, range))
            });
            if longest.is_some() {
                return longest;
            }
            from = start + text[start..].chars().next().map_or(1, char::len_utf8);
        }
    }

    /// Whether a neighbour of a match belongs to a word.
    fn is_word(&self, neighbour: Option<char>) -> bool {
        neighbour.is_some_and(|c| self.word.is_match(c.encode_utf8(&mut [0; 4])))
    }
}
