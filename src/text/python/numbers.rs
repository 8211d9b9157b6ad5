//! Python's arithmetic, also on strings and lists.

use minijinja::{Error, State, Value};

use super::format::percent;
use super::limits::{charge, repeated};
use super::objects::{
    Kind, Sequence, SequenceKind, error, float, index, integer, iterate, size, text, type_error,
    undefined_error,
};
use super::repr::to_str;

/// An operand of arithmetic.
enum Number {
    Int(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    index(value).map(Number::Int).or_else(|| float(value).map(Number::Float))
}

fn as_float(number: &Number) -> f64 {
    match number {
        Number::Int(integer) => *integer as f64,
        Number::Float(float) => *float,
    }
}

fn unsupported<T>(operator: &str, left: &Value, right: &Value) -> Result<T, Error> {
    let (a, b) = (Kind::of(left), Kind::of(right));
    if a == Kind::Undefined || b == Kind::Undefined {
        return undefined_error();
    }
    type_error(format!("unsupported operand type(s) for {operator}: '{}' and '{}'", a.name(), b.name()))
}

fn whole(result: Option<i128>) -> Result<Value, Error> {
    result.map(integer).ok_or_else(|| error("integers of more than 127 bits are not supported"))
}

fn zero<T>() -> Result<T, Error> {
    Err(error("ZeroDivisionError: division by zero"))
}

/// One binary operation by the name of its filter.
pub(super) fn binary(state: &State, operator: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    let containers = match operator {
        "_add" => add_containers(state, left, right)?,
        "_mul" => multiply_containers(state, left, right)?,
        "_mod" if Kind::of(left) == Kind::Str => Some(percent(state, left, right)?),
        _ => None,
    };
    if let Some(value) = containers {
        return Ok(value);
    }
    let (Some(a), Some(b)) = (number(left), number(right)) else {
        let sign = match operator {
            "_add" => "+",
            "_sub" => "-",
            "_mul" => "*",
            "_div" => "/",
            "_floordiv" => "//",
            "_mod" => "%",
            _ => "**",
        };
        return unsupported(sign, left, right);
    };
    match (&a, &b, operator) {
        (_, Number::Int(0), "_div" | "_floordiv" | "_mod") => zero(),
        (_, Number::Float(b), "_div" | "_floordiv" | "_mod") if *b == 0.0 => zero(),
        (Number::Int(a), Number::Int(b), "_add") => whole(a.checked_add(*b)),
        (Number::Int(a), Number::Int(b), "_sub") => whole(a.checked_sub(*b)),
        (Number::Int(a), Number::Int(b), "_mul") => whole(a.checked_mul(*b)),
        (Number::Int(a), Number::Int(b), "_floordiv") => {
            let toward_zero = a.checked_div(*b);
            whole(toward_zero.map(|q| q - i128::from(a % b != 0 && (a < &0) != (b < &0))))
        }
        (Number::Int(a), Number::Int(b), "_mod") => {
            let rest = a.checked_rem(*b);
            whole(rest.map(|r| if r != 0 && (r < 0) != (*b < 0) { r + b } else { r }))
        }
        (Number::Int(a), Number::Int(b), "_pow") if *b >= 0 => {
            whole(u32::try_from(*b).ok().and_then(|b| a.checked_pow(b)))
        }
        _ => float_binary(operator, as_float(&a), as_float(&b)),
    }
}

fn float_binary(operator: &str, a: f64, b: f64) -> Result<Value, Error> {
    let rest = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    let result = match operator {
        "_add" => a + b,
        "_sub" => a - b,
        "_mul" => a * b,
        "_div" => a / b,
        "_floordiv" => ((a - rest()) / b).round(),
        "_mod" => rest(),
        _ if a == 0.0 && b < 0.0 => return zero(),
        _ if a < 0.0 && b.fract() != 0.0 => return Err(error("complex numbers are not supported")),
        _ => {
            let result = a.powf(b);
            if result.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(error("OverflowError: the result is too large"));
            }
            result
        }
    };
    Ok(Value::from(result))
}

fn add_containers(state: &State, left: &Value, right: &Value) -> Result<Option<Value>, Error> {
    let (a, b) = (Kind::of(left), Kind::of(right));
    Ok(match (a, b) {
        (Kind::Str, Kind::Str) => {
            charge(state, size(left) + size(right))?;
            Some(match (left.is_safe(), right.is_safe()) {
                (false, false) => Value::from([to_str(left)?, to_str(right)?].concat()),
                // A marked-up string escapes what is added to it.
                (a, b) => Value::from_safe_string(escaped(left, a)? + &escaped(right, b)?),
            })
        }
        (Kind::List, Kind::List) => {
            charge(state, size(left) + size(right))?;
            let mut items = iterate(left)?;
            items.extend(iterate(right)?);
            Some(Value::from(items))
        }
        _ if a.is_tuple() && b.is_tuple() => {
            charge(state, size(left) + size(right))?;
            let mut items = iterate(left)?;
            items.extend(iterate(right)?);
            Some(Sequence::value(SequenceKind::Tuple, items))
        }
        _ => None,
    })
}

fn escaped(value: &Value, is_safe: bool) -> Result<String, Error> {
    let text = to_str(value)?;
    Ok(if is_safe { text } else { escape(&text) })
}

/// Text with the characters escaped that are special in HTML.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

fn multiply_containers(state: &State, left: &Value, right: &Value) -> Result<Option<Value>, Error> {
    let is_container = |value: &Value| {
        let kind = Kind::of(value);
        matches!(kind, Kind::Str | Kind::List) || kind.is_tuple()
    };
    let (container, times) = match (is_container(left), is_container(right)) {
        (true, false) => (left, index(right)),
        (false, true) => (right, index(left)),
        _ => return Ok(None),
    };
    let Some(times) = times else { return Ok(None) };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    charge(state, size(container).saturating_mul(times as u64))?;
    Ok(Some(match Kind::of(container) {
        Kind::Str => repeated(text(container).unwrap_or_default(), times).map(Value::from)?,
        Kind::List => Value::from(repeat(&iterate(container)?, times)),
        _ => Sequence::value(SequenceKind::Tuple, repeat(&iterate(container)?, times)),
    }))
}

fn repeat(items: &[Value], times: usize) -> Vec<Value> {
    if items.is_empty() {
        Vec::new()
    } else {
        items.iter().cycle().take(items.len() * times).cloned().collect()
    }
}

/// Python's unary `-` and `+`.
pub(super) fn unary(value: &Value, negative: bool) -> Result<Value, Error> {
    match number(value) {
        Some(Number::Int(integer)) => whole(if negative { integer.checked_neg() } else { Some(integer) }),
        Some(Number::Float(float)) => Ok(Value::from(if negative { -float } else { float })),
        None if value.is_undefined() => undefined_error(),
        None => type_error(format!("bad operand type for unary -: '{}'", Kind::of(value).name())),
    }
}
