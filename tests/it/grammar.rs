//! Grammars: what they compile from, which tokens they allow, and how an answer ends.

mod drafts;
mod faults;
mod lenient;

use std::sync::Arc;

use octant::grammar::{
    GrammarCompiler, GrammarMatcher, GrammarProgress, GrammarSource, JsonOptions, TokenMask, Vocabulary,
    gbnf_to_lark,
};
use octant::random::Random;
use serde_json::{Value, json};

/// The id of the end of an answer in [`bytes`].
pub const EOS: u32 = 256;

/// A token for each byte, some longer tokens, and an end.
pub fn bytes() -> GrammarCompiler {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"<|end|>".to_vec());
    tokens.extend(["{\"", "\":", "true", "\", \"", "  ", "\n\n"].map(|text| text.as_bytes().to_vec()));
    let special = (0..tokens.len()).map(|id| id == EOS as usize).collect();
    GrammarCompiler::new(Vocabulary { tokens, special, eos: vec![EOS] }).unwrap()
}

pub fn schema(schema: Value) -> GrammarSource {
    GrammarSource::JsonSchema(schema.to_string())
}

pub fn matcher(compiler: &GrammarCompiler, source: &GrammarSource) -> GrammarMatcher {
    GrammarMatcher::new(compiler.compile(source).unwrap(), vec![EOS], Vec::new())
}

pub fn allowed(mask: &TokenMask) -> Vec<u32> {
    (0..mask.len() as u32 * 32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// An answer of random allowed tokens, at most `most`, and how it ended.
pub fn random_answer(
    matcher: &GrammarMatcher,
    random: &mut Random,
    most: usize,
) -> (Vec<u32>, GrammarProgress) {
    let mut answer = Vec::new();
    while answer.len() < most {
        let Some(mask) = matcher.mask(answer.len()) else { break };
        let allowed = allowed(&mask);
        let token = allowed[random.bits() as usize % allowed.len()];
        answer.push(token);
        let progress = matcher.advance(answer.len() - 1, token);
        if progress != GrammarProgress::Open {
            return (answer, progress);
        }
    }
    (answer, GrammarProgress::Open)
}

pub fn text(compiler_tokens: &[u32]) -> String {
    let tokens = ["{\"", "\":", "true", "\", \"", "  ", "\n\n"];
    let bytes = compiler_tokens.iter().flat_map(|id| match *id {
        0..256 => vec![*id as u8],
        EOS => Vec::new(),
        id => tokens[id as usize - 257].as_bytes().to_vec(),
    });
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn random_answers_to_a_schema_are_valid_and_end() {
    let compiler = bytes();
    let source = schema(json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 10 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    }));
    let mut random = Random::new(7);
    for _ in 0..50 {
        let (answer, progress) = random_answer(&matcher(&compiler, &source), &mut random, 2000);
        assert_eq!(progress, GrammarProgress::Complete, "{:?}", text(&answer));
        let value: Value = serde_json::from_str(&text(&answer)).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 10, "{value}");
        assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{value}");
        let tags = value["tags"].as_array().unwrap();
        assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "b"), "{value}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{value}");
    }
}

#[test]
fn whitespace_in_json_is_bounded() {
    let compiler = bytes();
    let matcher = matcher(&compiler, &GrammarSource::json_object());
    assert_eq!(matcher.advance(0, u32::from(b'{')), GrammarProgress::Open);
    for index in 1..30 {
        let mask = matcher.mask(index).unwrap();
        if !allowed(&mask).contains(&u32::from(b' ')) {
            assert!(index > 10, "{index}");
            return;
        }
        assert_eq!(matcher.advance(index, u32::from(b' ')), GrammarProgress::Open);
    }
    panic!("30 spaces are allowed");
}

