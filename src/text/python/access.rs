//! Attributes, items and slices, as Jinja2's immutable sandbox gives them, and `str.format`, whose fields use
//! them.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, State, Value};

use super::args::Args;
use super::compare::get;
use super::format::{convert, with_spec};
use super::limits::charge;
use super::methods::{self, call, has_method};
use super::objects::{
    Kind, Sequence, SequenceKind, error, index, iterate, text, type_error, undefined_error,
};
use super::strings::named;

/// A method and its object.
struct Method {
    object: Value,
    name: String,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, Kind::of(&self.object).name())
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        call_method(state, &self.object, &self.name, args)
    }
}

/// Whether a value can be called.
pub(super) fn is_callable(value: &Value) -> bool {
    let Some(object) = value.as_object().filter(|_| Kind::of(value) == Kind::Other) else { return false };
    let plain = ["::Namespace", "::Loop", "::Cycler"];
    object.is::<Method>() || !plain.iter().any(|name| object.type_name().ends_with(name))
}

/// An attribute that is not an item.
pub(super) fn own_attribute(object: &Value, name: &str) -> Result<Option<Value>, Error> {
    let kind = Kind::of(object);
    match kind {
        Kind::Undefined => return undefined_error(),
        Kind::Sequence(SequenceKind::Group) if matches!(name, "grouper" | "list") => {
            return Ok(iterate(object)?.into_iter().nth(usize::from(name == "list")));
        }
        Kind::Other => {
            let mut value = object.get_attr(name)?;
            if Kind::of(&value) == Kind::List && name == "arguments" {
                value = Sequence::value(SequenceKind::Tuple, iterate(&value)?);
            }
            if !value.is_undefined() {
                return Ok(Some(value));
            }
        }
        Kind::Int | Kind::Bool if matches!(name, "real" | "numerator") => return Ok(Some(object.clone())),
        Kind::Int | Kind::Bool if matches!(name, "imag" | "denominator") => {
            return Ok(Some(Value::from(i64::from(name == "denominator"))));
        }
        _ => {}
    }
    if methods::is_unsafe(kind, name) {
        return Ok(Some(Value::UNDEFINED));
    }
    let method = || Value::from_object(Method { object: object.clone(), name: name.to_owned() });
    Ok(has_method(object, name).then(method))
}

/// Jinja2's `object.name`: an attribute, else an item.
pub(super) fn attribute(object: &Value, name: &str) -> Result<Value, Error> {
    if let Some(value) = own_attribute(object, name)? {
        return Ok(value);
    }
    let item = if Kind::of(object) == Kind::Dict { get(object, &Value::from(name))? } else { None };
    Ok(item.unwrap_or_default())
}

/// Jinja2's `object[key]`: an item, else an attribute.
pub(super) fn item(object: &Value, key: &Value) -> Result<Value, Error> {
    let found = match Kind::of(object) {
        Kind::Undefined => return undefined_error(),
        Kind::Dict => get(object, key).unwrap_or(None),
        Kind::List | Kind::Sequence(SequenceKind::Tuple | SequenceKind::Group | SequenceKind::Range) => {
            position(key, object.len().unwrap_or(0)).map(|i| object.get_item_by_index(i)).transpose()?
        }
        Kind::Str => {
            let text = text(object).unwrap_or_default();
            let count = if text.is_ascii() { text.len() } else { text.chars().count() };
            position(key, count).and_then(|i| text.chars().nth(i)).map(Value::from)
        }
        _ => None,
    };
    match (found, text(key)) {
        (Some(value), _) => Ok(value),
        (None, Some(name)) => Ok(own_attribute(object, name)?.unwrap_or_default()),
        (None, None) => Ok(Value::UNDEFINED),
    }
}

/// The position of an index, which counts from the end if it is negative.
fn position(key: &Value, length: usize) -> Option<usize> {
    let index = index(key)?;
    let from_start = if index < 0 { index + length as i128 } else { index };
    usize::try_from(from_start).ok().filter(|&i| i < length)
}

/// Calls a method, or an attribute that can be called.
pub(super) fn call_method(state: &State, object: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let kind = Kind::of(object);
    if kind == Kind::Undefined {
        return undefined_error();
    }
    if methods::is_unsafe(kind, name) {
        let kind = kind.name();
        return Err(error(format!("access to attribute '{name}' of '{kind}' object is unsafe.")));
    }
    if kind != Kind::Other && has_method(object, name) {
        return match (kind, name) {
            (Kind::Str, "format" | "format_map") => formatted(state, object, &Args::new(name, args)?),
            _ => call(state, object, name, args),
        };
    }
    let function = if kind == Kind::Other { object.get_attr(name)? } else { attribute(object, name)? };
    if !function.is_undefined() {
        return match Kind::of(&function) {
            Kind::Other => function.call(state, args),
            kind => type_error(format!("'{}' object is not callable", kind.name())),
        };
    }
    match object.as_object() {
        Some(object) if kind == Kind::Other => object.call_method(state, name, args),
        _ => Err(error(format!("'{} object' has no attribute '{name}'", kind.name()))),
    }
}

/// Python's `str.format` and `str.format_map`.
fn formatted(state: &State, object: &Value, args: &Args) -> Result<Value, Error> {
    let template = text(object).unwrap_or_default();
    let map = match args.function.as_str() {
        "format_map" => args.unnamed::<1>(1)?.into_iter().flatten().next(),
        _ => None,
    };
    let mut fields = Fields { state, args, map, next: 0, numbered: None };
    fields.text(template, 2).map(Value::from)
}

