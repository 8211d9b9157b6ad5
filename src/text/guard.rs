//! Keeps message text from being read as a turn marker.
//!
//! 1. The tokenizer is loaded with every marker renamed to [`MARK`] + marker ([`disguise`]), and with no merge that
//!    yields one, so that plain text has no way to a marker's id.
//! 2. Message text is given to the template with a [`BREAK`] inside every marker that it spells, and at an end where it
//!    could become part of one ([`Markers::protect`]). Anything else stays what it is, so that templates that trim or
//!    compare see what they expect.
//! 3. Markers left whole in what the template made are its own. They get the name the tokenizer knows, and the breaks
//!    go ([`Markers::mark`]). What remains is encoded in one call, with the tokenizer's own rules on spaces beside
//!    markers and at the start of the text, so ordinary conversations get the ids that any other tool would give them.
//!
//! A marker is a special token, or an added token that looks like one (`<extra_id_1>` is often not flagged special).
//! Added tokens that are ordinary text, such as runs of spaces, are none.

use std::borrow::Cow;
use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::vocabulary::{added_tokens, fallback_byte};

/// Stands before a true marker.
const MARK: char = '\u{10FFFE}';
/// Stands within message text that spells a marker.
const BREAK: char = '\u{10FFFF}';
/// Stands where the text to be continued ends.
pub(super) const CUT: char = '\u{FFFFF}';

/// Whether text contains a character reserved for this module.
pub(super) fn is_reserved(text: &str) -> bool {
    text.contains([MARK, BREAK, CUT])
}

/// Text without the characters reserved for this module.
pub(super) fn sanitize(text: &str) -> Cow<'_, str> {
    if is_reserved(text) { text.replace([MARK, BREAK, CUT], "\u{FFFD}").into() } else { text.into() }
}

/// `text` as the message's author wrote it.
pub(super) fn unbroken(text: &str) -> String {
    text.replace(BREAK, "")
}

/// The name by which the tokenizer knows a marker.
pub(super) fn disguised(marker: &str) -> String {
    format!("{MARK}{marker}")
}

/// How far [`Markers::protect`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// Free text: also broken where it is a word from within a marker (`extra_id_1`), lest a template put `<`
    /// and `>` around it.
    Broken,
    /// Option values, which templates compare with words.
    Kept,
}

/// The markers of a tokenizer.
pub(super) struct Markers {
    /// Finds them all, also where they overlap.
    all: AhoCorasick,
    /// Finds them as a tokenizer does.
    longest: AhoCorasick,
    sorted: Vec<String>,
    /// Each marker's characters in reverse.
    reversed: Vec<String>,
    longest_len: usize,
}

impl Markers {
    /// Of a parsed `tokenizer.json`.
    pub(super) fn new(tokenizer: &Value) -> Result<Self, String> {
        let added = added_tokens(tokenizer)?;
        let markers = added.iter().filter(|token| is_marker(token.content, token.special));
        let mut sorted: Vec<String> = markers.map(|token| token.content.to_owned()).collect();
        if let Some(marker) = sorted.iter().find(|marker| is_reserved(marker)) {
            return Err(format!("the added token {marker:?} has a reserved noncharacter"));
        }
        sorted.sort();
        sorted.dedup();
        let mut reversed: Vec<String> = sorted.iter().map(|marker| marker.chars().rev().collect()).collect();
        reversed.sort();
        let build = |kind| AhoCorasick::builder().match_kind(kind).build(&sorted).map_err(|e| e.to_string());
        Ok(Self {
            all: build(MatchKind::Standard)?,
            longest: build(MatchKind::LeftmostLongest)?,
            longest_len: sorted.iter().map(String::len).max().unwrap_or(0),
            sorted,
            reversed,
        })
    }

    /// Whether an added token of this name is a marker.
    pub(super) fn contains(&self, token: &str) -> bool {
        self.sorted.binary_search_by(|marker| marker.as_str().cmp(token)).is_ok()
    }