#[test]
fn whitespace_and_further_properties_follow_their_options() {
    let compiler = bytes();
    let source = |options: JsonOptions| {
        let properties = json!({ "a": { "type": "integer", "maximum": 99 }, "b": { "type": "boolean" } });
        let open = json!({ "type": "object", "properties": properties, "required": ["a", "b"] });
        schema(options.apply(open).unwrap())
    };
    let closed = || JsonOptions { closes_objects: true, ..JsonOptions::default() };
    let compact = || JsonOptions { is_compact: true, ..closed() };
    let spaces = |pattern: &str| JsonOptions { whitespace_pattern: Some(pattern.to_owned()), ..closed() };
    let mut random = Random::new(5);
    for (options, expected) in [
        (compact(), r#"^\{"a":-?\d+,"b":(true|false)\}$"#),
        (spaces(""), r#"^\{"a":-?\d+,"b":(true|false)\}$"#),
        (spaces("[ ]?"), r#"^\{ ?"a" ?: ?-?\d+ ?, ?"b" ?: ?(true|false) ?\}$"#),
        (spaces(r"(\n *)?"), "^\\{(\n *)?\"a\"(\n *)?:(\n *)?-?\\d+(\n *)?,(\n *)?\"b\""),
    ] {
        let source = source(options.clone());
        let expected = regex::Regex::new(expected).unwrap();
        for _ in 0..40 {
            let (answer, progress) = random_answer(&matcher(&compiler, &source), &mut random, 500);
            assert_eq!(progress, GrammarProgress::Complete, "{options:?}: {:?}", text(&answer));
            assert!(expected.is_match(&text(&answer)), "{options:?}: {:?}", text(&answer));
        }
    }
    let may_have = |options: JsonOptions| {
        let matcher = matcher(&compiler, &source(JsonOptions { is_compact: true, ..options }));
        let begin = br#"{"a":1,"b":true"#;
        for (index, byte) in begin.iter().enumerate() {
            matcher.advance(index, u32::from(*byte));
        }
        allowed(&matcher.mask(begin.len()).unwrap())
    };
    assert_eq!(may_have(closed()), [u32::from(b'}')]);
    assert!(may_have(JsonOptions::default()).contains(&u32::from(b',')));
}

/// Times without leap seconds and days that exist, which `llguidance` alone does not ensure.
#[test]
fn dates_and_times_are_valid() {
    let compiler = bytes();
    let accepts = |format: &str, more: Value, text: &str| {
        let mut source = json!({ "type": "string", "format": format });
        source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let matcher = matcher(&compiler, &schema(source));
        let text = format!("\"{text}\"");
        text.bytes().enumerate().all(|(index, byte)| {
            let token = u32::from(byte);
            let is_allowed = allowed(&matcher.mask(index).unwrap()).contains(&token);
            is_allowed && matcher.advance(index, token) != GrammarProgress::Stuck
        })
    };
    for (format, text, valid) in [
        ("date", "2024-02-29", true),
        ("date", "2023-02-29", false),
        ("date", "1900-02-29", false),
        ("date", "2000-02-29", true),
        ("date", "0000-02-29", false),
        ("date", "0000-01-01", false),
        ("date", "0001-01-01", true),
        ("date", "0004-02-29", true),
        ("date", "0400-02-29", true),
        ("date", "2023-02-28", true),
        ("date", "2023-12-31", true),
        ("date", "2023-11-31", false),
        ("date", "2023-13-01", false),
        ("time", "23:59:59Z", true),
        ("time", "10:36:60+08:00", false),
        ("date-time", "2024-02-29T23:59:59.5+01:00", true),
        ("date-time", "2023-02-29T23:59:59Z", false),
        ("date-time", "2023-02-20T23:59:60Z", false),
    ] {
        assert_eq!(accepts(format, json!({}), text), valid, "{format}: {text}");
        let further = json!({ "pattern": "^[012]", "allOf": [{ "minLength": 3 }] });
        assert_eq!(accepts(format, further, text), valid, "{format}: {text}");
    }
    let further = json!({ "allOf": [{ "pattern": "^3" }] });
    assert!(!accepts("date", further, "2024-02-28"));
}

/// A token that the vocabulary does not have fails the answer, and not the thread.
#[test]
fn an_impossible_token_fails_its_answer_only() {
    let compiler = bytes();
    let matcher = matcher(&compiler, &GrammarSource::Regex("abc".to_owned()));
    assert!(matches!(matcher.advance(0, 1_000_000), GrammarProgress::Failed(_)));
    assert!(matcher.mask(1).is_none() && matcher.is_ready(1, &[]));
    assert!(matches!(matcher.advance(1, u32::from(b'a')), GrammarProgress::Failed(_)));
}

#[test]
fn expressions_choices_and_grammars_allow_what_they_say() {
    let compiler = bytes();
    let cases = [
        (GrammarSource::Regex("[a-c]{2,4}!".to_owned()), r"^[a-c]{2,4}!$"),
        (GrammarSource::Choice(vec!["a".into(), "ab".into(), "x.y\n\"".into()]), "^(a|ab|x\\.y\n\")$"),
        (GrammarSource::Lark("start: \"a\" (\"b\" | \"c\")+ \"d\"".to_owned()), "^a[bc]+d$"),
    ];
    let mut random = Random::new(3);
    for (source, expected) in cases {
        let expected = regex::Regex::new(expected).unwrap();
        for _ in 0..20 {
            let (answer, progress) = random_answer(&matcher(&compiler, &source), &mut random, 200);
            assert_eq!(progress, GrammarProgress::Complete, "{source:?}: {:?}", text(&answer));
            assert!(expected.is_match(&text(&answer)), "{source:?}: {:?}", text(&answer));
        }
    }
}

/// The end is allowed where the text may end, and there every stop id ends it.
#[test]
fn every_stop_id_ends_a_complete_answer_and_no_other() {
    let compiler = bytes();
    let grammar = compiler.compile(&GrammarSource::Regex("ab+".to_owned())).unwrap();
    let stop_ids = vec![EOS, u32::from(b'z')];
    let matcher = GrammarMatcher::new(grammar, stop_ids.clone(), Vec::new());
    for (index, byte) in b"ab".iter().enumerate() {
        let mask = allowed(&matcher.mask(index).unwrap());
        assert!(stop_ids.iter().all(|id| !mask.contains(id)), "{mask:?}");
        assert_eq!(matcher.advance(index, u32::from(*byte)), GrammarProgress::Open);
    }
    assert_eq!(allowed(&matcher.mask(2).unwrap()), [u32::from(b'b'), u32::from(b'z'), EOS]);
    assert_eq!(matcher.advance(2, u32::from(b'z')), GrammarProgress::Complete);
    assert!(matcher.mask(3).is_none());
}

/// Ranks ask for the same mask and give the same token, one up to a step behind the other.
#[test]
fn a_matcher_serves_ranks_that_are_a_step_apart() {
    let compiler = bytes();
    let matcher = matcher(&compiler, &GrammarSource::Regex("abc".to_owned()));
    let first = matcher.mask(0).unwrap();
    assert_eq!(matcher.mask(0).unwrap(), first);
    assert_eq!(matcher.advance(0, u32::from(b'a')), GrammarProgress::Open);
    let second = matcher.mask(1).unwrap();
    assert_eq!(matcher.mask(0).unwrap(), first, "a slower rank still gets the mask of the step before");
    assert_eq!(matcher.advance(0, u32::from(b'a')), GrammarProgress::Open);
    assert_eq!(matcher.mask(1).unwrap(), second);
}

/// A preempted sequence starts again with the tokens that it had generated.
#[test]
fn a_matcher_that_starts_again_goes_on_where_it_was() {
    let compiler = bytes();
    let source = schema(json!({ "type": "object", "properties": { "a": { "type": "integer" } },
        "required": ["a"], "additionalProperties": false }));
    let whole = matcher(&compiler, &source);
    let answer: Vec<u32> = b"{\"a\": 1".iter().map(|byte| u32::from(*byte)).collect();
    for (index, token) in answer.iter().enumerate() {
        let grammar = compiler.compile(&source).unwrap();
        let again = GrammarMatcher::new(grammar, vec![EOS], answer[..index].to_vec());
        let mask = whole.mask(index).unwrap();
        assert_eq!(again.mask(index).unwrap(), mask, "after {index} tokens");
        assert!(allowed(&mask).contains(token), "after {index} tokens");
        assert_eq!(whole.advance(index, *token), GrammarProgress::Open);
    }
}

/// A chain of `count` rules or definitions, each of which refers to the next.
fn chain(count: usize, rule: impl Fn(usize) -> String) -> String {
    (0..count).map(rule).collect()
}

/// Compiled or refused: neither ends the process, and no answer is stuck.
#[test]
fn large_constraints_are_bounded() {
    let compiler = bytes();
    let many = |count: usize, value: &dyn Fn(usize) -> Value| -> Value {
        (0..count).map(|i| (format!("p{i}"), value(i))).collect::<serde_json::Map<_, _>>().into()
    };
    let references = |count: usize| {
        let next = |i: usize| json!({ "$ref": format!("#/$defs/p{}", (i + 1) % count) });
        schema(json!({ "$ref": "#/$defs/p0", "$defs": many(count, &next) }))
    };
    let deepest = [
        GrammarSource::Lark(format!(
            "start: A0\nA1998: \"a\"\n{}",
            chain(1998, |i| format!("A{i}: \"b\" A{}\n", i + 1))
        )),
        GrammarSource::Lark(format!(
            "start: a0\na1998: \"a\"\n{}",
            chain(1998, |i| format!("a{i}: \"b\" a{}\n", i + 1))
        )),
        schema(json!({ "type": "object", "properties": many(2000, &|_| json!({ "type": "string" })) })),
        schema(json!({ "type": "array", "items": { "type": "integer" }, "minItems": 1_000_000 })),
        GrammarSource::Regex("(a{1,1000}){1,1000}{1,1000}".to_owned()),
        GrammarSource::Regex("(a|b)?".repeat(1365)),
        GrammarSource::Choice((0..10_000).map(|i| format!("text number {i}")).collect()),
        references(1999),
    ];
    for source in deepest {
        let Ok(grammar) = compiler.compile(&source) else { continue };
        let matcher = GrammarMatcher::new(grammar, vec![EOS], Vec::new());
        let (_, progress) = random_answer(&matcher, &mut Random::new(1), 20);
        assert!(!matches!(progress, GrammarProgress::Stuck), "{progress:?}");
    }
    for (source, part) in [
        (
            GrammarSource::Lark("start: \"a\"\n".repeat(2001)),
            "lines of a grammar: expected at most 2000, got 2001",
        ),
        (GrammarSource::Lark(format!("start: {}\"a\"", "(".repeat(20_000))), "bytes of a line"),
        (GrammarSource::Lark(format!("start: {}\"a\"", "(".repeat(10_000))), "nested"),
        (GrammarSource::Lark("# comment\n".repeat(10_000)), "bytes of a grammar"),
        (GrammarSource::Regex("(a|b)?".repeat(1366)), "bytes of a regular expression: expected at most 8192"),
        (GrammarSource::Choice(vec!["x".repeat(300_000)]), "bytes of all texts"),
        (references(2001), "references ($ref): expected at most 2000, got 2002"),
        (schema(json!({ "enum": ["x".repeat(300_000)] })), "bytes of a JSON schema"),
        (
            schema(json!({ "items": { "properties": many(2001, &|_| json!({})) } })),
            "properties of an object: expected at most 2000, got 2001 (at #/items)",
        ),
        (schema(json!({ "items": { "pattern": "a".repeat(9000) } })), "bytes of a pattern"),
        (schema(json!({ "patternProperties": { "a".repeat(9000): {} } })), "bytes of a pattern"),
    ] {
        let error = compiler.compile(&source).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_constraint_is_compiled_once() {
    let compiler = bytes();
    let source = GrammarSource::Regex("a+".to_owned());
    let first = compiler.compile(&source).unwrap();
    assert!(Arc::ptr_eq(&first, &compiler.compile(&source).unwrap()));
    for i in 0..200 {
        compiler.compile(&GrammarSource::Choice(vec![i.to_string()])).unwrap();
    }
    assert!(!Arc::ptr_eq(&first, &compiler.compile(&source).unwrap()), "it was used longest ago");
}

#[test]
fn grammars_in_gbnf_allow_what_they_say() {
    let compiler = bytes();
    let cases = [
        ("root ::= \"a\" b-c+ # comment\nb-c ::= [x-z] | \"\\n\"", "^a([x-z]|\n)+$"),
        ("root ::= (\"yes\" | \"no\") [^a-z\\]]{2}\n", "^(yes|no)[^a-z\\]]{2}$"),
        (
            "root ::= item (\",\" item)?\n  | \"none\"\nitem ::= [0-9]{1,3}",
            "^([0-9]{1,3}(,[0-9]{1,3})?|none)$",
        ),
        ("Root-1 ::= \"x\"\nroot_1 ::= \"y\"\nroot ::= Root-1 root_1", "^xy$"),
    ];
    let mut random = Random::new(11);
    for (gbnf, expected) in cases {
        let source = GrammarSource::Lark(gbnf_to_lark(gbnf).unwrap());
        let expected = regex::Regex::new(expected).unwrap();
        let mut complete = 0;
        for _ in 0..20 {
            let (answer, progress) = random_answer(&matcher(&compiler, &source), &mut random, 400);
            let bytes: Vec<u8> = answer.iter().filter(|id| **id < 256).map(|id| *id as u8).collect();
            if progress == GrammarProgress::Complete && answer.iter().all(|id| *id <= EOS) {
                let text = String::from_utf8(bytes).unwrap();
                assert!(expected.is_match(&text), "{gbnf}: {text:?}");
                complete += 1;
            }
        }
        assert!(complete > 0, "{gbnf}");
    }
    for (gbnf, part) in [
        ("a ::= \"x\"", "root"),
        ("root ::= \"x", "line 1"),
        ("root ::= \"x\"\n%", "line 2"),
        ("::= \"x\"", "name"),
        ("root ::= [a", "line 1"),
        ("root ::= \"a\"{x}", "{1,3}"),
    ] {
        let error = gbnf_to_lark(gbnf).expect_err(gbnf).to_string();
        assert!(error.contains(part), "{gbnf}: {error}");
    }
}

/// A grammar of the letter "a", with 300 ways to go on after each, until a step takes more work than is
/// allowed.
pub fn too_complex() -> String {
    let rules: String = (0..300).map(|i| format!("r{i}: r{} \"Z\"?\n", i + 1)).collect();
    format!("start: r0 \"Q\"\n{rules}r300: \"a\" r0 | \"a\"\n")
}

#[test]
fn a_step_that_takes_too_much_work_is_told_from_a_fault() {
    let compiler = bytes();
    let matcher = matcher(&compiler, &GrammarSource::Lark(too_complex()));
    let mut progress = GrammarProgress::Open;
    for index in 0..12 {
        assert_eq!(progress, GrammarProgress::Open, "{index}");
        assert!(matcher.mask(index).is_some(), "{index}");
        progress = matcher.advance(index, u32::from(b'a'));
        if let GrammarProgress::TooComplex(text) = progress {
            assert!(text.contains("Current row has") && !text.contains('\n'), "{text}");
            return;
        }
    }
    panic!("{progress:?}");
}