/// The values of the fields of a format string.
struct Fields<'a> {
    state: &'a State<'a, 'a>,
    args: &'a Args,
    map: Option<Value>,
    /// Position of the next field without a name.
    next: usize,
    /// Whether fields have positions (`{0}`) or none (`{}`).
    numbered: Option<bool>,
}

impl Fields<'_> {
    /// Replaces the fields of a text. A field's format can have fields too, to the given depth.
    fn text(&mut self, template: &str, depth: usize) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if after.starts_with(brace) {
                out.push_str(brace);
                rest = &after[1..];
            } else if brace == "}" {
                return Err(error("ValueError: Single '}' encountered in format string"));
            } else {
                let end = closing(after)
                    .filter(|_| depth > 0)
                    .ok_or_else(|| error("ValueError: expected '}' before end of string"))?;
                let field = self.field(&after[..end], depth)?;
                charge(self.state, field.len() as u64)?;
                out.push_str(&field);
                rest = &after[end + 1..];
            }
        }
        Ok(out + rest)
    }

    /// One field: name, conversion and format.
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        // Within the brackets of an index, `!` and `:` do not end the name.
        let mut in_index = false;
        let end = field.find(|c| {
            in_index = (in_index || c == '[') && c != ']';
            !in_index && matches!(c, '!' | ':')
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        let value = self.value(name)?;
        let (conversion, spec) = match rest.strip_prefix('!') {
            None => (None, rest.strip_prefix(':').unwrap_or_default()),
            Some(rest) => {
                let conversion = rest.chars().next();
                let after = &rest[conversion.map_or(0, char::len_utf8)..];
                (conversion, after.strip_prefix(':').unwrap_or_default())
            }
        };
        let spec = self.text(spec, depth - 1)?;
        match conversion {
            None => with_spec(&value, &spec),
            Some(conversion) => with_spec(&Value::from(convert(&value, conversion)?), &spec),
        }
    }

    /// The value of a field's name: `0`, `name`, `0.attribute[key]`.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let mut value = if let Some(map) = &self.map {
            named(map, first)?
        } else if name.is_empty() || (!first.is_empty() && first.bytes().all(|b| b.is_ascii_digit())) {
            if self.numbered.replace(!first.is_empty()).is_some_and(|numbered| numbered == first.is_empty()) {
                return Err(error("ValueError: some fields have positions and some have none"));
            }
            let position = if first.is_empty() { self.next } else { first.parse().unwrap_or(usize::MAX) };
            self.next += 1;
            let value = self.args.positional.get(position).cloned();
            value.ok_or_else(|| error("IndexError: Replacement index out of range"))?
        } else {
            let found = self.args.named.iter().find(|(name, _)| name == first);
            found.map(|(_, value)| value.clone()).ok_or_else(|| error(format!("KeyError: {first:?}")))?
        };
        while !path.is_empty() {
            let close = if path.starts_with('[') {
                path.find(']')
            } else if let Some(name) = path.strip_prefix('.') {
                name.find(['.', '[']).map(|i| i + 1)
            } else {
                return Err(error("ValueError: Only '.' or '[' may follow ']' in format field specifier"));
            };
            let part = &path[1..close.unwrap_or(path.len())];
            value = if path.starts_with('.') {
                attribute(&value, part)?
            } else {
                let key = part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from);
                item(&value, &key)?
            };
            path = &path[close.map_or(path.len(), |close| close + usize::from(path.starts_with('[')))..];
        }
        Ok(value)
    }
}

/// The position of the brace that closes a field.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (i, character) in text.char_indices() {
        match character {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(i);
        }
    }
    None
}

/// Python's `object[start:stop:step]`.
pub(super) fn slice(object: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let bound = |value: &Value| match (value.is_none(), index(value)) {
        (true, _) => Ok(None),
        (_, Some(index)) => Ok(Some(index)),
        _ => Err(()),
    };
    let kind = Kind::of(object);
    let sliced = matches!(kind, Kind::Str | Kind::List)
        || kind.is_tuple()
        || kind == Kind::Sequence(SequenceKind::Range);
    match kind {
        Kind::Undefined => return undefined_error(),
        _ if sliced => {}
        // Jinja2 gives an undefined value where an object has no items.
        _ => return Ok(Value::UNDEFINED),
    }
    let (Ok(start), Ok(stop), Ok(step)) = (bound(start), bound(stop), bound(step)) else {
        return Ok(Value::UNDEFINED);
    };
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(error("ValueError: slice step cannot be zero"));
    }
    if kind == Kind::Str {
        let characters: Vec<char> = text(object).unwrap_or_default().chars().collect();
        let at = positions(characters.len() as i128, start, stop, step);
        return Ok(Value::from(at.map(|i| characters[i]).collect::<String>()));
    }
    let items = iterate(object)?;
    let at = positions(items.len() as i128, start, stop, step);
    let picked: Vec<Value> = at.map(|i| items[i].clone()).collect();
    Ok(match kind {
        Kind::List => Value::from(picked),
        Kind::Sequence(SequenceKind::Range) => Sequence::value(SequenceKind::Range, picked),
        _ => Sequence::value(SequenceKind::Tuple, picked),
    })
}

fn positions(
    length: i128,
    start: Option<i128>,
    stop: Option<i128>,
    step: i128,
) -> impl Iterator<Item = usize> {
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |index: i128| (if index < 0 { index + length } else { index }).clamp(lowest, highest);
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (start.map_or(first, clamp), stop.map_or(last, clamp));
    let mut at = start;
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        let current = usize::try_from(at).ok().filter(|_| inside);
        at = at.saturating_add(step);
        current
    })
}
