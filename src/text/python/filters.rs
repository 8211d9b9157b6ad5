//! The filters of the template engine: Jinja2's, and the operations of expressions.

use minijinja::value::Rest;
use minijinja::{Environment, Error, State, Value};

use super::access::{attribute, call_method, item, own_attribute, slice};
use super::args::{Args, given, integer, integer_or, is_true, string};
use super::collections;
use super::compare::compare;
use super::format::{percent, with_spec};
use super::json::to_json;
use super::limits::charge;
use super::methods::new_dict;
use super::names::{FILTERS, OPERATIONS};
use super::numbers::{binary, unary};
use super::objects::{
    Kind, Sequence, SequenceKind, error, float, index, iterate, length, size, type_error, undefined_error,
};
use super::repr::{repr, to_str};
use super::tests::test;
use super::text_filters;

/// Adds all filters.
pub(super) fn add(environment: &mut Environment<'static>) {
    for name in FILTERS {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            // Comparing and printing items costs more than copying them.
            let slow = matches!(name, "sort" | "dictsort" | "groupby" | "min" | "max" | "tojson" | "pprint");
            let bytes: u64 = args.iter().map(size).sum();
            charge(state, if slow { bytes.saturating_mul(8) } else { bytes })?;
            let result = filter(state, name, &Args::new(name, &args)?)?;
            charge(state, size(&result))?;
            Ok::<Value, Error>(result)
        });
    }
    for name in OPERATIONS {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| operation(state, name, &args));
    }
}

