//! Python's kinds of values, and those that minijinja does not have: tuples, ranges, views of dictionaries,
//! iterators and bound methods.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Kind of a value, as Python's `type` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Undefined,
    None,
    Bool,
    Int,
    Float,
    Str,
    List,
    Dict,
    /// A tuple, range or view.
    Sequence(SequenceKind),
    /// Anything that can be iterated once.
    Iterator,
    /// A function, macro, loop or namespace.
    Other,
}

/// Kind of a [`Sequence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SequenceKind {
    Tuple,
    /// Result of the filter `groupby`: a tuple of `grouper` and `list`.
    Group,
    Range,
    Keys,
    Values,
    Items,
}

impl Kind {
    pub(super) fn of(value: &Value) -> Self {
        match value.kind() {
            ValueKind::Undefined => Self::Undefined,
            ValueKind::None => Self::None,
            ValueKind::Bool => Self::Bool,
            ValueKind::Number if value.is_integer() => Self::Int,
            ValueKind::Number => Self::Float,
            ValueKind::String => Self::Str,
            _ => {
                let Some(object) = value.as_object() else { return Self::Other };
                if let Some(sequence) = object.downcast_ref::<Sequence>() {
                    Self::Sequence(sequence.kind)
                } else if object.is::<Iter>() {
                    Self::Iterator
                } else {
                    match object.repr() {
                        ObjectRepr::Seq => Self::List,
                        ObjectRepr::Iterable => Self::Iterator,
                        // minijinja's own objects (loop, macro, namespace) say that they are maps.
                        ObjectRepr::Map
                            if value.is_kwargs() || !object.type_name().starts_with("minijinja::") =>
                        {
                            Self::Dict
                        }
                        _ => Self::Other,
                    }
                }
            }
        }
    }

    /// Python's name of the type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Undefined => "Undefined",
            Self::None => "NoneType",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Float => "float",
            Self::Str => "str",
            Self::List => "list",
            Self::Dict => "dict",
            Self::Sequence(SequenceKind::Tuple | SequenceKind::Group) => "tuple",
            Self::Sequence(SequenceKind::Range) => "range",
            Self::Sequence(SequenceKind::Keys) => "dict_keys",
            Self::Sequence(SequenceKind::Values) => "dict_values",
            Self::Sequence(SequenceKind::Items) => "dict_items",
            Self::Iterator => "generator",
            Self::Other => "object",
        }
    }

    pub(super) fn is_tuple(self) -> bool {
        matches!(self, Self::Sequence(SequenceKind::Tuple | SequenceKind::Group))
    }
}

/// A tuple, range or view of a dictionary.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) kind: SequenceKind,
    pub(super) items: Vec<Value>,
}

impl Sequence {
    pub(super) fn value(kind: SequenceKind, items: Vec<Value>) -> Value {
        Value::from_object(Self { kind, items })
    }
}

impl Object for Sequence {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
}

/// An iterator: its items are gone once they are read.
pub(super) struct Iter(Mutex<Vec<Value>>);

impl Iter {
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items)))
    }

    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes the first item.
    fn next(&self) -> Option<Value> {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if items.is_empty() { None } else { Some(items.remove(0)) }
    }
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

impl Object for Iter {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// An error of an operation.
pub(super) fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error for a value of a wrong type.
pub(super) fn type_error<T>(message: impl fmt::Display) -> Result<T, Error> {
    Err(error(format!("TypeError: {message}")))
}

/// The error for the use of an undefined value.
pub(super) fn undefined_error<T>() -> Result<T, Error> {
    Err(Error::new(ErrorKind::UndefinedError, "the value is undefined"))
}

/// Whether Python's `str.isspace` holds for a character.
pub(in crate::text) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// A string or a number as text. `None` for other values.
pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// The items over which Python iterates. Reads an iterator to its end.
pub(super) fn iterate(value: &Value) -> Result<Vec<Value>, Error> {
    match Kind::of(value) {
        Kind::Undefined => Ok(Vec::new()),
        Kind::Str => Ok(text(value).unwrap_or_default().chars().map(Value::from).collect()),
        Kind::Sequence(_) => Ok(sequence(value)),
        Kind::List | Kind::Dict => Ok(value.try_iter()?.collect()),
        Kind::Iterator => match value.downcast_object_ref::<Iter>() {
            Some(iter) => Ok(iter.take()),
            None => Ok(value.try_iter()?.collect()),
        },
        kind => type_error(format!("'{}' object is not iterable", kind.name())),
    }
}

/// The first item over which Python iterates.
pub(super) fn first(value: &Value) -> Result<Option<Value>, Error> {
    match value.downcast_object_ref::<Iter>() {
        Some(iter) => Ok(iter.next()),
        None => Ok(iterate(value)?.into_iter().next()),
    }
}

fn sequence(value: &Value) -> Vec<Value> {
    value.downcast_object_ref::<Sequence>().map(|sequence| sequence.items.clone()).unwrap_or_default()
}

/// The keys and values of a dictionary.
pub(super) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let object = value.as_object().filter(|_| Kind::of(value) == Kind::Dict);
    object.and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect()
}

/// Python's `len`, without an error message.
pub(super) fn length(value: &Value) -> Option<usize> {
    match Kind::of(value) {
        Kind::Undefined => Some(0),
        Kind::Str => text(value).map(|text| text.chars().count()),
        Kind::List | Kind::Dict | Kind::Sequence(_) => value.len(),
        _ => None,
    }
}

/// Approximate size of a value in bytes, which is charged for an operation on it.
pub(super) fn size(value: &Value) -> u64 {
    let bytes = match text(value) {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(32),
    };
    bytes as u64
}

/// The integer of a value that Python accepts as an index; `None` for other values.
pub(super) fn index(value: &Value) -> Option<i128> {
    match Kind::of(value) {
        Kind::Bool => Some(i128::from(value.is_true())),
        Kind::Int => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// A number as a float; `None` for other values.
pub(super) fn float(value: &Value) -> Option<f64> {
    match Kind::of(value) {
        Kind::Float => f64::try_from(value.clone()).ok(),
        _ => index(value).map(|integer| integer as f64),
    }
}

/// An integer as a value.
pub(super) fn integer(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}
