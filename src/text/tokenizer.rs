//! Tokenizer of a model: text to ids and back. It accepts any text and any ids without a panic.
//!
//! Encoding uses the `tokenizers` crate. Decoding is written here ([`super::vocabulary`],
//! [`super::decoding`]), because streams decode token by token and log-probabilities need the bytes of single
//! tokens.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::TextError;
use super::decoding::Decoding;
use super::files::{TokenizerFiles, file_error};
use super::turn_marker_guard::{self as guard, Rendered, TurnMarkers};
use super::vocabulary::{TokenizerJsonError, Vocabulary, added_tokens};

/// How to encode text that spells a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Encode it as that token. For text whose author may write whole prompts.
    Parse,
    /// Encode it as ordinary text. For text whose author may not write turn markers.
    AsText,
}

/// A tokenizer. Share it with `Arc`.
pub struct Tokenizer {
    /// Has the markers under their new names; see [`guard::rename_markers`].
    inner: tokenizers::Tokenizer,
    markers: Arc<TurnMarkers>,
    vocabulary: Vocabulary,
    /// Special tokens by name, such as `bos_token`.
    special_tokens: Map<String, Value>,
    /// Ids that the post-processor puts before a text, such as BOS.
    prefix: Vec<u32>,
    /// Ids that the post-processor puts after a text.
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `special_tokens_map.json` if they exist.
    ///
    /// # Errors
    /// [`TextError::File`] if a file is missing, corrupt or not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let invalid = |error: TokenizerJsonError| file_error(&path, error);
        let TokenizerFiles { mut tokenizer, config, special_tokens } = TokenizerFiles::read(dir)?;
        let vocabulary = Vocabulary::new(&tokenizer).map_err(invalid)?;
        let markers = Arc::new(TurnMarkers::new(&tokenizer).map_err(invalid)?);
        let ids: Vec<(String, u32)> = added_tokens(&tokenizer)
            .map_err(invalid)?
            .into_iter()
            .map(|token| (token.content.to_owned(), token.id))
            .collect();
        guard::rename_markers(&mut tokenizer, &markers);
        tokenizer["truncation"] = Value::Null;
        tokenizer["padding"] = Value::Null;
        let inner: tokenizers::Tokenizer = serde_json::from_value(tokenizer)
            .map_err(|e| file_error(&path, format!("not a tokenizer: {e}")))?;
        let mut tokenizer =
            Self { inner, markers, vocabulary, special_tokens, prefix: Vec::new(), suffix: Vec::new() };
        for (token, id) in ids.into_iter().filter(|(token, _)| !token.is_empty()) {
            let got = tokenizer.token_id(&token);
            if got != Some(id) {
                let message = format!("added token {token:?}: its id is {id}, but it would get {got:?}");
                return Err(file_error(&path, message));
            }
        }
        tokenizer.find_affixes(config["add_bos_token"].as_bool())?;
        Ok(tokenizer)
    }

    /// Highest id + 1. The model's embedding can have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// Encodes a text. Does not add a beginning-of-sequence token.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let text = guard::sanitize(text);
        match special {
            Special::Parse => self.encode_marked(&self.markers.mark(&text)),
            Special::AsText => self.encode_marked(&text),
        }
    }

    /// Encodes a rendered conversation. Markers that the template wrote become special tokens; message text
    /// never does.
    pub fn encode_prompt(&self, rendered: &Rendered) -> Result<Vec<u32>, TextError> {
        self.encode_marked(&self.markers.mark(rendered.guarded()))
    }

    /// Adds the special tokens that the tokenizer's post-processor puts around a text, such as a
    /// beginning-of-sequence token. For prompts without a chat template; a template writes these tokens
    /// itself.
    pub fn add_special(&self, ids: Vec<u32>) -> Vec<u32> {
        [self.prefix.as_slice(), &ids, &self.suffix].concat()
    }

    /// Decodes `ids`. Ids without a token have no text. The result equals that of Hugging Face's `decode`
    /// without `clean_up_tokenization_spaces`, except for runs of byte tokens that are partly invalid UTF-8:
    /// here each malformed part becomes one U+FFFD, and valid characters beside it are kept.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoding = Decoding::new(&self.vocabulary, skip_special);
        let mut text = String::new();
        for &id in ids {
            decoding.push(&self.vocabulary, id, &mut text);
        }
        decoding.finish(&mut text);
        text
    }

    /// The bytes of a token inside a text, with its leading space if it has one. They are not always valid
    /// UTF-8. The bytes of a special token are its name. Empty for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.vocabulary.bytes(id).to_vec()
    }

    /// The token as OpenAI's log-probabilities show it: its text, or a form such as `bytes:\xf0\x9f` if its
    /// bytes are not valid UTF-8.
    pub fn token_str(&self, id: u32) -> String {
        match std::str::from_utf8(self.vocabulary.bytes(id)) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let escaped = self.vocabulary.bytes(id).iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", escaped.collect::<String>())
            }
        }
    }

    /// Whether the token is special, so that `skip_special` leaves it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The id of the token whose name in `tokenizer.json` is exactly `token`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        if guard::is_reserved(token) {
            return None;
        }
        let name = if self.markers.contains(token) { &guard::renamed(token) } else { token };
        self.inner.token_to_id(name)
    }

    /// The id of the beginning-of-sequence token, if the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The id of the end-of-sequence token, if the files name one.
    pub fn eos(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    pub(super) fn markers(&self) -> &Arc<TurnMarkers> {
        &self.markers
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(super) fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.token_id(self.special_tokens.get(name)?.as_str()?)
    }

    /// Encodes text in which markers have their new names.
    fn encode_marked(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TextError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Finds the ids that the post-processor adds, by encoding a text with and without it. `add_bos` is
    /// `add_bos_token` of `tokenizer_config.json`, which overrides the post-processor.
    fn find_affixes(&mut self, add_bos: Option<bool>) -> Result<(), TextError> {
        let error = |e: tokenizers::Error| TextError::Tokenize(e.to_string());
        let plain = self.inner.encode_fast("a", false).map_err(error)?;
        let whole = self.inner.encode_fast("a", true).map_err(error)?;
        let (plain, whole) = (plain.get_ids(), whole.get_ids());
        if let Some(at) = whole.windows(plain.len().max(1)).position(|window| window == plain) {
            self.prefix = whole[..at].to_vec();
            self.suffix = whole[at + plain.len()..].to_vec();
        }
        if let Some((bos, add)) = self.bos().zip(add_bos) {
            self.prefix.retain(|&id| id != bos);
            if add {
                self.prefix.insert(0, bos);
            }
        }
        Ok(())
    }
}
