//! Tool calls: the parser that finds them in an answer, and the grammar that makes them valid.

mod rebuild;

use std::sync::Arc;

use octant::grammar::{GrammarProgress, GrammarSource};
use octant::random::Random;
use octant::tools::{
    AllowedTool, AnswerWithoutCalls, Tool, ToolCallDelta, ToolCallParser, ToolFormat, call_grammar, call_text,
};
use serde_json::{Value, json};

use crate::grammar::{bytes, matcher, random_answer, text};

use ToolFormat::{Hermes, Llama3, Nemotron, NemotronNano};
use rebuild::{FoundCall, rebuilds};

/// The text and the calls of an answer.
type Parsed = (String, Vec<(String, String)>);

/// Parses an answer that comes in these pieces.
fn parse<'a>(format: ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> Parsed {
    let (text, calls) = found(format, pieces);
    (text, calls.into_iter().map(|call| (call.name, call.arguments)).collect())
}

/// The text and the calls of an answer that comes in these pieces, with the place of each call.
fn found<'a>(format: ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> (String, Vec<FoundCall>) {
    let names: Arc<[String]> = ["add", "get_weather"].map(str::to_owned).into();
    let mut parser = ToolCallParser::new(format, names);
    let (mut text, mut deltas) = (String::new(), Vec::new());
    let mut calls: Vec<FoundCall> = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut text, &mut deltas);
        for ToolCallDelta { call, name, arguments, text_before } in deltas.drain(..) {
            assert!(text.is_char_boundary(text_before));
            if let Some(name) = name {
                assert_eq!(call, calls.len(), "calls come in order");
                calls.push(FoundCall { name, arguments: String::new(), text_before });
            }
            calls[call].arguments.push_str(&arguments);
        }
    }
    parser.finish(&mut text);
    assert_eq!(parser.calls(), calls.len());
    (text, calls)
}

/// Parses an answer whole, character by character, in every two pieces and in some random pieces. The text
/// and the calls are all of it.
fn parse_in_every_way(format: ToolFormat, answer: &str) -> Parsed {
    let (text, calls) = found(format, [answer]);
    assert!(rebuilds(format, answer, &text, &calls), "{format:?}: {answer:?} is {text:?} and {calls:?}");
    let whole: Parsed = (text, calls.into_iter().map(|call| (call.name, call.arguments)).collect());
    let ends: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
    for &at in &ends {
        assert_eq!(parse(format, [&answer[..at], &answer[at..]]), whole, "{answer:?} cut at {at}");
    }
    let characters = answer.char_indices().map(|(at, c)| &answer[at..at + c.len_utf8()]);
    assert_eq!(parse(format, characters), whole, "{answer:?} in characters");
    let mut random = Random::new(answer.len() as u64);
    for _ in 0..4 {
        let cuts = ends.iter().copied().filter(|_| random.bits().is_multiple_of(4));
        let cuts: Vec<usize> = std::iter::once(0).chain(cuts).chain([answer.len()]).collect();
        let pieces = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]);
        assert_eq!(parse(format, pieces), whole, "{answer:?} cut at {cuts:?}");
    }
    whole
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
}

const WEATHER: &str = r#"{"city": "Paris"}"#;

