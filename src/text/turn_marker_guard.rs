//! Guard against injected turn markers: message text is never encoded as a turn marker.
//!
//! 1. The tokenizer is loaded with every marker renamed to [`MARK`] + marker, and without the merges that
//!    produce a marker ([`rename_markers`]). Plain text therefore cannot be encoded to a marker's id.
//! 2. Message text is passed to the template with a [`BREAK`] inside every marker that it spells, and at an
//!    end that could become part of a marker ([`TurnMarkers::protect`]). All other text is unchanged, so
//!    templates that trim or compare text work as usual.
//! 3. Markers without a break in the rendered text were written by the template. They get their new names,
//!    and the breaks are removed ([`TurnMarkers::mark`]). The result is encoded in one call, with the
//!    tokenizer's own rules for spaces beside markers and at the start, so ordinary conversations get the
//!    same ids as from other tools.
//!
//! A marker is a special token, or an added token that looks like one: `<extra_id_1>` is often not flagged as
//! special. Added tokens that are ordinary text, such as runs of spaces, are not markers.

use std::borrow::Cow;
use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::vocabulary::{TokenizerJsonError, added_tokens, fallback_byte};

/// First character of a marker's name in the tokenizer.
const MARK: char = '\u{10FFFE}';
/// Inserted into message text that spells a marker.
const BREAK: char = '\u{10FFFF}';
/// Inserted at the end of a message that the model is to continue.
pub(super) const CUT: char = '\u{FFFFF}';

/// A rendered conversation. It still distinguishes markers that the template wrote from markers that messages
/// spell.
#[derive(Debug, Clone)]
pub struct Rendered {
    guarded: String,
}

impl Rendered {
    /// Wraps the output of a template. `guarded` contains breaks and no [`CUT`].
    pub(super) fn new(guarded: String) -> Self {
        Self { guarded }
    }

    /// The text as the template wrote it. To encode it, pass the value itself to
    /// [`Tokenizer::encode_prompt`](super::Tokenizer::encode_prompt), because this text has lost the
    /// distinction.
    pub fn text(&self) -> String {
        without_breaks(&self.guarded)
    }

    pub(super) fn guarded(&self) -> &str {
        &self.guarded
    }
}

/// Whether text contains a character that is reserved for this module.
pub(super) fn is_reserved(text: &str) -> bool {
    text.contains([MARK, BREAK, CUT])
}

/// Replaces the characters that are reserved for this module by U+FFFD.
pub(super) fn sanitize(text: &str) -> Cow<'_, str> {
    if is_reserved(text) { text.replace([MARK, BREAK, CUT], "\u{FFFD}").into() } else { text.into() }
}

/// Text without breaks, as its author wrote it.
pub(super) fn without_breaks(text: &str) -> String {
    text.replace(BREAK, "")
}

/// The name of a marker in the tokenizer.
pub(super) fn renamed(marker: &str) -> String {
    format!("{MARK}{marker}")
}

/// Kind of text that [`TurnMarkers::protect`] is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextKind {
    /// Text of a message. It also gets a break if all of it occurs inside a marker (`extra_id_1`), because a
    /// template could put `<` and `>` around it.
    Message,
    /// Value of a template variable. It gets no such break, because templates compare variables with words.
    Variable,
}

/// The turn markers of a tokenizer.
pub(super) struct TurnMarkers {
    /// Finds all markers, overlapping ones too.
    all: AhoCorasick,
    /// Finds the leftmost longest markers, as the tokenizer does.
    longest: AhoCorasick,
    sorted: Vec<String>,
    /// The markers with their characters reversed, sorted.
    reversed: Vec<String>,
    /// Length of the longest marker, in bytes.
    longest_len: usize,
}

