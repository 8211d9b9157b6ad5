//! Guard against injected turn markers: message text is never encoded as a turn marker.
//!
//! The tokenizer finds the turn markers of a rendered conversation as it finds all added tokens. A match of a
//! turn marker counts only if the template wrote it; otherwise it is encoded as ordinary text
//! ([`Rendered::counts`]). Everything else is encoded as `transformers` does.
//!
//! To know what the template wrote, each conversation is rendered twice. The second template is marked: it
//! has a placeholder ([`MARK`] and one more character) in place of every turn marker that it writes
//! ([`super::marked_template`]). If the two outputs are equal after the placeholders are replaced, the places
//! of the placeholders are the markers of the template ([`TurnMarkers::written`]).
//!
//! Some templates put a marker together from parts (`'<|' + role + '|>'`), which have no placeholder. For
//! such a marker the conversation is rendered again if a message has text that could be part of one. The
//! messages have a [`BREAK`] in such text ([`TurnMarkers::protect`]), and a match counts if no break is in
//! it. A template or the tokenizer's normaliser can also change message text so that it becomes a marker
//! without a break. A conversation with such a text is also rendered with neutral texts ([`neutral`]). It is
//! refused if the tokenizer finds more markers in it than in the neutral rendering.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value};

use super::chat_message::ChatMessage;
use super::vocabulary::TokenizerJsonError;

/// First character of a placeholder. The second is [`FIRST_INDEX`] plus the index of the marker.
const MARK: char = '\u{10FFFE}';
/// Second character of the first marker's placeholder.
const FIRST_INDEX: u32 = 0xF_0000;
/// Inserted into message text that could be part of a marker.
const BREAK: char = '\u{10FFFF}';
/// Follows the last message if the model is to continue it.
const CUT: char = '\u{FFFFF}';

/// A rendered conversation, with the places of the turn markers that the template wrote.
#[derive(Debug, Clone)]
pub struct Rendered {
    text: String,
    markers: Arc<TurnMarkers>,
    /// Markers that the template wrote, in the order of the text.
    written: Vec<Range<usize>>,
    /// The sets of markers that the template may have put together from parts. The first set for which
    /// message text makes no marker is used.
    readings: Vec<Composed>,
    /// The error's message if message text makes a marker for every set.
    refusal: String,
}

/// Markers without placeholders.
#[derive(Debug, Clone, Default)]
pub(super) struct Composed {
    /// Their ids.
    pub(super) ids: Vec<u32>,
    /// Positions in the rendered text, in bytes, where text of a message could complete a marker or be
    /// completed to one.
    pub(super) breaks: Vec<usize>,
    /// The same conversation with neutral texts, if message text could become a marker without a break.
    pub(super) neutral: Option<String>,
}

impl Rendered {
    /// Makes a rendering of its parts. `written` is in ascending order.
    pub(super) fn new(
        text: String,
        markers: Arc<TurnMarkers>,
        written: Vec<Range<usize>>,
        readings: Vec<Composed>,
        refusal: String,
    ) -> Self {
        Self { text, markers, written, readings, refusal }
    }

