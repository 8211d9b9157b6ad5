//! Functions of Jinja2 and of transformers that templates can call: `range`, `dict`, `namespace`, `cycler`,
//! `joiner`. `lipsum`, which is random, is missing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use minijinja::value::{Object, ObjectRepr, Rest};
use minijinja::{Environment, Error, State, Value};

use super::args::{Args, integer};
use super::limits::charge;
use super::methods::{from_keys, new_dict};
use super::objects::{Kind, Sequence, SequenceKind, error, integer as number, iterate, pairs, type_error};
use super::repr::to_str;

/// Most items of a range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// Adds the functions.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function("range", |state: &State, args: Rest<Value>| range(state, &args));
    environment.add_function("namespace", |args: Rest<Value>| namespace(&args));
    environment.add_function("cycler", |args: Rest<Value>| {
        let items = Args::new("cycler", &args)?.positional;
        if items.is_empty() {
            return type_error("at least one item has to be provided");
        }
        Ok::<Value, Error>(Value::from_object(Cycler { items, at: AtomicUsize::new(0) }))
    });
    environment.add_function("joiner", |args: Rest<Value>| {
        let [separator] = Args::new("joiner", &args)?.bind(0, ["sep"])?;
        let separator = separator.map_or(Ok(", ".to_owned()), |separator| to_str(&separator))?;
        Ok::<Value, Error>(Value::from_object(Joiner { separator, used: AtomicBool::new(false) }))
    });
    environment.add_global("dict", Value::from_object(Dict));
}

fn range(state: &State, args: &[Value]) -> Result<Value, Error> {
    let [first, second, step] = Args::new("range", args)?.unnamed(1)?;
    let first = integer(&first.unwrap_or_default())?;
    let (start, stop) = match second {
        Some(stop) => (first, integer(&stop)?),
        None => (0, first),
    };
    let step = step.map_or(Ok(1), |step| integer(&step))?;
    if step == 0 {
        return Err(error("ValueError: range() arg 3 must not be zero"));
    }
    let distance = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let size = step.saturating_abs();
    let count = distance.max(0).saturating_add(size - 1) / size;
    if count > MAX_RANGE as i128 {
        return Err(error(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )));
    }
    charge(state, count as u64 * 32)?;
    Ok(Sequence::value(SequenceKind::Range, (0..count).map(|i| number(start + i * step)).collect()))
}

/// Python's `dict(mapping, **named)`.
fn dict(args: &[Value]) -> Result<Value, Error> {
    let args = Args::new("dict", args)?;
    let mut entries = Vec::new();
    match &args.positional[..] {
        [] => {}
        [map] if Kind::of(map) == Kind::Dict => entries = pairs(map),
        [list] => {
            for item in iterate(list)? {
                let [key, value] = &iterate(&item)?[..] else {
                    return Err(error("ValueError: dictionary update sequence element is not a pair"));
                };
                entries.push((key.clone(), value.clone()));
            }
        }
        many => return type_error(format!("dict expected at most 1 argument, got {}", many.len())),
    }
    entries.extend(args.named.into_iter().map(|(name, value)| (Value::from(name), value)));
    new_dict(entries)
}

fn namespace(args: &[Value]) -> Result<Value, Error> {
    let attributes = dict(args)?;
    for (name, _) in pairs(&attributes) {
        if name.as_str().is_none_or(|name| name.starts_with('_')) {
            return Err(error(format!("a namespace cannot have the attribute {name}")));
        }
    }
    minijinja::functions::namespace(Some(attributes))
}

/// The global `dict`.
#[derive(Debug)]
struct Dict;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn call(self: &Arc<Self>, _: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        dict(args)
    }

    fn call_method(self: &Arc<Self>, _: &State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        match name {
            "fromkeys" => from_keys(&Args::new(name, args)?),
            _ => Err(error(format!("dict has no attribute '{name}'"))),
        }
    }
}

/// Result of `cycler`: gives its items in turn.
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl fmt::Debug for Cycler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Cycler>")
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.at.load(Ordering::Relaxed);
        match key.as_str()? {
            "current" => self.items.get(at).cloned(),
            "pos" => Some(Value::from(at)),
            "items" => Some(Sequence::value(SequenceKind::Tuple, self.items.clone())),
            _ => None,
        }
    }

    fn call_method(self: &Arc<Self>, _: &State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        Args::new(name, args)?.none()?;
        match name {
            "next" => {
                let at = self.at.load(Ordering::Relaxed);
                self.at.store((at + 1) % self.items.len(), Ordering::Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(error(format!("Cycler has no attribute '{name}'"))),
        }
    }
}

/// Result of `joiner`: its separator, except the first time.
struct Joiner {
    separator: String,
    used: AtomicBool,
}

impl fmt::Debug for Joiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Joiner>")
    }
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn call(self: &Arc<Self>, _: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        Args::new("joiner", args)?.none()?;
        Ok(Value::from(if self.used.swap(true, Ordering::Relaxed) { &self.separator } else { "" }))
    }
}
