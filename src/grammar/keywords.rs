//! Keywords of JSON schemas: where they stand, which are refused beyond what `llguidance` refuses, and which
//! are made stricter so that every answer is valid.

use serde_json::{Map, Value, json};

use super::GrammarError;

/// Keywords whose value is a schema.
const SCHEMA: [&str; 11] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
];
/// Keywords whose value is an array of schemas; `items` may be one.
const SCHEMAS: [&str; 5] = ["items", "prefixItems", "allOf", "anyOf", "oneOf"];
/// Keywords whose value is an object of schemas by name.
const NAMED_SCHEMAS: [&str; 5] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// A date that exists: `llguidance` allows 29 February in every year.
const DATE: &str = "(?:[0-9]{4}-(?:0[13-9]|1[0-2])-[0-9]{2}|[0-9]{4}-02-(?:[01][0-9]|2[0-8])\
    |(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)";
/// A time without a leap second: `llguidance` allows one at the end of every minute.
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5][0-9]";

/// Calls `visit` with the path and the content of each object that is a schema, outer ones first.
pub(super) fn for_each_schema(schema: &mut Value, visit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    walk(schema, &mut "#".to_owned(), visit);
}

fn walk(schema: &mut Value, path: &mut String, visit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    let Value::Object(map) = schema else { return };
    visit(path, map);
    let mut below = |parts: &[&str], value: &mut Value| {
        let length = path.len();
        for part in parts {
            path.push('/');
            path.push_str(&part.replace('~', "~0").replace('/', "~1"));
        }
        walk(value, path, visit);
        path.truncate(length);
    };
    for (keyword, value) in map.iter_mut() {
        match value {
            Value::Array(items) if SCHEMAS.contains(&keyword.as_str()) => {
                for (i, item) in items.iter_mut().enumerate() {
                    below(&[keyword, &i.to_string()], item);
                }
            }
            Value::Object(named) if NAMED_SCHEMAS.contains(&keyword.as_str()) => {
                for (name, schema) in named.iter_mut() {
                    below(&[keyword, name], schema);
                }
            }
            schema if SCHEMA.contains(&keyword.as_str()) => below(&[keyword], schema),
            _ => {}
        }
    }
}

/// Makes a schema stricter where `llguidance` would allow answers that are not valid.
///
/// # Errors
/// A keyword that cannot be enforced, with its path.
pub(super) fn prepare(schema: &mut Value) -> Result<(), GrammarError> {
    let mut refused = None;
    for_each_schema(schema, &mut |path, map| {
        if counts_repeated_names(map) {
            refused.get_or_insert(format!(
                "minProperties: not supported where names may repeat: it demands more than one property \
                 beyond those that are required (at {path})"
            ));
        }
        let exact = match map.get("format").and_then(Value::as_str) {
            Some("date") => format!("^{DATE}$"),
            Some("time") => format!("^{TIME}"),
            Some("date-time") => format!("^{DATE}[tT]{TIME}"),
            _ => return,
        };
        let parts = map.entry("allOf").or_insert_with(|| json!([]));
        parts.as_array_mut().into_iter().for_each(|parts| parts.push(json!({ "pattern": exact })));
    });
    refused.map_or(Ok(()), |text| Err(GrammarError::Invalid(text)))
}

/// Whether an object could reach its least number of properties only by repeating a name.
fn counts_repeated_names(map: &Map<String, Value>) -> bool {
    let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let has_more = map.get("additionalProperties") != Some(&Value::Bool(false));
    least > required + 1 && (has_more || map.contains_key("patternProperties"))
}

/// The compiler's error for a schema, with the keyword and its path where the text has none.
pub(super) fn explain(text: String, schema: &Value) -> String {
    if let Some(names) = text.strip_prefix("Unimplemented keys: ") {
        // The list is JSON; the text may go on behind it.
        let end = names.find(']').map_or(names.len(), |at| at + 1);
        if let Ok(names) = serde_json::from_str::<Vec<String>>(&names[..end]) {
            let path = path_of(schema, &names).map(|path| format!(" (at {path})"));
            let (names, path) = (names.join(", "), path.unwrap_or_default());
            return format!("{names}: not supported in a JSON schema{path}");
        }
    }
    if text.contains("regex for float range") {
        let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"].map(str::to_owned);
        let path = path_of(schema, &bounds).map(|path| format!(" (at {path})")).unwrap_or_default();
        return format!("minimum, maximum, exclusiveMinimum, exclusiveMaximum: {text}{path}");
    }
    text
}

/// The path of the first schema with one of these keywords.
fn path_of(schema: &Value, keywords: &[String]) -> Option<String> {
    let mut found = None;
    for_each_schema(&mut schema.clone(), &mut |path, map| {
        if keywords.iter().any(|keyword| map.contains_key(keyword)) {
            found.get_or_insert_with(|| path.to_owned());
        }
    });
    found
}
