//! Converts a SentencePiece BPE model to Hugging Face's `tokenizer.json` and `tokenizer_config.json`.
//!
//! Both formats describe byte-pair encoding, in different terms:
//!
//! - Merges: SentencePiece merges the two neighbours whose concatenation has the highest score.
//!   tokenizer.json merges the pair that comes first in its list. The list therefore holds every split of
//!   every piece into two pieces, ordered by the score of the whole piece.
//! - Words: SentencePiece normalises a text as a whole and does not split it into words, so tokenizer.json
//!   gets no pre-tokenizer. If the normalizer looks at the ends of a text, added tokens are found after
//!   normalisation.
//! - User-defined pieces: SentencePiece finds them before it encodes. They become added tokens, not special.
//! - Control pieces: SentencePiece never finds them in a text. They become special tokens, and the program
//!   that reads tokenizer.json decides whether to find them.
//! - Characters without a piece: SentencePiece encodes their bytes, or a run of them as one unknown piece.
//!   The settings `byte_fallback` and `fuse_unk` do the same.
//!
//! A model that tokenizer.json cannot express is refused with the name of the setting. These differences
//! remain; each was found by comparing with SentencePiece:
//!
//! - A text that consists of one user-defined piece gets no dummy prefix (a space), only that piece.
//! - Programs that parse special tokens split a text at control pieces; each part is normalised as its own
//!   text.
//! - A text may become the name of a user-defined piece only by normalisation (in full-width letters, for
//!   example). SentencePiece reads it as that piece, and so do programs that find added tokens after
//!   normalisation. Octant's server never does.
//! - Models that normalise by NFKC have the exceptions that `charsmap.rs` lists.
//! - For ids that no text encodes to, the decoded text can differ: with `remove_extra_whitespaces` all spaces
//!   at the start of a text are removed, while SentencePiece removes one from each piece until the first
//!   other character.

mod charsmap;
mod error;
mod merges;
mod normalizer;
mod proto;
mod replace;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

pub use error::SentencePieceError;

use proto::{ModelProto, PieceType, SPACE, SentencePiece};

/// Returns the `tokenizer.json` of a SentencePiece model, given the bytes of its `.model` file. Ids and
/// decoded text are SentencePiece's. Like SentencePiece, the tokenizer adds no `<s>` or `</s>` by itself.
///
/// # Errors
/// `Malformed` if the bytes are not a SentencePiece model; `Unsupported` if tokenizer.json cannot express it.
pub fn tokenizer_json(model: &[u8]) -> Result<String, SentencePieceError> {
    let model = ModelProto::read(model)?;
    check(&model)?;
    let ids = ids(&model)?;
    let whole = normalizer::needs_whole_text(&model.normalizer_spec);
    let added: Vec<Value> =
        model.pieces.iter().zip(0..).filter_map(|(piece, id)| added_token(piece, id, whole)).collect();
    let vocab: Map<String, Value> =
        model.pieces.iter().zip(0..).map(|(piece, id)| (piece.piece().to_owned(), json!(id))).collect();
    let unknown = model.pieces.iter().find(|piece| piece.piece_type() == PieceType::Unknown);
    let unknown = unknown.map(SentencePiece::piece);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer::normalizer(&model)?,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": decoder(&model),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": model.trainer_spec.byte_fallback(),
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges::merges(&model.pieces, &ids)?,
        },
    });
    Ok(tokenizer.to_string())
}

