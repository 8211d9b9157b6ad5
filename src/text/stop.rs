//! Stop strings in a stream of text: finds them across the boundaries of pushes, holding back no more than what could
//! still become one.
//!
//! One Knuth-Morris-Pratt automaton per string, so that each byte is looked at once per string whatever the strings
//! are. The text ends at the stop string that is complete first, as if the text came a byte at a time; of two that end
//! together the longer wins. How the text is cut into pushes therefore changes nothing.

/// Finds the first stop string in a stream.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    include: bool,
    /// Text seen and not yet given back: a prefix of some stop string.
    held: String,
    done: bool,
}

/// What a push yields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is certain to precede every stop string; with `include`, ends with the one matched.
    pub text: String,
    /// The stop string that ended the text. Later pushes yield nothing.
    pub matched: Option<String>,
}

#[derive(Debug, Clone)]
struct Stop {
    text: String,
    /// `fallback[i]`: the longest proper prefix of `text` that ends `text[..=i]`, in bytes.
    fallback: Vec<usize>,
    /// How many bytes of `text` the stream ends with.
    matched: usize,
}

impl Stop {
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

    /// Whether `byte` completes the string.
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
    /// Empty strings are ignored: they would stop everything. `include` keeps the stop string in the text.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Stop::new).collect();
        Self { stops, include, held: String::new(), done: false }
    }

    /// Takes the next piece of text and returns what of all text so far can be shown, and whether it ends here.
    pub fn push(&mut self, delta: &str) -> StopStep {
        if self.done {
            return StopStep::default();
        }
        let before = self.held.len();
        self.held.push_str(delta);
        for (i, byte) in delta.bytes().enumerate() {
            // Every automaton has to see every byte.
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

    /// The text ends: what was held back after all. Nothing if it ended with a stop string.
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
