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
        (
            json!({ "structured_outputs": { "json": {}, "whitespace_pattern": " " } }),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({ "structured_outputs": { "json": {}, "disable_any_whitespace": true } }),
            "structured_outputs.disable_any_whitespace",
        ),
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
