//! A SentencePiece BPE model as the `tokenizer.json` and `tokenizer_config.json` of Hugging Face.
//!
//! The two describe the same algorithm in different terms:
//!
//! | SentencePiece | tokenizer.json |
//! |---|---|
//! | of all neighbours that together are a piece, those of the highest score are merged | of all neighbours in the list of merges, those that stand first: so every way to cut a piece in two pieces is a merge, by the score of the whole |
//! | a text is normalised as a whole, and never cut into words | no pre-tokenizer; added tokens are taken out after normalising, where normalising looks at the ends of a text |
//! | user-defined pieces are found first | added tokens, not special |
//! | control pieces are never found in text | special tokens: the reader of the file decides |
//! | characters that are no piece are bytes, or a run of them is unknown | `byte_fallback`, `fuse_unk` |
//!
//! What cannot be said in tokenizer.json is refused by name. Differences that remain, all found by comparing:
//! - A text that is nothing but one user-defined piece is that piece alone, without the space that goes before a text.
//! - Readers that parse special tokens take control pieces out of a text, and what is between two is a text of its own.
//! - Text that is the name of a user-defined piece only once it is normalised (in wide letters, say) is that piece for
//!   SentencePiece, and for readers of the file where added tokens are taken out after normalising. The server never
//!   reads it so.
//! - Where a text is normalised by NFKC, see `charsmap.rs`.
//! - Ids that no text yields: with `remove_extra_whitespaces`, all spaces at the start of a text go, where SentencePiece
//!   takes one from each piece until there is text.

mod charsmap;
mod merges;
mod normalizer;
mod proto;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use proto::{Kind, Model, Piece};

/// What stands for a space within pieces.
const SPACE: char = '\u{2581}';

/// A model file that has no tokenizer.json, and why.
#[derive(Debug, thiserror::Error)]
pub enum SentencePieceError {
    /// The bytes are not a SentencePiece model.
    #[error("not a SentencePiece model: {0}")]
    Malformed(String),
    /// The model does something that tokenizer.json cannot say, or that has no test here.
    #[error("this SentencePiece model cannot become a tokenizer.json: {0}")]
    Unsupported(String),
}

/// The `tokenizer.json` of a SentencePiece model (the bytes of its `.model` file): same ids, same text.
/// It adds no `<s>` or `</s>` by itself, as SentencePiece does not.
pub fn tokenizer_json(model: &[u8]) -> Result<String, SentencePieceError> {
    let model = Model::read(model)?;
    check(&model)?;
    let ids = ids(&model)?;
    let whole = normalizer::whole_text(&model.normalizer);
    let added: Vec<Value> =
        model.pieces.iter().zip(0..).filter_map(|(piece, id)| added(piece, id, whole)).collect();
    let vocab: Map<String, Value> =
        model.pieces.iter().zip(0..).map(|(piece, id)| (piece.text.to_owned(), json!(id))).collect();
    let unknown = model.pieces.iter().find(|piece| piece.kind == Kind::Unknown).map(|piece| piece.text);
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
            "byte_fallback": model.trainer.byte_fallback,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges::merges(&model.pieces, &ids)?,
        },
    });
    Ok(tokenizer.to_string())
}

