//! Ids to text as they come.
//!
//! The text of a token is bytes, and a character may span tokens, so bytes wait until they are a character or can no
//! longer become one; at most three wait. Each push costs what its token is long, however long the text has become.
//! [`Tokenizer::decode`] is the same code run to the end, so the two cannot differ.

use std::sync::Arc;

use super::tokenizer::Tokenizer;
use super::vocabulary::{Lead, Vocabulary};

/// Turns one sequence's ids into text, incrementally.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    decoding: Decoding,
}

impl Detokenizer {
    /// `skip_special`: special tokens have no text. `prompt`: what the text continues. Where it has any text, the
    /// first token keeps its leading space; where it ends within a character, the output begins with that character.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool, prompt: &[u32]) -> Self {
        let decoding = Decoding::after(tokenizer.vocabulary(), skip_special, prompt);
        Self { tokenizer, decoding }
    }

    /// The text that `id` makes certain: whole characters only, possibly none.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.decoding.push(self.tokenizer.vocabulary(), id, &mut text);
        text
    }

    /// The text ends: U+FFFD if it ended within a character.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoding.finish(&mut text);
        text
    }
}

/// The state of decoding one sequence.
pub(super) struct Decoding {
    skip_special: bool,
    /// What is still to be left out where the text begins.
    lead: Lead,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl Decoding {
    pub(super) fn new(vocabulary: &Vocabulary, skip_special: bool) -> Self {
        Self { skip_special, lead: vocabulary.lead(), pending: Vec::new() }
    }

    fn after(vocabulary: &Vocabulary, skip_special: bool, prompt: &[u32]) -> Self {
        let mut decoding = Self::new(vocabulary, skip_special);
        for &id in prompt {
            if decoding.lead == Lead::None {
                break;
            }
            decoding.bytes(vocabulary, id);
        }
        let mut tail = Vec::new();
        for &id in prompt.iter().rev() {
            if tail.len() > 3 {
                break;
            }
            if !(skip_special && vocabulary.is_special(id)) {
                tail.splice(0..0, vocabulary.bytes(id).iter().copied());
            }
        }
        decoding.pending = incomplete_tail(&tail).to_vec();
        decoding
    }

    pub(super) fn push(&mut self, vocabulary: &Vocabulary, id: u32, text: &mut String) {
        let bytes = self.bytes(vocabulary, id);
        self.pending.extend_from_slice(&bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(length) = error.error_len() else {
                        rest = bad;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    pub(super) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }

    /// The bytes that `id` adds here, which at the start of the text is less than the token's own.
    fn bytes<'v>(&mut self, vocabulary: &'v Vocabulary, id: u32) -> std::borrow::Cow<'v, [u8]> {
        if self.skip_special && vocabulary.is_special(id) {
            return (&[]).into();
        }
        let bytes = vocabulary.bytes(id);
        match self.lead {
            Lead::None => bytes.into(),
            Lead::Strip(most) => {
                let spaces = bytes.iter().take(most).take_while(|&&byte| byte == b' ').count();
                let begun = spaces < bytes.len();
                self.lead = if begun || spaces == most { Lead::None } else { Lead::Strip(most - spaces) };
                bytes[spaces..].into()
            }
            Lead::FirstToken => {
                if vocabulary.has(id) {
                    self.lead = Lead::None;
                }
                if vocabulary.is_added(id) {
                    return bytes.into();
                }
                bytes.iter().copied().filter(|&byte| byte != b' ').collect::<Vec<u8>>().into()
            }
        }
    }
}

/// The end of `bytes` that is the beginning of a character.
fn incomplete_tail(bytes: &[u8]) -> &[u8] {
    (1..=bytes.len().min(3))
        .map(|length| &bytes[bytes.len() - length..])
        .find(|tail| {
            std::str::from_utf8(tail).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(&[])
}
