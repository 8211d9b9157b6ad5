//! Python's comparisons.

use std::cmp::Ordering;

use minijinja::{Error, Value};

use super::objects::{
    Kind, SequenceKind, error, float, index, iterate, length, pairs, text, type_error, undefined_error,
};
use super::repr::MAX_NESTING;

/// Python's `==`.
pub(super) fn equal(left: &Value, right: &Value) -> Result<bool, Error> {
    equal_at(left, right, 0)
}

fn equal_at(left: &Value, right: &Value, depth: usize) -> Result<bool, Error> {
    if depth > MAX_NESTING {
        return Err(error(format!("a value has more than {MAX_NESTING} levels")));
    }
    let items = |left: Vec<Value>, right: Vec<Value>| -> Result<bool, Error> {
        for (left, right) in left.iter().zip(&right) {
            if !equal_at(left, right, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(left.len() == right.len())
    };
    match (Kind::of(left), Kind::of(right)) {
        (Kind::Undefined, Kind::Undefined) | (Kind::None, Kind::None) => Ok(true),
        (Kind::Str, Kind::Str) => Ok(text(left) == text(right)),
        (Kind::Bool | Kind::Int | Kind::Float, Kind::Bool | Kind::Int | Kind::Float) => {
            Ok(numbers(left, right) == Some(Ordering::Equal))
        }
        (Kind::List, Kind::List) => items(iterate(left)?, iterate(right)?),
        (a @ Kind::Sequence(_), b @ Kind::Sequence(_)) if a == b || (a.is_tuple() && b.is_tuple()) => {
            items(iterate(left)?, iterate(right)?)
        }
        (Kind::Dict, Kind::Dict) => {
            let pairs = pairs(left);
            if Some(pairs.len()) != length(right) {
                return Ok(false);
            }
            for (key, value) in &pairs {
                match get(right, key)? {
                    Some(other) if equal_at(value, &other, depth + 1)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        (Kind::Other | Kind::Iterator, Kind::Other | Kind::Iterator) => Ok(same(left, right)),
        _ => Ok(false),
    }
}

/// Whether two values are one object. Equal simple values of one type count as one.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left.as_object(), right.as_object()) {
        (Some(_), Some(_)) => minijinja::tests::is_sameas(left, right),
        (None, None) => Kind::of(left) == Kind::of(right) && equal(left, right).unwrap_or(false),
        _ => false,
    }
}

/// The value of a key in a dictionary.
pub(super) fn get(dict: &Value, key: &Value) -> Result<Option<Value>, Error> {
    hashable(key)?;
    let Some(object) = dict.as_object() else { return Ok(None) };
    if let Some(found) = object.get_value(key) {
        return Ok(Some(found));
    }
    // minijinja does not find equal keys of different types, such as 1 and 1.0.
    if matches!(Kind::of(key), Kind::Bool | Kind::Int | Kind::Float | Kind::Sequence(_)) {
        for (other, value) in pairs(dict) {
            if equal(&other, key)? {
                return Ok(Some(value));
            }
        }
    }
    Ok(None)
}

/// Refuses what cannot be the key of a dictionary.
pub(super) fn hashable(key: &Value) -> Result<(), Error> {
    match Kind::of(key) {
        kind @ (Kind::List | Kind::Dict | Kind::Sequence(SequenceKind::Keys | SequenceKind::Items)) => {
            type_error(format!("unhashable type: '{}'", kind.name()))
        }
        kind if kind.is_tuple() => iterate(key)?.iter().try_for_each(hashable),
        _ => Ok(()),
    }
}

/// The order of two numbers; `None` if one of them is not a number.
fn numbers(left: &Value, right: &Value) -> Option<Ordering> {
    match (index(left), index(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (Some(integer), None) => integer_and_float(integer, float(right)?),
        (None, Some(integer)) => integer_and_float(integer, float(left)?).map(Ordering::reverse),
        _ => float(left)?.partial_cmp(&float(right)?),
    }
}

/// Compares exactly, also where the integer has no exact float.
fn integer_and_float(integer: i128, number: f64) -> Option<Ordering> {
    if number.is_nan() {
        return None;
    }
    if number.abs() >= 1e38 {
        return 0.0.partial_cmp(&number);
    }
    let whole = number.trunc();
    Some(
        integer
            .cmp(&(whole as i128))
            .then_with(|| 0.0.partial_cmp(&(number - whole)).unwrap_or(Ordering::Equal)),
    )
}

/// Python's order of two values. `None` where neither is smaller (NaN).
pub(super) fn order(left: &Value, right: &Value) -> Result<Option<Ordering>, Error> {
    order_at(left, right, 0)
}

fn order_at(left: &Value, right: &Value, depth: usize) -> Result<Option<Ordering>, Error> {
    if depth > MAX_NESTING {
        return Err(error(format!("a value has more than {MAX_NESTING} levels")));
    }
    match (Kind::of(left), Kind::of(right)) {
        (Kind::Undefined, _) | (_, Kind::Undefined) => undefined_error(),
        (Kind::Str, Kind::Str) => Ok(Some(text(left).cmp(&text(right)))),
        (Kind::Bool | Kind::Int | Kind::Float, Kind::Bool | Kind::Int | Kind::Float) => {
            Ok(numbers(left, right))
        }
        (a, b) if (a, b) == (Kind::List, Kind::List) || (a.is_tuple() && b.is_tuple()) => {
            let (left, right) = (iterate(left)?, iterate(right)?);
            for (left, right) in left.iter().zip(&right) {
                if !equal_at(left, right, depth + 1)? {
                    return order_at(left, right, depth + 1);
                }
            }
            Ok(Some(left.len().cmp(&right.len())))
        }
        (a, b) => {
            type_error(format!("'<' not supported between instances of '{}' and '{}'", a.name(), b.name()))
        }
    }
}

/// Python's `item in container`.
pub(super) fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    match (Kind::of(container), Kind::of(item)) {
        (Kind::Str, Kind::Str) => {
            let (container, item) = (text(container).unwrap_or_default(), text(item).unwrap_or_default());
            Ok(container.contains(item))
        }
        (Kind::Str, kind) => {
            type_error(format!("'in <string>' requires string as left operand, not {}", kind.name()))
        }
        (Kind::Dict, _) => Ok(get(container, item)?.is_some()),
        (kind @ (Kind::None | Kind::Bool | Kind::Int | Kind::Float | Kind::Other), _) => {
            type_error(format!("argument of type '{}' is not iterable", kind.name()))
        }
        _ => {
            for other in iterate(container)? {
                if equal(&other, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// One comparison by its operator.
pub(super) fn compare(left: &Value, operator: &str, right: &Value) -> Result<bool, Error> {
    match operator {
        "==" => equal(left, right),
        "!=" => equal(left, right).map(|equal| !equal),
        "in" => contains(right, left),
        "not in" => contains(right, left).map(|contains| !contains),
        _ => {
            let order = order(left, right)?;
            Ok(match operator {
                "<" => order == Some(Ordering::Less),
                "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                ">" => order == Some(Ordering::Greater),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            })
        }
    }
}

/// Python's `sorted`: stable, also in reverse. Fails where two keys have no order.
pub(super) fn sort(mut items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut failure = None;
    items.sort_by(|(left, _), (right, _)| {
        let order = order(left, right).unwrap_or_else(|error| {
            failure.get_or_insert(error);
            None
        });
        let order = order.unwrap_or(Ordering::Equal);
        if reverse { order.reverse() } else { order }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(items.into_iter().map(|(_, item)| item).collect()),
    }
}
