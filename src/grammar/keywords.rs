//! Keywords of JSON schemas: where they stand, and which are refused or made stricter beyond what
//! `llguidance` does, so that every answer is valid.

use serde_json::{Map, Value, json};

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

/// A date that exists: `llguidance` allows 29 February in every year, and the year 0, which many clients
/// cannot read.
const DATE: &str = "(?:(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])\
    -(?:(?:0[13-9]|1[0-2])-[0-9]{2}|02-(?:[01][0-9]|2[0-8]))\
    |(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";
/// A time without a leap second: `llguidance` allows one at the end of every minute.
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5][0-9]";

/// The keyword with options of `llguidance`, which reads it at the root of a schema only.
pub(super) const OPTIONS: &str = "x-guidance";

/// The schemas directly within a schema: the keyword of each, and its name or index where the keyword has
/// several.
pub(super) fn parts(map: &Map<String, Value>) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for (keyword, value) in map {
        match value {
            Value::Array(items) if SCHEMAS.contains(&keyword.as_str()) => {
                found.extend((0..items.len()).map(|i| (keyword.clone(), Some(i.to_string()))));
            }
            Value::Object(named) if NAMED_SCHEMAS.contains(&keyword.as_str()) => {
                found.extend(named.keys().map(|name| (keyword.clone(), Some(name.clone()))));
            }
            _ if SCHEMA.contains(&keyword.as_str()) => found.push((keyword.clone(), None)),
            _ => {}
        }
    }
    found
}

/// Adds a key or an index to a JSON pointer.
pub(super) fn extend(pointer: &mut String, step: &str) {
    pointer.push('/');
    pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
}

/// Calls `visit` with the JSON pointer and the content of each object that is a schema, outer ones first.
pub(super) fn for_each_schema(schema: &mut Value, visit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    walk(schema, &mut String::new(), visit);
}

fn walk(schema: &mut Value, pointer: &mut String, visit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    let Value::Object(map) = schema else { return };
    visit(pointer, map);
    for (keyword, name) in parts(map) {
        let inner = match (map.get_mut(&keyword), &name) {
            (Some(Value::Array(items)), Some(index)) => {
                index.parse().ok().and_then(|i: usize| items.get_mut(i))
            }
            (Some(Value::Object(named)), Some(name)) => named.get_mut(name),
            (inner, _) => inner,
        };
        let length = pointer.len();
        std::iter::once(&keyword).chain(&name).for_each(|step| extend(pointer, step));
        inner.into_iter().for_each(|inner| walk(inner, pointer, visit));
        pointer.truncate(length);
    }
}

/// Makes a schema stricter where `llguidance` would allow answers that are not valid.
pub(super) fn make_stricter(schema: &mut Value) {
    for_each_schema(schema, &mut |_, map| {
        let exact = match map.get("format").and_then(Value::as_str) {
            Some("date") => format!("^{DATE}$"),
            Some("time") => format!("^{TIME}"),
            Some("date-time") => format!("^{DATE}[tT]{TIME}"),
            _ => return,
        };
        let parts = map.entry("allOf").or_insert_with(|| json!([]));
        parts.as_array_mut().into_iter().for_each(|parts| parts.push(json!({ "pattern": exact })));
    });
}

/// The pointer of the first object that could reach its least number of properties only by repeating a name.
pub(super) fn counts_repeated_names(schema: &mut Value) -> Option<String> {
    let mut found = None;
    for_each_schema(schema, &mut |pointer, map| {
        let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
        let has_more = map.get("additionalProperties") != Some(&Value::Bool(false));
        if least > required + 1 && (has_more || map.contains_key("patternProperties")) {
            found.get_or_insert_with(|| pointer.to_owned());
        }
    });
    found
}
