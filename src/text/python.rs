//! Functions of Python that chat templates use: `str`, `repr`, `json.dumps` and `strftime`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::turn_marker_guard::is_reserved;

/// Python's `str(value)`. An undefined value gives an empty string.
pub(super) fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            match serde_json::to_value(value) {
                Ok(json) => write_repr(&json, &mut text),
                Err(_) => text = value.to_string(),
            }
            text
        }
        _ => value.to_string(),
    }
}

/// Writes Python's `repr` of a JSON value.
fn write_repr(value: &Json, out: &mut String) {
    match value {
        Json::Null => out.push_str("None"),
        Json::Bool(true) => out.push_str("True"),
        Json::Bool(false) => out.push_str("False"),
        Json::Number(number) => out.push_str(&number_text(number)),
        Json::String(text) => write_quoted(text, out),
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(item, out);
            }
            out.push(']');
        }
        Json::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_quoted(key, out);
                out.push_str(": ");
                write_repr(item, out);
            }
            out.push('}');
        }
    }
}

fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Returns a number as Python prints it. Python writes exponents with a sign and at least two digits; Rust
/// does not. Both print the same mantissas, and use an exponent for the same numbers.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent.trim_start_matches('+')),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The filter `tojson` as Hugging Face defines it: `json.dumps`. Jinja's own filter escapes HTML.
pub(super) fn to_json(value: &Value, ascii: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let bad = |message: &'static str| Error::new(ErrorKind::InvalidOperation, message);
    let ascii = kwargs.get::<Option<Value>>("ensure_ascii")?.or(ascii);
    let indent = kwargs.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let separators = kwargs.get::<Option<Value>>("separators")?.filter(|pair| !pair.is_none());
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(bad("an undefined value has no JSON"));
    }
    let indent = match indent {
        None => None,
        Some(indent) if indent.kind() == ValueKind::String => Some(to_str(&indent)),
        Some(indent) => {
            let width = i64::try_from(indent).map_err(|_| bad("tojson: indent is not an integer"))?;
            Some(" ".repeat(width.clamp(0, 64) as usize))
        }
    };
    let mut style = JsonStyle {
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        indent,
        ascii: ascii.is_some_and(|ascii| ascii.is_true()),
        sort_keys,
    };
    if let Some(pair) = separators {
        let text = |i: usize| pair.get_item_by_index(i).map(|side| to_str(&side));
        (style.item, style.key) = (text(0)?, text(1)?);
    }
    let json = serde_json::to_value(value).map_err(|e| bad("tojson: not JSON").with_source(e))?;
    let mut out = String::new();
    style.write(&json, 0, &mut out);
    Ok(Value::from(out))
}

/// Arguments of `json.dumps`.
struct JsonStyle {
    /// Separator between items.
    item: String,
    /// Separator between a key and its value.
    key: String,
    /// Indentation per level; `None` writes everything on one line.
    indent: Option<String>,
    /// Whether characters outside ASCII are escaped.
    ascii: bool,
    sort_keys: bool,
}

impl JsonStyle {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Number(number) => out.push_str(&number_text(number)),
            Json::String(text) => self.write_string(text, out),
            Json::Array(items) if !items.is_empty() => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1, out);
                    self.write(item, depth + 1, out);
                }
                self.new_line(depth, out);
                out.push(']');
            }
            Json::Object(map) if !map.is_empty() => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|&(key, _)| key);
                }
                out.push('{');
                for (i, (key, item)) in entries.into_iter().enumerate() {
                    self.separate(i, depth + 1, out);
                    self.write_string(key, out);
                    out.push_str(&self.key);
                    self.write(item, depth + 1, out);
                }
                self.new_line(depth, out);
                out.push('}');
            }
            simple => out.push_str(&simple.to_string()),
        }
    }

    fn separate(&self, i: usize, depth: usize, out: &mut String) {
        if i > 0 {
            out.push_str(&self.item);
        }
        self.new_line(depth, out);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        let escaped = Json::from(text).to_string();
        for character in escaped.chars() {
            // The characters that the turn marker guard inserts are not part of the message: they stay
            // unescaped.
            let reserved = is_reserved(character.encode_utf8(&mut [0; 4]));
            if self.ascii && !character.is_ascii() && !reserved {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                out.push(character);
            }
        }
    }
}

/// Directives of `strftime` that do not depend on a locale.
const DIRECTIVES: &str = "YymdeHIMSjpBbhAaFTZz%";

/// `datetime.strftime` in UTC for the directives in [`DIRECTIVES`], also without padding (`%-d`). Other
/// directives stay as they are. `unix_seconds` counts seconds since 1970; a time after `Timestamp::MAX`, the
/// end of the year 9999, is replaced by `Timestamp::MAX`.
pub fn strftime(format: &str, unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_zoned_datetime(TimeZone::UTC);
    // Escapes every directive outside `DIRECTIVES`, because jiff knows some of them.
    let mut escaped = String::with_capacity(format.len());
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        escaped.push(character);
        if character == '%' {
            let flag = characters.next_if_eq(&'-');
            let directive = characters.next();
            if !directive.is_some_and(|directive| DIRECTIVES.contains(directive)) {
                escaped.push('%');
            }
            escaped.extend(flag.into_iter().chain(directive));
        }
    }
    jiff::fmt::strtime::format(&escaped, &time).unwrap_or_else(|_| format.to_owned())
}
