//! Finds tool calls in the text of an answer, in pieces. The result does not depend on how the text is
//! divided, and all text that is no call is passed on, once.
//!
//! Whitespace beside a marker belongs to the format and is dropped. If what follows a marker is no call, it
//! is text, with its marker.

use std::sync::Arc;

use super::format::{Markers, ToolFormat};
use super::object::{CallScanner, Scanned};

/// A part of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Index of the call in the answer.
    pub call: usize,
    /// Name of the function, in the call's first part.
    pub name: Option<String>,
    /// New characters of the arguments, which are JSON.
    pub arguments: String,
    /// Bytes of text that were passed on before the part.
    pub text_before: usize,
}

/// Finds the calls of one answer.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: ToolFormat,
    /// Names of the tools. A format without markers needs them to tell calls from other objects.
    names: Arc<[String]>,
    state: State,
    /// Text that may belong to a marker, after whitespace that may stand beside one.
    held: String,
    /// Whether an end marker may follow.
    end_expected: bool,
    /// Whether the whitespace in `held` stands after an end marker.
    after_marker: bool,
    /// Calls that have begun.
    calls: usize,
}

#[derive(Debug, Clone)]
enum State {
    /// Text, in which a call may begin.
    Text,
    /// Text to the end: the format has calls only at the answer's start.
    TextToEnd,
    /// A call, after its marker.
    Call(Box<OpenCall>),
    /// After a call of a format without markers: another may follow.
    Between,
}

/// A call that is read.
#[derive(Debug, Clone)]
struct OpenCall {
    scanner: CallScanner,
    /// The text of the call so far, with its marker, until it is known to be one.
    raw: String,
    /// Index of the call, once its name is known.
    index: Option<usize>,
    /// Whether the call is an element of an array.
    in_array: bool,
    /// Whether an earlier element of the array was a call.
    after_call: bool,
}

impl OpenCall {
    /// A call after its marker, which is in `raw`.
    fn new(raw: String) -> Self {
        Self { scanner: CallScanner::new(), raw, index: None, in_array: false, after_call: false }
    }

    /// The next element of an array, after a call.
    fn next_in_array() -> Self {
        Self { in_array: true, after_call: true, ..Self::new(String::new()) }
    }
}

impl ToolCallParser {
    /// A parser at the start of an answer. `names` are the names of the tools.
    pub fn new(format: ToolFormat, names: Arc<[String]>) -> Self {
        let state = State::Text;
        Self { format, names, state, held: String::new(), end_expected: false, after_marker: false, calls: 0 }
    }

    /// Calls that have begun so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Reads more text. Appends text that belongs to no call to `text`, and parts of calls to `calls`.
    pub fn push(&mut self, piece: &str, text: &mut String, calls: &mut Vec<ToolCallDelta>) {
        for c in piece.chars() {
            self.character(c, text, calls);
        }
    }

    /// Ends the answer. Appends text that was held back.
    pub fn finish(&mut self, text: &mut String) {
        match &self.state {
            // A separator is no text.
            State::Call(open) if open.after_call && open.raw.trim_matches([',', ' ', '\n']).is_empty() => {}
            State::Call(open) if open.index.is_none() => text.push_str(&open.raw),
            State::Call(_) | State::Between => {}
            State::Text if self.after_marker && self.held.trim().is_empty() => {}
            State::Text | State::TextToEnd => text.push_str(&self.held),
        }
        self.held.clear();
        self.state = State::TextToEnd;
    }

    fn character(&mut self, c: char, text: &mut String, calls: &mut Vec<ToolCallDelta>) {
        match &self.state {
            State::TextToEnd => text.push(c),
            State::Call(_) => self.in_call(c, text, calls),
            State::Between => self.between(c, text),
            State::Text if self.format.is_bare() => self.at_start(c, text),
            State::Text => {
                self.held.push(c);
                self.match_markers(text);
            }
        }
    }

    /// Releases text that belongs to no marker, and acts on a complete marker.
    fn match_markers(&mut self, text: &mut String) {
        let Markers { begin, end, .. } = self.format.markers();
        loop {
            let rest = self.held.trim_start();
            if rest.is_empty() {
                return;
            }
            if rest == begin {
                let raw = std::mem::take(&mut self.held);
                (self.end_expected, self.after_marker) = (true, false);
                self.state = State::Call(Box::new(OpenCall::new(raw)));
                return;
            }
            if self.end_expected && rest == end {
                self.held.clear();
                (self.end_expected, self.after_marker) = (false, true);
                return;
            }
            if begin.starts_with(rest) || (self.end_expected && end.starts_with(rest)) {
                return;
            }
            let space = self.held.len() - rest.len();
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let dropped = if std::mem::take(&mut self.after_marker) { space } else { 0 };
            text.push_str(&self.held[dropped..space + first]);
            self.held.drain(..space + first);
        }
    }

