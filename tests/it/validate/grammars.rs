//! Fields that constrain the answer to a grammar, in the spellings that are supported.

use octant::grammar::GrammarSource;
use serde_json::{Value, json};

use super::{a_chat, a_completion, chat, completion};

/// Asserts that both routes read these fields as this constraint.
fn reads(more: &Value, expected: Option<&GrammarSource>) {
    for result in [chat(&a_chat(more)), completion(&a_completion(more))] {
        let valid = result.unwrap_or_else(|error| panic!("{more}: {error}"));
        assert_eq!(valid.ask.grammar.as_ref(), expected, "{more}");
        assert!(valid.ignored().is_empty(), "{more}: {:?}", valid.ignored());
    }
}

/// Asserts that both routes refuse these fields and name this one.
fn refuses(more: &Value, param: &str) {
    for result in [chat(&a_chat(more)), completion(&a_completion(more))] {
        let error = result.map(|_| ()).expect_err(&more.to_string());
        assert_eq!((error.status().as_u16(), error.param()), (400, Some(param)), "{more}: {error}");
    }
}

#[test]
fn every_spelling_gives_the_same_constraint() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    let expected = GrammarSource::JsonSchema(schema.to_string());
    for more in [
        json!({ "response_format": { "type": "json_schema",
            "json_schema": { "name": "x", "description": "y", "schema": schema, "strict": true } } }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } }),
        json!({ "response_format": { "type": "json_object", "schema": schema } }),
        json!({ "structured_outputs": { "json": schema } }),
        json!({ "structured_outputs": { "json": schema.to_string(), "regex": null } }),
        json!({ "guided_json": schema }),
        json!({ "guided_json": schema.to_string(), "guided_decoding_backend": "xgrammar" }),
        json!({ "nvext": { "guided_json": schema } }),
        json!({ "json_schema": schema }),
        json!({ "json_schema": schema.to_string() }),
    ] {
        reads(&more, Some(&expected));
    }
    let regex = GrammarSource::Regex("a+".to_owned());
    for more in [
        json!({ "structured_outputs": { "regex": "a+", "disable_fallback": true } }),
        json!({ "guided_regex": "a+" }),
        json!({ "nvext": { "guided_regex": "a+", "ignore_eos": null } }),
        json!({ "regex": "a+" }),
    ] {
        reads(&more, Some(&regex));
    }
    let choice = GrammarSource::Choice(vec!["yes".to_owned(), "no".to_owned()]);
    for more in [
        json!({ "structured_outputs": { "choice": ["yes", "no"] } }),
        json!({ "guided_choice": ["yes", "no"] }),
        json!({ "nvext": { "guided_choice": ["yes", "no"] } }),
    ] {
        reads(&more, Some(&choice));
    }
    let lark = GrammarSource::Lark("start: \"a\"".to_owned());
    for more in [
        json!({ "structured_outputs": { "grammar": "start: \"a\"" } }),
        json!({ "guided_grammar": "start: \"a\"" }),
    ] {
        reads(&more, Some(&lark));
    }
    let rewritten = GrammarSource::Lark("\nstart: \"a\"".to_owned());
    for more in [json!({ "ebnf": "root ::= \"a\"" }), json!({ "guided_grammar": "root ::= \"a\"" })] {
        reads(&more, Some(&rewritten));
    }
    for more in [
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "structured_outputs": { "json_object": true } }),
    ] {
        reads(&more, Some(&GrammarSource::json_object()));
    }
}

