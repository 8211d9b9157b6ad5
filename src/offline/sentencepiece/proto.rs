//! A SentencePiece model file, read.
//!
//! The file is one `ModelProto` of `sentencepiece_model.proto` (google/sentencepiece) in protobuf's wire format, which
//! is read here by hand: a message is a row of fields, each a number, a wire type and a value, and what is not needed
//! is skipped. Field numbers and defaults are that file's.

use super::SentencePieceError;

/// What a conversion needs of a `ModelProto`.
pub(super) struct Model<'m> {
    /// Field 1, by id.
    pub(super) pieces: Vec<Piece<'m>>,
    pub(super) trainer: Trainer<'m>,
    pub(super) normalizer: Normalizer<'m>,
    /// Whether field 5 (`denormalizer_spec`) has rules.
    pub(super) denormalizes: bool,
}

/// `ModelProto.SentencePiece`.
pub(super) struct Piece<'m> {
    /// 1.
    pub(super) text: &'m str,
    /// 2. The higher, the earlier a piece is merged.
    pub(super) score: f32,
    /// 3.
    pub(super) kind: Kind,
}

/// `ModelProto.SentencePiece.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// `TrainerSpec`, field 2 of the model.
pub(super) struct Trainer<'m> {
    /// 3: 1 unigram, 2 BPE, 3 word, 4 character.
    pub(super) model_type: u64,
    /// 24.
    pub(super) whitespace_as_suffix: bool,
    /// 35.
    pub(super) byte_fallback: bool,
    /// 45 to 48.
    pub(super) unk: &'m str,
    pub(super) bos: &'m str,
    pub(super) eos: &'m str,
    pub(super) pad: &'m str,
}

/// `NormalizerSpec`, field 3 of the model.
pub(super) struct Normalizer<'m> {
    /// 1.
    pub(super) name: &'m str,
    /// 2. Empty: text stays as it is.
    pub(super) charsmap: &'m [u8],
    /// 3.
    pub(super) dummy_prefix: bool,
    /// 4.
    pub(super) remove_extra_whitespaces: bool,
    /// 5.
    pub(super) escape_whitespaces: bool,
}

impl<'m> Model<'m> {
    pub(super) fn read(bytes: &'m [u8]) -> Result<Self, SentencePieceError> {
        let mut model = Self {
            pieces: Vec::new(),
            trainer: Trainer {
                model_type: 1,
                whitespace_as_suffix: false,
                byte_fallback: false,
                unk: "<unk>",
                bos: "<s>",
                eos: "</s>",
                pad: "<pad>",
            },
            normalizer: Normalizer {
                name: "",
                charsmap: &[],
                dummy_prefix: true,
                remove_extra_whitespaces: true,
                escape_whitespaces: true,
            },
            denormalizes: false,
        };
        let mut reader = Reader(bytes);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => model.pieces.push(Piece::read(value.bytes("pieces")?)?),
                2 => model.trainer.read(value.bytes("trainer_spec")?)?,
                3 => model.normalizer.read(value.bytes("normalizer_spec")?)?,
                5 => {
                    let mut denormalizer = Reader(value.bytes("denormalizer_spec")?);
                    while let Some((number, value)) = denormalizer.field()? {
                        model.denormalizes |= number == 2 && !value.bytes("precompiled_charsmap")?.is_empty();
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(SentencePieceError::Malformed("it has no pieces".to_owned()));
        }
        Ok(model)
    }
}

impl<'m> Piece<'m> {
    fn read(bytes: &'m [u8]) -> Result<Self, SentencePieceError> {
        let mut piece = Self { text: "", score: 0.0, kind: Kind::Normal };
        let mut reader = Reader(bytes);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => piece.text = value.text("piece")?,
                2 => piece.score = value.float("score")?,
                3 => {
                    piece.kind = match value.varint("type")? {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        other => {
                            return Err(SentencePieceError::Malformed(format!(
                                "a piece has type {other}, but types are 1 to 6"
                            )));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(piece)
    }
}

impl<'m> Trainer<'m> {
    fn read(&mut self, bytes: &'m [u8]) -> Result<(), SentencePieceError> {
        let mut reader = Reader(bytes);
        while let Some((number, value)) = reader.field()? {
            match number {
                3 => self.model_type = value.varint("model_type")?,
                24 => self.whitespace_as_suffix = value.varint("treat_whitespace_as_suffix")? != 0,
                35 => self.byte_fallback = value.varint("byte_fallback")? != 0,
                45 => self.unk = value.text("unk_piece")?,
                46 => self.bos = value.text("bos_piece")?,
                47 => self.eos = value.text("eos_piece")?,
                48 => self.pad = value.text("pad_piece")?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'m> Normalizer<'m> {
    fn read(&mut self, bytes: &'m [u8]) -> Result<(), SentencePieceError> {
        let mut reader = Reader(bytes);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => self.name = value.text("name")?,
                2 => self.charsmap = value.bytes("precompiled_charsmap")?,
                3 => self.dummy_prefix = value.varint("add_dummy_prefix")? != 0,
                4 => self.remove_extra_whitespaces = value.varint("remove_extra_whitespaces")? != 0,
                5 => self.escape_whitespaces = value.varint("escape_whitespaces")? != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The fields of a message that are still to be read.
struct Reader<'m>(&'m [u8]);

/// A field's value by its wire type.
enum Wire<'m> {
    /// 0.
    Varint(u64),
    /// 2: a string, bytes or a message.
    Bytes(&'m [u8]),
    /// 5.
    Fixed32([u8; 4]),
    /// 1, of which nothing is needed.
    Fixed64,
}

impl<'m> Reader<'m> {
    fn field(&mut self) -> Result<Option<(u64, Wire<'m>)>, SentencePieceError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32(bytes.try_into().expect("four bytes were taken"))
            }
            other => {
                return Err(SentencePieceError::Malformed(format!("a field has the wire type {other}")));
            }
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'m [u8], SentencePieceError> {
        let left = self.0.len();
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| {
            SentencePieceError::Malformed(format!("a field of {length} bytes has only {left} left"))
        })?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, SentencePieceError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(SentencePieceError::Malformed("a number has more than 64 bits".to_owned()))
    }
}

impl<'m> Wire<'m> {
    fn bytes(self, name: &str) -> Result<&'m [u8], SentencePieceError> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(wrong_type(name)) }
    }

    fn text(self, name: &str) -> Result<&'m str, SentencePieceError> {
        std::str::from_utf8(self.bytes(name)?)
            .map_err(|_| SentencePieceError::Malformed(format!("`{name}` is not UTF-8")))
    }

    fn varint(self, name: &str) -> Result<u64, SentencePieceError> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(wrong_type(name)) }
    }

    fn float(self, name: &str) -> Result<f32, SentencePieceError> {
        if let Self::Fixed32(bytes) = self { Ok(f32::from_le_bytes(bytes)) } else { Err(wrong_type(name)) }
    }
}

fn wrong_type(name: &str) -> SentencePieceError {
    SentencePieceError::Malformed(format!("`{name}` has the wrong wire type"))
}
