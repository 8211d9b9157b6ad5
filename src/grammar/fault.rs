//! The part of a JSON schema that cannot be compiled. `llguidance` says what it does not support, and not
//! where, so parts of the schema are left out until the fault is found.

use std::fmt;

use serde_json::{Map, Value};

use super::keywords;

/// The most schemas that are compiled in the search for one fault.
const MAX_TRIALS: usize = 150;
/// The most bytes of all these schemas together.
const MAX_TRIAL_BYTES: usize = 768 << 10;
/// The most bytes of a schema whose parts are tried. Those of a larger one take long to compile.
const MAX_BYTES: usize = 32 << 10;

/// `llguidance` reports keywords that it does not support with this text and a JSON array of their names.
const UNIMPLEMENTED: &str = "Unimplemented keys: ";

/// Texts of `llguidance` that mean certain keywords, and the texts for clients.
const TEXTS: [(&str, &[&str], Option<&str>); 7] = [
    ("Invalid type", &["type"], None),
    ("regex parse error", &["pattern", "patternProperties"], None),
    ("Unknown format", &["format"], None),
    (
        "oneOf constraints are not supported",
        &["oneOf"],
        Some("not supported where more than one alternative may be valid; anyOf is supported"),
    ),
    ("min/maxProperties only", &["minProperties", "maxProperties"], None),
    ("patternProperty regexes", &["patternProperties"], None),
    ("Only absolute $ref", &["$ref"], Some("not supported except to a place within the schema (#/...)")),
];

/// Keywords that cannot be compiled, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// JSON pointer of the schema that has the keywords, or of one around it if the search ended early.
    pub(super) pointer: String,
    /// The keywords, or none if they were not found.
    pub(super) keywords: Vec<String>,
    /// The reason.
    pub(super) text: String,
    /// Whether the search ended early.
    pub(super) is_around: bool,
    /// Whether no answer can be valid.
    pub(super) allows_nothing: bool,
    /// Whether the keywords cannot be enforced in any schema.
    pub(super) is_everywhere: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pointer, keywords, text, .. } = self;
        let (keywords, colon) = (keywords.join(", "), if keywords.is_empty() { "" } else { ": " });
        let place = if self.is_around { "within" } else { "at" };
        write!(f, "{keywords}{colon}{text} ({place} #{pointer})")
    }
}

impl Fault {
    /// Finds the fault that makes `compile` return `error` for the schema.
    pub(super) fn find(schema: &Value, error: String, compile: &dyn Fn(&Value) -> Option<String>) -> Self {
        let names = named_keywords(&error);
        let candidates = candidates(schema, &names, &error);
        let (mut pointer, mut keywords) = (String::new(), names);
        if let [only] = candidates.as_slice() {
            pointer.clone_from(only);
        } else {
            let mut search = Search::new(schema, error.clone(), compile);
            while let Some(inner) = search.faulty_part(&pointer) {
                pointer = inner;
            }
            // The search may have ended early.
            match candidates.into_iter().find(|inner| is_within(inner, &pointer)) {
                Some(candidate) => pointer = candidate,
                None => keywords = search.keywords(&pointer),
            }
        }
        if let Some(map) = schema.pointer(&pointer).and_then(Value::as_object) {
            keywords.retain(|keyword| map.contains_key(keyword));
        }
        let is_everywhere = error.starts_with(UNIMPLEMENTED);
        let known = TEXTS.iter().find(|(begin, ..)| error.starts_with(begin)).and_then(|(.., text)| *text);
        let reason = error.strip_prefix("Unsatisfiable schema: ");
        let text = match (known, reason) {
            (Some(text), _) => {
                let got = error.split_once("; ref ").map(|(_, got)| format!(", got {got}"));
                format!("{text}{}", got.unwrap_or_default())
            }
            (_, Some(reason)) => format!("no text is valid: {reason}"),
            _ if error.starts_with(UNIMPLEMENTED) => "not supported in a JSON schema".to_owned(),
            _ => error.clone(),
        };
        let allows_nothing = reason.is_some();
        let is_around = keywords.is_empty();
        Self { pointer, keywords, text, is_around, allows_nothing, is_everywhere }
    }
}

/// A search for the fault of a schema.
struct Search<'a> {
    /// The schema without the parts that do not matter to the fault.
    schema: Value,
    /// The error of the whole schema.
    error: String,
    compile: &'a dyn Fn(&Value) -> Option<String>,
    /// Schemas that may still be compiled.
    trials: usize,
}

impl<'a> Search<'a> {
    fn new(schema: &Value, error: String, compile: &'a dyn Fn(&Value) -> Option<String>) -> Self {
        let size = schema.to_string().len().max(1);
        let trials = if size > MAX_BYTES { 0 } else { MAX_TRIALS.min(MAX_TRIAL_BYTES / size) };
        Self { schema: schema.clone(), error, compile, trials }
    }

