//! The tokenizer of a model: text to ids and back, on any ids and any text without a panic.
//!
//! Encoding is the `tokenizers` crate's. Decoding is ours ([`super::vocabulary`]), since text has to be decoded as its
//! tokens come, and a token's bytes are needed by themselves.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::TextError;
use super::detokenizer::Decoding;
use super::guard::{self, Markers};
use super::source::{Source, file_error};
use super::template::Rendered;
use super::vocabulary::{Vocabulary, added_tokens};

/// What to do with text that spells a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It is that token: for text from who may write prompts.
    Parse,
    /// It is text like any other: for text from who may not.
    AsText,
}

/// A tokenizer, to be shared by `Arc`.
pub struct Tokenizer {
    /// Knows the markers by their disguised names only.
    inner: tokenizers::Tokenizer,
    markers: Arc<Markers>,
    vocabulary: Vocabulary,
    named: Map<String, Value>,
    /// What the post-processor puts around a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json` and `special_tokens_map.json`.
    /// Errors name the file: missing, corrupt, or of a kind not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let wrong = |message: String| file_error(&path, message);
        let Source { mut tokenizer, config, named } = Source::read(dir)?;
        let vocabulary = Vocabulary::new(&tokenizer).map_err(wrong)?;
        let markers = Arc::new(Markers::new(&tokenizer).map_err(wrong)?);
        let ids: Vec<(String, u32)> = added_tokens(&tokenizer)
            .map_err(wrong)?
            .into_iter()
            .map(|token| (token.content.to_owned(), token.id))
            .collect();
        guard::disguise(&mut tokenizer, &markers);
        tokenizer["truncation"] = Value::Null;
        tokenizer["padding"] = Value::Null;
        let inner: tokenizers::Tokenizer =
            serde_json::from_value(tokenizer).map_err(|e| wrong(format!("not a tokenizer: {e}")))?;
        let mut tokenizer =
            Self { inner, markers, vocabulary, named, prefix: Vec::new(), suffix: Vec::new() };
        for (token, id) in ids.into_iter().filter(|(token, _)| !token.is_empty()) {
            if tokenizer.token_id(&token) != Some(id) {
                let got = tokenizer.token_id(&token);
                return Err(wrong(format!(
                    "added token {token:?}: its id is {id}, but it would get {got:?}"
                )));
            }
        }
        tokenizer.find_affixes(config["add_bos_token"].as_bool())?;
        Ok(tokenizer)
    }

    /// Highest id + 1. Models may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// Ids of a text. Never adds a beginning-of-sequence token by itself.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        let text = guard::sanitize(text);
        match special {
            Special::Parse => self.encode_marked(&self.markers.mark(&text)),
            Special::AsText => self.encode_marked(&text),
        }
    }

    /// Ids of a rendered conversation: the template's own markers are special tokens, message text never is.
    pub fn encode_prompt(&self, rendered: &Rendered) -> Result<Vec<u32>, TextError> {
        self.encode_marked(&self.markers.mark(rendered.guarded()))
    }

    /// Puts around `ids` what the tokenizer puts around a text by itself, such as a beginning-of-sequence token.
    /// For plain prompts; a chat template writes its own.
    pub fn add_special(&self, ids: Vec<u32>) -> Vec<u32> {
        [self.prefix.as_slice(), &ids, &self.suffix].concat()
    }

    /// The text of `ids`; ids without a token have none. Equals Hugging Face's `decode` without
    /// `clean_up_tokenization_spaces`, but for runs of byte tokens that are partly invalid UTF-8: each malformed part is
    /// one U+FFFD here, and valid characters beside it survive.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoding = Decoding::new(&self.vocabulary, skip_special);
        let mut text = String::new();
        for &id in ids {
            decoding.push(&self.vocabulary, id, &mut text);
        }
        decoding.finish(&mut text);
        text
    }

    /// The token's bytes within a text: a leading space is there, and it need not be UTF-8 by itself. Special tokens
    /// are their names. Empty for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.vocabulary.bytes(id).to_vec()
    }

    /// The token as OpenAI writes it in log-probabilities: its text, or `bytes:\xf0\x9f` where it is not UTF-8.
    pub fn token_str(&self, id: u32) -> String {
        match std::str::from_utf8(self.vocabulary.bytes(id)) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let escaped = self.vocabulary.bytes(id).iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", escaped.collect::<String>())
            }
        }
    }

    /// Whether `skip_special` leaves it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The id of a token by its exact name, as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        if guard::is_reserved(token) {
            return None;
        }
        let name = if self.markers.contains(token) { &guard::disguised(token) } else { token };
        self.inner.token_to_id(name)
    }

    /// The beginning-of-sequence token, if the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.named_id("bos_token")
    }

    /// The end-of-sequence token, if the files name one.
    pub fn eos(&self) -> Option<u32> {
        self.named_id("eos_token")
    }

    pub(super) fn markers(&self) -> &Arc<Markers> {
        &self.markers
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(super) fn named(&self) -> &Map<String, Value> {
        &self.named
    }

    fn named_id(&self, name: &str) -> Option<u32> {
        self.token_id(self.named.get(name)?.as_str()?)
    }

    fn encode_marked(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TextError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `add_bos` is the configuration's word on it, which stands above the post-processor's.
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
