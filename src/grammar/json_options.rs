//! Options of a constraint to JSON: the whitespace between its parts, and properties that a schema does not
//! name.

use serde_json::{Map, Value, json};

use super::{GrammarError, keywords};

/// The longest expression for whitespace, in bytes.
const MAX_WHITESPACE_BYTES: usize = 1000;

/// Wishes of a client beside a schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JsonOptions {
    /// A regular expression of the whitespace between two parts of the JSON text. Without one, at most 20
    /// characters are allowed.
    pub whitespace_pattern: Option<String>,
    /// Allows no whitespace between parts.
    pub is_compact: bool,
    /// Sets `additionalProperties` to false where a schema names properties and leaves it out.
    pub closes_objects: bool,
}

impl JsonOptions {
    /// Writes the options into a schema.
    ///
    /// # Errors
    /// The expression for whitespace allows other text, or does not allow the absence of whitespace.
    pub fn apply(&self, schema: Value) -> Result<Value, GrammarError> {
        let mut schema = match schema {
            Value::Bool(true) => Value::Object(Map::new()),
            other => other,
        };
        if self.closes_objects {
            close_objects(&mut schema);
        }
        let whitespace = self.whitespace_pattern.as_deref().map(whitespace).transpose()?;
        let pattern = if self.is_compact { Some(String::new()) } else { whitespace };
        if let (Some(pattern), Value::Object(schema)) = (pattern, &mut schema) {
            let options = match pattern.as_str() {
                "" => json!({ "whitespace_flexible": false }),
                pattern => json!({ "whitespace_flexible": true, "whitespace_pattern": pattern }),
            };
            schema.insert(keywords::OPTIONS.to_owned(), options);
        }
        Ok(schema)
    }
}

/// Forbids properties that are not named, in all objects of a schema that name some.
fn close_objects(schema: &mut Value) {
    keywords::for_each_schema_mut(schema, &mut |_, map| {
        if ["properties", "patternProperties"].iter().any(|name| map.contains_key(*name)) {
            map.entry("additionalProperties").or_insert(Value::Bool(false));
        }
    });
}

/// The expression with `\s` written out; empty if it allows no whitespace.
fn whitespace(pattern: &str) -> Result<String, GrammarError> {
    if pattern.len() > MAX_WHITESPACE_BYTES {
        let text = format!("expected at most {MAX_WHITESPACE_BYTES} bytes, got {}", pattern.len());
        return Err(GrammarError::Invalid(text));
    }
    let mut written = String::new();
    let (mut in_set, mut in_braces) = (false, false);
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let escaped = (c == '\\').then(|| chars.next());
        match (c, escaped.flatten()) {
            (_, Some('s')) if in_set => written.push_str(r" \t\r\n"),
            (_, Some('s')) => written.push_str(r"[ \t\r\n]"),
            (_, Some(c @ ('n' | 't' | 'r'))) => written.extend(['\\', c]),
            (_, Some(' ')) => written.push(' '),
            ('{', None) if !in_set && !in_braces => {
                in_braces = true;
                written.push(c);
            }
            ('}', None) if in_braces => {
                in_braces = false;
                written.push(c);
            }
            ('0'..='9' | ',', None) if in_braces => written.push(c),
            ('[' | ']', None) if !in_braces && in_set == (c == ']') => {
                in_set = c == '[';
                written.push(c);
            }
            (' ' | '\n' | '\t' | '\r', None) => written.push(c),
            ('(' | ')' | '|' | '*' | '+' | '?' | ':', None) if !in_set => written.push(c),
            _ => return Err(not_whitespace(pattern)),
        }
    }
    let whole = regex::Regex::new(&format!("^(?:{written})$"));
    let whole = whole.map_err(|_fault| not_whitespace(pattern))?;
    // A colon is syntax within `(?:` only.
    if written.replace("(?:", "").contains(':') {
        return Err(not_whitespace(pattern));
    }
    if !whole.is_match("") {
        let text = format!("expected an expression that also allows no whitespace, got {pattern:?}");
        return Err(GrammarError::Invalid(text));
    }
    let has_any = written.contains([' ', '\n', '\t', '\r', '\\']);
    Ok(if has_any { written } else { String::new() })
}

fn not_whitespace(pattern: &str) -> GrammarError {
    GrammarError::Invalid(format!(
        "expected a regular expression of spaces, \\n, \\t, \\r and \\s, got {pattern:?}"
    ))
}