    /// The start of an answer in a format without markers.
    fn at_start(&mut self, c: char, text: &mut String) {
        const TAG: &str = "<|python_tag|>";
        self.held.push(c);
        let rest = self.held.trim_start();
        let after_tag = rest.strip_prefix(TAG).map(str::trim_start);
        if rest == "{" || after_tag == Some("{") {
            let raw = std::mem::take(&mut self.held);
            let mut open = OpenCall::new(raw);
            open.scanner.push('{');
            self.state = State::Call(Box::new(open));
        } else if !TAG.starts_with(rest) && after_tag != Some("") {
            text.push_str(&std::mem::take(&mut self.held));
            self.state = State::TextToEnd;
        }
    }

    /// After a call of a format without markers.
    fn between(&mut self, c: char, text: &mut String) {
        self.held.push(c);
        if c == '{' {
            let mut open = OpenCall::new(std::mem::take(&mut self.held));
            open.scanner.push('{');
            self.state = State::Call(Box::new(open));
        } else if !(c == ';' || c.is_whitespace()) {
            text.push_str(&std::mem::take(&mut self.held));
            self.state = State::TextToEnd;
        }
    }

    fn in_call(&mut self, c: char, text: &mut String, calls: &mut Vec<ToolCallDelta>) {
        let State::Call(open) = &mut self.state else { return };
        if open.index.is_none() {
            open.raw.push(c);
        }
        // An array of calls begins, goes on or ends between its elements.
        if open.scanner.is_new() && !self.format.is_bare() {
            match c {
                '[' if !open.in_array => {
                    open.in_array = true;
                    return;
                }
                ',' if open.in_array => return,
                ']' if open.after_call => {
                    self.state = State::Text;
                    return;
                }
                // An array without a call.
                ']' if open.in_array => return self.no_call(text, calls),
                _ => {}
            }
        }
        let scanned = open.scanner.push(c);
        if let (None, Some(name)) = (open.index, &open.scanner.name) {
            let known = !self.format.is_bare() || self.names.contains(name);
            if !known {
                return self.no_call(text, calls);
            }
            open.index = Some(self.calls);
            open.raw.clear();
            let name = Some(name.clone());
            let (arguments, text_before) = (String::new(), text.len());
            calls.push(ToolCallDelta { call: self.calls, name, arguments, text_before });
            self.calls += 1;
        }
        if let Some(call) = open.index {
            let mut arguments = open.scanner.take_arguments();
            if scanned == Scanned::Closed && !open.scanner.has_arguments {
                arguments.push_str("{}");
            }
            add_arguments(calls, call, arguments, text.len());
        }
        let foreign = self.format.is_bare() && open.scanner.unknown_member;
        match (scanned, open.index) {
            (Scanned::Open, None) if foreign => self.no_call(text, calls),
            (Scanned::Open, _) => {}
            (Scanned::Broken | Scanned::Closed, None) => self.no_call(text, calls),
            (Scanned::Closed, Some(_)) => self.close(),
            (Scanned::Broken, Some(_)) => {
                // The rest of the call is not JSON: it is text.
                self.state = if self.format.is_bare() { State::TextToEnd } else { State::Text };
                self.character(c, text, calls);
            }
        }
    }

    /// Ends a complete call.
    fn close(&mut self) {
        let State::Call(open) = &self.state else { return };
        self.state = match (self.format.is_bare(), open.in_array) {
            (true, _) => State::Between,
            (_, true) => State::Call(Box::new(OpenCall::next_in_array())),
            (_, false) => State::Text,
        };
    }

    /// Passes on what looked like a call as text. Its last character may begin a marker.
    fn no_call(&mut self, text: &mut String, calls: &mut Vec<ToolCallDelta>) {
        let State::Call(open) = &mut self.state else { return };
        let mut raw = std::mem::take(&mut open.raw);
        let last = raw.pop();
        text.push_str(&raw);
        self.end_expected = false;
        self.state = if self.format.is_bare() { State::TextToEnd } else { State::Text };
        if let Some(last) = last {
            self.character(last, text, calls);
        }
    }
}

/// Appends characters to the arguments of a call.
fn add_arguments(calls: &mut Vec<ToolCallDelta>, call: usize, arguments: String, text_before: usize) {
    match calls.last_mut() {
        _ if arguments.is_empty() => {}
        Some(last) if last.call == call => last.arguments.push_str(&arguments),
        _ => calls.push(ToolCallDelta { call, name: None, arguments, text_before }),
    }
}
