//! Fields that constrain the answer to a grammar, in the spellings of OpenAI, vLLM, NIM and SGLang.
//!
//! A field that is not understood completely is refused: the answer must never be less constrained than the
//! client asked for.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::field_kinds::{
    Any, Flag, List, Object, Text, Word, any, exact_object, flag, list, supported_word, text,
};
use super::field_table::{FieldRow, Table, request_fields};
use super::fields::{Fields, missing, wrong_type};
use crate::grammar::{GrammarSource, JsonOptions, OPTIONS, gbnf_to_lark};

/// A constraint, with the path of its field.
#[derive(Debug)]
pub(crate) struct Constraint {
    pub(crate) path: String,
    pub(crate) source: GrammarSource,
}

impl Constraint {
    /// The constraint to a JSON schema, given as an object or as its text.
    ///
    /// # Errors
    /// 400 if `value` is no schema.
    pub(crate) fn json_schema(path: &str, value: Value) -> Result<Self, ApiError> {
        Ok(Self { path: path.to_owned(), source: schema(path, value)? })
    }

    /// The constraint to any JSON object.
    pub(crate) fn json_object(path: &str) -> Self {
        Self { path: path.to_owned(), source: GrammarSource::json_object() }
    }
}

/// The most texts of a choice.
const MAX_CHOICES: usize = 10_000;

request_fields! {
    /// Fields of the body that constrain the answer, without [`GuidedFields`].
    ConstraintFields {
        /// Form of the answer, as in OpenAI's API.
        response_format: Object<ResponseFormat> = exact_object();
        /// Constraint on the answer, as in vLLM. One of `json`, `regex`, `choice`, `grammar` and
        /// `json_object` must be set.
        structured_outputs: Object<StructuredOutputs> = exact_object();
        /// Fields of NVIDIA's NIM.
        nvext: Object<GuidedFields> = exact_object();
        /// SGLang's name of `structured_outputs.regex`.
        regex: Text = text();
        /// SGLang's name of `structured_outputs.json`.
        json_schema: Any = any(SCHEMA, schema_schema);
        /// SGLang's name of `structured_outputs.grammar`.
        ebnf: Text = text();
    }
}

request_fields! {
    /// vLLM's older fields, which NIM has within `nvext`.
    GuidedFields {
        /// Older name of `structured_outputs.json`.
        guided_json: Any = any(SCHEMA, schema_schema);
        /// Older name of `structured_outputs.regex`.
        guided_regex: Text = text();
        /// Older name of `structured_outputs.choice`.
        guided_choice: List = list(1, MAX_CHOICES, "texts", text_schema);
        /// Older name of `structured_outputs.grammar`.
        guided_grammar: Text = text();
        /// Name of a library, which has no effect, and its options after a colon: `no-fallback`,
        /// `disable-any-whitespace` and `no-additional-properties`.
        guided_decoding_backend: Text = text();
        /// Older name of `structured_outputs.whitespace_pattern`.
        guided_whitespace_pattern: Text = text();
    }
}

request_fields! {
    /// `response_format` of a request.
    ResponseFormat {
        /// `text` for no constraint, `json_object` for any JSON object, `json_schema` for a schema.
        kind as "type": Word = supported_word(&["text", "json_object", "json_schema"]).required();
        /// The schema. Needed for the type `json_schema`.
        json_schema: Object<JsonSchemaFormat> = exact_object();
        /// Schema for the type `json_object`.
        schema: Any = any(SCHEMA, schema_schema);
    }
}

request_fields! {
    /// `response_format.json_schema` of a request.
    JsonSchemaFormat {
        /// JSON schema that the answer follows, as an object or as JSON text.
        schema: Any = any(SCHEMA, schema_schema).required();
    }
    checked {
        /// The client's label.
        name: Text = text().without_effect();
        /// The client's label.
        description: Text = text().without_effect();
        /// The answer follows the schema whether or not `strict` asks for it.
        strict: Flag = flag().without_effect();
    }
}

