//! JSON schemas of clients as they are compiled: with a limit on whitespace, stricter where answers would not
//! be valid, and without the keywords that cannot be enforced if they may be ignored.

use std::panic::AssertUnwindSafe;

use llguidance::panic_utils::catch_unwind;
use llguidance::{GrammarBuilder, JsonCompileOptions};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::keywords::{self, OPTIONS};
use super::{GrammarError, SchemaRule, limits};

/// The most whitespace between two parts of a JSON text. Without a limit a model may generate whitespace
/// until `max_tokens`.
const JSON_WHITESPACE: &str = r"[ \t\r\n]{1,20}";

/// The most times that keywords are left out of one schema.
const MAX_LEFT_OUT: usize = 50;

/// Keywords that are never left out of a schema: without them it would mean something else.
const KEPT: [&str; 11] = [
    "type",
    "properties",
    "required",
    "items",
    "prefixItems",
    "additionalProperties",
    "enum",
    "const",
    "anyOf",
    "allOf",
    "$defs",
];

impl From<Fault> for GrammarError {
    fn from(fault: Fault) -> Self {
        Self::Invalid(fault.to_string())
    }
}

/// Reads a schema.
///
/// # Errors
/// [`GrammarError::Invalid`] if it is no schema, is too large, or has options that are not those of
/// [`super::JsonOptions`].
pub(super) fn parse(text: &str) -> Result<Value, GrammarError> {
    let schema: Value =
        serde_json::from_str(text).map_err(|error| GrammarError::Invalid(error.to_string()))?;
    limits::check_schema(&schema)?;
    match &schema {
        Value::Bool(false) => Err(GrammarError::invalid("no text satisfies the schema false")),
        Value::Bool(true) => Ok(Value::Object(Map::new())),
        Value::Object(map) if map.get(OPTIONS).is_some_and(|options| !is_ours(options)) => {
            Err(GrammarError::Invalid(format!("{OPTIONS}: not supported in a JSON schema (at #)")))
        }
        Value::Object(_) => Ok(schema),
        other => Err(GrammarError::Invalid(format!("expected a JSON schema, got {other}"))),
    }
}

/// Whether options are of the kind that [`super::JsonOptions`] writes.
fn is_ours(options: &Value) -> bool {
    options.as_object().is_some_and(|options| {
        options.iter().all(|(name, value)| match name.as_str() {
            "whitespace_flexible" => value.is_boolean(),
            "whitespace_pattern" => value.is_string(),
            _ => false,
        })
    })
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
    Some(Fault::find(schema, error, &self::error))
}

/// The error of `llguidance` for a schema.
fn error(schema: &Value) -> Option<String> {
    let compile = || {
        let builder = GrammarBuilder::new(None, limits::of_parser());
        JsonCompileOptions::default().json_to_llg_with_overrides(builder, prepared(schema.clone()))
    };
    let error = catch_unwind(AssertUnwindSafe(compile)).err()?;
    // Outer errors say where the innermost one came from.
    let text = error.root_cause().to_string();
    Some(if text.starts_with("panic: ") { "cannot be compiled".to_owned() } else { one_line(&text) })
}

/// A text on one line, cut to a readable length.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

/// The fault of an object whose least number of properties could be reached by repeating a name only.
pub(super) fn repeats_names(schema: &Value) -> Option<Fault> {
    let pointer = keywords::counts_repeated_names(&mut schema.clone())?;
    let text = "not supported where names may repeat: it demands more than one property beyond those that \
                are required";
    let keywords = vec!["minProperties".to_owned()];
    let text = text.to_owned();
    Some(Fault { pointer, keywords, text, is_around: false, allows_nothing: false, is_everywhere: false })
}

/// Leaves keywords that cannot be enforced out of the lenient parts of a rule's schema. Returns their paths.
///
/// # Errors
/// A keyword that cannot be enforced and must be, with its path.
pub(super) fn relax(schema: &mut Value, rule: &SchemaRule) -> Result<Vec<String>, GrammarError> {
    let mut left_out = Vec::new();
    for _ in 0..MAX_LEFT_OUT {
        let Some(fault) = fault(schema) else { break };
        left_out.extend(leave_out(schema, fault, rule)?);
    }
    Ok(left_out)
}

/// Leaves out the keywords of a fault. The same keywords of other schemas are left out at once if these
/// never can be enforced. Returns the paths of all.
///
/// # Errors
/// The fault, if a keyword must be enforced.
pub(super) fn leave_out(
    schema: &mut Value,
    mut fault: Fault,
    rule: &SchemaRule,
) -> Result<Vec<String>, GrammarError> {
    let Some((place, inner)) = rule.place(&fault.pointer) else { return Err(fault.into()) };
    let mut names = fault.keywords.clone();
    names.retain(|name| !KEPT.contains(&name.as_str()));
    if !place.lenient || fault.allows_nothing || names.is_empty() {
        let path = place.path.clone();
        fault.pointer = inner.to_owned();
        return Err(GrammarError::from(fault).at(&path));
    }
    let mut left_out = Vec::new();
    keywords::for_each_schema(schema, &mut |pointer, map| {
        let Some((place, inner)) = rule.place(pointer).filter(|(place, _)| place.lenient) else { return };
        if pointer != fault.pointer && !fault.is_everywhere {
            return;
        }
        for name in &names {
            let Some(value) = map.shift_remove(name) else { continue };
            // One of the alternatives is still demanded.
            if name == "oneOf" && !map.contains_key("anyOf") {
                map.insert("anyOf".to_owned(), value);
            }
            left_out.push(format!("{}#{inner}/{name}", place.path));
        }
    });
    Ok(left_out)
}
