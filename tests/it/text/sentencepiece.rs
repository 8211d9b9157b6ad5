//! Conversion of SentencePiece models to `tokenizer.json`: ids and texts must equal those of SentencePiece
//! itself (`scripts/make_sentencepiece_fixture.py`).

use std::fs;
use std::sync::Arc;

use octant::offline::sentencepiece::{SentencePieceError, tokenizer_config, tokenizer_json};
use octant::text::{ChatTemplate, Detokenizer, RenderOptions, Role, Tokenizer};
use serde_json::{Value, json};

use super::{data, ids, message};

/// The bytes of a model, followed by `more`: protobuf fields that override its fields or add to them.
fn model(name: &str, more: &[u8]) -> Vec<u8> {
    let path = data("sentencepiece_models").join(format!("{name}.model"));
    [&fs::read(path).unwrap(), more].concat()
}

/// The tokenizer that the server loads from a converted model.
fn converted(model: &[u8]) -> Arc<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer_json(model).unwrap()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), tokenizer_config(model).unwrap().to_string())
        .unwrap();
    Arc::new(Tokenizer::from_dir(dir.path()).unwrap())
}

/// Every model of the golden file: its name for messages, its bytes, and its expected results.
fn goldens() -> Vec<(String, Vec<u8>, Value)> {
    let golden = fs::read(data("sentencepiece_models").join("golden.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&golden).unwrap();
    let read = |golden: Value| {
        let (name, hex) = (golden["model"].as_str().unwrap(), golden["more"].as_str().unwrap());
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let more: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        (format!("{name} {}", &hex[..hex.len().min(16)]), model(name, &more), golden)
    };
    golden.into_iter().map(read).collect()
}

#[test]
fn converted_models_encode_as_sentencepiece_does() {
    for (name, model, golden) in goldens() {
        let tokenizer = converted(&model);
        let cases = golden["encode"].as_array().unwrap();
        assert!(cases.len() > 200, "{name}");
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, ids(&case["ids"]), "{name} {text:?}");
            assert_eq!(tokenizer.add_special(got.clone()), got, "{name} {text:?}");
        }
    }
}

#[test]
fn the_converted_file_encodes_alike_in_the_tokenizers_crate() {
    for (name, model, golden) in goldens() {
        let tokenizer: tokenizers::Tokenizer = tokenizer_json(&model).unwrap().parse().unwrap();
        for case in golden["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text, true).unwrap();
            assert_eq!(got.get_ids(), ids(&case["ids"]), "{name} {text:?}");
            assert_eq!(tokenizer.decode(got.get_ids(), true).unwrap(), case["decoded"], "{name} {text:?}");
        }
    }
}

#[test]
fn converted_models_decode_as_sentencepiece_does_whole_and_token_by_token() {
    for (name, model, golden) in goldens() {
        let tokenizer = converted(&model);
        let encoded =
            golden["encode"].as_array().unwrap().iter().map(|case| (&case["ids"], &case["decoded"]));
        let random = golden["decode"].as_array().unwrap().iter().map(|case| (&case["ids"], &case["text"]));
        for (run, text) in encoded.chain(random) {
            let run = ids(run);
            assert_eq!(tokenizer.decode(&run, true), *text, "{name} {run:?}");
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), true, &[]);
            let mut streamed: String = run.iter().map(|&id| detokenizer.push(id)).collect();
            streamed += &detokenizer.finish();
            assert_eq!(streamed, *text, "{name} {run:?}");
        }
    }
}

#[test]
fn a_text_that_is_one_user_defined_piece_gets_no_space_before_it() {
    let tokenizer = converted(&model("plain", &[]));
    let space = tokenizer.token_id("\u{2581}").unwrap();
    // SentencePiece puts a space before both texts.
    assert_eq!(tokenizer.encode("<extra_id_1>").unwrap(), [5]);
    assert_eq!(tokenizer.encode("<extra_id_1><extra_id_1>").unwrap(), [space, 5, 5]);
}

#[test]
fn markers_of_the_template_become_ids_and_those_in_messages_stay_text() {
    let instruct = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
    for more in [&[][..], &NO_PREFIX] {
        let tokenizer = converted(&model("plain", more));
        let template = ChatTemplate::from_dir(&instruct, &tokenizer).unwrap().unwrap();
        let prompt = |text: &str| {
            let prompt = template.render(&[message(Role::User, text)], &RenderOptions::default()).unwrap();
            (tokenizer.encode_prompt(&prompt).unwrap(), prompt.text())
        };
        let (ids, text) = prompt("Hi");
        assert_eq!(ids, tokenizer.encode(&text).unwrap(), "{text}");
        let markers = |ids: &[u32]| ids.iter().copied().filter(|id| (4..12).contains(id)).collect::<Vec<_>>();
        assert_eq!(markers(&ids), [4, 5, 5]);
        let (ids, text) = prompt("a<extra_id_1>b <extra_id_1>");
        assert_eq!(markers(&ids), [4, 5, 5]);
        assert_eq!(tokenizer.decode(&ids, true), text);
        // The template does not write this one.
        assert_eq!(markers(&prompt("a<extra_id_2>").0), [4, 5, 6, 5]);
    }
}