request_fields! {
    /// `structured_outputs` of a request.
    StructuredOutputs {
        /// JSON schema that the answer follows, as an object or as JSON text.
        json: Any = any(SCHEMA, schema_schema);
        /// Regular expression that the whole answer matches.
        regex: Text = text();
        /// Texts of which the answer is one.
        choice: List = list(1, MAX_CHOICES, "texts", text_schema);
        /// Context-free grammar in the syntax of Lark or of GBNF.
        grammar: Text = text();
        /// Whether the answer is any JSON object.
        json_object: Flag = flag().default("false");
        /// Regular expression of the whitespace between the parts of a JSON text. The default allows up to
        /// 20 characters.
        whitespace_pattern: Text = text();
        /// Whether a JSON text has no whitespace between its parts.
        disable_any_whitespace: Flag = flag().default("false");
        /// Whether objects have no other properties than those that the schema lists.
        disable_additional_properties: Flag = flag().default("false");
    }
    checked {
        /// Accepted because there is one library, and so no other to fall back to.
        disable_fallback: Flag = flag().without_effect();
    }
}

/// The rows of the body's fields that constrain the answer.
pub(super) fn rows() -> Vec<FieldRow> {
    [ConstraintFields::rows(), GuidedFields::rows()].into_iter().flatten().collect()
}

/// Takes the fields that constrain the answer. `None` if it may be any text.
///
/// # Errors
/// 400 that names the field: a value of the wrong type, more than one constraint, or an option that is not
/// supported.
pub(super) fn take(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let wire = ConstraintFields::take(fields)?;
    let mut found = Vec::new();
    found.extend(wire.response_format.map(response_format).transpose()?.flatten());
    found.extend(wire.structured_outputs.map(structured_outputs).transpose()?);
    found.extend(guided("", GuidedFields::take(fields)?)?);
    if let Some(nvext) = wire.nvext {
        found.extend(guided("nvext.", nvext)?);
    }
    add(&mut found, "regex", some_text(wire.regex), regex)?;
    add(&mut found, "json_schema", some_value(wire.json_schema), schema)?;
    add(&mut found, "ebnf", some_text(wire.ebnf), grammar)?;
    match found.as_slice() {
        [first, second, ..] => {
            let text = format!("expected one constraint on the answer, got {} as well", first.path);
            Err(ApiError::invalid(second.path.clone(), text))
        }
        _ => Ok(found.pop()),
    }
}