impl TurnMarkers {
    /// Collects the markers of a parsed `tokenizer.json`.
    pub(super) fn new(tokenizer: &Value) -> Result<Self, TokenizerJsonError> {
        let added = added_tokens(tokenizer)?;
        let markers = added.iter().filter(|token| is_marker(token.content, token.special));
        let mut sorted: Vec<String> = markers.map(|token| token.content.to_owned()).collect();
        if let Some(marker) = sorted.iter().find(|marker| is_reserved(marker)) {
            return Err(TokenizerJsonError::Reserved(marker.clone()));
        }
        sorted.sort();
        sorted.dedup();
        let mut reversed: Vec<String> = sorted.iter().map(|marker| marker.chars().rev().collect()).collect();
        reversed.sort();
        let build = |kind| AhoCorasick::builder().match_kind(kind).build(&sorted);
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

    /// Prepares text for the template: replaces reserved characters, and inserts breaks so that no part of
    /// the text can be read as a marker.
    pub(super) fn protect(&self, text: &str, kind: TextKind) -> String {
        let text = sanitize(text);
        // Byte positions that get a break, and those of characters that are replaced.
        let mut at: Vec<usize> = Vec::new();
        let mut replaced: HashSet<usize> = HashSet::new();
        for found in self.all.find_overlapping_iter(text.as_ref()) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            at.push(found.start() + first);
            if first == found.len() {
                // A marker of one character has no inside for a break, so it is replaced.
                replaced.insert(found.start());
            }
        }
        let trimmed = text.trim();
        let start = text.len() - text.trim_start().len();
        if self.ends_like_a_beginning(trimmed) {
            at.push(start + trimmed.len());
        }
        let is_part = kind == TextKind::Message && self.is_part_of_a_marker(trimmed);
        if self.begins_like_an_end(trimmed) || is_part {
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
            protected.push(if replaced.contains(&i) { char::REPLACEMENT_CHARACTER } else { character });
        }
        if breaks.next().is_some() {
            protected.push(BREAK);
        }
        protected
    }

    /// Renames the markers that have no break, and removes all breaks. The result is for the tokenizer.
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

    /// Whether `text` ends with the beginning of a marker.
    fn ends_like_a_beginning(&self, text: &str) -> bool {
        text.char_indices()
            .rev()
            .map(|(i, _)| &text[i..])
            .take_while(|tail| tail.len() < self.longest_len)
            .any(|tail| {
                let next = self.sorted.partition_point(|marker| marker.as_str() <= tail);
                self.sorted.get(next).is_some_and(|marker| marker.starts_with(tail))
            })
    }

    /// Whether `text` begins with the end of a marker.
    fn begins_like_an_end(&self, text: &str) -> bool {
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

    /// Whether all of `text` occurs inside a longer marker.
    fn is_part_of_a_marker(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() < self.longest_len
            && self.sorted.iter().any(|marker| marker.len() > text.len() && marker.contains(text))
    }
}

/// Whether an added token structures prompts. Other added tokens are frequent pieces of text.
fn is_marker(content: &str, special: bool) -> bool {
    let bracketed = (content.starts_with('<') && content.ends_with('>'))
        || (content.starts_with('[') && content.ends_with(']'));
    let looks_special = bracketed && content.len() > 2 && !content.contains(char::is_whitespace);
    (special || looks_special) && !content.trim().is_empty() && fallback_byte(content).is_none()
}

/// Renames the markers in a parsed `tokenizer.json`, in place, and removes the merges that contain or produce
/// one.
pub(super) fn rename_markers(tokenizer: &mut Value, markers: &TurnMarkers) {
    let rename = |name: &mut Value| {
        if let Some(marker) = name.as_str().filter(|name| markers.contains(name)) {
            *name = Value::String(renamed(marker));
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
                    map.insert(renamed(marker), id);
                }
            }
        }
        Some(Value::Array(list)) => list.iter_mut().filter_map(|piece| piece.get_mut(0)).for_each(rename),
        _ => {}
    }
    if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
        merges.retain(|merge| {
            let Some((left, right)) = pair(merge) else { return true };
            // Checks the length first, so that most merges are not joined.
            let joined = left.len() + right.len() <= markers.longest_len
                && markers.contains(&format!("{left}{right}"));
            !(joined || markers.contains(left) || markers.contains(right))
        });
    }
}

/// The two sides of a merge, which is either `"a b"` or `["a", "b"]`.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(sides) => sides.first()?.as_str().zip(sides.get(1)?.as_str()),
        _ => None,
    }
}