fn operation(state: &State, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some((value, rest)) = args.split_first() else { return type_error("no value") };
    let word = |i: usize| rest.get(i).and_then(Value::as_str).unwrap_or_default();
    match (name, rest) {
        ("_attr", _) => attribute(value, word(0)),
        ("_item", [key]) => item(value, key),
        ("_slice", [start, stop, step]) => {
            charge(state, size(value))?;
            slice(value, start, stop, step)
        }
        ("_call", [_, args @ ..]) => call_method(state, value, word(0), args),
        ("_is", [_, args @ ..]) => {
            let mut all = vec![value.clone()];
            all.extend(args.iter().cloned());
            test(state, word(0), &Args::new(word(0), &all)?).map(Value::from)
        }
        ("_compare", _) => {
            let mut left = value;
            for pair in rest.chunks_exact(2) {
                charge(state, size(left) + size(&pair[1]))?;
                if !compare(left, pair[0].as_str().unwrap_or_default(), &pair[1])? {
                    return Ok(Value::from(false));
                }
                left = &pair[1];
            }
            Ok(Value::from(true))
        }
        ("_concat", _) => {
            charge(state, args.iter().map(size).sum())?;
            let texts: Result<Vec<String>, Error> = args.iter().map(to_str).collect();
            Ok(Value::from(texts?.concat()))
        }
        ("_iter", _) => {
            charge(state, size(value))?;
            let items = iterate(value)?;
            // minijinja does not unpack strings and iterators.
            let unpacked = |item: &Value| match Kind::of(item) {
                Kind::Str | Kind::Dict | Kind::Iterator => iterate(item).map(Value::from),
                _ => Ok(item.clone()),
            };
            if rest.is_empty() {
                return Ok(Value::from(items));
            }
            items.iter().map(unpacked).collect::<Result<Vec<Value>, Error>>().map(Value::from)
        }
        ("_tuple", _) => Ok(Sequence::value(SequenceKind::Tuple, iterate(value)?)),
        ("_dict", _) => {
            let items = iterate(value)?;
            new_dict(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
        }
        ("_id", _) => Ok(value.clone()),
        ("_neg" | "_pos", _) => unary(value, name == "_neg"),
        ("_fail", _) => Err(error(word(0))),
        (_, [right]) => binary(state, name, value, right),
        _ => type_error(format!("{name}: wrong number of arguments")),
    }
}

fn filter(state: &State, name: &str, args: &Args) -> Result<Value, Error> {
    let single = || args.bind(1, ["value"]).map(|[value]| value.unwrap_or_default());
    match name {
        "tojson" => to_json(state, args),
        "string" => {
            let value = single()?;
            if Kind::of(&value) == Kind::Str { Ok(value) } else { to_str(&value).map(Value::from) }
        }
        "upper" | "lower" | "capitalize" | "title" | "trim" | "center" | "replace" | "indent"
        | "truncate" | "wordcount" | "wordwrap" | "escape" | "e" | "forceescape" | "safe" | "striptags"
        | "urlencode" | "xmlattr" | "filesizeformat" => text_filters::filter(state, name, args),
        "default" | "d" => {
            let [value, default, boolean] = args.bind(1, ["value", "default_value", "boolean"])?;
            let value = value.unwrap_or_default();
            let replaces = value.is_undefined() || (is_true(boolean) && !value.is_true());
            Ok(if replaces { default.unwrap_or_else(|| Value::from("")) } else { value })
        }
        "length" | "count" => {
            let value = single()?;
            match length(&value) {
                Some(length) => Ok(Value::from(length)),
                None => type_error(format!("object of type '{}' has no len()", Kind::of(&value).name())),
            }
        }
        "attr" => {
            let [object, name] = args.bind(2, ["obj", "name"])?;
            let name = string(&name.unwrap_or_default())?;
            let object = object.unwrap_or_default();
            if object.is_undefined() {
                undefined_error()
            } else {
                Ok(own_attribute(&object, &name)?.unwrap_or_default())
            }
        }
        "format" => format_filter(state, args),
        "abs" | "round" | "int" | "float" => number_filter(name, args),
        "pprint" => {
            let value = single()?;
            let text = repr(&collections::with_sorted_keys(&value, 0)?)?;
            let is_short = text.chars().count() <= 80 && !text.contains('\n');
            if is_short {
                Ok(Value::from(text))
            } else {
                Err(error("pprint of more than one line is not supported"))
            }
        }
        _ => collections::filter(state, name, args),
    }
}

fn format_filter(state: &State, args: &Args) -> Result<Value, Error> {
    let Some((template, values)) = args.positional.split_first() else {
        return type_error("format: no value");
    };
    let template = Value::from(to_str(template)?);
    match (values.is_empty(), args.named.is_empty()) {
        (false, false) => Err(error("can't handle positional and keyword arguments at the same time")),
        (_, true) => percent(state, &template, &Sequence::value(SequenceKind::Tuple, values.to_vec())),
        _ => {
            let map = args.named.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            percent(state, &template, &map)
        }
    }
}

fn number_filter(name: &str, args: &Args) -> Result<Value, Error> {
    match name {
        "abs" => {
            let [value] = args.bind(1, ["x"])?;
            let value = value.unwrap_or_default();
            match (index(&value), float(&value)) {
                (Some(integer), _) => Ok(super::objects::integer(integer.saturating_abs())),
                (_, Some(float)) => Ok(Value::from(float.abs())),
                _ => type_error(format!("bad operand type for abs(): '{}'", Kind::of(&value).name())),
            }
        }
        "int" => {
            let [value, default, base] = args.bind(1, ["value", "default", "base"])?;
            let value = value.unwrap_or_default();
            let base = integer_or(base, 10)?;
            match Kind::of(&value) {
                Kind::Undefined => undefined_error(),
                _ => Ok(to_int(&value, base)?.unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0)))),
            }
        }
        "float" => {
            let [value, default] = args.bind(1, ["value", "default"])?;
            let value = value.unwrap_or_default();
            let number = match Kind::of(&value) {
                Kind::Undefined => return undefined_error(),
                Kind::Str => parse_float(&to_str(&value)?),
                _ => float(&value),
            };
            Ok(number.map(Value::from).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0.0))))
        }
        _ => round(args),
    }
}

