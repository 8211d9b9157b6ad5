//! An answer is its text and its calls, with nothing but the format's syntax between them.

use std::collections::HashSet;

use octant::tools::ToolFormat;
use serde_json::Value;

/// A call that was found in an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundCall {
    pub name: String,
    pub arguments: String,
    /// Bytes of text before it.
    pub text_before: usize,
}

/// Whether `text` and `calls` are all of an answer. Between them stand only markers and whitespace beside
/// them, brackets and separators beside calls, and other members of the objects that are calls.
pub fn rebuilds(format: ToolFormat, answer: &str, text: &str, calls: &[FoundCall]) -> bool {
    let mut search = Search { format, answer, text, calls, seen: HashSet::new() };
    search.from(Place { at: 0, text: 0, call: 0, owed: false, beside: false })
}

/// A place in the answer, with what was read before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    at: usize,
    /// Bytes of text, and calls.
    text: usize,
    call: usize,
    /// Whether a begin marker has no end marker yet.
    owed: bool,
    /// Whether a call or an end marker stands before it.
    beside: bool,
}

struct Search<'a> {
    format: ToolFormat,
    answer: &'a str,
    text: &'a str,
    calls: &'a [FoundCall],
    seen: HashSet<Place>,
}

impl Search<'_> {
    fn from(&mut self, place: Place) -> bool {
        if !self.seen.insert(place) {
            return false;
        }
        let (rest, text) = (&self.answer[place.at..], &self.text[place.text..]);
        if rest.is_empty() {
            return text.is_empty() && place.call == self.calls.len();
        }
        let next = rest.chars().next().unwrap_or_default();
        let on = |place: Place, bytes: usize| Place { at: place.at + bytes, ..place };
        let until_call = self.calls.get(place.call).map_or(text.len(), |call| call.text_before - place.text);
        if until_call > 0 && text.starts_with(next) {
            let after = Place { text: place.text + next.len_utf8(), beside: false, ..place };
            if self.from(on(after, next.len_utf8())) {
                return true;
            }
        }
        let (begin, end) = markers(self.format);
        let separator = next.is_whitespace() || ",;]".contains(next);
        if place.beside && separator && self.from(on(place, next.len_utf8())) {
            return true;
        }
        let space = rest.len() - rest.trim_start().len();
        if place.owed && rest[space..].starts_with(end) {
            let after = Place { owed: false, beside: true, ..place };
            if self.from(on(after, space + end.len())) {
                return true;
            }
        }
        if until_call > 0 || place.call == self.calls.len() {
            return false;
        }
        let marker = rest[space..].strip_prefix(begin).map(|_| space + begin.len());
        // A marker may be left out between the elements of an array, and in a format without markers.
        let starts = [marker, (place.beside || begin == TAG).then_some(0)];
        starts.into_iter().flatten().any(|skipped| {
            let before = Place { owed: place.owed || skipped > 0, ..on(place, skipped) };
            self.call(before)
        })
    }

    /// Continues after the next call, whose object stands here, after an opening bracket or none.
    fn call(&mut self, place: Place) -> bool {
        let rest = &self.answer[place.at..];
        let open = rest.trim_start_matches([' ', '\n', '[', ',']);
        if !open.starts_with('{') {
            return false;
        }
        let call = &self.calls[place.call];
        let start = place.at + rest.len() - open.len();
        let has_call = |object: &str| {
            let name = object.contains(&*call.name) || object.contains('\\');
            let escaped = Value::from(&*call.arguments).to_string();
            let arguments = [&*call.arguments, escaped.trim_matches('"')];
            name && (call.arguments == "{}" || arguments.into_iter().any(|text| object.contains(text)))
        };
        let ends: Vec<usize> = object_ends(open).into_iter().filter(|end| has_call(&open[..*end])).collect();
        ends.into_iter()
            .any(|end| self.from(Place { at: start + end, call: place.call + 1, beside: true, ..place }))
    }
}

const TAG: &str = "<|python_tag|>";

fn markers(format: ToolFormat) -> (&'static str, &'static str) {
    match format {
        ToolFormat::Hermes => ("<tool_call>", "</tool_call>"),
        ToolFormat::Nemotron => ("<toolcall>", "</toolcall>"),
        ToolFormat::NemotronNano => ("<TOOLCALL>", "</TOOLCALL>"),
        ToolFormat::Llama3 => (TAG, TAG),
    }
}

/// Where the object at the start of `text` may end: at its brace, or before it if it breaks off.
fn object_ends(text: &str) -> Vec<usize> {
    let (mut depth, mut in_string, mut escaped, mut ends) = (0, false, false, Vec::new());
    for (at, c) in text.char_indices() {
        ends.push(at);
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' | '[' => depth += 1,
            ']' if depth == 1 => return ends,
            '}' | ']' => {
                depth -= 1;
                if depth == 0 {
                    ends.push(at + 1);
                    return ends;
                }
            }
            c if c.is_whitespace() || c.is_ascii_alphanumeric() || ",:.+-".contains(c) => {}
            _ => return ends,
        }
    }
    ends.push(text.len());
    ends
}
