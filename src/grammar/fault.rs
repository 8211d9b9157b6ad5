//! The part of a JSON schema that cannot be compiled. `llguidance` says what it does not support, and not
//! where, so parts of the schema are left out until the fault is found.

use std::fmt;

use serde_json::{Map, Value};

use super::budget::Budget;
use super::{GrammarError, keywords};

/// The work of the search for faults: at most 150 compilations, of at most 768 KiB of schemas together.
pub(super) const SEARCH: Budget = Budget { schemas: 150, bytes: 768 << 10 };
/// The most bytes of a schema whose parts are tried. Those of a larger one take long to compile.
const MAX_BYTES: usize = 32 << 10;
/// The most schemas that are looked at because they have a keyword that an error names.
const MAX_CANDIDATES: usize = 1000;

/// `llguidance` reports keywords that it does not support with this text and a JSON array of their names.
const UNIMPLEMENTED: &str = "Unimplemented keys: ";
/// `llguidance` reports a schema that no text satisfies with this text and the reason.
const UNSATISFIABLE: &str = "Unsatisfiable schema: ";
/// `llguidance` reports a format that it does not know with this text and the format.
const UNKNOWN_FORMAT: &str = "Unknown format: ";

/// An error of `llguidance` that means certain keywords.
pub(super) struct KnownError {
    /// How its text begins.
    begin: &'static str,
    /// The keywords.
    keywords: &'static [&'static str],
    /// The text for clients, if it is another one.
    text: Option<&'static str>,
}

/// The errors of `llguidance` that mean certain keywords.
const KNOWN: [KnownError; 7] = [
    KnownError { begin: "Invalid type", keywords: &["type"], text: None },
    KnownError { begin: "regex parse error", keywords: &["pattern", "patternProperties"], text: None },
    KnownError { begin: UNKNOWN_FORMAT, keywords: &["format"], text: None },
    KnownError {
        begin: "oneOf constraints are not supported",
        keywords: &["oneOf"],
        text: Some("not supported where more than one alternative may be valid; anyOf is supported"),
    },
    KnownError { begin: "min/maxProperties only", keywords: &["minProperties", "maxProperties"], text: None },
    KnownError { begin: "patternProperty regexes", keywords: &["patternProperties"], text: None },
    KnownError {
        begin: "Only absolute $ref",
        keywords: &["$ref"],
        text: Some("not supported except to a place within the schema (#/...)"),
    },
];

/// The kind of an error of `llguidance`.
pub(super) enum Kind<'a> {
    /// One schema has these keywords, which are supported in no schema.
    Unimplemented(Vec<String>),
    /// No schema may have this value of `format`.
    UnknownFormat(&'a str),
    /// One schema has a fault in certain keywords.
    Known(&'static KnownError),
    /// No answer can be valid, for this reason.
    Unsatisfiable(&'a str),
    /// The error says nothing about keywords.
    Other,
}

impl<'a> Kind<'a> {
    /// Reads the text of an error.
    pub(super) fn of(error: &'a str) -> Self {
        if let Some(names) = error.strip_prefix(UNIMPLEMENTED) {
            // The list is JSON; the text may go on behind it.
            let end = names.find(']').map_or(names.len(), |at| at + 1);
            return Self::Unimplemented(serde_json::from_str(&names[..end]).unwrap_or_default());
        }
        if let Some(format) = error.strip_prefix(UNKNOWN_FORMAT) {
            return Self::UnknownFormat(format);
        }
        if let Some(reason) = error.strip_prefix(UNSATISFIABLE) {
            return Self::Unsatisfiable(reason);
        }
        KNOWN.iter().find(|known| error.starts_with(known.begin)).map_or(Self::Other, Self::Known)
    }

    /// The keywords that the error names, if it names any.
    pub(super) fn keywords(&self) -> Vec<String> {
        match self {
            Self::Unimplemented(names) => names.clone(),
            Self::UnknownFormat(_) => vec!["format".to_owned()],
            Self::Known(known) => known.keywords.iter().map(|name| (*name).to_owned()).collect(),
            Self::Unsatisfiable(_) | Self::Other => Vec::new(),
        }
    }

    /// The text for clients.
    fn text(&self, error: &str) -> String {
        match self {
            Self::Unimplemented(_) => "not supported in a JSON schema".to_owned(),
            Self::Unsatisfiable(reason) => format!("no text is valid: {reason}"),
            Self::Known(KnownError { text: Some(text), .. }) => {
                let got = error.split_once("; ref ").map(|(_, got)| format!(", got {got}"));
                format!("{text}{}", got.unwrap_or_default())
            }
            Self::Known(_) | Self::UnknownFormat(_) | Self::Other => error.to_owned(),
        }
    }

    /// Whether the error may be about the schema with this content.
    fn may_mean(&self, map: &Map<String, Value>, error: &str) -> bool {
        let is_meant = |name: &&str| match (*name, map.get(*name)) {
            ("type" | "pattern" | "$ref", Some(Value::String(text))) => error.contains(text.as_str()),
            (_, value) => value.is_some(),
        };
        match self {
            // All keywords of a schema that are not supported are reported at once.
            Self::Unimplemented(names) => {
                !names.is_empty() && names.iter().all(|name| map.contains_key(name))
            }
            Self::UnknownFormat(format) => {
                map.get("format").and_then(Value::as_str).is_some_and(|text| text == *format)
            }
            Self::Known(known) => known.keywords.iter().any(is_meant),
            Self::Unsatisfiable(_) | Self::Other => false,
        }
    }

    /// The pointers of the schemas that the error may be about.
    fn candidates(&self, schema: &Value, error: &str) -> Vec<String> {
        let mut found = Vec::new();
        keywords::for_each_schema(schema, &mut |pointer, map| {
            if found.len() < MAX_CANDIDATES && self.may_mean(map, error) {
                found.push(pointer.to_owned());
            }
        });
        found
    }
}

/// Keywords that cannot be compiled, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// JSON pointer of the schema that has the keywords, or of one around it if they were not found.
    pub(super) pointer: String,
    /// The keywords, or none if they were not found.
    pub(super) keywords: Vec<String>,
    /// The reason.
    pub(super) text: String,
    /// Whether the search ended early, so that the place and the keywords are not certain.
    pub(super) is_uncertain: bool,
    /// Whether no answer can be valid.
    pub(super) allows_nothing: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pointer, keywords, text, .. } = self;
        match keywords.as_slice() {
            [] => write!(f, "{text} (within #{pointer})"),
            keywords => write!(f, "{}: {text} (at #{pointer})", keywords.join(", ")),
        }
    }
}

