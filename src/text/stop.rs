//! Stop strings in a stream of text. A match can span pushes; only text that could become a stop string is
//! held back.
//!
//! Each stop string has a Knuth-Morris-Pratt automaton, so the time per byte is constant for each string. The
//! text ends at the stop string that is complete first, byte by byte. If two end at the same byte, the longer
//! one wins. The result therefore does not depend on how the text is divided into pushes.

/// Finds the first stop string in a stream.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<StopString>,
    include: bool,
    /// Text that was pushed and not yet returned: a prefix of a stop string.
    held: String,
    done: bool,
}

/// Result of a push.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that cannot be part of a later stop string. If stop strings are included, it ends with the
    /// matched one.
    pub text: String,
    /// The stop string that ended the text. Later pushes return empty text.
    pub matched: Option<String>,
}

#[derive(Debug, Clone)]
struct StopString {
    text: String,
    /// `fallback[i]` is the length in bytes of the longest proper prefix of `text` that `text[..=i]` ends
    /// with.
    fallback: Vec<usize>,
    /// Length in bytes of the longest prefix of `text` that the stream ends with.
    matched: usize,
}

impl StopString {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut length = 0;
        for i in 1..bytes.len() {
            while length > 0 && bytes[i] != bytes[length] {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[i] == bytes[length]);
            fallback[i] = length;
        }
        Self { text, fallback, matched: 0 }
    }

    /// Takes the next byte of the stream. Returns whether it completes the string.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

impl StopMatcher {
    /// Creates a matcher. `include`: whether the text keeps the stop string that ended it. Empty stop strings
    /// are ignored, because they would match at once.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(StopString::new).collect();
        Self { stops, include, held: String::new(), done: false }
    }

    /// Takes the next piece of text. Returns the text that can be output now, and the stop string if one is
    /// complete.
    pub fn push(&mut self, delta: &str) -> StopStep {
        if self.done {
            return StopStep::default();
        }
        let before = self.held.len();
        self.held.push_str(delta);
        for (i, byte) in delta.bytes().enumerate() {
            // Every automaton has to take every byte, so this loop does not end at the first match.
            let mut complete: Option<&str> = None;
            for stop in &mut self.stops {
                if stop.advance(byte) && complete.is_none_or(|best| best.len() < stop.text.len()) {
                    complete = Some(&stop.text);
                }
            }
            if let Some(stop) = complete {
                let matched = stop.to_owned();
                return self.end(before + i + 1, matched);
            }
        }
        // A prefix of a stop string starts with a whole character, so this cuts between characters.
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let text = self.held.drain(..self.held.len() - keep).collect();
        StopStep { text, matched: None }
    }

    /// Ends the text. Returns the text that was held back; empty if a stop string ended the text.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }

    fn end(&mut self, end: usize, matched: String) -> StopStep {
        self.done = true;
        let mut text = std::mem::take(&mut self.held);
        text.truncate(if self.include { end } else { end - matched.len() });
        StopStep { text, matched: Some(matched) }
    }
}
