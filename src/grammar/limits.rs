//! Limits on the size of a constraint. They bound the time and the depth of its compilation: `llguidance`
//! recurses along rules and definitions, and its time grows with the square of an expression's length and of
//! the number of an object's properties.

use llguidance::api::ParserLimits;
use serde_json::{Map, Value};

use super::fault::Fault;
use super::{GrammarError, GrammarSource, keywords};

/// Bytes of a schema, and of all texts of a choice together.
const MAX_BYTES: usize = 256 << 10;
/// Bytes of a grammar.
const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// Bytes of a line of a grammar, which may be an expression.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Lines of a grammar. Each is one rule at most.
const MAX_LINES: usize = 2000;
/// Bytes of a regular expression.
const MAX_REGEX_BYTES: usize = 8 << 10;
/// Properties of an object in a schema.
const MAX_PROPERTIES: usize = 2000;
/// References in a schema.
const MAX_REFERENCES: usize = 2000;

/// Limits on the work for one grammar and for each of its masks.
pub(super) fn of_parser() -> ParserLimits {
    // Verbose errors contain the tokens of the answer.
    ParserLimits { verbose_errors: false, ..ParserLimits::default() }
}

/// Refuses a constraint whose text is too large.
///
/// # Errors
/// [`GrammarError::Invalid`] with the limit and the size.
pub(super) fn check(source: &GrammarSource) -> Result<(), GrammarError> {
    match source {
        GrammarSource::JsonSchema(text) => at_most("bytes of a JSON schema", text.len(), MAX_BYTES),
        GrammarSource::Regex(text) => at_most("bytes of a regular expression", text.len(), MAX_REGEX_BYTES),
        GrammarSource::Choice(texts) => {
            at_most("bytes of all texts", texts.iter().map(String::len).sum(), MAX_BYTES)
        }
        GrammarSource::Lark(text) => check_lark(text),
        GrammarSource::WithSchemas { lark, schemas } => {
            check_lark(lark)?;
            let bytes = schemas.iter().map(|rule| rule.schema.len()).sum();
            at_most("bytes of all schemas", bytes, MAX_BYTES)
        }
    }
}

fn check_lark(text: &str) -> Result<(), GrammarError> {
    at_most("bytes of a grammar", text.len(), MAX_GRAMMAR_BYTES)?;
    at_most("lines of a grammar", text.lines().count(), MAX_LINES)?;
    let longest = text.lines().map(str::len).max().unwrap_or(0);
    at_most("bytes of a line of a grammar", longest, MAX_LINE_BYTES)
}

/// Refuses a schema with too many references or properties, or with a regular expression that is too long.
///
/// # Errors
/// The limit, the size and the place.
pub(super) fn check_schema(schema: &Value) -> Result<(), Fault> {
    let mut references = 0;
    check_patterns(schema, &mut String::new(), &mut references)?;
    let checked = at_most("references ($ref)", references, MAX_REFERENCES);
    checked.map_err(|error| Fault::new("", &[], error.to_string()))
}

/// Checks the regular expressions and the objects of a schema, and counts its references.
fn check_patterns(schema: &Value, pointer: &mut String, references: &mut usize) -> Result<(), Fault> {
    if let Value::Object(map) = schema {
        *references += usize::from(map.contains_key("$ref"));
        let properties = map.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        let checked = at_most("properties of an object", properties, MAX_PROPERTIES);
        checked.map_err(|error| Fault::new(pointer, &["properties"], error.to_string()))?;
        let pattern = map.get("pattern").and_then(Value::as_str).map(|pattern| ("pattern", pattern));
        let names = map.get("patternProperties").and_then(Value::as_object);
        let names = names.into_iter().flat_map(Map::keys).map(|name| ("patternProperties", name.as_str()));
        for (keyword, pattern) in names.chain(pattern) {
            let checked = at_most("bytes of a pattern", pattern.len(), MAX_REGEX_BYTES);
            checked.map_err(|error| Fault::new(pointer, &[keyword], error.to_string()))?;
        }
    }
    let mut check = |step: &str, value: &Value| {
        let length = pointer.len();
        keywords::extend(pointer, step);
        let checked = check_patterns(value, pointer, references);
        pointer.truncate(length);
        checked
    };
    match schema {
        Value::Object(map) => map.iter().try_for_each(|(key, value)| check(key, value)),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(i, value)| check(&i.to_string(), value))
        }
        _ => Ok(()),
    }
}

fn at_most(what: &str, got: usize, most: usize) -> Result<(), GrammarError> {
    if got <= most {
        return Ok(());
    }
    Err(GrammarError::Invalid(format!("{what}: expected at most {most}, got {got}")))
}