/// The options stand in the schema, where the compiler finds them.
#[test]
fn options_of_json_are_part_of_the_constraint() {
    let schema = json!({ "type": "object", "properties": { "a": { "properties": { "b": {} } } } });
    let closed = json!({ "type": "object", "properties": {
        "a": { "properties": { "b": {} }, "additionalProperties": false } }, "additionalProperties": false });
    let with = |schema: &Value, options: Option<Value>| {
        let mut schema = schema.clone();
        if let Some(options) = options {
            schema["x-guidance"] = options;
        }
        GrammarSource::JsonSchema(schema.to_string())
    };
    let compact = || Some(json!({ "whitespace_flexible": false }));
    let spaces = |pattern: &str| Some(json!({ "whitespace_flexible": true, "whitespace_pattern": pattern }));
    let outputs = |options: Value| {
        let json = json!({ "json": schema });
        json!({ "structured_outputs": crate::http::test_server::merged(json, options) })
    };
    for (more, expected) in [
        (outputs(json!({ "disable_any_whitespace": true })), with(&schema, compact())),
        (outputs(json!({ "disable_any_whitespace": false })), with(&schema, None)),
        (outputs(json!({ "disable_any_whitespace": null, "disable_fallback": false })), with(&schema, None)),
        (outputs(json!({ "disable_additional_properties": true })), with(&closed, None)),
        (outputs(json!({ "whitespace_pattern": "[ ]?" })), with(&schema, spaces("[ ]?"))),
        (outputs(json!({ "whitespace_pattern": r"\s*" })), with(&schema, spaces(r"[ \t\r\n]*"))),
        (outputs(json!({ "whitespace_pattern": r"[\s]{0,3}" })), with(&schema, spaces(r"[ \t\r\n]{0,3}"))),
        (outputs(json!({ "whitespace_pattern": r"(?:\n *)?" })), with(&schema, spaces(r"(?:\n *)?"))),
        (outputs(json!({ "whitespace_pattern": "" })), with(&schema, compact())),
        (
            outputs(json!({ "disable_any_whitespace": true, "disable_additional_properties": true })),
            with(&closed, compact()),
        ),
        (
            json!({ "guided_json": schema, "guided_whitespace_pattern": " {0,2}" }),
            with(&schema, spaces(" {0,2}")),
        ),
        (
            json!({ "nvext": { "guided_json": schema, "guided_whitespace_pattern": "" } }),
            with(&schema, compact()),
        ),
        (
            json!({ "guided_json": schema, "guided_decoding_backend":
                "guidance:disable-any-whitespace,no-additional-properties,no-fallback" }),
            with(&closed, compact()),
        ),
        (
            json!({ "structured_outputs": { "json_object": true, "disable_any_whitespace": true } }),
            with(&json!({ "type": "object" }), compact()),
        ),
    ] {
        reads(&more, Some(&expected));
    }
}

#[test]
fn a_field_that_asks_for_nothing_is_no_constraint() {
    for more in [
        json!({ "response_format": { "type": "text" } }),
        json!({ "response_format": null, "structured_outputs": null, "guided_json": null, "nvext": null }),
        json!({ "nvext": { "guided_regex": null } }),
        json!({ "regex": "", "ebnf": "", "json_schema": "" }),
    ] {
        reads(&more, None);
    }
}

#[test]
fn what_is_not_understood_completely_is_refused_by_name() {
    for (more, param) in [
        (json!({ "response_format": "text" }), "response_format"),
        (json!({ "response_format": {} }), "response_format.type"),
        (json!({ "response_format": { "type": "nonsense" } }), "response_format.type"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": {} } }),
            "response_format.json_schema.schema",
        ),
        (
            json!({ "response_format": { "type": "json_schema",
                "json_schema": { "schema": {}, "odd": 1 } } }),
            "response_format.json_schema.odd",
        ),
        (
            json!({ "response_format": { "type": "text", "json_schema": { "schema": {} } } }),
            "response_format.json_schema",
        ),
        (json!({ "response_format": { "type": "json_object", "value": {} } }), "response_format.value"),
        (json!({ "structured_outputs": {} }), "structured_outputs"),
        (json!({ "structured_outputs": { "json": {}, "regex": "a" } }), "structured_outputs"),
        (json!({ "structured_outputs": { "json": {}, "odd": 1 } }), "structured_outputs.odd"),
        (json!({ "guided_json": "{" }), "guided_json"),
        (json!({ "guided_json": 1 }), "guided_json"),
        (json!({ "guided_regex": ["a"] }), "guided_regex"),
        (json!({ "guided_choice": [] }), "guided_choice"),
        (json!({ "guided_choice": "a" }), "guided_choice"),
        (json!({ "guided_choice": ["a", 1] }), "guided_choice[1]"),
        (json!({ "nvext": { "guided_choice": [1] } }), "nvext.guided_choice[0]"),
        (json!({ "nvext": "x" }), "nvext"),
        (json!({ "ebnf": "a ::= \"x\"" }), "ebnf"),
        (json!({ "regex": "a", "guided_regex": "a" }), "regex"),
        (json!({ "guided_json": {}, "nvext": { "guided_json": {} } }), "nvext.guided_json"),
        (json!({ "response_format": { "type": "json_object" }, "guided_choice": ["a"] }), "guided_choice"),
    ] {
        refuses(&more, param);
    }
}

