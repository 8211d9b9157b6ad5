//! Table from token id to bytes, and the rule for spaces at the beginning of a text.
//!
//! `tokenizer.json` describes its decoder as a chain of operations on strings. For the supported tokenizers,
//! the chain determines two things: the bytes of each token, which do not depend on its neighbours, and the
//! spaces that are removed at the beginning of a text. The first is a table built at start-up, the second is
//! [`LeadingSpaces`]. With both, decoding takes constant time per token.

use serde_json::Value;

/// A `tokenizer.json` that cannot be used. The operator has to replace the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenizerJsonError {
    #[error("the vocabulary is empty")]
    EmptyVocabulary,
    #[error("the highest id is {highest}, but the model's vocabulary has {pieces} tokens")]
    SparseIds { highest: usize, pieces: usize },
    #[error("an added token has no id or content")]
    AddedToken,
    #[error("model.vocab is not a vocabulary")]
    Vocabulary,
    #[error("the decoder has a part that is not supported: {0}")]
    Decoder(Value),
    #[error("the added token {0:?} contains a reserved noncharacter")]
    Reserved(String),
    #[error("the added tokens cannot be searched for: {0}")]
    Search(#[from] aho_corasick::BuildError),
    #[error("the added tokens cannot be searched for: {0}")]
    Normalizer(String),
    #[error("the normalizer removes all of the added token {0:?}, which has \"normalized\": true")]
    EmptyToken(String),
}

/// Bytes and kind of every token id.
pub(super) struct Vocabulary {
    /// The bytes of all tokens, in the order of their ids.
    bytes: Vec<u8>,
    /// Id i is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    leading: LeadingSpaces,
}

/// Spaces that are removed at the beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingSpaces {
    /// Removes none.
    Keep,
    /// Removes at most this number of spaces.
    Strip(usize),
    /// Removes all spaces of the first token.
    StripFirstToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    /// No token has this id.
    Unassigned,
    /// A piece of the model's vocabulary.
    Piece,
    /// An added token that is not special.
    Added,
    /// A special added token.
    Special,
}

/// Rules that turn a piece of the model's vocabulary into bytes.
struct DecoderRules {
    /// Whether each character of a piece stands for a byte (GPT-2's alphabet).
    byte_level: bool,
    /// Whether a piece `<0xNN>` stands for a byte.
    byte_fallback: bool,
    replace: Vec<Replacement>,
    leading: LeadingSpaces,
}

/// A string that is replaced wherever it occurs in a piece.
struct Replacement {
    from: String,
    to: String,
}

impl Vocabulary {
    /// Builds the table from a parsed `tokenizer.json`.
    ///
    /// # Errors
    /// If a part of the file is malformed or not supported.
    pub(super) fn new(tokenizer: &Value) -> Result<Self, TokenizerJsonError> {
        let rules = DecoderRules::new(&tokenizer["decoder"])?;
        let pieces = pieces(&tokenizer["model"]["vocab"])?;
        let added = added_tokens(tokenizer)?;
        let size = pieces.iter().map(|&(id, _)| id).chain(added.iter().map(|added| added.id)).max();
        let size = size.ok_or(TokenizerJsonError::EmptyVocabulary)? as usize + 1;
        // Ids index an array, so a corrupt id must not make it allocate all memory.
        if size > 2 * (pieces.len() + added.len()) + (1 << 20) {
            return Err(TokenizerJsonError::SparseIds { highest: size - 1, pieces: pieces.len() });
        }
        let mut table = vec![(TokenKind::Unassigned, Vec::new()); size];
        for (id, piece) in pieces {
            table[id as usize] = (TokenKind::Piece, rules.piece_bytes(piece));
        }
        for token in added {
            let kind = if token.special { TokenKind::Special } else { TokenKind::Added };
            table[token.id as usize] = (kind, rules.added_token_bytes(token.content));
        }
        let mut vocabulary =
            Self { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), leading: rules.leading };
        for (kind, bytes) in table {
            vocabulary.bytes.extend_from_slice(&bytes);
            vocabulary.ends.push(vocabulary.bytes.len());
            vocabulary.kinds.push(kind);
        }
        Ok(vocabulary)
    }

    /// Highest id + 1.
    pub(super) fn size(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; empty for an unassigned id.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id) {
            None => &[],
            Some(&end) => &self.bytes[if id == 0 { 0 } else { self.ends[id - 1] }..end],
        }
    }

    pub(super) fn leading_spaces(&self) -> LeadingSpaces {
        self.leading
    }

    /// Whether a token has this id.
    pub(super) fn has(&self, id: u32) -> bool {
        self.kind(id) != TokenKind::Unassigned
    }

    pub(super) fn is_added(&self, id: u32) -> bool {
        matches!(self.kind(id), TokenKind::Added | TokenKind::Special)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.kind(id) == TokenKind::Special
    }

    fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unassigned)
    }
}

