//! Parses the bytes of a request to a JSON object, within limits of nesting depth and number of values.
//!
//! Both limits are checked on the raw bytes before the parser runs, because a parsed value takes far more
//! memory than its text, which can be as short as a digit and a comma. The check covers fields that no route
//! reads. If an object has a key twice, the last value counts.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::shown;

/// Maximum levels of nested arrays and objects.
const MAX_JSON_DEPTH: usize = 32;
/// Maximum number of commas and colons outside strings, enough for a prompt of a million token ids.
const MAX_JSON_VALUES: usize = 1_200_000;

/// Parses a JSON object.
///
/// # Errors
/// [`ApiError::Malformed`]. Its text does not quote the parser's, which can be as long as the body.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let (depth, values) = measure(bytes);
    if depth > MAX_JSON_DEPTH {
        let text = format!("The request body nests arrays and objects deeper than {MAX_JSON_DEPTH} levels.");
        return Err(ApiError::Malformed(text));
    }
    if values > MAX_JSON_VALUES {
        let text = format!("The request body has more than {MAX_JSON_VALUES} values.");
        return Err(ApiError::Malformed(text));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let text = format!("Expected the request body to be a JSON object, got {}.", shown(&other));
            Err(ApiError::Malformed(text))
        }
        Err(error) => Err(ApiError::Malformed(format!(
            "The request body is not valid JSON (syntax, UTF-8, escapes or a number's range) at line {}, \
             column {}.",
            error.line(),
            error.column()
        ))),
    }
}

/// Returns the depth of nested brackets outside strings, and the number of commas and colons outside strings.
/// The result is meaningless for bytes that are not JSON; the parser refuses those.
fn measure(bytes: &[u8]) -> (usize, usize) {
    let (mut depth, mut deepest, mut values) = (0_usize, 0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',' | b':') => values += 1,
            _ => {}
        }
    }
    (deepest, values)
}