/// vLLM's older fields, which NIM has within `nvext`.
fn guided(object: &str, wire: GuidedFields) -> Result<Vec<Constraint>, ApiError> {
    let path = |name: &str| format!("{object}{name}");
    let mut found = Vec::new();
    add(&mut found, &path("guided_json"), some_value(wire.guided_json), schema)?;
    add(&mut found, &path("guided_regex"), some_text(wire.guided_regex), regex)?;
    add(&mut found, &path("guided_choice"), wire.guided_choice, choice)?;
    add(&mut found, &path("guided_grammar"), some_text(wire.guided_grammar), grammar)?;
    let mut options = OptionFields::default();
    // The name of a library, which does not matter, and its options.
    if let Some(backend) = wire.guided_decoding_backend {
        let path = path("guided_decoding_backend");
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
    options.pattern =
        wire.guided_whitespace_pattern.map(|pattern| (path("guided_whitespace_pattern"), pattern));
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

/// Adds the constraint of a field, if it is set.
fn add<T>(
    found: &mut Vec<Constraint>,
    path: &str,
    value: Option<T>,
    source: impl Fn(&str, T) -> Result<GrammarSource, ApiError>,
) -> Result<(), ApiError> {
    let Some(value) = value else { return Ok(()) };
    found.push(Constraint { path: path.to_owned(), source: source(path, value)? });
    Ok(())
}

/// An empty text asks for nothing.
fn some_text(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn some_value(value: Option<Value>) -> Option<Value> {
    value.filter(|value| value != "")
}

fn response_format(format: ResponseFormat) -> Result<Option<Constraint>, ApiError> {
    const PATH: &str = "response_format.json_schema";
    let unused = match format.kind {
        Some("json_schema") => format.schema.as_ref().map(|_| "response_format.schema"),
        Some("json_object") => format.json_schema.as_ref().map(|_| PATH),
        _ => {
            let schema = format.schema.as_ref().map(|_| "response_format.schema");
            schema.or(format.json_schema.as_ref().map(|_| PATH))
        }
    };
    if let Some(path) = unused {
        return Err(ApiError::unsupported(path, "this field is not supported with this type"));
    }
    let mut found = Vec::new();
    match format.kind {
        Some("json_schema") => {
            let inner = format.json_schema.ok_or_else(|| missing(PATH, "an object with the schema"))?;
            add(&mut found, "response_format.json_schema.schema", inner.schema, schema)?;
        }
        Some("json_object") => match format.schema {
            Some(value) => add(&mut found, "response_format.schema", Some(value), schema)?,
            None => found.push(Constraint::json_object("response_format")),
        },
        _ => {}
    }
    Ok(found.pop())
}

fn structured_outputs(wire: StructuredOutputs) -> Result<Constraint, ApiError> {
    let path = |name: &str| format!("structured_outputs.{name}");
    let mut found = Vec::new();
    add(&mut found, &path("json"), some_value(wire.json), schema)?;
    add(&mut found, &path("regex"), some_text(wire.regex), regex)?;
    add(&mut found, &path("choice"), wire.choice, choice)?;
    add(&mut found, &path("grammar"), some_text(wire.grammar), grammar)?;
    if wire.json_object == Some(true) {
        found.push(Constraint::json_object(&path("json_object")));
    }
    let set = |name: &str, asked: Option<bool>| (asked == Some(true)).then(|| path(name));
    let options = OptionFields {
        pattern: wire.whitespace_pattern.map(|pattern| (path("whitespace_pattern"), pattern)),
        compact: set("disable_any_whitespace", wire.disable_any_whitespace),
        closes: set("disable_additional_properties", wire.disable_additional_properties),
    };
    if found.len() == 1 {
        options.apply(&mut found)?;
    }
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (last, others) => {
            let got = others + usize::from(last.is_some());
            let text = format!("expected one of json, regex, choice, grammar, json_object, got {got}");
            Err(ApiError::invalid("structured_outputs", text))
        }
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
        Value::Object(map) => {
            refuse_options(&map, path)?;
            Ok(GrammarSource::JsonSchema(Value::Object(map).to_string()))
        }
        Value::Bool(_) => Ok(GrammarSource::JsonSchema(value.to_string())),
        other => Err(wrong_type(path, "a JSON schema", &other)),
    }
}

/// Refuses options of the grammar's library in a client's schema: they would lift the limit on whitespace, or
/// drop keywords silently. The library reads them at the root only.
///
/// # Errors
/// 400 if the schema has options.
pub(super) fn refuse_options(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    match schema.contains_key(OPTIONS) {
        true => Err(ApiError::invalid(path, format!("{OPTIONS}: not supported in a JSON schema (at #)"))),
        false => Ok(()),
    }
}

fn regex(_: &str, text: String) -> Result<GrammarSource, ApiError> {
    Ok(GrammarSource::Regex(text))
}

/// A grammar in the syntax of Lark or of GBNF.
fn grammar(path: &str, text: String) -> Result<GrammarSource, ApiError> {
    if text.contains("::=") {
        let lark = gbnf_to_lark(&text).map_err(|error| ApiError::invalid(path, error.to_string()))?;
        return Ok(GrammarSource::Lark(lark));
    }
    Ok(GrammarSource::Lark(text))
}

fn choice(path: &str, items: Vec<Value>) -> Result<GrammarSource, ApiError> {
    let item = |(i, item)| match item {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{path}[{i}]"), "a string", &other)),
    };
    Ok(GrammarSource::Choice(items.into_iter().enumerate().map(item).collect::<Result<_, _>>()?))
}

const SCHEMA: &str = "a JSON schema";

fn schema_schema() -> Value {
    json!({ "anyOf": [{ "type": "object" }, { "type": "boolean" }, { "type": "string" }] })
}

fn text_schema() -> Value {
    json!({ "type": "string" })
}