    /// Whether the schema still has the fault. `None` if no more schemas may be compiled.
    fn has_fault(&mut self) -> Option<bool> {
        self.trials = self.trials.checked_sub(1)?;
        Some((self.compile)(&self.schema).as_ref() == Some(&self.error))
    }

    /// The pointer of the part of the schema at `pointer` that has the fault. `None` if the fault is none of
    /// a single part.
    fn faulty_part(&mut self, pointer: &str) -> Option<String> {
        let map = self.schema.pointer(pointer)?.as_object()?;
        let mut places: Vec<String> = Vec::new();
        for (keyword, name) in keywords::parts(map) {
            let mut place = pointer.to_owned();
            std::iter::once(&keyword).chain(&name).for_each(|step| keywords::extend(&mut place, step));
            places.push(place);
        }
        places.retain(|place| self.schema.pointer(place).is_some_and(Value::is_object));
        // Definitions matter only where others refer to them.
        let is_definition = |place: &String| {
            let rest = &place[pointer.len()..];
            rest.starts_with("/$defs/") || rest.starts_with("/definitions/")
        };
        places.sort_by_key(is_definition);
        let mut parts: Vec<Value> = places.iter().map(|place| self.swap(place, Value::Bool(true))).collect();
        if places.is_empty() || self.has_fault()? {
            return None;
        }
        // With the first `with` parts the schema has the fault, with the first `without` it has not.
        let (mut without, mut with) = (0, places.len());
        for (place, part) in places.iter().zip(&mut parts) {
            *part = self.swap(place, part.take());
        }
        while with - without > 1 {
            let middle = usize::midpoint(without, with);
            self.swap_all(&places[middle..with], &mut parts[middle..with]);
            match self.has_fault() {
                Some(true) => with = middle,
                found => {
                    self.swap_all(&places[middle..with], &mut parts[middle..with]);
                    found?;
                    without = middle;
                }
            }
        }
        Some(places[with - 1].clone())
    }

    /// Swaps parts of the schema with others.
    fn swap_all(&mut self, places: &[String], parts: &mut [Value]) {
        for (place, part) in places.iter().zip(parts) {
            *part = self.swap(place, part.take());
        }
    }

    /// Puts `part` in its place and returns what was there.
    fn swap(&mut self, place: &str, part: Value) -> Value {
        self.schema.pointer_mut(place).map(|there| std::mem::replace(there, part)).unwrap_or_default()
    }

    /// The keywords of the schema at `pointer` without which the fault would not be there.
    fn keywords(&mut self, pointer: &str) -> Vec<String> {
        let Some(map) = self.schema.pointer(pointer).and_then(Value::as_object).cloned() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for keyword in map.keys() {
            let others = map.iter().filter(|(other, _)| *other != keyword);
            let others: Map<String, Value> =
                others.map(|(key, value)| (key.clone(), value.clone())).collect();
            self.swap(pointer, Value::Object(others));
            match self.has_fault() {
                Some(true) => {}
                Some(false) => found.push(keyword.clone()),
                None => break,
            }
        }
        self.swap(pointer, Value::Object(map));
        // Others only changed how the schema is read.
        let words = |keyword: &String| {
            let mut words = self.error.split(|c: char| !c.is_ascii_alphanumeric() && c != '$');
            words.any(|word| word == keyword)
        };
        if found.iter().any(words) {
            found.retain(words);
        }
        found
    }
}

/// The keywords that an error of `llguidance` names, if it names any.
fn named_keywords(error: &str) -> Vec<String> {
    if let Some(names) = error.strip_prefix(UNIMPLEMENTED) {
        // The list is JSON; the text may go on behind it.
        let end = names.find(']').map_or(names.len(), |at| at + 1);
        return serde_json::from_str(&names[..end]).unwrap_or_default();
    }
    let known = TEXTS.iter().find(|(begin, ..)| error.starts_with(begin));
    known.map_or_else(Vec::new, |(_, names, _)| names.iter().map(|name| (*name).to_owned()).collect())
}

/// The pointers of the schemas with the keywords that an error names.
fn candidates(schema: &Value, names: &[String], error: &str) -> Vec<String> {
    let is_meant = |map: &Map<String, Value>, name: &String| match (name.as_str(), map.get(name)) {
        ("type" | "format" | "pattern" | "$ref", Some(Value::String(text))) => error.contains(text.as_str()),
        (_, value) => value.is_some(),
    };
    let mut found = Vec::new();
    keywords::for_each_schema(&mut schema.clone(), &mut |pointer, map| {
        let mut meant = names.iter().map(|name| is_meant(map, name));
        // All keywords of a schema that are not supported are reported at once.
        let all = error.starts_with(UNIMPLEMENTED) && !names.is_empty();
        if if all { meant.all(|meant| meant) } else { meant.any(|meant| meant) } {
            found.push(pointer.to_owned());
        }
    });
    found
}

/// Whether a JSON pointer is that of a part of the schema at `outer`, or of this schema.
fn is_within(pointer: &str, outer: &str) -> bool {
    pointer.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
