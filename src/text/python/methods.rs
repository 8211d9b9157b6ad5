//! Methods of `str`, `list`, `tuple`, `dict` and `range`, without those that change their object, which
//! Jinja2's immutable sandbox forbids.

use minijinja::{Error, State, Value};

use super::args::{Args, integer_or};
use super::compare::{equal, get};
use super::limits::charge;
use super::objects::{Kind, Sequence, SequenceKind, error, iterate, pairs, size};
use super::strings;

const LIST: [&str; 3] = ["copy", "count", "index"];
const TUPLE: [&str; 2] = ["count", "index"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const UNSAFE_LIST: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const UNSAFE_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const FLOAT: [&str; 1] = ["is_integer"];
const INT: [&str; 3] = ["bit_count", "bit_length", "is_integer"];
const KEYS: [&str; 1] = ["isdisjoint"];

/// Whether the sandbox forbids an attribute that the object has in Python.
pub(super) fn is_unsafe(kind: Kind, name: &str) -> bool {
    let special = name.starts_with("__") && name.ends_with("__") && name.len() > 4;
    match kind {
        Kind::List => special || UNSAFE_LIST.contains(&name),
        Kind::Dict => special || UNSAFE_DICT.contains(&name),
        _ => special,
    }
}

/// Whether a value has a method in Python.
pub(super) fn has_method(value: &Value, name: &str) -> bool {
    match Kind::of(value) {
        Kind::Str => strings::METHODS.contains(&name),
        Kind::List => LIST.contains(&name),
        Kind::Dict => DICT.contains(&name),
        Kind::Sequence(SequenceKind::Tuple | SequenceKind::Group | SequenceKind::Range) => {
            TUPLE.contains(&name)
        }
        Kind::Sequence(SequenceKind::Keys | SequenceKind::Items) => KEYS.contains(&name),
        Kind::Float => FLOAT.contains(&name),
        Kind::Int | Kind::Bool => INT.contains(&name),
        Kind::Other => {
            let kind = value.as_object().map(|object| object.type_name()).unwrap_or_default();
            (kind.ends_with("::Loop") && matches!(name, "cycle" | "changed"))
                || (kind.ends_with("::Cycler") && matches!(name, "next" | "reset"))
        }
        _ => false,
    }
}

/// Calls a method for which [`has_method`] holds, except `str.format`.
pub(super) fn call(state: &State, object: &Value, name: &str, values: &[Value]) -> Result<Value, Error> {
    charge(state, size(object))?;
    let args = Args::new(name, values)?;
    match Kind::of(object) {
        Kind::Str => strings::call(state, object, name, &args),
        Kind::Dict => dict(object, name, &args),
        Kind::Float | Kind::Int | Kind::Bool => number(object, name, &args),
        Kind::Sequence(SequenceKind::Keys | SequenceKind::Items) => {
            let [other] = args.unnamed(1)?;
            let others = iterate(&other.unwrap_or_default())?;
            charge(state, size(object).saturating_mul(others.len() as u64))?;
            for item in iterate(object)? {
                for other in &others {
                    if equal(&item, other)? {
                        return Ok(Value::from(false));
                    }
                }
            }
            Ok(Value::from(true))
        }
        _ => list(object, name, &args),
    }
}

fn number(object: &Value, name: &str, args: &Args) -> Result<Value, Error> {
    args.none()?;
    let integer = super::objects::index(object).map(i128::unsigned_abs);
    Ok(match (name, integer) {
        ("bit_length", Some(integer)) => Value::from(u128::BITS - integer.leading_zeros()),
        ("bit_count", Some(integer)) => Value::from(integer.count_ones()),
        (_, Some(_)) => Value::from(true),
        _ => Value::from(super::objects::float(object).is_some_and(|number| number.fract() == 0.0)),
    })
}

fn list(object: &Value, name: &str, args: &Args) -> Result<Value, Error> {
    let items = iterate(object)?;
    match name {
        "copy" => {
            args.none()?;
            Ok(Value::from(items))
        }
        "count" => {
            let [item] = args.unnamed(1)?;
            let item = item.unwrap_or_default();
            let mut count = 0;
            for other in &items {
                count += usize::from(equal(other, &item)?);
            }
            Ok(Value::from(count))
        }
        _ => {
            let [item, start, stop] = args.unnamed(1)?;
            let item = item.unwrap_or_default();
            let length = items.len() as i128;
            let bound = |value, default| -> Result<usize, Error> {
                let bound = integer_or(value, default)?;
                Ok((if bound < 0 { bound + length } else { bound }).clamp(0, length) as usize)
            };
            let (start, stop) = (bound(start, 0)?, bound(stop, length)?);
            for (i, other) in items.iter().enumerate().take(stop).skip(start) {
                if equal(other, &item)? {
                    return Ok(Value::from(i));
                }
            }
            Err(error("ValueError: the value is not in the list"))
        }
    }
}

fn dict(object: &Value, name: &str, args: &Args) -> Result<Value, Error> {
    match name {
        "get" => {
            let [key, default] = args.unnamed(1)?;
            let found = get(object, &key.unwrap_or_default())?;
            Ok(found.or(default).unwrap_or(Value::from(())))
        }
        "fromkeys" => from_keys(args),
        _ => {
            args.none()?;
            let pairs = pairs(object);
            Ok(match name {
                "keys" => {
                    Sequence::value(SequenceKind::Keys, pairs.into_iter().map(|(key, _)| key).collect())
                }
                "values" => {
                    Sequence::value(SequenceKind::Values, pairs.into_iter().map(|(_, value)| value).collect())
                }
                "items" => Sequence::value(SequenceKind::Items, tuples(pairs)),
                _ => pairs.into_iter().collect(),
            })
        }
    }
}

/// `dict.fromkeys(keys, value)`.
pub(super) fn from_keys(args: &Args) -> Result<Value, Error> {
    let [keys, value] = args.unnamed(1)?;
    let value = value.unwrap_or(Value::from(()));
    new_dict(iterate(&keys.unwrap_or_default())?.into_iter().map(|key| (key, value.clone())).collect())
}

/// Keys and values as tuples.
pub(super) fn tuples(pairs: Vec<(Value, Value)>) -> Vec<Value> {
    pairs.into_iter().map(|(key, value)| Sequence::value(SequenceKind::Tuple, vec![key, value])).collect()
}

/// A dictionary. The last value of a key counts, at the place of its first.
pub(super) fn new_dict(pairs: Vec<(Value, Value)>) -> Result<Value, Error> {
    let mut unique: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
    let simple = pairs.iter().all(|(key, _)| Kind::of(key) == Kind::Str);
    if simple {
        return Ok(pairs.into_iter().collect());
    }
    for (key, value) in pairs {
        super::compare::hashable(&key)?;
        let mut known = None;
        for (i, (other, _)) in unique.iter().enumerate() {
            if equal(other, &key)? {
                known = Some(i);
            }
        }
        match known {
            Some(i) => unique[i].1 = value,
            None => unique.push((key, value)),
        }
    }
    Ok(unique.into_iter().collect())
}