/// Python's `int(value, base)`, else `int(float(value))`, else `None`.
fn to_int(value: &Value, base: i128) -> Result<Option<Value>, Error> {
    if let Some(integer) = index(value) {
        return Ok(Some(super::objects::integer(integer)));
    }
    let number = match Kind::of(value) {
        Kind::Str => {
            let text = to_str(value)?;
            if let Some(integer) = parse_int(&text, base) {
                return Ok(Some(super::objects::integer(integer)));
            }
            parse_float(&text)
        }
        _ => float(value),
    };
    match number {
        Some(number) if number.is_finite() => {
            let large = number.abs() >= 1e38;
            let integer = super::objects::integer(number.trunc() as i128);
            if large {
                Err(error("integers of more than 127 bits are not supported"))
            } else {
                Ok(Some(integer))
            }
        }
        _ => Ok(None),
    }
}

/// Digits without the underscores that Python allows between them; `None` if there are others.
fn without_underscores(text: &str) -> Option<String> {
    let misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!misplaced).then(|| text.replace('_', ""))
}

fn parse_int(text: &str, base: i128) -> Option<i128> {
    let text = text.trim_matches(super::objects::is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = digits.get(..2).map(str::to_lowercase);
    let prefixed = match prefix.as_deref() {
        Some("0x") => Some(16),
        Some("0o") => Some(8),
        Some("0b") => Some(2),
        _ => None,
    };
    let radix = if base == 0 { prefixed.unwrap_or(10) } else { u32::try_from(base).ok()? };
    let digits =
        if prefixed == Some(radix) { digits[2..].strip_prefix('_').unwrap_or(&digits[2..]) } else { digits };
    let digits = without_underscores(digits)?;
    let signed = digits.starts_with(['+', '-']) || !(2..=36).contains(&radix);
    let number = if signed { None } else { i128::from_str_radix(&digits, radix).ok() };
    number.map(|number| if negative { -number } else { number })
}

fn parse_float(text: &str) -> Option<f64> {
    let text = without_underscores(text.trim_matches(super::objects::is_space))?;
    let letters = text.trim_start_matches(['+', '-']).to_lowercase();
    let known = letters.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || matches!(letters.as_str(), "inf" | "infinity" | "nan");
    if known { text.parse().ok() } else { None }
}

fn round(args: &Args) -> Result<Value, Error> {
    let [value, precision, method] = args.bind(1, ["value", "precision", "method"])?;
    let value = value.unwrap_or_default();
    let precision = precision.map_or(Ok(0), |precision| integer(&precision))?;
    let digits = i32::try_from(precision).unwrap_or(i32::MAX).clamp(-400, 400);
    let method = given(method).map_or(Ok("common".to_owned()), |method| string(&method))?;
    let Some(number) = float(&value) else {
        return type_error(format!("type {} doesn't define __round__ method", Kind::of(&value).name()));
    };
    match method.as_str() {
        "common" => match index(&value) {
            Some(integer) if digits >= 0 => Ok(super::objects::integer(integer)),
            Some(integer) => {
                let unit = 10_i128.checked_pow(digits.unsigned_abs()).unwrap_or(i128::MAX);
                let (low, rest) = (integer.div_euclid(unit), integer.rem_euclid(unit));
                let twice = rest.saturating_mul(2);
                let up = twice > unit || (twice == unit && low % 2 != 0);
                Ok(super::objects::integer((low + i128::from(up)).saturating_mul(unit)))
            }
            None if digits >= 0 => {
                let text = with_spec(&value, &format!(".{digits}f"))?;
                Ok(Value::from(if number.is_finite() { text.parse().unwrap_or(number) } else { number }))
            }
            None => {
                let unit = 10_f64.powi(-digits);
                Ok(Value::from((number / unit).round_ties_even() * unit))
            }
        },
        "ceil" | "floor" => {
            let unit = 10_f64.powi(digits);
            let scaled = number * unit;
            let whole = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
            Ok(Value::from(whole / unit))
        }
        _ => Err(error("method must be common, ceil or floor")),
    }
}