    /// Message text as the template may see it.
    pub(super) fn protect(&self, text: &str, words: Words) -> String {
        let text = sanitize(text);
        let mut at: Vec<usize> = Vec::new();
        let mut lost: HashSet<usize> = HashSet::new();
        for found in self.all.find_overlapping_iter(text.as_ref()) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            at.push(found.start() + first);
            if first == found.len() {
                // A marker of one character cannot be broken, only replaced.
                lost.insert(found.start());
            }
        }
        let trimmed = text.trim();
        let start = text.len() - text.trim_start().len();
        if self.may_begin(trimmed) {
            at.push(start + trimmed.len());
        }
        if self.may_end(trimmed) || (words == Words::Broken && self.may_be_within(trimmed)) {
            at.push(start);
        }
        at.sort_unstable();
        at.dedup();
        let mut protected = String::with_capacity(text.len() + at.len() * BREAK.len_utf8());
        let mut breaks = at.into_iter().peekable();
        for (i, character) in text.char_indices() {
            if breaks.next_if_eq(&i).is_some() {
                protected.push(BREAK);
            }
            protected.push(if lost.contains(&i) { char::REPLACEMENT_CHARACTER } else { character });
        }
        if breaks.next().is_some() {
            protected.push(BREAK);
        }
        protected
    }

    /// Names the unbroken markers as the tokenizer knows them, and takes the breaks out.
    pub(super) fn mark(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len() + 64);
        let mut done = 0;
        for found in self.longest.find_iter(text) {
            marked.extend(text[done..found.start()].chars().filter(|&c| c != BREAK));
            marked.push(MARK);
            marked.push_str(&text[found.range()]);
            done = found.end();
        }
        marked.extend(text[done..].chars().filter(|&c| c != BREAK));
        marked
    }

    /// Whether an end of `text` is the beginning of a marker.
    fn may_begin(&self, text: &str) -> bool {
        text.char_indices()
            .rev()
            .map(|(i, _)| &text[i..])
            .take_while(|tail| tail.len() < self.longest_len)
            .any(|tail| {
                let next = self.sorted.partition_point(|marker| marker.as_str() <= tail);
                self.sorted.get(next).is_some_and(|marker| marker.starts_with(tail))
            })
    }

    /// Whether a beginning of `text` is the end of a marker.
    fn may_end(&self, text: &str) -> bool {
        let mut head = String::new();
        for character in text.chars() {
            head.insert(0, character);
            if head.len() >= self.longest_len {
                return false;
            }
            let next = self.reversed.partition_point(|marker| *marker <= head);
            if self.reversed.get(next).is_some_and(|marker| marker.starts_with(&head)) {
                return true;
            }
        }
        false
    }

    fn may_be_within(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() < self.longest_len
            && self.sorted.iter().any(|marker| marker.len() > text.len() && marker.contains(text))
    }
}

/// Whether an added token structures a prompt, rather than being a frequent piece of text.
fn is_marker(content: &str, special: bool) -> bool {
    let bracketed = (content.starts_with('<') && content.ends_with('>'))
        || (content.starts_with('[') && content.ends_with(']'));
    let looks_so = bracketed && content.len() > 2 && !content.contains(char::is_whitespace);
    (special || looks_so) && !content.trim().is_empty() && fallback_byte(content).is_none()
}

/// Renames the markers in a parsed `tokenizer.json`, in place, and drops the merges that involve one.
pub(super) fn disguise(tokenizer: &mut Value, markers: &Markers) {
    let rename = |name: &mut Value| {
        if let Some(marker) = name.as_str().filter(|name| markers.contains(name)) {
            *name = Value::String(disguised(marker));
        }
    };
    let list = tokenizer.get_mut("added_tokens").and_then(Value::as_array_mut);
    for name in list.into_iter().flatten().filter_map(|token| token.get_mut("content")) {
        rename(name);
    }
    let Some(model) = tokenizer.get_mut("model") else { return };
    if let Some(unknown) = model.get_mut("unk_token") {
        rename(unknown);
    }
    match model.get_mut("vocab") {
        Some(Value::Object(map)) => {
            for marker in &markers.sorted {
                if let Some(id) = map.swap_remove(marker) {
                    map.insert(disguised(marker), id);
                }
            }
        }
        Some(Value::Array(list)) => list.iter_mut().filter_map(|piece| piece.get_mut(0)).for_each(rename),
        _ => {}
    }
    if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
        merges.retain(|merge| {
            let Some((left, right)) = pair(merge) else { return true };
            // Most merges are ruled out by length before anything is joined.
            let joined = left.len() + right.len() <= markers.longest_len
                && markers.contains(&format!("{left}{right}"));
            !(joined || markers.contains(left) || markers.contains(right))
        });
    }
}

/// The two sides of a merge, which is written `"a b"` or `["a", "b"]`.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(sides) => sides.first()?.as_str().zip(sides.get(1)?.as_str()),
        _ => None,
    }
}