/// A format, an answer, its text and its calls.
type Case = (ToolFormat, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Calls in one format.
const CALLS: &[Case] = &[
    (Hermes, "plain text", "plain text", &[]),
    (Hermes, "", "", &[]),
    (
        Hermes,
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
        "",
        &[("get_weather", WEATHER)],
    ),
    (
        Hermes,
        "I look.\n\n<tool_call>{\"name\":\"add\",\"arguments\":{}}</tool_call>\n\
         <tool_call>{\"arguments\": {\"city\": \"Paris\"}, \"name\": \"get_weather\"}</tool_call>\n\
         Done.\n",
        "I look.Done.\n",
        &[("add", "{}"), ("get_weather", WEATHER)],
    ),
    // A marker within a string, escapes, nested values, other members.
    (
        Hermes,
        concat!(
            r#"<tool_call>{"id": [1, {"x": "}"}], "name": "a\u0062", "arguments": "#,
            r#"{"s": "</tool_call>\"}", "l": [[{}]]}, "type": null}</tool_call>"#
        ),
        "",
        &[("ab", r#"{"s": "</tool_call>\"}", "l": [[{}]]}"#)],
    ),
    // No arguments, arguments as a string, null and empty ones.
    (Hermes, r#"<tool_call>{"name": "add"}</tool_call>"#, "", &[("add", "{}")]),
    (
        Hermes,
        r#"<tool_call>{"name": "add", "arguments": "{\"a\": 1}"}</tool_call>"#,
        "",
        &[("add", r#"{"a": 1}"#)],
    ),
    (Hermes, r#"<tool_call>{"name": "add", "arguments": null }</tool_call>"#, "", &[("add", "{}")]),
    (Hermes, r#"<tool_call>{"name": "add", "arguments": ""}</tool_call>"#, "", &[("add", "{}")]),
];

/// Answers that are no calls, broken calls, and the other formats.
const OTHERS: &[Case] = &[
    // What is no call is text, with its marker.
    (Hermes, "a <tool_call> b", "a <tool_call> b", &[]),
    (Hermes, "<tool_call><tool_call>{\"name\": \"add\"}</tool_call>", "<tool_call>", &[("add", "{}")]),
    (Hermes, "<tool_call>{\"x\": 1}</tool_call>", "<tool_call>{\"x\": 1}</tool_call>", &[]),
    (Hermes, "1 < 2 and <tool_", "1 < 2 and <tool_", &[]),
    (Hermes, "</tool_call> x", "</tool_call> x", &[]),
    // A call that is cut off, and one that breaks off.
    (Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\"", "", &[("add", "{\"a\"")]),
    (
        Hermes,
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1</tool_call> x",
        "x",
        &[("add", "{\"a\": 1")],
    ),
    (
        Nemotron,
        "<toolcall> {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}} </toolcall> ",
        "",
        &[("get_weather", WEATHER)],
    ),
    (
        NemotronNano,
        "<TOOLCALL>[{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"get_weather\", \"arguments\": \
         {\"city\": \"Paris\"}}]</TOOLCALL>",
        "",
        &[("add", "{}"), ("get_weather", WEATHER)],
    ),
    (
        Llama3,
        "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"get_weather\", \
         \"parameters\": {\"city\": \"Paris\"}}",
        "",
        &[("add", "{}"), ("get_weather", WEATHER)],
    ),
    // Arrays without a call, in both formats, and what follows them.
    (NemotronNano, "<TOOLCALL>[]</TOOLCALL>", "<TOOLCALL>[]</TOOLCALL>", &[]),
    (Hermes, "So:\n<tool_call>\n[ ]\n</tool_call> x", "So:\n<tool_call>\n[ ]\n</tool_call> x", &[]),
    (NemotronNano, "<TOOLCALL>[,", "<TOOLCALL>[,", &[]),
    (
        NemotronNano,
        "<TOOLCALL>[]</TOOLCALL> <TOOLCALL>[{\"name\": \"add\"}]</TOOLCALL>",
        "<TOOLCALL>[]</TOOLCALL>",
        &[("add", "{}")],
    ),
    // A tag with no call after it.
    (Llama3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", &[]),
    (Llama3, " <|python_tag|> ", " <|python_tag|> ", &[]),
    (Llama3, "<|python_tag|>{\"x\": 1}", "<|python_tag|>{\"x\": 1}", &[]),
    (Llama3, "<|python_tag|><|python_tag|>{}", "<|python_tag|><|python_tag|>{}", &[]),
    (Llama3, "<|python_tag|> {\"name\": \"add\", \"parameters\": {}}", "", &[("add", "{}")]),
    // Text before an object, and objects that are no calls.
    (
        Llama3,
        "Use {\"name\": \"add\", \"parameters\": {}}",
        "Use {\"name\": \"add\", \"parameters\": {}}",
        &[],
    ),
    (Llama3, " {\"name\": \"Ada\", \"age\": 36}", " {\"name\": \"Ada\", \"age\": 36}", &[]),
    (Llama3, "{\"answer\": {\"name\": \"add\"}}", "{\"answer\": {\"name\": \"add\"}}", &[]),
];

#[test]
fn calls_are_found_in_every_format_whatever_the_pieces() {
    for &(format, answer, expected_text, expected_calls) in CALLS.iter().chain(OTHERS) {
        let expected = (expected_text.to_owned(), calls(expected_calls));
        assert_eq!(parse_in_every_way(format, answer), expected, "{format:?}: {answer}");
    }
}

#[test]
fn arguments_are_passed_on_while_they_are_written() {
    let names: Arc<[String]> = ["add".to_owned()].into();
    let mut parser = ToolCallParser::new(Hermes, names);
    let (mut text, mut seen) = (String::new(), Vec::new());
    for piece in
        ["<tool_call>\n{\"name\": \"add\"", ", \"arguments\": {\"a", "\": 1", "2", "}}\n</tool_call>"]
    {
        let mut deltas = Vec::new();
        parser.push(piece, &mut text, &mut deltas);
        assert!(deltas.len() <= 1, "{deltas:?}");
        seen.extend(deltas.into_iter().map(|delta| (delta.name, delta.arguments)));
    }
    let name = Some("add".to_owned());
    let expected = [(name, ""), (None, "{\"a"), (None, "\": 1"), (None, "2"), (None, "}")];
    assert_eq!(seen, expected.map(|(name, arguments)| (name, arguments.to_owned())));
    assert_eq!(text, "");
}

#[test]
fn random_texts_parse_the_same_in_any_pieces_and_lose_nothing() {
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "<toolcall>",
        "</toolcall>",
        "<TOOLCALL>",
        "[",
        "]",
        "</TOOLCALL>",
        "{",
        "}",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        ": ",
        ", ",
        "\"add\"",
        "\"x\\\"",
        "\"",
        "\\",
        "1",
        "null",
        " ",
        "\n",
        "é",
        "; ",
        "text",
        "<",
        "<|python_tag|>",
        "{\"name\": \"add\", \"arguments\": {\"a\": [1]}}",
        "<tool_call>{\"name\": \"add\", ",
        "<TOOLCALL>[{\"name\": \"add\", \"arguments\": {}}",
        "<toolcall>[]",
    ];
    let (mut random, mut with_calls) = (Random::new(11), 0);
    for round in 0..400 {
        let answer: String =
            (0..random.bits() % 14).map(|_| parts[random.bits() as usize % parts.len()]).collect();
        for format in [Hermes, Nemotron, NemotronNano, Llama3] {
            let (text, calls) = parse_in_every_way(format, &answer);
            with_calls += usize::from(!calls.is_empty());
            if calls.is_empty() {
                assert_eq!(text, answer, "round {round}, {format:?}");
            }
        }
    }
    assert!(with_calls > 100, "{with_calls} answers have calls");
}

#[test]
fn a_loss_is_seen() {
    let call = |text_before| FoundCall { name: "add".to_owned(), arguments: "{}".to_owned(), text_before };
    let answer = "a <tool_call>{\"name\": \"add\"}</tool_call> b";
    assert!(rebuilds(Hermes, answer, "ab", &[call(1)]));
    for (text, calls) in [("ab", vec![]), ("a", vec![call(1)]), ("b", vec![call(0)]), ("ab", vec![call(2)])] {
        assert!(!rebuilds(Hermes, answer, text, &calls), "{text} {calls:?}");
    }
    assert!(!rebuilds(Hermes, "<tool_call>[]</tool_call>", "", &[]));
    assert!(!rebuilds(Llama3, "<|python_tag|>x", "x", &[]));
}

fn tools() -> [Tool; 2] {
    let tool = |name: &str, parameters: Value, strict| Tool {
        name: name.to_owned(),
        description: None,
        parameters: parameters.as_object().unwrap().clone(),
        strict,
    };
    let number = json!({ "type": "integer", "minimum": 0, "maximum": 99 });
    let add = json!({ "type": "object", "$defs": { "number": number }, "required": ["a", "b"],
        "properties": { "a": { "$ref": "#/$defs/number" }, "b": { "$ref": "#/$defs/number" } },
        "additionalProperties": false });
    let weather = json!({ "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } },
        "required": ["city"], "additionalProperties": false });
    [tool("add", add, true), tool("get_weather", weather, false)]
}

fn grammar(format: ToolFormat, several: bool, without: &AnswerWithoutCalls) -> GrammarSource {
    let tools = tools();
    let allowed: Vec<AllowedTool<'_>> =
        tools.iter().map(|tool| AllowedTool { tool, path: "p", lenient: false }).collect();
    call_grammar(format, &allowed, several, without)
}

fn is_valid((name, arguments): &(String, String)) -> bool {
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    let in_range = |value: &Value| value.as_i64().is_some_and(|value| (0..=99).contains(&value));
    match name.as_str() {
        "add" => in_range(&arguments["a"]) && in_range(&arguments["b"]),
        "get_weather" => arguments["city"] == "Paris" || arguments["city"] == "Rome",
        _ => false,
    }
}

/// Whether a grammar allows exactly this answer, byte by byte.
fn allows(source: &GrammarSource, answer: &str) -> bool {
    let compiler = bytes();
    let matcher = matcher(&compiler, source);
    let allowed =
        |id: u32, at: usize| matcher.mask(at).is_none_or(|mask| mask[id as usize / 32] >> (id % 32) & 1 == 1);
    for (at, byte) in answer.bytes().enumerate() {
        if !allowed(byte.into(), at) {
            return false;
        }
        match matcher.advance(at, byte.into()) {
            GrammarProgress::Open => {}
            GrammarProgress::Complete => return at + 1 == answer.len(),
            _ => return false,
        }
    }
    allowed(256, answer.len())
}

#[test]
fn random_answers_of_required_calls_are_valid_calls() {
    let compiler = bytes();
    let mut random = Random::new(5);
    for format in [Hermes, Nemotron, NemotronNano, Llama3] {
        let source = grammar(format, false, &AnswerWithoutCalls::Never);
        for _ in 0..12 {
            let (answer, progress) = random_answer(&matcher(&compiler, &source), &mut random, 1000);
            assert_eq!(progress, GrammarProgress::Complete, "{format:?}: {:?}", text(&answer));
            let (rest, calls) = parse(format, [text(&answer).as_str()]);
            assert_eq!((rest.trim(), calls.len()), ("", 1), "{format:?}: {:?}", text(&answer));
            assert!(calls.iter().all(is_valid), "{format:?}: {calls:?}");
        }
    }
}

#[test]
fn a_grammar_allows_what_the_choice_allows() {
    let call = |format, name: &str, arguments: &str| call_text(format, name, arguments);
    let paris = r#"{"city": "Paris"}"#;
    let json = AnswerWithoutCalls::Json {
        schema: json!({ "type": "object", "properties": { "name": { "type": "string" } },
            "required": ["name"], "additionalProperties": false })
        .to_string(),
        path: "r".to_owned(),
    };
    for format in [Hermes, Nemotron, NemotronNano, Llama3] {
        let one = call(format, "get_weather", paris);
        let wrong = call(format, "get_weather", r#"{"city": "Oslo"}"#);
        let unknown = call(format, "other", "{}");
        let separator = if format == Llama3 { "; " } else { "\n" };
        let two = format!("{one}{separator}{one}");
        let never = grammar(format, true, &AnswerWithoutCalls::Never);
        let once = grammar(format, false, &AnswerWithoutCalls::Never);
        let free = grammar(format, true, &AnswerWithoutCalls::Text);
        let free_once = grammar(format, false, &AnswerWithoutCalls::Text);
        let or_json = grammar(format, true, &json);
        let object = r#"{"name": "Ada"}"#;
        let with_text = format!("Wait. {one}");
        let expected: [(&GrammarSource, &str, bool); 17] = [
            (&never, &one, true),
            (&never, &wrong, false),
            (&never, &unknown, false),
            (&never, "text", false),
            (&never, &two, format != NemotronNano),
            (&once, &one, true),
            (&once, &two, false),
            (&free, "text", true),
            (&free, &one, true),
            (&free, &wrong, false),
            (&free, &unknown, false),
            (&free, &with_text, true),
            (&free_once, &one, true),
            (&free_once, &two, false),
            (&or_json, &one, true),
            (&or_json, object, true),
            (&or_json, "text", false),
        ];
        for (i, (source, answer, allowed)) in expected.into_iter().enumerate() {
            assert_eq!(allows(source, answer), allowed, "{format:?}, case {i}: {answer:?}\n{source:?}");
        }
    }
}

#[test]
fn keywords_that_cannot_be_enforced_are_errors_or_are_named_as_ignored() {
    let compiler = bytes();
    let mut tools = tools();
    let properties = json!({
        "a": { "type": "array", "items": { "enum": [1, 2] }, "maxItems": 2, "uniqueItems": true },
        "b": { "type": "string", "format": "iri", "maxLength": 3 },
        "c": { "oneOf": [{ "type": "integer", "maximum": 9 }, { "type": "integer", "minimum": 5 }] },
        "d": { "uniqueItems": true, "type": "null" },
    });
    tools[1].parameters.insert("properties".to_owned(), properties);
    tools[1].parameters.insert("required".to_owned(), json!(["a", "b", "c", "d"]));
    for format in [Hermes, Llama3] {
        let compile = |lenient: bool| {
            let paths = ["tools[0].function.parameters", "tools[1].function.parameters"];
            let allowed: Vec<AllowedTool<'_>> =
                tools.iter().zip(paths).map(|(tool, path)| AllowedTool { tool, path, lenient }).collect();
            compiler.compile(&call_grammar(format, &allowed, false, &AnswerWithoutCalls::Never))
        };
        let error = compile(false).unwrap_err().to_string();
        let expected = "tools[1].function.parameters: uniqueItems: not supported in a JSON schema \
                        (at #/properties/a)";
        assert_eq!(error, expected, "{format:?}");
        let grammar = compile(true).unwrap();
        let mut ignored = grammar.ignored().to_vec();
        ignored.sort();
        let expected = ["a/uniqueItems", "b/format", "c/oneOf", "d/uniqueItems"]
            .map(|name| format!("tools[1].function.parameters#/properties/{name}"));
        assert_eq!(ignored, expected, "{format:?}");
        // The other keywords are enforced, and any of the alternatives.
        let name = &tools[1].name;
        for (arguments, allowed) in [
            (r#"{"a": [1, 1], "b": "xyz", "c": 7, "d": null}"#, true),
            (r#"{"a": [3], "b": "xyz", "c": 7, "d": null}"#, false),
            (r#"{"a": [], "b": "wxyz", "c": 7, "d": null}"#, false),
            (r#"{"a": [], "b": "xyz", "c": "7", "d": null}"#, false),
        ] {
            let answer = call_text(format, name, arguments);
            let source = grammar.source().unwrap();
            assert_eq!(allows(source, &answer), allowed, "{format:?}: {answer}");
        }
    }
}

#[test]
fn formats_are_found_in_templates() {
    let cases = [
        ("<tool_call>\\n{\"name\": ...}</tool_call>", Some(Hermes)),
        ("<tool_call><function=x></function></tool_call>", None),
        ("<toolcall> ... </toolcall>", Some(Nemotron)),
        ("<TOOLCALL>[]</TOOLCALL>", Some(NemotronNano)),
        ("<|start_header_id|>{{ '{\"name\": x, \"parameters\": ' }}", Some(Llama3)),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", None),
    ];
    for (source, format) in cases {
        assert_eq!(ToolFormat::of_template(source), format, "{source}");
    }
    assert_eq!(ToolFormat::for_plain_template("<extra_id_1>User"), Nemotron);
    assert_eq!(ToolFormat::for_plain_template("<|im_start|>"), Hermes);
}