/// Returns the `tokenizer_config.json` of a SentencePiece model: its special pieces, and no
/// beginning-of-sequence token before prompts (NeMo trains and serves Nemotron-4 340B without one).
///
/// The model file holds neither `model_max_length` nor a chat template; the caller adds them. The templates
/// of the Nemotron-4 340B family are `models/nemotron-4-340b-*/chat_template.jinja`.
///
/// # Errors
/// The same as those of [`tokenizer_json`].
pub fn tokenizer_config(model: &[u8]) -> Result<Value, SentencePieceError> {
    let model = ModelProto::read(model)?;
    check(&model)?;
    let ids = ids(&model)?;
    let whole = normalizer::needs_whole_text(&model.normalizer_spec);
    let mut decoder = Map::new();
    for (piece, id) in model.pieces.iter().zip(0..) {
        if let Some(Value::Object(mut token)) = added_token(piece, id, whole) {
            token.remove("id");
            decoder.insert(id.to_string(), Value::Object(token));
        }
    }
    let mut config = Map::new();
    config.insert("add_bos_token".to_owned(), json!(false));
    config.insert("add_eos_token".to_owned(), json!(false));
    config.insert("added_tokens_decoder".to_owned(), Value::Object(decoder));
    let trainer = &model.trainer_spec;
    let names = [
        ("bos_token", trainer.bos_piece()),
        ("eos_token", trainer.eos_piece()),
        ("unk_token", trainer.unk_piece()),
        ("pad_token", trainer.pad_piece()),
    ];
    for (name, piece) in names {
        let piece_type = ids.get(piece).map(|&id| model.pieces[id as usize].piece_type());
        if matches!(piece_type, Some(PieceType::Control | PieceType::Unknown)) {
            config.insert(name.to_owned(), json!(piece));
        }
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Ok(Value::Object(config))
}

/// Refuses a model that tokenizer.json cannot express.
fn check(model: &ModelProto) -> Result<(), SentencePieceError> {
    let unsupported = |message: String| Err(SentencePieceError::Unsupported(message));
    let model_type = model.trainer_spec.model_type();
    let name = match model_type {
        2 => None,
        1 => Some("unigram"),
        3 => Some("word"),
        4 => Some("character"),
        _ => Some("unknown"),
    };
    if let Some(name) = name {
        return unsupported(format!("its type is {model_type} ({name}), only BPE (2) is converted"));
    }
    if model.trainer_spec.treat_whitespace_as_suffix() {
        return unsupported("treat_whitespace_as_suffix is set".to_owned());
    }
    if !model.normalizer_spec.escape_whitespaces() {
        return unsupported("escape_whitespaces is not set".to_owned());
    }
    if !model.denormalizer_spec.precompiled_charsmap().is_empty() {
        return unsupported("it has rules to denormalise decoded text".to_owned());
    }
    if let Some(piece) = model.pieces.iter().find(|piece| piece.piece_type() == PieceType::Unused) {
        return unsupported(format!("the piece {:?} is marked unused", piece.piece()));
    }
    let spaced = |piece: &&SentencePiece| {
        piece.piece_type() == PieceType::UserDefined && piece.piece().contains([' ', SPACE])
    };
    if let Some(piece) = model.pieces.iter().find(spaced) {
        return unsupported(format!("the user-defined piece {:?} has spaces", piece.piece()));
    }
    check_byte_pieces(model)
}

/// Checks the byte pieces: all 256 with byte fallback, none without it.
fn check_byte_pieces(model: &ModelProto) -> Result<(), SentencePieceError> {
    let byte_pieces = model.pieces.iter().filter(|piece| piece.piece_type() == PieceType::Byte);
    let bytes: Vec<&str> = byte_pieces.map(SentencePiece::piece).collect();
    let expected: Vec<String> = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>")).collect();
    let missing = expected.iter().find(|name| !bytes.contains(&name.as_str()));
    match (model.trainer_spec.byte_fallback(), missing) {
        (true, Some(name)) => Err(SentencePieceError::Malformed(format!(
            "byte_fallback is set, but the piece {name} is missing"
        ))),
        (true, None) if bytes.len() == expected.len() => Ok(()),
        (false, _) if bytes.is_empty() => Ok(()),
        (set, _) => Err(SentencePieceError::Malformed(format!(
            "byte_fallback is {set}, but the model has {} byte pieces",
            bytes.len()
        ))),
    }
}

/// Returns the id of every piece. Checks that all pieces differ and that exactly one is the unknown piece.
fn ids(model: &ModelProto) -> Result<HashMap<&str, u32>, SentencePieceError> {
    let mut ids = HashMap::with_capacity(model.pieces.len());
    for (piece, id) in model.pieces.iter().zip(0..) {
        if piece.piece().is_empty() {
            return Err(SentencePieceError::Malformed(format!("piece {id} is empty")));
        }
        if let Some(other) = ids.insert(piece.piece(), id) {
            let message = format!("{:?} is both piece {other} and piece {id}", piece.piece());
            return Err(SentencePieceError::Malformed(message));
        }
    }
    match model.pieces.iter().filter(|piece| piece.piece_type() == PieceType::Unknown).count() {
        1 => Ok(ids),
        count => Err(SentencePieceError::Malformed(format!("it has {count} unknown pieces, expected 1"))),
    }
}

/// Returns the entry of a piece in `added_tokens`; `None` for a piece that is not an added token. If
/// `whole_text` is set, user-defined pieces are found in normalised text.
fn added_token(piece: &SentencePiece, id: u32, whole_text: bool) -> Option<Value> {
    let special = match piece.piece_type() {
        PieceType::Control | PieceType::Unknown => true,
        PieceType::UserDefined => false,
        PieceType::Normal | PieceType::Unused | PieceType::Byte => return None,
    };
    Some(json!({
        "id": id, "content": piece.piece(), "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": whole_text && !special, "special": special,
    }))
}

/// Returns the `decoder` object: restores spaces and bytes, and removes the dummy prefix.
fn decoder(model: &ModelProto) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
    ];
    decoders.push(json!({"type": "Fuse"}));
    let normalizer = &model.normalizer_spec;
    let leading_spaces = if normalizer.remove_extra_whitespaces() {
        u32::MAX
    } else {
        u32::from(normalizer.add_dummy_prefix())
    };
    if leading_spaces > 0 {
        decoders.push(json!({"type": "Strip", "content": " ", "start": leading_spaces, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}
