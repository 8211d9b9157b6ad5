//! Incremental parser of server-sent events by the HTML standard: lines end in LF, CR or CRLF, a line that
//! begins with a colon is a comment, `data` lines are joined, and an empty line ends an event.
//!
//! One difference: the standard drops an event without a final empty line. [`SseParser::finish`] returns it
//! if its last line is complete, since some servers leave out the last empty line.

/// Byte order mark, ignored at the start of a stream.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Value of the `event` field; empty without one.
    pub name: &'a [u8],
    /// `data` lines, joined by LF.
    pub data: &'a [u8],
}

/// Bytes that do not form a complete event yet.
#[derive(Debug, Default)]
pub struct SseParser {
    /// Start of a line whose end has not arrived.
    partial: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// Whether the last byte was CR, so that a following LF belongs to the same line end.
    after_cr: bool,
    begun: bool,
}

impl SseParser {
    /// Parses the next bytes and calls `on_event` for each event that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(SseEvent<'_>)) {
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

    /// Ends the stream: calls `on_event` for an event that lacks only its empty line.
    pub fn finish(&mut self, mut on_event: impl FnMut(SseEvent<'_>)) {
        self.dispatch(&mut on_event);
        self.partial.clear();
    }

    fn line(&mut self, mut line: &[u8], on_event: &mut impl FnMut(SseEvent<'_>)) {
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
            // Comments have an empty field name; `id` and `retry` matter only to clients that reconnect.
            _ => {}
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        if self.has_data {
            on_event(SseEvent { name: &self.name, data: &self.data });
        }
        self.name.clear();
        self.data.clear();
        self.has_data = false;
    }
}
