//! Tokenizer of a model: text to ids and back. It accepts any text and any ids without a panic.
//!
//! Encoding uses the `tokenizers` crate. Decoding is written here ([`super::vocabulary`],
//! [`super::decoding`]), because streams decode token by token and log-probabilities need the bytes of single
//! tokens.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, OffsetReferential, OffsetType};

use super::TextError;
use super::added_tokens::{AddedTokenList, AddedTokens, Counts};
use super::decoding::Decoding;
use super::files::{ListedToken, TokenizerFiles, file_error};
use super::turn_marker_guard::{Rendered, is_reserved};
use super::vocabulary::{TokenizerJsonError, Vocabulary, added_tokens};

/// A tokenizer. Share it with `Arc`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: AddedTokens,
    vocabulary: Vocabulary,
    /// Texts of the added tokens by id.
    added_texts: HashMap<u32, String>,
    /// Special tokens by name, such as `bos_token`.
    special_tokens: Map<String, Value>,
    /// `tokenizer_config.json`, with the other files' values and special tokens as text.
    configuration: Map<String, Value>,
    /// The ids of all tokens that begin or end a sequence.
    end_ids: Vec<u32>,
    /// Ids that the post-processor puts before a text, such as BOS.
    prefix: Vec<u32>,
    /// Ids that the post-processor puts after a text.
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the other files of a tokenizer if they exist: `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json` and `generation_config.json`.
    ///
    /// # Errors
    /// [`TextError::File`] if a file is missing, corrupt or not supported, or if the files contradict each
    /// other.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        // Reading takes several times the memory of what stays, in pieces side by side with it. On a thread
        // of its own these share no page with other memory, so that the allocator can return their pages to
        // the system once what stays has been copied.
        let read = std::thread::scope(|scope| scope.spawn(|| Self::read(dir)).join());
        let read = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self { inner: read.inner.clone(), ..read })
    }

    fn read(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let invalid = |error: TokenizerJsonError| file_error(&path, error);
        let TokenizerFiles { mut tokenizer, config, added, special_tokens, special, end_ids } =
            TokenizerFiles::read(dir)?;
        tokenizer["truncation"] = Value::Null;
        tokenizer["padding"] = Value::Null;
        let ids: Vec<(String, u32)> = added_tokens(&tokenizer)
            .map_err(invalid)?
            .into_iter()
            .map(|token| (token.content.to_owned(), token.id))
            .collect();
        if let Some((token, _)) = ids.iter().find(|(token, _)| is_reserved(token)) {
            return Err(invalid(TokenizerJsonError::Reserved(token.clone())));
        }
        let not_one = |error: serde_json::Error| match Vocabulary::new(&tokenizer) {
            Err(reason) => invalid(reason),
            Ok(_) => file_error(&path, format!("not a tokenizer: {error}")),
        };
        let mut inner = tokenizers::Tokenizer::deserialize(&tokenizer).map_err(not_one)?;
        let mut list = AddedTokenList::default();
        let own = Option::<Vec<AddedToken>>::deserialize(&tokenizer["added_tokens"]).map_err(not_one)?;
        list.add(&own.unwrap_or_default());
        for (token, id) in ids.into_iter().filter(|(token, _)| !token.is_empty()) {
            let got = inner.token_to_id(&token);
            if got != Some(id) {
                let message = format!("added token {token:?}: its id is {id}, but it would get {got:?}");
                return Err(file_error(&path, message));
            }
        }
        inner.set_encode_special_tokens(config["split_special_tokens"] == true);
        let add_bos = config["add_bos_token"].as_bool();
        let configuration = configuration(config, &special_tokens);
        add_tokens(&mut inner, &mut list, added)?;
        let id_of = |token: &AddedToken| inner.token_to_id(&token.content);
        let tokens = list.tokens().filter_map(|token| Some((id_of(token)?, token.content.clone())));
        let added_texts: HashMap<u32, String> = tokens.collect();
        if let Some(token) = added_texts.values().find(|token| is_reserved(token)) {
            return Err(invalid(TokenizerJsonError::Reserved(token.clone())));
        }
        let described = added_texts.iter().map(|(id, text)| {
            json!({ "id": id, "content": text, "special": list.is_special(text) || special.contains(text) })
        });
        tokenizer["added_tokens"] = described.collect();
        let vocabulary = Vocabulary::new(&tokenizer).map_err(invalid)?;
        let added = AddedTokens::new(&list, &inner).map_err(invalid)?;
        let (prefix, suffix) = (Vec::new(), Vec::new());
        let mut tokenizer = Self {
            inner,
            added,
            vocabulary,
            added_texts,
            special_tokens,
            configuration,
            end_ids,
            prefix,
            suffix,
        };
        tokenizer.end_ids.extend(tokenizer.bos().into_iter().chain(tokenizer.eos()));
        tokenizer.find_affixes(add_bos)?;
        Ok(tokenizer)
    }

    /// Highest id + 1. The model's embedding can have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// Encodes a text whose author may write whole prompts, including added tokens. Text that spells an added
    /// token is encoded as that token. Does not add a beginning-of-sequence token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, &|_, _| true)
    }

    /// The bytes of a text that each of its tokens comes from, in the order of [`Tokenizer::encode`]. Tokens
    /// that are parts of one character can all have its range.
    pub fn ranges(&self, text: &str) -> Result<Vec<Range<usize>>, TextError> {
        let split = self.added.tokenize(&self.inner, text, &|_, _| true).map_err(refused)?;
        let encoding = split.into_encoding(None, 0, OffsetType::Byte).map_err(refused)?;
        Ok(encoding.get_offsets().iter().map(|&(start, end)| start..end).collect())
    }

    /// Encodes a rendered conversation. Markers that the template wrote become special tokens; message text
    /// never does.
    ///
    /// # Errors
    /// [`TextError::Tokenize`], or [`TextError::Template`] if markers that the template wrote cannot be told
    /// from message text.
    pub fn encode_prompt(&self, rendered: &Rendered) -> Result<Vec<u32>, TextError> {
        for composed in rendered.readings() {
            let ids = self.ids(rendered.as_str(), &|id, range| rendered.counts(composed, id, range))?;
            let own = composed.neutral.as_deref().map(|neutral| self.find_added_tokens(neutral));
            let more = |id: &u32, own: &[(u32, Range<usize>)]| {
                ids.iter().filter(|got| *got == id).count() > own.iter().filter(|(own, _)| own == id).count()
            };
            if own.is_none_or(|own| !composed.ids.iter().any(|id| more(id, &own))) {
                return Ok(ids);
            }
        }
        Err(TextError::Template(rendered.refusal()))
    }

    /// The ids of a text, without the matches of added tokens that do not count.
    fn ids(&self, text: &str, counts: Counts<'_>) -> Result<Vec<u32>, TextError> {
        let split = self.added.tokenize(&self.inner, text, counts).map_err(refused)?;
        let parts = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let tokens = parts.into_iter().flat_map(|(_, _, tokens)| tokens.iter().flatten());
        Ok(tokens.map(|token| token.id).collect())
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

    /// The token as OpenAI's log-probabilities show it; see [`shown`].
    pub fn token_str(&self, id: u32) -> String {
        shown(self.vocabulary.bytes(id))
    }

    /// Whether the token is special, so that `skip_special` leaves it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The id of the token whose name in `tokenizer.json` is exactly `token`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of the beginning-of-sequence token, if the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The id of the end-of-sequence token, if the files name one.
    pub fn eos(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// The added tokens in a text, with their ids and places.
    pub(super) fn find_added_tokens(&self, text: &str) -> Vec<(u32, Range<usize>)> {
        self.added.find(&self.inner, text).unwrap_or_default()
    }

    /// Whether the normaliser has rules of its own, which can turn any text into any other text. Without them
    /// it only replaces or removes single characters that are not ASCII, control characters and spaces, or
    /// changes the case.
    pub(super) fn rewrites_text(&self) -> bool {
        const PLAIN: [&str; 10] = [
            "Sequence",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Nmt",
            "Lowercase",
            "Strip",
            "StripAccents",
            "BertNormalizer",
        ];
        fn is_plain(normalizer: &Value) -> bool {
            normalizer["type"].as_str().is_some_and(|kind| PLAIN.contains(&kind))
                && normalizer["normalizers"].as_array().into_iter().flatten().all(is_plain)
        }
        let normalizer = json!(self.inner.get_normalizer());
        !normalizer.is_null() && !is_plain(&normalizer)
    }

    /// The text of an added token, and whether it is special.
    pub(super) fn added_token(&self, id: u32) -> Option<(&str, bool)> {
        Some((self.added_texts.get(&id)?.as_str(), self.is_special(id)))
    }

    /// The ids of the tokens that begin or end a sequence.
    pub(super) fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(super) fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// `tokenizer_config.json`, with the values that other files override and with special tokens as text.
    pub(crate) fn configuration(&self) -> &Map<String, Value> {
        &self.configuration
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.token_id(self.special_tokens.get(name)?.as_str()?)
    }

    /// Finds the ids that the post-processor adds, by encoding a text with and without it. `add_bos` is
    /// `add_bos_token` of `tokenizer_config.json`, which overrides the post-processor.
    fn find_affixes(&mut self, add_bos: Option<bool>) -> Result<(), TextError> {
        let plain = self.inner.encode_fast("a", false).map_err(refused)?;
        let whole = self.inner.encode_fast("a", true).map_err(refused)?;
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

/// The tokenizer's configuration, with its special tokens as text and without the names of files.
fn configuration(mut config: Value, special_tokens: &Map<String, Value>) -> Map<String, Value> {
    let mut all = config.as_object_mut().map(std::mem::take).unwrap_or_default();
    all.retain(|name, _| !matches!(name.as_str(), "vocab_file" | "merges_file"));
    all.extend(special_tokens.clone());
    all
}

/// The bytes of a token as OpenAI's log-probabilities show them: the text, or a form such as `bytes:\xf0\x9f`
/// if they are not valid UTF-8.
pub(crate) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", escaped.collect::<String>())
        }
    }
}

/// Adds the tokens that `tokenizer.json` does not have.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    list: &mut AddedTokenList,
    tokens: Vec<ListedToken>,
) -> Result<(), TextError> {
    let new: Vec<bool> =
        tokens.iter().map(|listed| inner.token_to_id(&listed.token.content).is_none()).collect();
    let added: Vec<AddedToken> = tokens.iter().map(|listed| listed.token.clone()).collect();
    inner.add_tokens(&added);
    list.add(&added);
    for (listed, _) in tokens.iter().zip(new).filter(|(_, new)| *new) {
        let (text, got) = (&listed.token.content, inner.token_to_id(&listed.token.content));
        if let Some((path, id)) = &listed.listed
            && got != Some(*id)
        {
            let message = format!("added token {text:?}: its id is {id}, but it would get {got:?}");
            return Err(file_error(path, message));
        }
    }
    Ok(())
}

/// The error for a text that the tokenizer cannot encode.
fn refused(error: tokenizers::Error) -> TextError {
    TextError::Tokenize(error.to_string())
}
