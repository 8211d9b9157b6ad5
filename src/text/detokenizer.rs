//! Incremental detokenizer: token ids of one sequence to text, as they are generated.
//!
//! Text is output in whole characters. The bytes of a character can span tokens, so up to three bytes wait
//! until they complete a character or turn out to be invalid. A push takes time proportional to the length of
//! its token and not of the text. [`Tokenizer::decode`] runs the same code, so streamed and whole text are
//! equal.

use std::sync::Arc;

use super::decoding::Decoding;
use super::tokenizer::Tokenizer;

/// Turns the ids of one sequence into text, incrementally.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    decoding: Decoding,
}

impl Detokenizer {
    /// Starts after the ids of `prompt`, whose text is not output. If the prompt has text, the first
    /// generated token keeps its leading space. If the prompt ends within a character, the output begins with
    /// that character. `skip_special`: whether special tokens have no text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool, prompt: &[u32]) -> Self {
        let decoding = Decoding::after(tokenizer.vocabulary(), skip_special, prompt);
        Self { tokenizer, decoding }
    }

    /// Adds a token. Returns the characters that it completes; this can be an empty string.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.decoding.push(self.tokenizer.vocabulary(), id, &mut text);
        text
    }

    /// The bytes of a token as they would stand in the text if it came now: without the leading spaces that
    /// are removed at the beginning of a text. Those of a special token are its name, even if it has no text.
    pub(crate) fn shown_bytes(&self, id: u32) -> Vec<u8> {
        self.decoding.shown(self.tokenizer.vocabulary(), id).into_owned()
    }

    /// Ends the text. Returns U+FFFD if it ends within a character, else an empty string.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoding.finish(&mut text);
        text
    }
}