impl From<Fault> for GrammarError {
    fn from(fault: Fault) -> Self {
        Self::Invalid(fault.to_string())
    }
}

impl Fault {
    /// A fault of these keywords of the schema at `pointer`.
    pub(super) fn new(pointer: &str, keywords: &[&str], text: String) -> Self {
        let keywords = keywords.iter().map(|keyword| (*keyword).to_owned()).collect();
        Self { pointer: pointer.to_owned(), keywords, text, is_uncertain: false, allows_nothing: false }
    }

    /// Finds the fault that makes `compile` return `error` for the schema.
    pub(super) fn find(
        schema: &Value,
        error: &str,
        compile: &dyn Fn(&Value) -> Option<String>,
        budget: &mut Budget,
    ) -> Self {
        let kind = Kind::of(error);
        let candidates = kind.candidates(schema, error);
        let (mut pointer, mut keywords, mut is_uncertain) = (String::new(), kind.keywords(), false);
        if let [only] = candidates.as_slice() {
            pointer.clone_from(only);
        } else {
            let mut search = Search::new(schema, error, compile, budget);
            while let Some(inner) = search.faulty_part(&pointer) {
                pointer = inner;
            }
            match candidates.into_iter().find(|inner| is_within(inner, &pointer)) {
                Some(candidate) => pointer = candidate,
                None => keywords = search.keywords(&pointer),
            }
            is_uncertain = search.has_ended;
        }
        if let Some(map) = schema.pointer(&pointer).and_then(Value::as_object) {
            keywords.retain(|keyword| map.contains_key(keyword));
        }
        let allows_nothing = matches!(kind, Kind::Unsatisfiable(_));
        Self { pointer, keywords, text: kind.text(error), is_uncertain, allows_nothing }
    }
}

/// A search for the fault of a schema.
struct Search<'a> {
    /// The schema without the parts that do not matter to the fault.
    schema: Value,
    /// Bytes of the whole schema.
    bytes: usize,
    /// The error of the whole schema.
    error: &'a str,
    compile: &'a dyn Fn(&Value) -> Option<String>,
    budget: &'a mut Budget,
    /// Whether no more schemas may be compiled.
    has_ended: bool,
}

impl<'a> Search<'a> {
    fn new(
        schema: &Value,
        error: &'a str,
        compile: &'a dyn Fn(&Value) -> Option<String>,
        budget: &'a mut Budget,
    ) -> Self {
        let bytes = schema.to_string().len();
        let has_ended = bytes > MAX_BYTES;
        let schema = if has_ended { Value::Null } else { schema.clone() };
        Self { schema, bytes, error, compile, budget, has_ended }
    }

    /// Whether the schema still has the fault. `None` if no more schemas may be compiled.
    fn has_fault(&mut self) -> Option<bool> {
        self.has_ended = self.has_ended || !self.budget.take(self.bytes);
        (!self.has_ended).then(|| (self.compile)(&self.schema).as_deref() == Some(self.error))
    }

    /// The pointer of the part of the schema at `pointer` that has the fault. `None` if the fault is none of
    /// a single part.
    fn faulty_part(&mut self, pointer: &str) -> Option<String> {
        let map = self.schema.pointer(pointer)?.as_object()?;
        let mut places = keywords::parts(map, pointer);
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

/// Whether a JSON pointer is that of a part of the schema at `outer`, or of this schema.
fn is_within(pointer: &str, outer: &str) -> bool {
    pointer.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