#[test]
fn text_that_normalises_to_a_marker_is_encoded_as_text() {
    let model = model("nmt_nfkc", &[]);
    let wide = "a\u{FF1C}extra_id_1\u{FF1E}b";
    // The `tokenizers` crate alone encodes it as a marker, as SentencePiece does.
    let file: tokenizers::Tokenizer = tokenizer_json(&model).unwrap().parse().unwrap();
    assert!(file.encode(wide, false).unwrap().get_ids().contains(&5));
    let tokenizer = converted(&model);
    assert!(tokenizer.encode(wide).unwrap().contains(&5));
    let template = ChatTemplate::from_source("<extra_id_1>{{ messages[0].content }}", &tokenizer).unwrap();
    let prompt = template.render(&[message(Role::User, wide)], &RenderOptions::default()).unwrap();
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 5).count(), 1);
    assert_eq!(tokenizer.decode(&ids, false), "<extra_id_1>a<extra_id_1>b");
}

#[test]
fn the_configuration_names_the_special_pieces() {
    let config = tokenizer_config(&model("plain", &[])).unwrap();
    let named = |name: &str| config[name].as_str();
    assert_eq!((named("bos_token"), named("eos_token")), (Some("<s>"), Some("</s>")));
    assert_eq!((named("unk_token"), named("pad_token")), (Some("<unk>"), Some("<pad>")));
    assert_eq!((&config["add_bos_token"], &config["add_eos_token"]), (&json!(false), &json!(false)));
    let decoder = config["added_tokens_decoder"].as_object().unwrap();
    assert_eq!(decoder.len(), 12);
    assert_eq!((&decoder["5"]["content"], &decoder["5"]["special"]), (&json!("<extra_id_1>"), &json!(false)));
    assert_eq!((&decoder["0"]["content"], &decoder["0"]["special"]), (&json!("<pad>"), &json!(true)));
    let tokenizer = converted(&model("plain", &[]));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(2), Some(3), 900));
    assert!(!tokenizer.is_special(5) && tokenizer.is_special(1));
    // A BOS piece counts only if its type is control; here it is a user-defined piece.
    let renamed = tokenizer_config(&model("plain", &field(2, &field(46, b"<extra_id_1>")))).unwrap();
    assert_eq!((&renamed["bos_token"], &renamed["eos_token"]), (&Value::Null, &json!("</s>")));
}

/// `normalizer_spec { add_dummy_prefix: false }` as protobuf.
const NO_PREFIX: [u8; 4] = [3 << 3 | 2, 2, 3 << 3, 0];

/// A length-delimited protobuf field: text, bytes or a message.
fn field(number: usize, value: &[u8]) -> Vec<u8> {
    let varint = |number: usize| {
        let (low, high) = ((number & 0x7F) as u8, (number >> 7) as u8);
        if high == 0 { vec![low] } else { vec![low | 0x80, high] }
    };
    assert!(value.len() < 1 << 14);
    [varint(number << 3 | 2), varint(value.len()), value.to_vec()].concat()
}

/// A piece to append to a model: text, score and type.
fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
    field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
}

#[test]
fn unsupported_models_are_refused_with_the_reason() {
    let overlapping = fs::read(data("sentencepiece_models").join("overlapping.charsmap")).unwrap();
    for (more, expected) in [
        (field(2, &[3 << 3, 1]), "its type is 1 (unigram), only BPE (2) is converted"),
        (field(2, &[0xC0, 1, 1]), "treat_whitespace_as_suffix"),
        (field(3, &[5 << 3, 0]), "escape_whitespaces"),
        (field(5, &field(2, b"x")), "denormalise"),
        (field(3, &field(2, &overlapping)), "neither NFKC nor a few independent replacements"),
        (piece("ab", 0.5, 5), "\"ab\" is marked unused"),
        (piece("a\u{2581}b", 0.0, 4), "user-defined piece \"a\u{2581}b\" has spaces"),
        (piece("a\u{4e00}", -9999.0, 1), "has '\u{4e00}', which is no piece"),
        ([piece("qz", -7e3, 1), piece("zq", -7e3, 1)].concat(), "\"qz\" and \"zq\" have the same score"),
        (piece("qz", f32::NAN, 1), "\"qz\" has no score"),
    ] {
        let refused = tokenizer_json(&model("plain", &more)).unwrap_err();
        assert!(matches!(refused, SentencePieceError::Unsupported(_)), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
}

#[test]
fn malformed_models_are_refused_with_the_reason() {
    for (more, expected) in [
        (vec![0x0A, 0x7F, 0], "ModelProto.pieces: buffer underflow"),
        (vec![0x0B], "ModelProto.pieces: invalid wire type: StartGroup (expected LengthDelimited)"),
        (vec![0x80; 11], "invalid varint"),
        (vec![0x08, 1], "ModelProto.pieces: invalid wire type: Varint (expected LengthDelimited)"),
        (piece("ab", 0.0, 9), "type 9"),
        // A table whose header gives a length of eight bytes, followed by two.
        (field(3, &field(2, &[8, 0, 0, 0, 1, 2])), "table of normalisation rules is broken"),
        (field(1, &field(1, &[0xFF])), "SentencePiece.piece: ModelProto.pieces: invalid string value"),
        (piece("", 0.0, 1), "is empty"),
        (piece("<s>", 0.0, 1), "\"<s>\" is both piece 2 and piece 900"),
        (piece("<unknown>", 0.0, 2), "2 unknown pieces"),
        (piece("<0x00>x", 0.0, 6), "257 byte pieces"),
        (field(2, &[0x98, 2, 0]), "byte_fallback is false, but the model has 256"),
    ] {
        let refused = tokenizer_json(&model("plain", &more)).unwrap_err();
        assert!(matches!(refused, SentencePieceError::Malformed(_)), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    assert!(tokenizer_json(b"").unwrap_err().to_string().contains("no pieces"));
    let whole = model("rules", &[]);
    for length in (0..whole.len()).step_by(97) {
        // A truncated model is refused or has fewer pieces; the conversion must not panic.
        let _ = tokenizer_json(&whole[..length]);
    }
}
