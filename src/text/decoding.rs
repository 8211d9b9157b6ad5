//! Incremental decoding of one sequence: token ids to whole characters.

use std::borrow::Cow;

use super::vocabulary::{LeadingSpaces, Vocabulary};

/// State of decoding one sequence.
pub(super) struct Decoding {
    skip_special: bool,
    /// Spaces that are still to be removed at the beginning of the text.
    leading: LeadingSpaces,
    /// First bytes of an incomplete character; at most three.
    pending: Vec<u8>,
}

impl Decoding {
    /// Starts a text. `skip_special`: whether special tokens have no text.
    pub(super) fn new(vocabulary: &Vocabulary, skip_special: bool) -> Self {
        Self { skip_special, leading: vocabulary.leading_spaces(), pending: Vec::new() }
    }

    /// Continues the text of `prompt`, which is not output. If the prompt ends within a character, its first
    /// bytes are pending.
    pub(super) fn after(vocabulary: &Vocabulary, skip_special: bool, prompt: &[u32]) -> Self {
        let mut decoding = Self::new(vocabulary, skip_special);
        for &id in prompt {
            if decoding.leading == LeadingSpaces::Keep {
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

    /// Appends the characters that `id` completes to `text`. Invalid UTF-8 becomes U+FFFD.
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

    /// Ends the text: appends U+FFFD if it ends within a character.
    pub(super) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }

    /// The bytes of a token as they would stand in the text if it came now: without leading spaces at the
    /// beginning of the text. Those of a special token are its name, even if it has no text.
    pub(super) fn shown<'v>(&self, vocabulary: &'v Vocabulary, id: u32) -> Cow<'v, [u8]> {
        if self.skip_special && vocabulary.is_special(id) {
            return vocabulary.bytes(id).into();
        }
        self.stripped(vocabulary, id).0
    }

    /// The bytes that `id` adds to the text: those of the token, without leading spaces at the beginning of
    /// the text.
    fn bytes<'v>(&mut self, vocabulary: &'v Vocabulary, id: u32) -> Cow<'v, [u8]> {
        if self.skip_special && vocabulary.is_special(id) {
            return (&[]).into();
        }
        let (bytes, leading) = self.stripped(vocabulary, id);
        self.leading = leading;
        bytes
    }

    /// The bytes of a token without the leading spaces that are removed here, and what is to be removed after
    /// it.
    fn stripped<'v>(&self, vocabulary: &'v Vocabulary, id: u32) -> (Cow<'v, [u8]>, LeadingSpaces) {
        let bytes = vocabulary.bytes(id);
        match self.leading {
            LeadingSpaces::Keep => (bytes.into(), LeadingSpaces::Keep),
            LeadingSpaces::Strip(most) => {
                let spaces = bytes.iter().take(most).take_while(|&&byte| byte == b' ').count();
                let begun = spaces < bytes.len() || spaces == most;
                let leading = if begun { LeadingSpaces::Keep } else { LeadingSpaces::Strip(most - spaces) };
                (bytes[spaces..].into(), leading)
            }
            LeadingSpaces::StripFirstToken => {
                let leading = if vocabulary.has(id) { LeadingSpaces::Keep } else { self.leading };
                if vocabulary.is_added(id) {
                    return (bytes.into(), leading);
                }
                (bytes.iter().copied().filter(|&byte| byte != b' ').collect::<Vec<u8>>().into(), leading)
            }
        }
    }
}

/// The end of `bytes` that is the beginning of an incomplete character; empty if `bytes` ends with a whole
/// character.
fn incomplete_tail(bytes: &[u8]) -> &[u8] {
    (1..=bytes.len().min(3))
        .map(|length| &bytes[bytes.len() - length..])
        .find(|tail| {
            std::str::from_utf8(tail).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(&[])
}
