//! What chat templates expect of Python: how values print, `json.dumps`, `strftime`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// `str(value)`, with nothing for an undefined one.
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

/// `repr` of a JSON value.
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

/// Python writes exponents with a sign and two digits, Rust with neither; the digits and thresholds agree.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent.trim_start_matches('+')),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The `tojson` filter that Hugging Face gives templates: `json.dumps`, not Jinja's own, which escapes HTML.
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
            let width = i64::try_from(indent).map_err(|_| bad("tojson: indent is not a number"))?;
            Some(" ".repeat(width.clamp(0, 64) as usize))
        }
    };
    let mut style = Style {
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

/// The arguments of `json.dumps`.
struct Style {
    item: String,
    key: String,
    indent: Option<String>,
    ascii: bool,
    sort_keys: bool,
}

impl Style {
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
            // The guard's breaks are not the message's, so they are not escaped either.
            if self.ascii
                && !character.is_ascii()
                && !super::guard::is_reserved(character.encode_utf8(&mut [0; 4]))
            {
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

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `datetime.strftime` in UTC, of seconds since 1970. Knows the directives that do not depend on a locale, and `%-d`
/// and the like without padding; an unknown directive stays as it is.
pub fn strftime(format: &str, unix_seconds: u64) -> String {
    let (day, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, date, day_of_year) = civil(day);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(day % 7) as usize]);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let bare = rest.as_str().starts_with('-');
        if bare {
            rest.next();
        }
        let number = |value: u64, width: usize| {
            if bare { value.to_string() } else { format!("{value:0width$}") }
        };
        out.push_str(&match rest.next() {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(date, 2),
            Some('e') => format!("{date:>2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(half, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('j') => number(day_of_year, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{date:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => ['%'].into_iter().chain(bare.then_some('-')).chain(other).collect(),
        });
    }
    out
}

/// (year, month, day of the month, day of the year) of a day since 1970-01-01, all but the year from 1.
fn civil(mut day: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years are always 146,097 days.
    let mut year = 1970 + 400 * (day / 146_097);
    day %= 146_097;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1, day_of_year)
}