#[test]
fn options_of_json_that_cannot_be_honoured_are_refused_by_name() {
    for (more, param) in [
        (
            json!({ "structured_outputs": { "json": {}, "whitespace_pattern": " " } }),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({ "structured_outputs": { "json": {}, "whitespace_pattern": "[a ]*" } }),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({ "structured_outputs": { "json": {}, "whitespace_pattern": ["\n"] } }),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({ "structured_outputs":
                { "json": {}, "whitespace_pattern": " *", "disable_any_whitespace": true } }),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({ "structured_outputs": { "regex": "a", "disable_any_whitespace": true } }),
            "structured_outputs.disable_any_whitespace",
        ),
        (
            json!({ "structured_outputs": { "choice": ["a"], "disable_additional_properties": true } }),
            "structured_outputs.disable_additional_properties",
        ),
        (
            json!({ "structured_outputs": { "json": {}, "disable_any_whitespace": 1 } }),
            "structured_outputs.disable_any_whitespace",
        ),
        (json!({ "structured_outputs": { "structural_tag": "{}" } }), "structured_outputs.structural_tag"),
        (json!({ "guided_json": {}, "guided_whitespace_pattern": "." }), "guided_whitespace_pattern"),
        (json!({ "guided_regex": "a", "guided_whitespace_pattern": " *" }), "guided_whitespace_pattern"),
        (json!({ "guided_whitespace_pattern": " *" }), "guided_whitespace_pattern"),
        (
            json!({ "nvext": { "guided_json": {}, "guided_whitespace_pattern": "(" } }),
            "nvext.guided_whitespace_pattern",
        ),
        (json!({ "guided_json": {}, "guided_decoding_backend": "xgrammar:odd" }), "guided_decoding_backend"),
    ] {
        refuses(&more, param);
    }
}

#[test]
fn structural_tags_are_refused_with_the_kinds_that_are_supported() {
    let tag = json!({ "begin": "<f>", "schema": {}, "end": "</f>" });
    let older = json!({ "type": "structural_tag", "structures": [tag], "triggers": ["<f"] });
    let newer = json!({ "type": "structural_tag", "format": { "type": "json_schema", "json_schema": {} } });
    for (more, param) in [
        (json!({ "response_format": older }), "response_format.type"),
        (json!({ "response_format": newer }), "response_format.type"),
        (json!({ "structured_outputs": { "structural_tag": newer } }), "structured_outputs.structural_tag"),
        (
            json!({ "structured_outputs": { "json": {}, "structural_tag": newer.to_string() } }),
            "structured_outputs.structural_tag",
        ),
        (json!({ "structural_tag": older.to_string() }), "structural_tag"),
        (json!({ "guided_structural_tag": older.to_string() }), "guided_structural_tag"),
        (json!({ "nvext": { "guided_structural_tag": older } }), "nvext.guided_structural_tag"),
        (json!({ "guided_json_object": true }), "guided_json_object"),
    ] {
        refuses(&more, param);
        let error = chat(&a_chat(&more)).map(|_| ()).expect_err("it is refused");
        let text = error.to_string();
        assert!(text.contains("json_object") && text.contains("json_schema"), "{more}: {text}");
    }
}

/// Options of the grammar's library would lift the limit on whitespace, or drop keywords silently.
#[test]
fn options_of_the_grammar_library_in_a_schema_are_refused() {
    for options in [json!(1), json!({}), json!({ "lenient": true }), json!({ "whitespace_pattern": " *" })] {
        let schema = json!({ "type": "null", "x-guidance": options });
        for (more, param) in [
            (json!({ "guided_json": schema }), "guided_json"),
            (json!({ "guided_json": schema.to_string() }), "guided_json"),
            (
                json!({ "structured_outputs": { "json": schema, "whitespace_pattern": " ?" } }),
                "structured_outputs.json",
            ),
        ] {
            refuses(&more, param);
            let error = chat(&a_chat(&more)).map(|_| ()).expect_err("it is refused").to_string();
            assert!(error.contains("x-guidance: not supported in a JSON schema (at #)"), "{error}");
        }
    }
}
