//! Leaves keywords that cannot be enforced out of the schemas of a request, where they may be ignored.
//!
//! In each turn a schema is compiled, and the keywords of its fault are left out. At first the fault is
//! searched, and no more than its keywords are left out. Once a request has taken its share of compilations,
//! all keywords that an error names are left out of all lenient parts of the schema at once. At last these
//! parts may be any object.

use serde_json::{Map, Value, json};

use super::budget::Budget;
use super::fault::{Fault, Kind, SEARCH};
use super::{GrammarError, SchemaRule, keywords, schema};

/// The turns of a request that leave out the keywords of one fault.
const TURNS: Budget = Budget { schemas: 2000, bytes: 512 << 10 };
/// The turns of a request that leave out all keywords that an error names.
const BROAD_TURNS: Budget = Budget { schemas: 2000, bytes: 1 << 20 };
/// Bytes of the paths that are kept. A client sees fewer.
const MAX_IGNORED_BYTES: usize = 64 << 10;

/// Keywords that are never left out of a schema: without them it would mean something else.
const KEPT: [&str; 11] = [
    "type",
    "properties",
    "required",
    "items",
    "prefixItems",
    "additionalProperties",
    "enum",
    "const",
    "anyOf",
    "allOf",
    "$defs",
];

/// Leaves keywords out of the schemas of one request.
#[derive(Debug)]
pub(super) struct Relaxer {
    /// The work that the searches of all turns may still take.
    search: Budget,
    turns: Budget,
    broad_turns: Budget,
    /// Paths of what was left out.
    ignored: Vec<String>,
    /// Bytes of these paths.
    ignored_bytes: usize,
}

impl Relaxer {
    /// The relaxer of a request.
    pub(super) fn new() -> Self {
        let (ignored, ignored_bytes) = (Vec::new(), 0);
        Self { search: SEARCH, turns: TURNS, broad_turns: BROAD_TURNS, ignored, ignored_bytes }
    }

    /// The paths of what was left out; without the last ones if there are very many.
    pub(super) fn into_ignored(self) -> Vec<String> {
        self.ignored
    }

    /// Leaves the least number of properties out where it could be reached by repeating a name only.
    ///
    /// # Errors
    /// Such a number that must be enforced.
    pub(super) fn allow_few_properties(
        &mut self,
        schema: &mut Value,
        rule: &SchemaRule,
    ) -> Result<(), GrammarError> {
        let names = ["minProperties".to_owned()];
        self.leave_out(schema, rule, &names, &|_, map| keywords::counts_repeated_names(map));
        schema::repeats_names(schema).map_or(Ok(()), |fault| Err(rule.error(fault)))
    }

    /// Leaves out what cannot be enforced in the lenient parts of a rule's schema. Returns whether it left
    /// out anything. Faults of the other parts may remain.
    ///
    /// # Errors
    /// A fault that is not to be left out: it is one of a part that is not lenient or of a keyword that is
    /// never left out, or no answer can be valid.
    pub(super) fn relax(&mut self, schema: &mut Value, rule: &SchemaRule) -> Result<bool, GrammarError> {
        let mut has_changed = false;
        while rule.parts().iter().any(|place| place.lenient) {
            let Some(error) = schema::error(schema) else { break };
            let bytes = schema.to_string().len();
            let changes = if self.turns.take(bytes) {
                self.leave_fault_out(schema, rule, &error)?
            } else if self.broad_turns.take(bytes) {
                self.leave_names_out(schema, rule, &error)?
            } else {
                self.allow_any_object(schema, rule)
            };
            if !changes {
                break;
            }
            has_changed = true;
        }
        Ok(has_changed)
    }