    /// The text as the template wrote it. To encode it, pass the value itself to
    /// [`Tokenizer::encode_prompt`](super::Tokenizer::encode_prompt), because this text does
    /// not tell which markers the template wrote.
    pub fn text(&self) -> String {
        self.text.clone()
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn readings(&self) -> &[Composed] {
        &self.readings
    }

    pub(super) fn refusal(&self) -> String {
        self.refusal.clone()
    }

    /// Whether a match of an added token in the text counts: it is no turn marker, or the template wrote it.
    pub(super) fn counts(&self, composed: &Composed, id: u32, range: Range<usize>) -> bool {
        if !self.markers.ids.contains(&id) {
            return true;
        }
        let first = self.written.partition_point(|written| written.end <= range.start);
        let mut near = self.written[first..].iter().take_while(|written| written.start < range.end);
        // The tokenizer's match can have more spaces than the marker, or be a shorter marker within it.
        let written = near.any(|written| {
            let same = self.markers.id(&self.text[written.clone()]) == Some(id);
            written.start <= range.start && range.end <= written.end
                || same && range.start <= written.start && written.end <= range.end
        });
        written || composed.ids.contains(&id) && !self.is_broken(composed, &range)
    }

    /// Whether a break is within a match.
    fn is_broken(&self, composed: &Composed, range: &Range<usize>) -> bool {
        let one = self.text[range.clone()].chars().nth(1).is_none();
        let first = composed.breaks.partition_point(|&at| at < range.start || !one && at == range.start);
        composed.breaks.get(first).is_some_and(|&at| at < range.end)
    }
}

/// Whether text contains a character that is reserved for this module.
pub(super) fn is_reserved(text: &str) -> bool {
    text.contains([MARK, BREAK, CUT])
}

/// The value of a field or a variable. With `markers`, all of its text and keys have breaks
/// ([`TurnMarkers::protect`]).
pub(super) fn protect_value(value: &Value, markers: Option<&TurnMarkers>, kind: TextKind) -> Value {
    let Some(known) = markers else { return value.clone() };
    match value {
        Value::String(text) => known.protect(text, kind).into(),
        Value::Array(items) => items.iter().map(|item| protect_value(item, markers, kind)).collect(),
        Value::Object(map) => {
            let protect = |key: &str| known.protect(key, kind);
            map.iter().map(|(key, item)| (protect(key), protect_value(item, markers, kind))).collect()
        }
        simple => simple.clone(),
    }
}

/// A text that none of `texts` contains, to follow the last message if the model is to continue it.
pub(super) fn cut_mark<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let mut longest = 0;
    for text in texts {
        let runs = text.split(|c| c != CUT).map(|run| run.chars().count());
        longest = runs.max().unwrap_or(0).max(longest);
    }
    CUT.to_string().repeat(longest + 1)
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

/// The turn markers of a chat template.
#[derive(Debug)]
pub(super) struct TurnMarkers {
    ids: HashSet<u32>,
    /// Finds all markers, overlapping ones too, in upper or lower case.
    all: AhoCorasick,
    /// Finds the leftmost longest markers.
    longest: AhoCorasick,
    /// The markers with their ids, sorted.
    sorted: Vec<(String, u32)>,
    /// The markers with their characters reversed, sorted.
    reversed: Vec<String>,
    /// Length of the longest marker, in bytes.
    longest_len: usize,
}

impl TurnMarkers {
    /// Makes the set of these markers.
    pub(super) fn new(markers: impl IntoIterator<Item = (String, u32)>) -> Result<Self, TokenizerJsonError> {
        let mut sorted: Vec<(String, u32)> =
            markers.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        sorted.sort();
        sorted.dedup();
        let mut reversed: Vec<String> = sorted.iter().map(|(text, _)| text.chars().rev().collect()).collect();
        reversed.sort();
        let texts = || sorted.iter().map(|(text, _)| text.as_bytes());
        Ok(Self {
            ids: sorted.iter().map(|&(_, id)| id).collect(),
            all: AhoCorasick::builder().ascii_case_insensitive(true).build(texts())?,
            longest: AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts())?,
            longest_len: sorted.iter().map(|(text, _)| text.len()).max().unwrap_or(0),
            sorted,
            reversed,
        })
    }

    /// The id of the marker with this text.
    fn id(&self, text: &str) -> Option<u32> {
        let found = self.sorted.binary_search_by(|(marker, _)| marker.as_str().cmp(text));
        found.ok().map(|i| self.sorted[i].1)
    }

