//! JSON schemas of clients as they are compiled: with a limit on whitespace, and stricter where answers would
//! not be valid.

use std::panic::AssertUnwindSafe;

use llguidance::panic_utils::catch_unwind;
use llguidance::{GrammarBuilder, JsonCompileOptions};
use serde_json::{Map, Value, json};

use super::fault::{Fault, SEARCH};
use super::keywords::{self, OPTIONS};
use super::{GrammarError, SchemaRule, limits, short_text};

/// The most whitespace between two parts of a JSON text. Without a limit a model may generate whitespace
/// until `max_tokens`.
const JSON_WHITESPACE: &str = r"[ \t\r\n]{1,20}";

/// Reads a schema.
///
/// # Errors
/// [`GrammarError::Invalid`] if it is no schema or is too large.
pub(super) fn parse(text: &str) -> Result<Value, GrammarError> {
    let schema = parse_any_size(text)?;
    limits::check_schema(&schema)?;
    Ok(schema)
}

/// Reads the schema of a rule.
///
/// # Errors
/// [`GrammarError::Invalid`] if it is no schema or if that of a field of the request is too large, with the
/// path of the field.
pub(super) fn parse_rule(rule: &SchemaRule) -> Result<Value, GrammarError> {
    let schema = parse_any_size(&rule.schema).map_err(|error| error.at(rule.path()))?;
    for place in rule.parts() {
        let checked = schema.pointer(&place.pointer).map_or(Ok(()), limits::check_schema);
        checked.map_err(|fault| GrammarError::from(fault).at(&place.path))?;
    }
    Ok(schema)
}

fn parse_any_size(text: &str) -> Result<Value, GrammarError> {
    let schema: Value =
        serde_json::from_str(text).map_err(|error| GrammarError::Invalid(error.to_string()))?;
    match schema {
        Value::Bool(false) => Err(GrammarError::invalid("no text satisfies the schema false")),
        Value::Bool(true) => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(schema),
        other => Err(GrammarError::Invalid(format!("expected a JSON schema, got {other}"))),
    }
}

/// The schema as `llguidance` gets it.
pub(super) fn prepared(mut schema: Value) -> Value {
    keywords::make_stricter(&mut schema);
    if let Value::Object(map) = &mut schema {
        let options = json!({ "whitespace_flexible": true, "whitespace_pattern": JSON_WHITESPACE });
        map.entry(OPTIONS).or_insert(options);
    }
    schema
}

/// Why a schema cannot be compiled, without regard to the model's tokens. `None` if it can.
pub(super) fn fault(schema: &Value) -> Option<Fault> {
    let error = error(schema)?;
    Some(Fault::find(schema, &error, &self::error, &mut SEARCH.clone()))
}

/// The error of `llguidance` for a schema.
pub(super) fn error(schema: &Value) -> Option<String> {
    let compile = || {
        let builder = GrammarBuilder::new(None, limits::of_parser());
        JsonCompileOptions::default().json_to_llg_with_overrides(builder, prepared(schema.clone()))
    };
    let error = catch_unwind(AssertUnwindSafe(compile)).err()?;
    // Outer errors say where the innermost one came from.
    Some(short_text(&error.root_cause().to_string()))
}

/// The fault of the first object whose least number of properties could be reached by repeating a name only.
pub(super) fn repeats_names(schema: &Value) -> Option<Fault> {
    let text = "not supported where names may repeat: it demands more than one property beyond those that \
                are required";
    let mut found = None;
    keywords::for_each_schema(schema, &mut |pointer, map| {
        if found.is_none() && keywords::counts_repeated_names(map) {
            found = Some(Fault::new(pointer, &["minProperties"], text.to_owned()));
        }
    });
    found
}
