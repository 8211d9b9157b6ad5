//! What each id stands for, in bytes, and how the bytes of a sequence join.
//!
//! `tokenizer.json` describes its decoder as a chain of operations on strings. The chains of the tokenizers served
//! here say two things: what bytes a token is, whatever stands beside it, and what is left out where a text begins. The first is
//! a table made once, the second is [`Lead`]; both together decode in constant time per token.

use serde_json::Value;

/// Id to bytes, for every id of the tokenizer.
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Id i is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
    kinds: Vec<Kind>,
    lead: Lead,
}

/// What is left out at the beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    /// Nothing.
    None,
    /// So many spaces, where there are as many.
    Strip(usize),
    /// All spaces of the first token.
    FirstToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id.
    Gap,
    Piece,
    Added,
    Special,
}

/// How a piece of the model's vocabulary is spelled.
struct Spelling {
    /// Each byte as a printable character (GPT-2's alphabet).
    byte_level: bool,
    /// `<0xNN>` is a byte.
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    lead: Lead,
}

impl Vocabulary {
    /// From a parsed `tokenizer.json`; the error says which part of it is not supported.
    pub(super) fn new(tokenizer: &Value) -> Result<Self, String> {
        let spelling = Spelling::of(&tokenizer["decoder"])?;
        let pieces = pieces(&tokenizer["model"]["vocab"])?;
        let added = added_tokens(tokenizer)?;
        let size = pieces.iter().map(|&(id, _)| id).chain(added.iter().map(|added| added.id)).max();
        let size = size.ok_or("the vocabulary is empty")? as usize + 1;
        // Ids index an array; a corrupt one must not allocate all memory.
        if size > 2 * (pieces.len() + added.len()) + (1 << 20) {
            return Err(format!("the highest id is {}, but there are {} tokens", size - 1, pieces.len()));
        }
        let mut table = vec![(Kind::Gap, Vec::new()); size];
        for (id, piece) in pieces {
            table[id as usize] = (Kind::Piece, spelling.bytes(piece));
        }
        for token in added {
            let kind = if token.special { Kind::Special } else { Kind::Added };
            table[token.id as usize] = (kind, spelling.added(token.content));
        }
        let mut vocabulary =
            Self { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), lead: spelling.lead };
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

    /// Nothing for an id that no token has.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id) {
            None => &[],
            Some(&end) => &self.bytes[if id == 0 { 0 } else { self.ends[id - 1] }..end],
        }
    }

    pub(super) fn lead(&self) -> Lead {
        self.lead
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.kind(id) != Kind::Gap
    }

    pub(super) fn is_added(&self, id: u32) -> bool {
        matches!(self.kind(id), Kind::Added | Kind::Special)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Kind::Special
    }

    fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Gap)
    }
}

/// A token of `added_tokens`.
pub(super) struct AddedToken<'j> {
    pub(super) id: u32,
    pub(super) content: &'j str,
    pub(super) special: bool,
}

pub(super) fn added_tokens(tokenizer: &Value) -> Result<Vec<AddedToken<'_>>, String> {
    let list = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|token| {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (id, content) =
                id.zip(token["content"].as_str()).ok_or("an added token has no id or content")?;
            Ok(AddedToken { id, content, special: token["special"].as_bool().unwrap_or(false) })
        })
        .collect()
}

/// (id, piece) of a vocabulary that maps pieces to ids (BPE, WordPiece, WordLevel) or lists them (Unigram).
fn pieces(vocab: &Value) -> Result<Vec<(u32, &str)>, String> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let pieces: Option<Vec<_>> = match vocab {
        Value::Object(map) => map.iter().map(|(piece, i)| Some((id(i)?, piece.as_str()))).collect(),
        Value::Array(list) => list.iter().zip(0..).map(|(entry, i)| Some((i, entry[0].as_str()?))).collect(),
        _ => None,
    };
    pieces.ok_or_else(|| "model.vocab is not a vocabulary".to_owned())
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Self, String> {
        let mut spelling =
            Self { byte_level: false, byte_fallback: false, replace: Vec::new(), lead: Lead::None };
        match decoder["type"].as_str() {
            Some("Sequence") => {
                for part in decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice) {
                    spelling.add(part)?;
                }
            }
            _ => spelling.add(decoder)?,
        }
        Ok(spelling)
    }

    fn add(&mut self, decoder: &Value) -> Result<(), String> {
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("Replace") if decoder["pattern"]["String"].is_string() => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                self.replace.push((text(&decoder["pattern"]["String"]), text(&decoder["content"])));
            }
            Some("Strip") if decoder["content"] == " " && decoder["stop"] == 0 => {
                self.lead = Lead::Strip(decoder["start"].as_u64().unwrap_or(0) as usize);
            }
            Some("Metaspace") => {
                let replacement = decoder["replacement"].as_str().unwrap_or("\u{2581}");
                self.replace.push((replacement.to_owned(), " ".to_owned()));
                let never = decoder["prepend_scheme"] == "never" || decoder["add_prefix_space"] == false;
                self.lead = if never { Lead::None } else { Lead::FirstToken };
            }
            _ => return Err(format!("its decoder has a part that is not supported: {decoder}")),
        }
        Ok(())
    }

    fn bytes(&self, piece: &str) -> Vec<u8> {
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
        self.added(piece)
    }

    /// Added tokens are text, whatever the alphabet of the pieces is.
    fn added(&self, content: &str) -> Vec<u8> {
        if self.byte_fallback
            && let Some(byte) = fallback_byte(content)
        {
            return vec![byte];
        }
        let mut text = content.to_owned();
        for (from, to) in self.replace.iter().filter(|(from, _)| !from.is_empty()) {
            text = text.replace(from, to);
        }
        text.into_bytes()
    }
}

/// The byte that `<0xNN>` is.
pub(super) fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's alphabet: printable characters of Latin-1 stand for themselves, the other 68 bytes for U+0100 onwards.
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