/// An entry of `added_tokens` in `tokenizer.json`.
pub(super) struct AddedToken<'j> {
    pub(super) id: u32,
    pub(super) content: &'j str,
    pub(super) special: bool,
}

/// The added tokens of a parsed `tokenizer.json`.
pub(super) fn added_tokens(tokenizer: &Value) -> Result<Vec<AddedToken<'_>>, TokenizerJsonError> {
    let list = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|token| {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (id, content) = id.zip(token["content"].as_str()).ok_or(TokenizerJsonError::AddedToken)?;
            Ok(AddedToken { id, content, special: token["special"].as_bool().unwrap_or(false) })
        })
        .collect()
}

/// All (id, piece) pairs of `model.vocab`, which maps pieces to ids (BPE, WordPiece, WordLevel) or lists
/// pieces in the order of their ids (Unigram).
fn pieces(vocab: &Value) -> Result<Vec<(u32, &str)>, TokenizerJsonError> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let pieces: Option<Vec<_>> = match vocab {
        Value::Object(map) => map.iter().map(|(piece, i)| Some((id(i)?, piece.as_str()))).collect(),
        Value::Array(list) => list.iter().zip(0..).map(|(entry, i)| Some((i, entry[0].as_str()?))).collect(),
        _ => None,
    };
    pieces.ok_or(TokenizerJsonError::Vocabulary)
}

impl DecoderRules {
    fn new(decoder: &Value) -> Result<Self, TokenizerJsonError> {
        let leading = LeadingSpaces::Keep;
        let mut rules = Self { byte_level: false, byte_fallback: false, replace: Vec::new(), leading };
        match decoder["type"].as_str() {
            Some("Sequence") => {
                for part in decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice) {
                    rules.add(part)?;
                }
            }
            _ => rules.add(decoder)?,
        }
        Ok(rules)
    }

    /// Adds one operation of the decoder's chain.
    fn add(&mut self, decoder: &Value) -> Result<(), TokenizerJsonError> {
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("Replace") if decoder["pattern"]["String"].is_string() => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (from, to) = (text(&decoder["pattern"]["String"]), text(&decoder["content"]));
                self.replace.push(Replacement { from, to });
            }
            Some("Strip") if decoder["content"] == " " && decoder["stop"] == 0 => {
                self.leading = LeadingSpaces::Strip(decoder["start"].as_u64().unwrap_or(0) as usize);
            }
            Some("Metaspace") => {
                let from = decoder["replacement"].as_str().unwrap_or("\u{2581}").to_owned();
                self.replace.push(Replacement { from, to: " ".to_owned() });
                let never = decoder["prepend_scheme"] == "never" || decoder["add_prefix_space"] == false;
                self.leading = if never { LeadingSpaces::Keep } else { LeadingSpaces::StripFirstToken };
            }
            _ => return Err(TokenizerJsonError::Decoder(decoder.clone())),
        }
        Ok(())
    }

    /// The bytes of a piece of the model's vocabulary.
    fn piece_bytes(&self, piece: &str) -> Vec<u8> {
        if self.byte_level
            && let Some(bytes) = piece.chars().map(byte_of).collect()
        {
            return bytes;
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(piece)
        {
            return vec![byte];
        }
        self.added_token_bytes(piece)
    }

    /// The bytes of an added token. Its content is plain text even if pieces use GPT-2's alphabet.
    fn added_token_bytes(&self, content: &str) -> Vec<u8> {
        if self.byte_fallback
            && let Some(byte) = fallback_byte(content)
        {
            return vec![byte];
        }
        let mut text = content.to_owned();
        for rule in self.replace.iter().filter(|rule| !rule.from.is_empty()) {
            text = text.replace(&rule.from, &rule.to);
        }
        text.into_bytes()
    }
}

/// The byte that a piece `<0xNN>` stands for.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character of GPT-2's alphabet stands for. Printable characters of Latin-1 stand for
/// themselves, and U+0100 to U+0143 for the other 68 bytes in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}
