//! Fields that constrain the answer to a grammar, in the spellings of OpenAI, vLLM, NIM and SGLang.
//!
//! A field that is not understood completely is refused: the answer must never be less constrained than the
//! client asked for.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, missing, wrong_type};
use crate::grammar::{GrammarSource, JsonOptions, gbnf_to_lark};

/// A constraint, with the path of its field.
#[derive(Debug)]
pub(crate) struct Constraint {
    pub(crate) path: String,
    pub(crate) source: GrammarSource,
}

/// The most texts of a choice.
const MAX_CHOICES: usize = 10_000;

/// Takes the fields that constrain the answer. `None` if it may be any text.
///
/// # Errors
/// 400 that names the field: a value of the wrong type, more than one constraint, or an option that is not
/// supported.
pub(super) fn take(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let mut found: Vec<Constraint> = Vec::new();
    found.extend(response_format(fields)?);
    found.extend(structured_outputs(fields)?);
    found.extend(guided(fields)?);
    if let Some(mut nvext) = fields.object("nvext")? {
        found.extend(guided(&mut nvext)?);
        fields.put("nvext", Value::Object(nvext.into_map()));
    }
    read(fields, "regex", &mut found, regex)?;
    read(fields, "json_schema", &mut found, schema)?;
    read(fields, "ebnf", &mut found, grammar)?;
    match found.as_slice() {
        [first, second, ..] => {
            let text = format!("expected one constraint on the answer, got {} as well", first.path);
            Err(ApiError::invalid(second.path.clone(), text))
        }
        _ => Ok(found.pop()),
    }
}

/// vLLM's older fields, which NIM has within `nvext`.
fn guided(fields: &mut Fields) -> Result<Vec<Constraint>, ApiError> {
    let mut found = Vec::new();
    read(fields, "guided_json", &mut found, schema)?;
    read(fields, "guided_regex", &mut found, regex)?;
    read(fields, "guided_choice", &mut found, choice)?;
    read(fields, "guided_grammar", &mut found, grammar)?;
    let mut options = OptionFields::default();
    // The name of a library, which does not matter, and its options.
    if let Some(backend) = fields.string("guided_decoding_backend")? {
        let path = fields.path_of("guided_decoding_backend");
        let names = backend.split_once(':').map(|(_library, options)| options);
        for name in names.into_iter().flat_map(|names| names.split(',')) {
            match name.trim() {
                "no-fallback" => {}
                "disable-any-whitespace" => options.compact = Some(path.clone()),
                "no-additional-properties" => options.closes = Some(path.clone()),
                other => return Err(ApiError::unsupported(path, format!("unknown option {other}"))),
            }
        }
    }
    options.read_pattern(fields, "guided_whitespace_pattern")?;
    options.apply(&mut found)?;
    Ok(found)
}

/// The fields of [`JsonOptions`], each as the path of the field that sets it.
#[derive(Default)]
struct OptionFields {
    /// The path and the expression.
    pattern: Option<(String, String)>,
    compact: Option<String>,
    closes: Option<String>,
}

impl OptionFields {
    fn read_pattern(&mut self, fields: &mut Fields, name: &'static str) -> Result<(), ApiError> {
        let path = fields.path_of(name);
        self.pattern = fields.string(name)?.map(|pattern| (path, pattern));
        Ok(())
    }

    /// Writes the options into a constraint to JSON.
    fn apply(self, found: &mut [Constraint]) -> Result<(), ApiError> {
        let Self { pattern, compact, closes } = self;
        let paths = pattern.as_ref().map(|(path, _)| path).into_iter().chain(&compact).chain(&closes);
        let Some(path) = paths.last().cloned() else { return Ok(()) };
        if let (Some((path, pattern)), true) = (&pattern, compact.is_some()) {
            let text = format!("expected no expression where no whitespace is allowed, got {pattern:?}");
            return Err(ApiError::invalid(path.clone(), text));
        }
        let pattern_path = pattern.as_ref().map_or_else(String::new, |(path, _)| path.clone());
        let options = JsonOptions {
            whitespace_pattern: pattern.map(|(_, pattern)| pattern),
            is_compact: compact.is_some(),
            closes_objects: closes.is_some(),
        };
        let texts = found.iter_mut().filter_map(|found| match &mut found.source {
            GrammarSource::JsonSchema(text) => Some(text),
            _ => None,
        });
        let mut count = 0;
        for text in texts {
            let schema = serde_json::from_str(text).unwrap_or_default();
            let schema = options.apply(schema);
            *text = schema.map_err(|error| ApiError::invalid(&*pattern_path, error.to_string()))?.to_string();
            count += 1;
        }
        match count {
            0 => Err(ApiError::invalid(path, "expected a constraint to JSON beside it")),
            _ => Ok(()),
        }
    }
}

