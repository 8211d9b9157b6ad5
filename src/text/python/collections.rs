//! Jinja2's filters on lists, dictionaries and iterators.

use minijinja::value::Kwargs;
use minijinja::{Error, State, Value};

use super::access::item;
use super::args::{Args, given, integer, is_true, string};
use super::compare::{equal, hashable, order, sort};
use super::limits::charge;
use super::methods::tuples;
use super::numbers::binary;
use super::objects::{
    Iter, Kind, Sequence, SequenceKind, error, first, index, iterate, length, pairs, size, type_error,
    undefined_error,
};
use super::repr::{MAX_NESTING, to_str};
use super::tests::test;

/// Runs one filter.
pub(super) fn filter(state: &State, name: &str, args: &Args) -> Result<Value, Error> {
    match name {
        "first" | "last" | "list" | "reverse" | "items" => {
            let [value] = args.bind(1, [if name == "first" || name == "last" { "seq" } else { "value" }])?;
            simple(name, &value.unwrap_or_default())
        }
        "join" => join(state, args),
        "map" => map(state, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(state, name, args),
        "sort" => {
            let [value, reverse, case_sensitive, attribute] =
                args.bind(1, ["value", "reverse", "case_sensitive", "attribute"])?;
            let key = Key { paths: paths(given(attribute), true)?, folds: !is_true(case_sensitive) };
            sorted(&value.unwrap_or_default(), &key, is_true(reverse)).map(Value::from)
        }
        "unique" | "min" | "max" => {
            let [value, case_sensitive, attribute] =
                args.bind(1, ["value", "case_sensitive", "attribute"])?;
            let key = Key { paths: paths(given(attribute), false)?, folds: !is_true(case_sensitive) };
            let items = iterate(&value.unwrap_or_default())?;
            if name == "unique" { unique(state, items, &key) } else { extreme(items, &key, name == "max") }
        }
        "sum" => sum(state, args),
        "groupby" => group_by(args),
        "dictsort" => dict_sort(args),
        "batch" => batch(args),
        _ => slices(args),
    }
}

fn simple(name: &str, value: &Value) -> Result<Value, Error> {
    let kind = Kind::of(value);
    Ok(match name {
        "first" => first(value)?.unwrap_or_default(),
        "last" => match kind {
            Kind::Iterator
            | Kind::Sequence(SequenceKind::Values | SequenceKind::Keys | SequenceKind::Items)
                if kind == Kind::Iterator =>
            {
                return type_error("'generator' object is not reversible");
            }
            _ => iterate(value)?.pop().unwrap_or_default(),
        },
        "list" => Value::from(iterate(value)?),
        "reverse" if kind == Kind::Str => Value::from(to_str(value)?.chars().rev().collect::<String>()),
        "reverse" => {
            let mut items = iterate(value)?;
            items.reverse();
            // A generator, which has to be read to its end, becomes a list.
            if kind == Kind::Iterator { Value::from(items) } else { Iter::value(items) }
        }
        _ => match kind {
            Kind::Undefined => Iter::value(Vec::new()),
            Kind::Dict => Iter::value(tuples(pairs(value))),
            _ => return type_error("Can only get item pairs from a mapping."),
        },
    })
}

/// How a filter gets the key of an item: by paths of attributes. An empty path is the item itself.
struct Key {
    paths: Vec<Vec<Value>>,
    /// Whether strings are compared without regard to case.
    folds: bool,
}

/// Splits the argument `attribute`: an integer, or names and integers separated by dots. `several` allows
/// commas.
fn paths(attribute: Option<Value>, several: bool) -> Result<Vec<Vec<Value>>, Error> {
    let Some(attribute) = attribute else { return Ok(vec![Vec::new()]) };
    if Kind::of(&attribute) != Kind::Str {
        return Ok(vec![vec![attribute]]);
    }
    let text = to_str(&attribute)?;
    let part = |part: &str| {
        let integer = part.parse::<i64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
        integer.map_or_else(|| Value::from(part), Value::from)
    };
    let path = |path: &str| path.split('.').map(part).collect();
    Ok(if several { text.split(',').map(path).collect() } else { vec![path(&text)] })
}

fn lookup(value: &Value, path: &[Value], default: Option<&Value>) -> Result<Value, Error> {
    let mut value = value.clone();
    for part in path {
        value = item(&value, part)?;
        if let Some(default) = default.filter(|_| value.is_undefined()) {
            value = default.clone();
        }
    }
    Ok(value)
}

impl Key {
    fn of(&self, value: &Value) -> Result<Value, Error> {
        let mut keys = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let key = lookup(value, path, None)?;
            let folds = self.folds && Kind::of(&key) == Kind::Str;
            keys.push(if folds { Value::from(to_str(&key)?.to_lowercase()) } else { key });
        }
        Ok(if keys.len() == 1 { keys.swap_remove(0) } else { Value::from(keys) })
    }
}