    /// The ids of all markers.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied()
    }

    /// Whether a marker occurs in `text`.
    pub(super) fn occurs_in(&self, text: &str) -> bool {
        self.longest.is_match(text)
    }

    /// Replaces every marker by its placeholder.
    pub(super) fn marked(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut done = 0;
        for found in self.longest.find_iter(text) {
            marked.push_str(&text[done..found.start()]);
            marked.push(MARK);
            marked.extend(char::from_u32(FIRST_INDEX + found.pattern().as_u32()));
            done = found.end();
        }
        marked + &text[done..]
    }

    /// The places of the markers in `text` that have a placeholder in `marked`; `None` if the two texts are
    /// not the same apart from the placeholders.
    pub(super) fn written(&self, text: &str, marked: &str) -> Option<Vec<Range<usize>>> {
        let (mut written, mut at) = (Vec::new(), 0);
        let mut parts = marked.split(MARK);
        at += same_start(text, parts.next()?)?;
        for part in parts {
            // A template cannot contain this character, so here it is text of a message.
            if text[at..].starts_with(MARK) {
                at += MARK.len_utf8();
                at += same_start(&text[at..], part)?;
                continue;
            }
            let index = part.chars().next()?;
            let (marker, _) = self.sorted.get(u32::from(index).checked_sub(FIRST_INDEX)? as usize)?;
            let end = at + same_start(&text[at..], marker)?;
            written.push(at..end);
            at = end + same_start(&text[end..], &part[index.len_utf8()..])?;
        }
        (at == text.len()).then_some(written)
    }

    /// The places in `text` that have a break in `protected`; `None` if the two texts are not the same apart
    /// from the breaks.
    pub(super) fn breaks(text: &str, protected: &str) -> Option<Vec<usize>> {
        let (mut breaks, mut at) = (Vec::new(), 0);
        for character in protected.chars() {
            if text[at..].starts_with(character) {
                at += character.len_utf8();
            } else if character == BREAK {
                breaks.push(at);
            } else {
                return None;
            }
        }
        (at == text.len()).then_some(breaks)
    }

    /// Whether a marker occurs in `text` outside the ranges of `written`.
    pub(super) fn occurs_outside(&self, text: &str, written: &[Range<usize>]) -> bool {
        self.longest.find_iter(text).any(|found| {
            let near = written.partition_point(|written| written.end <= found.start());
            written.get(near).is_none_or(|written| found.end() <= written.start)
        })
    }

    /// Whether a template, or a normaliser without rules of its own, could turn `text` into part of a marker.
    fn suspects(&self, text: &str) -> bool {
        let sign = |c: char| !c.is_alphanumeric() && !c.is_whitespace();
        let signs: HashSet<char> =
            self.sorted.iter().flat_map(|(marker, _)| marker.chars()).filter(|&c| sign(c)).collect();
        let removable = |c: char| c.is_control() && !c.is_whitespace();
        if text.chars().any(|c| !c.is_ascii() || removable(c) || signs.contains(&c)) {
            return true;
        }
        let text = text.trim().to_lowercase();
        self.sorted.iter().any(|(marker, _)| {
            let marker = marker.to_lowercase();
            let words = marker.split(|c: char| !c.is_alphanumeric());
            !text.is_empty() && marker.contains(&text)
                || words.filter(|word| !word.is_empty()).any(|word| text.contains(word))
        })
    }

    /// A character that no marker has.
    fn neutral_character(&self) -> char {
        let known = |c: char| self.sorted.iter().any(|(marker, _)| marker.to_lowercase().contains(c));
        "qzxjkvw0123456789".chars().find(|&c| !known(c)).unwrap_or('\u{2022}')
    }

    /// Inserts a break into every part of `text` that can be read as part of a marker.
    pub(super) fn protect(&self, text: &str, kind: TextKind) -> String {
        let mut at: Vec<usize> = Vec::new();
        for found in self.all.find_overlapping_iter(text) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            // A marker of one character has no inside for a break.
            at.push(found.start() + if first == found.len() { 0 } else { first });
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
        let mut done = 0;
        for at in at {
            protected.push_str(&text[done..at]);
            protected.push(BREAK);
            done = at;
        }
        protected + &text[done..]
    }

    /// Whether `text` ends with the beginning of a marker.
    fn ends_like_a_beginning(&self, text: &str) -> bool {
        text.char_indices()
            .rev()
            .map(|(i, _)| &text[i..])
            .take_while(|tail| tail.len() < self.longest_len)
            .any(|tail| {
                let next = self.sorted.partition_point(|(marker, _)| marker.as_str() <= tail);
                self.sorted.get(next).is_some_and(|(marker, _)| marker.starts_with(tail))
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
            && self.sorted.iter().any(|(marker, _)| marker.len() > text.len() && marker.contains(text))
    }
}

/// The length of `start` if `text` begins with it.
fn same_start(text: &str, start: &str) -> Option<usize> {
    text.starts_with(start).then_some(start.len())
}

/// Whether any text of a conversation could become a part of a marker.
pub(super) fn is_suspect(
    messages: &[ChatMessage],
    kwargs: &Map<String, Value>,
    markers: &TurnMarkers,
) -> bool {
    let fields = messages.iter().flat_map(|message| message.fields.values());
    let mut texts = messages
        .iter()
        .flat_map(|message| message.name.as_deref().into_iter().chain(message.content.texts()));
    texts.any(|text| markers.suspects(text))
        || fields.chain(kwargs.values()).any(|value| has_suspect(value, markers))
}

fn has_suspect(value: &Value, markers: &TurnMarkers) -> bool {
    match value {
        Value::String(text) => markers.suspects(text),
        Value::Array(items) => items.iter().any(|item| has_suspect(item, markers)),
        Value::Object(map) => {
            map.iter().any(|(key, item)| markers.suspects(key) || has_suspect(item, markers))
        }
        _ => false,
    }
}

/// The same conversation and variables with neutral texts of the same lengths. Names that have nothing to do
/// with a marker stay, because templates compare them.
pub(super) fn neutral(
    messages: &[ChatMessage],
    kwargs: &Map<String, Value>,
    markers: &TurnMarkers,
) -> (Vec<ChatMessage>, Map<String, Value>) {
    let filler = markers.neutral_character();
    let word =
        |text: &str| text.chars().map(|c| if c.is_whitespace() { c } else { filler }).collect::<String>();
    let text = |text: &str| {
        let name = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        let part = text.to_lowercase();
        let part = markers.sorted.iter().any(|(marker, _)| marker.to_lowercase().contains(&part));
        if name && !part { text.to_owned() } else { word(text) }
    };
    let values = |map: &Map<String, Value>| {
        map.iter().map(|(name, value)| (name.clone(), neutral_value(value, &text))).collect()
    };
    let neutral = messages.iter().map(|message| ChatMessage {
        role: message.role,
        content: message.content.map(word),
        name: message.name.as_deref().map(text),
        fields: values(&message.fields),
    });
    (neutral.collect(), values(kwargs))
}

fn neutral_value(value: &Value, neutral: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => neutral(text).into(),
        Value::Array(items) => items.iter().map(|item| neutral_value(item, neutral)).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, item)| (neutral(key), neutral_value(item, neutral))).collect()
        }
        simple => simple.clone(),
    }
}

/// The error for messages that spell a turn marker which the template treats differently from other text.
pub(super) fn spelled(messages: &[ChatMessage], markers: &TurnMarkers) -> String {
    let place = |spells: &dyn Fn(&str) -> bool| {
        messages.iter().enumerate().find_map(|(i, message)| {
            let field = message.content.texts().any(spells).then_some("content");
            let mut fields = message.fields.iter();
            let field = field
                .or_else(|| fields.find(|(_, value)| spells(&value.to_string())).map(|(name, _)| &**name));
            field.map(|field| format!("messages[{i}].{field}"))
        })
    };
    let place = place(&|text| markers.protect(text, TextKind::Message) != text)
        .or_else(|| place(&|text| markers.suspects(text)))
        .unwrap_or_else(|| "a message or a variable".to_owned());
    format!(
        "{place} contains a turn marker of the chat template or a part of one, and the template or the \
         tokenizer's normalizer changes it, so it cannot be told from the template's own turn markers"
    )
}