/// Reads one field, unless it asks for nothing.
fn read(
    fields: &mut Fields,
    name: &'static str,
    found: &mut Vec<Constraint>,
    source: impl Fn(&str, Value) -> Result<GrammarSource, ApiError>,
) -> Result<(), ApiError> {
    let path = fields.path_of(name);
    let value = fields.value(name).filter(|value| value.as_str() != Some(""));
    found.extend(
        value.map(|value| source(&path, value)).transpose()?.map(|source| Constraint { path, source }),
    );
    Ok(())
}

fn response_format(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let path = |name: &str| format!("response_format.{name}");
    let constraint = match format.string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => {
            let source = match format.value("schema") {
                Some(value) => schema(&path("schema"), value)?,
                None => GrammarSource::json_object(),
            };
            Some(Constraint { path: "response_format".to_owned(), source })
        }
        Some("json_schema") => {
            let expected = "an object with the schema";
            let inner = format.object("json_schema")?;
            let mut inner = inner.ok_or_else(|| missing(&path("json_schema"), expected))?;
            let path = path("json_schema.schema");
            let value = inner.value("schema").ok_or_else(|| missing(&path, "a JSON schema"))?;
            let source = schema(&path, value)?;
            // The answer follows the schema whether or not `strict` asks for it.
            let _strict = inner.bool("strict")?;
            let _labels = (inner.string("name")?, inner.string("description")?);
            nothing_left(&inner)?;
            Some(Constraint { path, source })
        }
        Some(_) => {
            let text = "expected one of text, json_object, json_schema";
            return Err(ApiError::unsupported(path("type"), text));
        }
        None => return Err(missing(&path("type"), "text, json_object or json_schema")),
    };
    nothing_left(&format)?;
    Ok(constraint)
}

fn structured_outputs(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(mut outputs) = fields.object("structured_outputs")? else { return Ok(None) };
    let mut found = Vec::new();
    read(&mut outputs, "json", &mut found, schema)?;
    read(&mut outputs, "regex", &mut found, regex)?;
    read(&mut outputs, "choice", &mut found, choice)?;
    read(&mut outputs, "grammar", &mut found, grammar)?;
    if outputs.bool("json_object")?.unwrap_or(false) {
        let path = "structured_outputs.json_object".to_owned();
        found.push(Constraint { path, source: GrammarSource::json_object() });
    }
    let mut options = OptionFields::default();
    options.read_pattern(&mut outputs, "whitespace_pattern")?;
    for (name, set) in [
        ("disable_any_whitespace", &mut options.compact),
        ("disable_additional_properties", &mut options.closes),
    ] {
        let path = outputs.path_of(name);
        *set = outputs.bool(name)?.unwrap_or(false).then_some(path);
    }
    // There is one library, and so no other to fall back to.
    let _fallback = outputs.bool("disable_fallback")?;
    nothing_left(&outputs)?;
    if found.len() != 1 {
        let text = format!("expected one of json, regex, choice, grammar, json_object, got {}", found.len());
        return Err(ApiError::invalid("structured_outputs", text));
    }
    options.apply(&mut found)?;
    Ok(found.pop())
}

/// Refuses what is left of an object whose every field matters.
fn nothing_left(fields: &Fields) -> Result<(), ApiError> {
    match fields.left().next() {
        Some((name, _)) => Err(ApiError::unsupported(fields.path_of(name), "this field is not supported")),
        None => Ok(()),
    }
}

/// A JSON schema: an object, or its text.
fn schema(path: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(path, format!("expected a JSON schema: {error}")))?,
        other => other,
    };
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(GrammarSource::JsonSchema(value.to_string())),
        other => Err(wrong_type(path, "a JSON schema", &other)),
    }
}

fn regex(path: &str, value: Value) -> Result<GrammarSource, ApiError> {
    text(path, value).map(GrammarSource::Regex)
}

/// A grammar in the syntax of Lark or of GBNF.
fn grammar(path: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let text = text(path, value)?;
    if text.contains("::=") {
        let lark = gbnf_to_lark(&text).map_err(|error| ApiError::invalid(path, error.to_string()))?;
        return Ok(GrammarSource::Lark(lark));
    }
    Ok(GrammarSource::Lark(text))
}

fn choice(path: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let Value::Array(items) = value else { return Err(wrong_type(path, "an array of strings", &value)) };
    if items.is_empty() || items.len() > MAX_CHOICES {
        let text = format!("expected 1 to {MAX_CHOICES} texts, got {}", items.len());
        return Err(ApiError::invalid(path, text));
    }
    let item = |(i, item)| text(&format!("{path}[{i}]"), item);
    Ok(GrammarSource::Choice(items.into_iter().enumerate().map(item).collect::<Result<_, _>>()?))
}

fn text(path: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}
