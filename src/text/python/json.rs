//! The filter `tojson` as transformers defines it: Python's `json.dumps`.

use std::cmp::Ordering;

use minijinja::{Error, State, Value};

use super::args::{Args, given, is_true, string};
use super::compare::order;
use super::limits::charge;
use super::objects::{Kind, error, float, index, iterate, pairs, text, type_error};
use super::repr::{MAX_NESTING, float_text};
use crate::text::turn_marker_guard::is_reserved;

/// Python's `json.dumps`.
pub(super) fn to_json(state: &State, args: &Args) -> Result<Value, Error> {
    let [value, ascii, indent, separators, sort_keys] =
        args.bind(1, ["x", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match given(indent) {
        None => None,
        Some(indent) if Kind::of(&indent) == Kind::Str => Some(string(&indent)?),
        Some(indent) => match index(&indent) {
            Some(width) => Some(" ".repeat(width.clamp(0, 64) as usize)),
            None => {
                return type_error(format!("indent must be int or str, not {}", Kind::of(&indent).name()));
            }
        },
    };
    let mut style = Style {
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        indent,
        ascii: is_true(ascii),
        sort_keys: is_true(sort_keys),
    };
    if let Some(pair) = given(separators) {
        let [item, key] = &iterate(&pair)?[..] else {
            return Err(error("ValueError: separators is not a pair"));
        };
        (style.item, style.key) = (string(item)?, string(key)?);
    }
    let mut out = String::new();
    style.write(&value.unwrap_or_default(), 0, &mut out)?;
    charge(state, out.len() as u64)?;
    Ok(Value::from(out))
}

/// Arguments of `json.dumps`.
struct Style {
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

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_NESTING {
            return Err(error(format!("tojson: a value has more than {MAX_NESTING} levels")));
        }
        match Kind::of(value) {
            Kind::Str => self.write_string(text(value).unwrap_or_default(), out),
            Kind::Dict => return self.write_dict(value, depth, out),
            kind if kind == Kind::List || kind.is_tuple() => {
                let items = iterate(value)?;
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1, out);
                    self.write(item, depth + 1, out)?;
                }
                if !items.is_empty() {
                    self.new_line(depth, out);
                }
                out.push(']');
            }
            _ => match simple(value) {
                Some(text) => out.push_str(&text),
                None => {
                    let kind = Kind::of(value).name();
                    return type_error(format!("Object of type {kind} is not JSON serializable"));
                }
            },
        }
        Ok(())
    }

    fn write_dict(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut entries = pairs(value);
        if self.sort_keys {
            let mut failure = None;
            entries.sort_by(|(left, _), (right, _)| match order(left, right) {
                Ok(order) => order.unwrap_or(Ordering::Equal),
                Err(error) => {
                    failure.get_or_insert(error);
                    Ordering::Equal
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        out.push('{');
        for (i, (key, item)) in entries.iter().enumerate() {
            self.separate(i, depth + 1, out);
            match (text(key), simple(key)) {
                (Some(key), _) => self.write_string(key, out),
                (None, Some(key)) => out.extend(["\"", &key, "\""]),
                (None, None) => {
                    let kind = Kind::of(key).name();
                    return type_error(format!("keys must be str, int, float, bool or None, not {kind}"));
                }
            }
            out.push_str(&self.key);
            self.write(item, depth + 1, out)?;
        }
        if !entries.is_empty() {
            self.new_line(depth, out);
        }
        out.push('}');
        Ok(())
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
        for character in serde_json::Value::from(text).to_string().chars() {
            // The characters that the turn marker guard inserts are not part of the message: they stay
            // unescaped.
            let plain = matches!(character, ' '..='~') || is_reserved(character.encode_utf8(&mut [0; 4]));
            if plain || !self.ascii {
                out.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// The JSON of a number, a boolean or `None`.
fn simple(value: &Value) -> Option<String> {
    Some(match Kind::of(value) {
        Kind::None => "null".to_owned(),
        Kind::Bool => value.is_true().to_string(),
        Kind::Int => value.to_string(),
        Kind::Float => match float(value)? {
            number if number.is_nan() => "NaN".to_owned(),
            number if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            number => float_text(number),
        },
        _ => return None,
    })
}