/// The `tokenizer_config.json` of a SentencePiece model: its named pieces, as far as it has them, and no
/// beginning-of-sequence token before prompts (NeMo trains and serves Nemotron-4 340B without one).
///
/// `model_max_length` and the chat template are not in the model, and are the caller's to add; the templates of the
/// Nemotron-4 340B family are `models/nemotron-4-340b-*/chat_template.jinja`.
pub fn tokenizer_config(model: &[u8]) -> Result<Value, SentencePieceError> {
    let model = Model::read(model)?;
    check(&model)?;
    let ids = ids(&model)?;
    let whole = normalizer::whole_text(&model.normalizer);
    let mut decoder = Map::new();
    for (piece, id) in model.pieces.iter().zip(0..) {
        if let Some(Value::Object(mut token)) = added(piece, id, whole) {
            token.remove("id");
            decoder.insert(id.to_string(), Value::Object(token));
        }
    }
    let mut config = Map::new();
    config.insert("add_bos_token".to_owned(), json!(false));
    config.insert("add_eos_token".to_owned(), json!(false));
    config.insert("added_tokens_decoder".to_owned(), Value::Object(decoder));
    let trainer = &model.trainer;
    let names = [
        ("bos_token", trainer.bos),
        ("eos_token", trainer.eos),
        ("unk_token", trainer.unk),
        ("pad_token", trainer.pad),
    ];
    for (name, piece) in names {
        let kind = ids.get(piece).map(|&id| model.pieces[id as usize].kind);
        if matches!(kind, Some(Kind::Control | Kind::Unknown)) {
            config.insert(name.to_owned(), json!(piece));
        }
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Ok(Value::Object(config))
}

/// Refuses what cannot be said in tokenizer.json.
fn check(model: &Model) -> Result<(), SentencePieceError> {
    let unsupported = |message: String| Err(SentencePieceError::Unsupported(message));
    let kind = match model.trainer.model_type {
        2 => None,
        1 => Some("unigram"),
        3 => Some("word"),
        4 => Some("character"),
        _ => Some("unknown"),
    };
    if let Some(kind) = kind {
        return unsupported(format!(
            "its type is {} ({kind}), only BPE (2) is converted",
            model.trainer.model_type
        ));
    }
    if model.trainer.whitespace_as_suffix {
        return unsupported("treat_whitespace_as_suffix is set".to_owned());
    }
    if !model.normalizer.escape_whitespaces {
        return unsupported("escape_whitespaces is not set".to_owned());
    }
    if model.denormalizes {
        return unsupported("it has rules to denormalise decoded text".to_owned());
    }
    if let Some(piece) = model.pieces.iter().find(|piece| piece.kind == Kind::Unused) {
        return unsupported(format!("the piece {:?} is marked unused", piece.text));
    }
    let spaced = |piece: &&Piece| piece.kind == Kind::UserDefined && piece.text.contains([' ', SPACE]);
    if let Some(piece) = model.pieces.iter().find(spaced) {
        return unsupported(format!("the user-defined piece {:?} has spaces", piece.text));
    }
    check_bytes(model)
}

/// With byte fallback there is a piece for each byte, without it for none.
fn check_bytes(model: &Model) -> Result<(), SentencePieceError> {
    let bytes: Vec<&str> =
        model.pieces.iter().filter(|piece| piece.kind == Kind::Byte).map(|piece| piece.text).collect();
    let expected: Vec<String> = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>")).collect();
    let missing = expected.iter().find(|name| !bytes.contains(&name.as_str()));
    match (model.trainer.byte_fallback, missing) {
        (true, Some(name)) => {
            Err(SentencePieceError::Malformed(format!("byte_fallback is set, but there is no piece {name}")))
        }
        (true, None) if bytes.len() == expected.len() => Ok(()),
        (false, _) if bytes.is_empty() => Ok(()),
        (set, _) => Err(SentencePieceError::Malformed(format!(
            "byte_fallback is {set}, but there are {} byte pieces",
            bytes.len()
        ))),
    }
}

/// Piece to id; every piece has a name of its own, and one is for what is unknown.
fn ids<'m>(model: &Model<'m>) -> Result<HashMap<&'m str, u32>, SentencePieceError> {
    let mut ids = HashMap::with_capacity(model.pieces.len());
    for (piece, id) in model.pieces.iter().zip(0..) {
        if piece.text.is_empty() {
            return Err(SentencePieceError::Malformed(format!("piece {id} is empty")));
        }
        if let Some(other) = ids.insert(piece.text, id) {
            let message = format!("{:?} is both piece {other} and piece {id}", piece.text);
            return Err(SentencePieceError::Malformed(message));
        }
    }
    match model.pieces.iter().filter(|piece| piece.kind == Kind::Unknown).count() {
        1 => Ok(ids),
        count => Err(SentencePieceError::Malformed(format!("it has {count} unknown pieces, not one"))),
    }
}

/// A piece that is an added token. `whole_text`: text is normalised before user-defined pieces are taken out of it.
fn added(piece: &Piece, id: u32, whole_text: bool) -> Option<Value> {
    let special = match piece.kind {
        Kind::Control | Kind::Unknown => true,
        Kind::UserDefined => false,
        Kind::Normal | Kind::Unused | Kind::Byte => return None,
    };
    Some(json!({
        "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": whole_text && !special, "special": special,
    }))
}

/// Spaces and bytes are put back, and what normalising puts before a text is taken away.
fn decoder(model: &Model) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
    ];
    decoders.push(json!({"type": "Fuse"}));
    let normalizer = &model.normalizer;
    let most =
        if normalizer.remove_extra_whitespaces { u32::MAX } else { u32::from(normalizer.dummy_prefix) };
    if most > 0 {
        decoders.push(json!({"type": "Strip", "content": " ", "start": most, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}