fn keyed(items: Vec<Value>, key: &Key) -> Result<Vec<(Value, Value)>, Error> {
    items.into_iter().map(|item| Ok((key.of(&item)?, item))).collect()
}

fn sorted(value: &Value, key: &Key, reverse: bool) -> Result<Vec<Value>, Error> {
    sort(keyed(iterate(value)?, key)?, reverse)
}

fn unique(state: &State, items: Vec<Value>, key: &Key) -> Result<Value, Error> {
    let mut seen: Vec<Value> = Vec::new();
    let mut kept = Vec::new();
    for item in items {
        let key = key.of(&item)?;
        hashable(&key)?;
        charge(state, seen.len() as u64 * 32)?;
        let mut known = false;
        for other in &seen {
            known = known || equal(other, &key)?;
        }
        if !known {
            seen.push(key);
            kept.push(item);
        }
    }
    Ok(Iter::value(kept))
}

fn extreme(items: Vec<Value>, key: &Key, largest: bool) -> Result<Value, Error> {
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in keyed(items, key)? {
        let better = match &best {
            None => true,
            Some((best, _)) => {
                let order = order(&key, best)?;
                order == Some(if largest { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less })
            }
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn join(state: &State, args: &Args) -> Result<Value, Error> {
    let [value, separator, attribute] = args.bind(1, ["value", "d", "attribute"])?;
    let separator = separator.map_or(Ok(String::new()), |separator| to_str(&separator))?;
    let path = paths(given(attribute), false)?.swap_remove(0);
    let mut parts = Vec::new();
    for item in iterate(&value.unwrap_or_default())? {
        let text = to_str(&lookup(&item, &path, None)?)?;
        charge(state, (text.len() + separator.len()) as u64)?;
        parts.push(text);
    }
    Ok(Value::from(parts.join(&separator)))
}

/// Arguments for a filter or a test that is applied to an item.
fn with_item(item: Value, positional: &[Value], named: &[(String, Value)]) -> Vec<Value> {
    let mut all = vec![item];
    all.extend(positional.iter().cloned());
    if !named.is_empty() {
        all.push(Value::from(Kwargs::from_iter(named.to_vec())));
    }
    all
}

fn map(state: &State, args: &Args) -> Result<Value, Error> {
    let Some((value, rest)) = args.positional.split_first() else { return type_error("map: no value") };
    if !value.is_true() {
        return Ok(Iter::value(Vec::new()));
    }
    let named =
        |name: &str| args.named.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let mut items = Vec::new();
    match rest.split_first() {
        None => {
            let Some(attribute) = named("attribute") else {
                return Err(error("map requires a filter argument"));
            };
            if let Some((name, _)) =
                args.named.iter().find(|(name, _)| name != "attribute" && name != "default")
            {
                return Err(error(format!("Unexpected keyword argument '{name}'")));
            }
            let default = given(named("default"));
            let path = paths(given(Some(attribute)), false)?.swap_remove(0);
            for item in iterate(value)? {
                items.push(lookup(&item, &path, default.as_ref())?);
            }
        }
        Some((name, rest)) => {
            let name = string(name)?;
            for item in iterate(value)? {
                let item = state.apply_filter(&name, &with_item(item, rest, &args.named))?;
                charge(state, size(&item))?;
                items.push(item);
            }
        }
    }
    Ok(Iter::value(items))
}

fn select(state: &State, name: &str, args: &Args) -> Result<Value, Error> {
    let Some((value, mut rest)) = args.positional.split_first() else { return type_error("no value") };
    if !value.is_true() {
        return Ok(Iter::value(Vec::new()));
    }
    let mut path = Vec::new();
    if name.ends_with("attr") {
        let Some((attribute, after)) = rest.split_first() else {
            return Err(error("Missing parameter for attribute name"));
        };
        path = paths(given(Some(attribute.clone())), false)?.swap_remove(0);
        rest = after;
    }
    let wanted = name.starts_with("select");
    let mut items = Vec::new();
    for item in iterate(value)? {
        let subject = lookup(&item, &path, None)?;
        let result = match rest.split_first() {
            None => subject.is_true(),
            Some((name, rest)) => {
                let name = string(name)?;
                test(state, &name, &Args::new(&name, &with_item(subject, rest, &args.named))?)?
            }
        };
        if result == wanted {
            items.push(item);
        }
    }
    Ok(Iter::value(items))
}

fn sum(state: &State, args: &Args) -> Result<Value, Error> {
    let [value, attribute, start] = args.bind(1, ["iterable", "attribute", "start"])?;
    let path = paths(given(attribute), false)?.swap_remove(0);
    let mut total = start.unwrap_or_else(|| Value::from(0));
    if Kind::of(&total) == Kind::Str {
        return type_error("sum() can't sum strings [use ''.join(seq) instead]");
    }
    for item in iterate(&value.unwrap_or_default())? {
        total = binary(state, "_add", &total, &lookup(&item, &path, None)?)?;
    }
    Ok(total)
}

fn group_by(args: &Args) -> Result<Value, Error> {
    let [value, attribute, default, case_sensitive] =
        args.bind(2, ["value", "attribute", "default", "case_sensitive"])?;
    let path = paths(given(attribute), false)?.swap_remove(0);
    let default = given(default);
    let folds = !is_true(case_sensitive);
    let mut keyed = Vec::new();
    for item in iterate(&value.unwrap_or_default())? {
        let key = lookup(&item, &path, default.as_ref())?;
        let folded = if folds && Kind::of(&key) == Kind::Str {
            Value::from(to_str(&key)?.to_lowercase())
        } else {
            key.clone()
        };
        keyed.push((folded.clone(), Value::from(vec![folded, key, item])));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for entry in sort(keyed, false)? {
        let [folded, key, item] = &iterate(&entry)?[..] else { continue };
        match groups.last_mut() {
            Some((last, _, items)) if equal(last, folded)? => items.push(item.clone()),
            _ => groups.push((folded.clone(), key.clone(), vec![item.clone()])),
        }
    }
    let group = |(_, key, items)| Sequence::value(SequenceKind::Group, vec![key, Value::from(items)]);
    Ok(groups.into_iter().map(group).collect())
}

fn dict_sort(args: &Args) -> Result<Value, Error> {
    let [value, case_sensitive, by, reverse] = args.bind(1, ["value", "case_sensitive", "by", "reverse"])?;
    let value = value.unwrap_or_default();
    match Kind::of(&value) {
        Kind::Dict => {}
        Kind::Undefined => return undefined_error(),
        kind => return type_error(format!("'{}' object has no attribute 'items'", kind.name())),
    }
    let by = by.map_or(Ok("key".to_owned()), |by| string(&by))?;
    if by != "key" && by != "value" {
        return Err(error("You can only sort by either \"key\" or \"value\""));
    }
    let key =
        Key { paths: vec![vec![Value::from(i64::from(by == "value"))]], folds: !is_true(case_sensitive) };
    sort(keyed(tuples(pairs(&value)), &key)?, is_true(reverse)).map(Value::from)
}

fn batch(args: &Args) -> Result<Value, Error> {
    let [value, count, fill] = args.bind(2, ["value", "linecount", "fill_with"])?;
    let items = iterate(&value.unwrap_or_default())?;
    let count = usize::try_from(integer(&count.unwrap_or_default())?).unwrap_or(0);
    if count == 0 {
        return Err(error("batch: the number of items must be at least 1"));
    }
    let mut batches: Vec<Vec<Value>> = items.chunks(count).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (given(fill), batches.last_mut()) {
        if count > 1 << 20 {
            return Err(error("batch: more than 1048576 items"));
        }
        last.resize(count, fill);
    }
    Ok(Iter::value(batches.into_iter().map(Value::from).collect()))
}

fn slices(args: &Args) -> Result<Value, Error> {
    let [value, count, fill] = args.bind(2, ["value", "slices", "fill_with"])?;
    let items = iterate(&value.unwrap_or_default())?;
    let count = usize::try_from(integer(&count.unwrap_or_default())?).unwrap_or(0);
    if count == 0 || count > 1 << 20 {
        return Err(error("slice: the number of slices must be between 1 and 1048576"));
    }
    let (each, longer) = (items.len() / count, items.len() % count);
    let fill = given(fill);
    let mut rest = items.as_slice();
    let mut slices = Vec::with_capacity(count);
    for i in 0..count {
        let (slice, after) = rest.split_at(each + usize::from(i < longer));
        rest = after;
        let fill = fill.iter().filter(|_| i >= longer);
        slices.push(Value::from(slice.iter().chain(fill).cloned().collect::<Vec<_>>()));
    }
    Ok(Iter::value(slices))
}

/// A value with the keys of its dictionaries in order, as `pprint` prints them. `depth` is its nesting level.
pub(super) fn with_sorted_keys(value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > MAX_NESTING {
        return Err(error(format!("pprint: a value has more than {MAX_NESTING} levels")));
    }
    let kind = Kind::of(value);
    if kind == Kind::Dict {
        let mut entries = Vec::new();
        for (key, item) in pairs(value) {
            entries.push((key.clone(), Value::from(vec![key, with_sorted_keys(&item, depth + 1)?])));
        }
        let mut sorted = Vec::new();
        for entry in sort(entries, false)? {
            sorted.push((entry.get_item_by_index(0)?, entry.get_item_by_index(1)?));
        }
        return Ok(sorted.into_iter().collect());
    }
    let nested = kind == Kind::List || kind.is_tuple();
    if !nested || length(value).is_none_or(|length| length > 1000) || index(value).is_some() {
        return Ok(value.clone());
    }
    let items: Result<Vec<Value>, Error> =
        iterate(value)?.iter().map(|item| with_sorted_keys(item, depth + 1)).collect();
    Ok(if kind == Kind::List { Value::from(items?) } else { Sequence::value(SequenceKind::Tuple, items?) })
}