    /// Leaves out the keywords that cause an error. Returns whether there were any.
    fn leave_fault_out(
        &mut self,
        schema: &mut Value,
        rule: &SchemaRule,
        error: &str,
    ) -> Result<bool, GrammarError> {
        // What is supported nowhere needs no search.
        let kind = Kind::of(error);
        let changes = match &kind {
            Kind::Unimplemented(names) => self.leave_out(schema, rule, names, &|_, _| true),
            Kind::UnknownFormat(format) => {
                let has_it = |map: &Map<String, Value>| map.get("format").is_some_and(|text| text == format);
                self.leave_out(schema, rule, &kind.keywords(), &|_, map| has_it(map))
            }
            _ => false,
        };
        if changes {
            return Ok(true);
        }
        let fault = Fault::find(schema, error, &schema::error, &mut self.search);
        if fault.is_uncertain {
            return self.leave_names_out(schema, rule, error);
        }
        let names = without_kept(&fault.keywords);
        if names.is_empty() || fault.allows_nothing || rule.lenient_place(&fault.pointer).is_none() {
            return Err(rule.error(fault));
        }
        Ok(self.leave_out(schema, rule, &names, &|pointer, _| pointer == fault.pointer))
    }

    /// Leaves the keywords that an error names out of all lenient parts of a schema. If it names none, these
    /// parts may be any object. Returns whether anything was left out.
    fn leave_names_out(
        &mut self,
        schema: &mut Value,
        rule: &SchemaRule,
        error: &str,
    ) -> Result<bool, GrammarError> {
        let kind = Kind::of(error);
        let named = kind.keywords();
        let names = without_kept(&named);
        if matches!(kind, Kind::Unsatisfiable(_)) || names.len() < named.len() {
            // The error ends the request.
            return Err(rule.error(Fault::find(schema, error, &schema::error, &mut SEARCH.clone())));
        }
        // References within the schema are supported.
        let is_local = |map: &Map<String, Value>| {
            map.get("$ref").and_then(Value::as_str).is_some_and(|place| place.starts_with('#'))
        };
        let has_reference = names.iter().any(|name| name == "$ref");
        let is_meant = |_: &str, map: &Map<String, Value>| !(has_reference && is_local(map));
        let changes = self.leave_out(schema, rule, &names, &is_meant);
        Ok(changes || self.allow_any_object(schema, rule))
    }

    /// Leaves keywords out of the schemas in lenient parts for which `is_meant` is true of the pointer and of
    /// the content. Returns whether there were any.
    fn leave_out(
        &mut self,
        schema: &mut Value,
        rule: &SchemaRule,
        names: &[String],
        is_meant: &dyn Fn(&str, &Map<String, Value>) -> bool,
    ) -> bool {
        let mut changes = false;
        keywords::for_each_schema_mut(schema, &mut |pointer, map| {
            if !names.iter().any(|name| map.contains_key(name)) || !is_meant(pointer, map) {
                return;
            }
            let Some((place, inner)) = rule.lenient_place(pointer) else { return };
            for name in names {
                let Some(value) = map.shift_remove(name) else { continue };
                // One of the alternatives is still demanded.
                if name == "oneOf" && !map.contains_key("anyOf") {
                    map.insert("anyOf".to_owned(), value);
                }
                changes = true;
                if self.ignored_bytes < MAX_IGNORED_BYTES {
                    let path = format!("{}#{inner}/{name}", place.path);
                    self.ignored_bytes += path.len();
                    self.ignored.push(path);
                }
            }
        });
        changes
    }

    /// Lets the lenient parts of a schema be any object. Returns whether they were others.
    fn allow_any_object(&mut self, schema: &mut Value, rule: &SchemaRule) -> bool {
        let any = json!({ "type": "object" });
        let mut changes = false;
        for place in rule.parts().iter().filter(|place| place.lenient) {
            let Some(part) = schema.pointer_mut(&place.pointer).filter(|part| **part != any) else {
                continue;
            };
            *part = any.clone();
            changes = true;
            // First, because a client sees the first paths only.
            self.ignored.insert(0, place.path.clone());
        }
        changes
    }
}

/// The keywords that may be left out.
fn without_kept(keywords: &[String]) -> Vec<String> {
    keywords.iter().filter(|keyword| !KEPT.contains(&keyword.as_str())).cloned().collect()
}
