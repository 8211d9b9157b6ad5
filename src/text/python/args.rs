//! Arguments of filters, functions and methods, bound to parameters as Python binds them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::objects::{Kind, index, type_error};
use super::repr::to_str;

/// Arguments of one call.
pub(super) struct Args {
    /// Name of the function, for errors.
    pub(super) function: String,
    /// Arguments without names.
    pub(super) positional: Vec<Value>,
    /// Arguments with names.
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    pub(super) fn new(function: &str, values: &[Value]) -> Result<Self, Error> {
        let (named, positional) = match values.split_last() {
            Some((last, rest)) if last.is_kwargs() => (Kwargs::try_from(last.clone())?, rest),
            _ => (Kwargs::from_iter(Vec::<(String, Value)>::new()), values),
        };
        let mut pairs = Vec::new();
        for name in named.args() {
            pairs.push((name.to_owned(), named.peek::<Value>(name)?));
        }
        Ok(Self { function: function.to_owned(), positional: positional.to_vec(), named: pairs })
    }

    /// Assigns the arguments to parameters. Parameters beyond `required` can be missing.
    pub(super) fn bind<const N: usize>(
        &self,
        required: usize,
        names: [&str; N],
    ) -> Result<[Option<Value>; N], Error> {
        let function = &self.function;
        if self.positional.len() > N {
            let given = self.positional.len();
            return type_error(format!("{function}() takes at most {N} arguments ({given} given)"));
        }
        let mut bound: [Option<Value>; N] = std::array::from_fn(|i| self.positional.get(i).cloned());
        for (name, value) in &self.named {
            let slot = names.iter().position(|known| known == name).filter(|_| !name.is_empty());
            match slot.map(|i| &mut bound[i]) {
                Some(slot @ None) => *slot = Some(value.clone()),
                Some(_) => {
                    return type_error(format!("{function}() got multiple values for argument '{name}'"));
                }
                None => {
                    return type_error(format!("{function}() got an unexpected keyword argument '{name}'"));
                }
            }
        }
        match (0..required).find(|&i| bound[i].is_none()) {
            Some(i) => type_error(format!("{function}() missing required argument: '{}'", names[i])),
            None => Ok(bound),
        }
    }

    /// Refuses any argument.
    pub(super) fn none(&self) -> Result<(), Error> {
        self.bind::<0>(0, []).map(|_| ())
    }

    /// Assigns the arguments to parameters without names.
    pub(super) fn unnamed<const N: usize>(&self, required: usize) -> Result<[Option<Value>; N], Error> {
        match self.named.first() {
            Some(_) => type_error(format!("{}() takes no keyword arguments", self.function)),
            None => self.bind(required, [""; N]),
        }
    }
}

/// An integer argument.
pub(super) fn integer(value: &Value) -> Result<i128, Error> {
    match index(value) {
        Some(integer) => Ok(integer),
        None => {
            let kind = Kind::of(value).name();
            type_error(format!("'{kind}' object cannot be interpreted as an integer"))
        }
    }
}

/// An integer argument that can be missing.
pub(super) fn integer_or(value: Option<Value>, default: i128) -> Result<i128, Error> {
    value.map_or(Ok(default), |value| integer(&value))
}

/// A string argument.
pub(super) fn string(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => to_str(value),
        _ => type_error(format!("expected str, got {}", Kind::of(value).name())),
    }
}

/// Whether an argument is given and not `None`.
pub(super) fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !value.is_none())
}

/// Whether an argument is given and true.
pub(super) fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}
