//! The parts of a SentencePiece model file that a conversion needs.
//!
//! The file is one `ModelProto` of `sentencepiece_model.proto` (google/sentencepiece). The messages, field
//! names, tags and defaults below are that file's; unknown fields are skipped. `prost` quotes the names in
//! its errors.

use prost::Message;

use super::error::SentencePieceError;

/// The character that stands for a space in pieces.
pub(super) const SPACE: char = '\u{2581}';

/// A whole model.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    /// The vocabulary; a piece's index is its token id.
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<SentencePiece>,
    #[prost(message, required, tag = "2")]
    pub(super) trainer_spec: TrainerSpec,
    #[prost(message, required, tag = "3")]
    pub(super) normalizer_spec: NormalizerSpec,
    /// Rules that rewrite decoded text.
    #[prost(message, required, tag = "5")]
    pub(super) denormalizer_spec: NormalizerSpec,
}

/// A piece of the vocabulary.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SentencePiece {
    #[prost(string, optional, tag = "1", default = "")]
    piece: Option<String>,
    /// Merge priority: BPE merges pieces with a higher score first.
    #[prost(float, optional, tag = "2", default = "0.0")]
    score: Option<f32>,
    #[prost(enumeration = "PieceType", optional, tag = "3", default = "Normal")]
    piece_type: Option<i32>,
}

/// `ModelProto.SentencePiece.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum PieceType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Settings of the training that also decide how text is encoded.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    /// 1 unigram, 2 BPE, 3 word, 4 character.
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24", default = "false")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35", default = "false")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "45", default = "<unk>")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46", default = "<s>")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47", default = "</s>")]
    eos_piece: Option<String>,
    #[prost(string, optional, tag = "48", default = "<pad>")]
    pad_piece: Option<String>,
}

/// How text is rewritten before it is encoded.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    /// Table of character rewrites (see `charsmap.rs`); empty if characters stay as they are.
    #[prost(bytes = "vec", optional, tag = "2", default = "b\"\"")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

impl ModelProto {
    /// Decodes a model file.
    ///
    /// # Errors
    /// `Malformed` if the bytes are not a `ModelProto`, a piece has a type outside 1 to 6, or no piece
    /// exists.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, SentencePieceError> {
        let model = Self::decode(bytes).map_err(|e| SentencePieceError::Malformed(e.to_string()))?;
        let invalid = |value: &i32| !PieceType::is_valid(*value);
        if let Some(value) = model.pieces.iter().filter_map(|piece| piece.piece_type).find(invalid) {
            let message = format!("a piece has type {value}, but types are 1 to 6");
            return Err(SentencePieceError::Malformed(message));
        }
        if model.pieces.is_empty() {
            return Err(SentencePieceError::Malformed("it has no pieces".to_owned()));
        }
        Ok(model)
    }
}
