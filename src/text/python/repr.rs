//! Python's `str` and `repr`.

use minijinja::{Error, Value};

use super::objects::{Iter, Kind, SequenceKind, error, float, iterate, pairs, text};

/// Most nested lists and dictionaries that are printed, compared or written as JSON.
pub(super) const MAX_NESTING: usize = 100;

/// Python's `str(value)`. An undefined value gives an empty string.
pub(in crate::text) fn to_str(value: &Value) -> Result<String, Error> {
    match Kind::of(value) {
        Kind::Undefined => Ok(String::new()),
        Kind::Str => Ok(text(value).unwrap_or_default().to_owned()),
        _ => repr(value),
    }
}

/// Python's `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(value, &mut out, 0)?;
    Ok(out)
}

fn write(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_NESTING {
        return Err(error(format!("a value has more than {MAX_NESTING} levels")));
    }
    let list = |items: &[Value], out: &mut String| -> Result<(), Error> {
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            write(item, out, depth + 1)?;
        }
        Ok(())
    };
    match Kind::of(value) {
        Kind::Undefined => out.push_str("Undefined"),
        Kind::None => out.push_str("None"),
        Kind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        Kind::Int => out.push_str(&value.to_string()),
        Kind::Float => out.push_str(&float_text(float(value).unwrap_or(f64::NAN))),
        Kind::Str if value.is_safe() => {
            out.push_str("Markup(");
            quote(text(value).unwrap_or_default(), out);
            out.push(')');
        }
        Kind::Str => quote(text(value).unwrap_or_default(), out),
        Kind::List => {
            out.push('[');
            list(&iterate(value)?, out)?;
            out.push(']');
        }
        Kind::Dict => {
            out.push('{');
            for (i, (key, item)) in pairs(value).iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write(key, out, depth + 1)?;
                out.push_str(": ");
                write(item, out, depth + 1)?;
            }
            out.push('}');
        }
        Kind::Sequence(SequenceKind::Range) => write_range(&iterate(value)?, out),
        kind @ Kind::Sequence(_) => {
            let items = iterate(value)?;
            let (open, close) = if kind.is_tuple() { ("(", ")") } else { ("([", "])") };
            out.push_str(if kind.is_tuple() { "" } else { kind.name() });
            out.push_str(open);
            list(&items, out)?;
            out.push_str(if kind.is_tuple() && items.len() == 1 { "," } else { "" });
            out.push_str(close);
        }
        Kind::Iterator | Kind::Other if value.downcast_object_ref::<Iter>().is_some() => {
            // Python prints an address.
            return Err(error("a generator cannot be printed; apply the filter list"));
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Writes a range by its bounds, as Python does. They are computed from its items.
fn write_range(items: &[Value], out: &mut String) {
    let number = |i: usize| items.get(i).and_then(super::objects::index);
    match (number(0), number(1), items.len()) {
        (Some(first), Some(second), count) if second - first != 1 => {
            let step = second - first;
            out.push_str(&format!("range({first}, {}, {step})", first + step * count as i128));
        }
        (Some(first), _, count) => out.push_str(&format!("range({first}, {})", first + count as i128)),
        _ => out.push_str("range(0, 0)"),
    }
}

fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for one character. Rust's `Debug` escapes the same categories within a string.
pub(super) fn is_printable(character: char) -> bool {
    let reserved = crate::text::turn_marker_guard::is_reserved(character.encode_utf8(&mut [0; 4]));
    // The characters that the turn marker guard inserts are not part of the message: they stay unescaped.
    reserved || matches!(character, ' '..='~') || {
        !character.is_ascii() && format!("{:?}", format!("a{character}")).chars().count() == 4
    }
}

/// A float as Python prints it.
pub(super) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        format!("{number:?}")
    } else {
        with_exponent(mantissa, exponent)
    }
}

/// Digits and an exponent as C and Python write them: with a sign and two digits at least.
pub(super) fn with_exponent(mantissa: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
