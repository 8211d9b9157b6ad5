//! Server-sent events out of bytes that arrive in any pieces, as the HTML standard describes them: lines end in LF, CR
//! or CRLF, a line that begins with a colon is a comment, several `data` lines are joined, an empty line ends an event.
//!
//! One place is more lenient than the standard, which drops an event that the stream's end cuts off: [`Parser::finish`]
//! hands out data whose line was complete, for servers that leave out the last empty line.

/// The bytes with which a stream may begin, to be ignored.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its `event` field; empty if it has none.
    pub name: &'a [u8],
    /// Its `data` lines, with LF between them.
    pub data: &'a [u8],
}

/// What has arrived and is no event yet.
#[derive(Debug, Default)]
pub struct Parser {
    /// A line that has no end yet.
    partial: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: a LF that follows is of the same line end.
    after_cr: bool,
    begun: bool,
}

impl Parser {
    /// Takes the next bytes and hands out the events that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            if self.partial.is_empty() {
                self.line(&bytes[..at], &mut on_event);
            } else {
                let mut line = std::mem::take(&mut self.partial);
                line.extend_from_slice(&bytes[..at]);
                self.line(&line, &mut on_event);
                line.clear();
                self.partial = line;
            }
            let rest = &bytes[at + 1..];
            self.after_cr = bytes[at] == b'\r' && rest.is_empty();
            bytes = if bytes[at] == b'\r' { rest.strip_prefix(b"\n").unwrap_or(rest) } else { rest };
        }
        self.partial.extend_from_slice(bytes);
    }

    /// The stream has ended: hands out an event that lacks only its empty line.
    pub fn finish(&mut self, mut on_event: impl FnMut(Event<'_>)) {
        self.dispatch(&mut on_event);
        self.partial.clear();
    }

    fn line(&mut self, mut line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(on_event);
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            // Comments have an empty field; `id` and `retry` are for clients that reconnect.
            _ => {}
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if self.has_data {
            on_event(Event { name: &self.name, data: &self.data });
        }
        self.name.clear();
        self.data.clear();
        self.has_data = false;
    }
}
