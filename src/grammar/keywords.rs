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
pub(crate) const OPTIONS: &str = "x-guidance";

/// Defines a walk over the schemas of a document, outer ones first. It calls `visit` with the JSON pointer
/// and the content of each object that is a schema. All pointers share one buffer: a list of them could be
/// much longer than the document.
macro_rules! walk {
    ($name:ident, $iter:ident, $($reference:tt)+) => {
        fn $name(
            schema: $($reference)+ Value,
            pointer: &mut String,
            visit: &mut dyn FnMut(&str, $($reference)+ Map<String, Value>),
        ) {
            let Value::Object(map) = schema else { return };
            visit(pointer, map);
            let outer = pointer.len();
            for (keyword, value) in map.$iter() {
                let word = keyword.as_str();
                extend(pointer, word);
                let inner = pointer.len();
                match value {
                    Value::Array(items) if SCHEMAS.contains(&word) => {
                        for (i, item) in items.$iter().enumerate() {
                            extend(pointer, &i.to_string());
                            $name(item, pointer, visit);
                            pointer.truncate(inner);
                        }
                    }
                    Value::Object(named) if NAMED_SCHEMAS.contains(&word) => {
                        for (name, schema) in named.$iter() {
                            extend(pointer, name);
                            $name(schema, pointer, visit);
                            pointer.truncate(inner);
                        }
                    }
                    value if SCHEMA.contains(&word) => $name(value, pointer, visit),
                    _ => {}
                }
                pointer.truncate(outer);
            }
        }
    };
}

walk!(walk, iter, &);
walk!(walk_mut, iter_mut, &mut);

/// Calls `visit` with the JSON pointer and the content of each object that is a schema, outer ones first.
pub(super) fn for_each_schema(schema: &Value, visit: &mut dyn FnMut(&str, &Map<String, Value>)) {
    walk(schema, &mut String::new(), visit);
}

/// Does the same as [`for_each_schema`], and `visit` may change the content.
pub(super) fn for_each_schema_mut(schema: &mut Value, visit: &mut dyn FnMut(&str, &mut Map<String, Value>)) {
    walk_mut(schema, &mut String::new(), visit);
}

/// The JSON pointers of the objects that are schemas directly within the schema at `pointer`.
pub(super) fn parts(map: &Map<String, Value>, pointer: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |steps: &[&str], value: &Value| {
        if value.is_object() {
            let mut place = pointer.to_owned();
            steps.iter().for_each(|step| extend(&mut place, step));
            found.push(place);
        }
    };
    for (keyword, value) in map {
        let word = keyword.as_str();
        match value {
            Value::Array(items) if SCHEMAS.contains(&word) => {
                items.iter().enumerate().for_each(|(i, item)| add(&[word, &i.to_string()], item));
            }
            Value::Object(named) if NAMED_SCHEMAS.contains(&word) => {
                named.iter().for_each(|(name, schema)| add(&[word, name], schema));
            }
            value if SCHEMA.contains(&word) => add(&[word], value),
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

/// Makes a schema stricter where `llguidance` would allow answers that are not valid.
pub(super) fn make_stricter(schema: &mut Value) {
    for_each_schema_mut(schema, &mut |_, map| {
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

/// Whether an object could reach its least number of properties only by repeating a name.
pub(super) fn counts_repeated_names(map: &Map<String, Value>) -> bool {
    let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let has_more = map.get("additionalProperties") != Some(&Value::Bool(false));
    least > required + 1 && (has_more || map.contains_key("patternProperties"))
}
