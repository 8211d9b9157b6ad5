//! Constraints that cannot be compiled, and the errors that say why.

use octant::grammar::GrammarSource;
use serde_json::{Value, json};

use super::{bytes, schema};

/// A schema whose required property `a` has this schema.
fn at_a(schema: Value) -> Value {
    json!({ "type": "object", "properties": {
        "other": { "type": "string" }, "a": schema, "last": { "format": "date" } }, "required": ["a"] })
}

/// A schema whose items refer to this definition.
fn below(definition: Value) -> Value {
    json!({ "$defs": { "unused": { "format": "date" }, "x": definition },
        "type": "array", "items": { "$ref": "#/$defs/x" }, "minItems": 1 })
}

/// A schema for each kind of keyword that cannot be compiled, and the error that names it and its place.
fn faults() -> Vec<(Value, &'static str)> {
    vec![
        (at_a(json!({ "not": {} })), "not: not supported in a JSON schema (at #/properties/a)"),
        (
            json!({ "$defs": { "unused": { "not": {} } }, "properties": { "b": { "items": { "not": 1 } } } }),
            "not: not supported in a JSON schema (at #/properties/b/items)",
        ),
        (at_a(json!({ "format": "iri" })), "format: Unknown format: iri (at #/properties/a)"),
        (below(json!({ "format": "iri" })), "format: Unknown format: iri (at #/$defs/x)"),
        (at_a(json!({ "type": "strange" })), "type: Invalid type: strange (at #/properties/a)"),
        (at_a(json!({ "type": 3 })), "type: type must be a string or array of strings (at #/properties/a)"),
        (
            at_a(json!({ "$ref": "https://example.com/x" })),
            "$ref: not supported except to a place within the schema (#/...), got 'https://example.com/x' \
             (at #/properties/a)",
        ),
        (
            at_a(json!({ "$ref": "#/$defs/missing" })),
            "$ref: Reference segment '$defs' not found in '#/$defs/missing'. (at #/properties/a)",
        ),
        (
            at_a(json!({ "oneOf": [{ "type": "string" }, { "type": "string", "maxLength": 2 }] })),
            "oneOf: not supported where more than one alternative may be valid; anyOf is supported \
             (at #/properties/a)",
        ),
        (
            at_a(json!({ "properties": { "b": {}, "c": {} }, "type": "object", "minProperties": 1 })),
            "minProperties: min/maxProperties only supported when all keys listed in \"properties\" are \
             required (at #/properties/a)",
        ),
        (
            below(json!({ "properties": { "b": {} }, "type": "object", "maxProperties": 0 })),
            "maxProperties: min/maxProperties only supported when all keys listed in \"properties\" are \
             required (at #/$defs/x)",
        ),
        (at_a(json!({ "enum": 3 })), "enum: enum must be an array (at #/properties/a)"),
        (
            at_a(json!({ "required": 3 })),
            "required: Expected array for 'required', got 3 (at #/properties/a)",
        ),
        (
            json!({ "properties": { "b": { "maxLength": -1 } } }),
            "maxLength: Expected positive integer for 'maxLength', got -1 (at #/properties/b)",
        ),
        (
            json!({ "properties": { "b": { "minimum": "é".repeat(100) } } }),
            "minimum: the compiler of grammars failed (at #/properties/b)",
        ),
        (json!({ "properties": { "b": 5 } }), "properties: schema must be an object or boolean (at #)"),
    ]
}

/// Schemas that no text satisfies, and their errors.
fn empty() -> Vec<(Value, &'static str)> {
    vec![
        (
            at_a(json!({ "type": "integer", "minimum": 5, "maximum": 1 })),
            "minimum, maximum: no text is valid: minimum (5) is greater than maximum (1) (at #/properties/a)",
        ),
        (
            at_a(json!({ "type": "string", "minLength": 3, "maxLength": 1 })),
            "minLength, maxLength: no text is valid: minLength (3) is greater than maxLength (1) \
             (at #/properties/a)",
        ),
        (
            at_a(json!({ "type": "array", "minItems": 3, "maxItems": 1 })),
            "minItems, maxItems: no text is valid: minItems (3) is greater than maxItems (1) \
             (at #/properties/a)",
        ),
        (
            at_a(json!({ "type": "integer", "const": "x" })),
            "type, const: no text is valid: incompatible types (at #/properties/a)",
        ),
        (
            at_a(json!({ "allOf": [{ "type": "integer" }, { "type": "string" }] })),
            "type: no text is valid: incompatible types (at #/properties/a/allOf/1)",
        ),
        (
            json!({ "properties": { "a": false }, "required": ["a"], "type": "object" }),
            "properties, required, type: no text is valid: schema is false (at #)",
        ),
    ]
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let compiler = bytes();
    for (fault, text) in faults().into_iter().chain(empty()) {
        let error = compiler.compile(&schema(fault.clone())).expect_err(&fault.to_string()).to_string();
        assert_eq!(error, text, "{fault}");
    }
    let cases = [
        (schema(json!({ "not": { "type": "string" } })), "not: not supported in a JSON schema (at #)"),
        (schema(json!({ "properties": { "a/b": { "uniqueItems": true } } })), "(at #/properties/a~1b)"),
        (schema(json!({ "anyOf": [{}, { "items": { "if": {}, "then": {} } }] })), "(at #/anyOf/1/items)"),
        (schema(json!({ "items": [{ "contains": {} }] })), "contains"),
        (schema(json!({ "type": "object", "minProperties": 2 })), "minProperties"),
        (schema(json!({ "items": { "minProperties": 3, "required": ["a"] } })), "(at #/items)"),
        (schema(json!({ "items": { "pattern": "a(" } })), "pattern: "),
        (schema(json!({ "items": { "pattern": "a(" } })), "(at #/items)"),
        (schema(json!({ "items": { "pattern": "(?=a)b" } })), "pattern: "),
        (schema(json!({ "items": { "pattern": "(?=a)b" } })), "(at #/items)"),
        (schema(json!({ "items": { "patternProperties": { "^a": {}, "b$": {} } } })), "patternProperties: "),
        (schema(json!({ "items": { "pattern": "a".repeat(9000) } })), "(at #/items)"),
        (schema(json!({ "items": { "multipleOf": 1e-30, "type": "number" } })), "multipleOf: "),
        (schema(json!({ "maximum": 18446744073709551615u64 })), "maximum"),
        (schema(json!({ "type": "strange" })), "strange"),
        (schema(json!({ "$ref": "https://example.com/schema" })), "example.com"),
        (schema(json!(false)), "false"),
        (schema(json!([1])), "[1]"),
        (GrammarSource::JsonSchema("{".to_owned()), "EOF"),
        (GrammarSource::Regex("a(".to_owned()), "a("),
        (GrammarSource::Regex("(?=a)b".to_owned()), "look"),
        (GrammarSource::Lark("start: missing".to_owned()), "missing"),
        (GrammarSource::Lark("start = a".to_owned()), "="),
    ];
    for (source, part) in cases {
        let error = compiler.compile(&source).expect_err(&format!("{source:?}")).to_string();
        assert!(error.contains(part), "{source:?}: {error}");
        assert!(!error.contains('\n') && error.chars().count() <= 400, "{source:?}: {error}");
    }
}
