//! Fields that are refused by name because the server does not do what they ask for.
//!
//! A field that constrains the answer must never be ignored: a client that asks for JSON and gets free text
//! has no way to notice. Servers spell such fields differently and put them into different objects, so
//! unknown fields are refused too if their names look like a constraint, wherever they stand among the
//! request's parameters. Messages also carry data of earlier turns, such as arguments of tools; see
//! [`ignored_in_message`].

use serde_json::{Map, Value};

use super::constraint_names::is_constraint;
use super::error::ApiError;
use super::fields::Fields;

/// Says whether a value of an unsupported field asks for nothing, so that the request can be served. Null is
/// always harmless and is not passed to it.
type Harmless = fn(&Value) -> bool;

/// Fields that no route supports.
const UNSUPPORTED: &[(&str, Harmless)] = &[
    // OpenAI
    ("functions", is_empty),
    ("function_call", is_none),
    ("text", is_text_output),
    ("audio", never),
    ("modalities", is_text_only),
    ("prediction", never),
    ("web_search_options", never),
    ("suffix", is_empty),
    ("instructions", is_empty),
    ("previous_response_id", is_empty),
    // vLLM
    ("use_beam_search", is_false),
    ("structural_tag", never),
    ("logits_processors", is_empty),
    ("prompt_embeds", never),
    ("kv_transfer_params", never),
    ("thinking_token_budget", never),
    ("min_new_tokens", never),
    // Ollama, Anthropic and others; most further constraints are in `constraint_names`.
    ("format", is_empty_text),
    ("template", is_empty_text),
    ("system", is_empty),
    ("images", is_empty),
    ("choice", is_empty),
    ("choices", is_empty),
    ("pattern", is_empty_text),
    ("lark", is_empty_text),
];

/// Fields that are refused for chat completions, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_CHAT: &[(&str, Harmless)] = &[
    ("echo", is_false),
    ("documents", is_empty),
    ("chat_template", never),
    ("add_special_tokens", is_false),
    ("mm_processor_kwargs", is_empty),
    ("prompt", never),
];

/// Fields that are refused for responses, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_RESPONSES: &[(&str, Harmless)] = &[
    ("background", is_false),
    ("conversation", never),
    ("prompt", never),
    ("context_management", is_empty),
    ("messages", never),
    ("max_tokens", never),
    ("max_completion_tokens", never),
    ("n", is_one),
    ("best_of", is_one),
    ("return_token_ids", is_false),
    ("return_tokens_as_token_ids", is_false),
    ("prompt_logprobs", never),
    ("prompt_logprobs_start", never),
    ("return_cost", is_false),
    ("echo", is_false),
    ("documents", is_empty),
    ("chat_template", never),
    ("add_special_tokens", is_false),
];

/// Fields that are refused for messages, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_MESSAGES: &[(&str, Harmless)] = &[
    ("container", never),
    ("mcp_servers", is_empty),
    ("context_management", is_empty),
    ("max_completion_tokens", never),
    ("stop", is_empty),
    ("n", is_one),
    ("best_of", is_one),
    ("prompt", never),
    ("return_token_ids", is_false),
    ("return_tokens_as_token_ids", is_false),
    ("prompt_logprobs", never),
    ("prompt_logprobs_start", never),
    ("return_cost", is_false),
    ("echo", is_false),
    ("documents", is_empty),
    ("chat_template", never),
    ("add_special_tokens", is_false),
];

/// Fields that are refused for text completions, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_COMPLETIONS: &[(&str, Harmless)] = &[
    ("messages", never),
    ("max_completion_tokens", never),
    ("top_logprobs", never),
    ("tools", is_empty),
    ("tool_choice", is_none),
];

/// Fields that are refused for scores, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_SCORES: &[(&str, Harmless)] = &[
    ("stream", is_false),
    ("n", is_one),
    ("best_of", is_one),
    ("truncate_prompt_tokens", never),
    ("tools", is_empty),
    ("documents", is_empty),
    ("chat_template", never),
    ("continue_final_message", is_false),
    ("add_generation_prompt", is_false),
    ("prompt_logprobs", never),
    ("return_token_ids", is_false),
    ("echo", is_false),
];

/// Fields that are refused for pooling and classification, in addition to [`UNSUPPORTED_IN_SCORES`]. The
/// values are those of a regression, which an activation would destroy.
const UNSUPPORTED_IN_POOLING: &[(&str, Harmless)] = &[
    ("use_activation", is_false),
    ("activation", is_false),
    ("softmax", is_false),
    ("normalize", is_false),
    ("dimensions", never),
    ("mm_processor_kwargs", is_empty),
];

/// Fields that are refused for batches.
const UNSUPPORTED_IN_BATCHES: [&str; 1] = ["output_expires_after"];

/// Objects in which other servers or their client libraries put parameters of a request: NIM and Dynamo,
/// `extra_body` of OpenAI's Python library written out, Ollama, SGLang, TGI, Gemini, vLLM, TensorRT-LLM.
const PARAMETER_OBJECTS: [&str; 12] = [
    "nvext",
    "extra_body",
    "options",
    "sampling_params",
    "sampling_config",
    "parameters",
    "generation_config",
    "generationConfig",
    "guided_decoding",
    "vllm_xargs",
    "extra_args",
    "custom_params",
];

/// Names of message fields that look like constraints and describe an earlier answer or a tool's result, in
/// the form of [`plain`].
const DESCRIPTIONS: [&str; 6] =
    ["stopreason", "stopsequence", "stopdetails", "stoptype", "stoppingword", "structuredcontent"];

/// Refuses fields that no route supports.
///
/// # Errors
/// 400 that names the first such field with a value that asks for something.
pub(super) fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED)?;
    for name in PARAMETER_OBJECTS {
        if let Some(value) = fields.value(name) {
            refuse_parameters(name, &value)?;
        }
    }
    Ok(())
}

/// Refuses fields that chat completions do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_chat(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED_IN_CHAT)
}

/// Refuses fields that responses do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_responses(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED_IN_RESPONSES)
}

/// Refuses fields that messages do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_messages(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED_IN_MESSAGES)
}

/// Refuses fields that text completions do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_completions(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED_IN_COMPLETIONS)
}

/// Refuses fields that scores do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_scores(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_listed(fields, UNSUPPORTED_IN_SCORES)
}

/// Refuses fields that pooling and classification do not support, in addition to those of [`refuse`].
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_pooling(fields: &mut Fields) -> Result<(), ApiError> {
    refuse_in_scores(fields)?;
    refuse_listed(fields, UNSUPPORTED_IN_POOLING)
}

/// Refuses fields that the creation of a batch does not support.
///
/// # Errors
/// 400 that names the field.
pub(super) fn refuse_in_batches(fields: &mut Fields) -> Result<(), ApiError> {
    for name in UNSUPPORTED_IN_BATCHES {
        if fields.value(name).is_some() {
            return Err(ApiError::unsupported(name, "files of results do not expire; delete them"));
        }
    }
    Ok(())
}

/// Paths of the unknown fields of the body or of an object of parameters. Refuses constraints among them and
/// within them, and other spellings of known fields, such as `maxTokens`. Call it when every known field has
/// been taken.
///
/// # Errors
/// 400 that names the field.
pub(super) fn ignored(fields: Fields) -> Result<Vec<String>, ApiError> {
    for (name, value) in fields.left() {
        let spelling = plain(name);
        // A field that was put back has the known name itself.
        let other = |known: &&&str| name != **known && plain(known) == spelling;
        if let Some(known) = fields.asked().iter().find(other) {
            return Err(ApiError::unsupported(name, format!("unknown field; expected the name {known}")));
        }
        if let Some(rest) = constraint_at(name, value) {
            return Err(unsupported(&format!("{}{rest}", fields.path_of(name))));
        }
    }
    Ok(fields.rest())
}

/// Paths of the unknown fields of a message or of a part of its content. Refuses constraints among them, and
/// within objects of parameters. Other objects are data: arguments of tools have names such as `pattern`, and
/// the details of an earlier answer's reasoning have a `format`.
///
/// # Errors
/// 400 that names the field.
pub(super) fn ignored_in_message(fields: Fields) -> Result<Vec<String>, ApiError> {
    for (name, value) in fields.left() {
        let rest = if PARAMETER_OBJECTS.contains(&name.as_str()) {
            constraint_at(name, value)
        } else {
            let asks = is_constraint(name) && !DESCRIPTIONS.contains(&plain(name).as_str());
            (asks && !asks_nothing(value)).then(String::new)
        };
        if let Some(rest) = rest {
            return Err(unsupported(&format!("{}{rest}", fields.path_of(name))));
        }
    }
    Ok(fields.rest())
}

fn refuse_listed(fields: &mut Fields, listed: &[(&'static str, Harmless)]) -> Result<(), ApiError> {
    for (name, harmless) in listed {
        if fields.value(name).is_some_and(|value| !harmless(&value)) {
            return Err(unsupported(name));
        }
    }
    Ok(())
}

/// Refuses an object of parameters if it has any.
fn refuse_parameters(path: &str, value: &Value) -> Result<(), ApiError> {
    match value {
        Value::Object(map) => match members(map).next() {
            Some((name, _)) => {
                let text = "this field is not supported; parameters are fields of the body itself";
                Err(ApiError::unsupported(format!("{path}.{name}"), text))
            }
            None => Ok(()),
        },
        value if asks_nothing(value) => Ok(()),
        _ => Err(unsupported(path)),
    }
}

/// Path from an unknown field to the first constraint: empty if the field itself is one, `None` if there is
/// none within it either.
fn constraint_at(name: &str, value: &Value) -> Option<String> {
    if is_constraint(name) && !asks_nothing(value) {
        return Some(String::new());
    }
    constraint_within(value)
}

/// Path from a value to the first constraint within it.
fn constraint_within(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => members(map).find_map(|(name, value)| {
            let rest = constraint_at(name, value)?;
            Some(format!(".{name}{rest}"))
        }),
        Value::Array(items) => items.iter().enumerate().find_map(|(i, item)| {
            let rest = constraint_within(item)?;
            Some(format!("[{i}]{rest}"))
        }),
        _ => None,
    }
}

/// Refuses what is left of an object whose every field matters.
///
/// # Errors
/// 400 that names the field.
pub(super) fn nothing_left(fields: &Fields) -> Result<(), ApiError> {
    fields.left().next().map_or(Ok(()), |(name, _)| Err(unsupported(&fields.path_of(name))))
}

/// Names of the fields that a route refuses.
#[derive(Debug)]
pub(super) struct RefusedNames {
    pub(super) chat: Vec<&'static str>,
    pub(super) completions: Vec<&'static str>,
    pub(super) responses: Vec<&'static str>,
    pub(super) messages: Vec<&'static str>,
    pub(super) batches: Vec<&'static str>,
    pub(super) scores: Vec<&'static str>,
    pub(super) pooling: Vec<&'static str>,
}

impl RefusedNames {
    /// The names of each route.
    pub(super) fn new() -> Self {
        let all = |own: &'static [(&str, Harmless)]| own.iter().chain(UNSUPPORTED).map(|(name, _)| *name);
        // Fields of responses that other routes do not have.
        let read = ["text", "instructions"];
        Self {
            chat: all(UNSUPPORTED_IN_CHAT).collect(),
            completions: all(UNSUPPORTED_IN_COMPLETIONS).collect(),
            responses: all(UNSUPPORTED_IN_RESPONSES).filter(|name| !read.contains(name)).collect(),
            messages: all(UNSUPPORTED_IN_MESSAGES).filter(|name| *name != "system").collect(),
            batches: UNSUPPORTED_IN_BATCHES.to_vec(),
            scores: all(UNSUPPORTED_IN_SCORES).collect(),
            pooling: all(UNSUPPORTED_IN_SCORES)
                .chain(UNSUPPORTED_IN_POOLING.iter().map(|(name, _)| *name))
                .collect(),
        }
    }
}

fn unsupported(path: &str) -> ApiError {
    ApiError::unsupported(path, "this field is not supported")
}

/// Members of an object that are not null.
fn members(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.iter().filter(|(_, value)| !value.is_null())
}

/// A field name in lower case, without `_` and `-`: the same for `max_tokens`, `maxTokens` and `max-tokens`.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}

fn never(_: &Value) -> bool {
    false
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn is_none(value: &Value) -> bool {
    value == "none"
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_empty_text(value: &Value) -> bool {
    value == ""
}

/// Returns true for `false`, 0, "" and `[]`. An empty object can be a constraint: as a schema it asks for
/// JSON.
fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Returns true for `{"type": "text"}`.
fn is_text_format(value: &Value) -> bool {
    let Value::Object(map) = value else { return false };
    members(map).all(|(name, value)| name == "type" && value == "text") && map.contains_key("type")
}

/// Returns true for `text` of OpenAI's Responses API without a format of its own. The verbosity is a wish
/// that no client can check.
fn is_text_output(value: &Value) -> bool {
    let Value::Object(map) = value else { return false };
    members(map).all(|(name, value)| match name.as_str() {
        "format" => is_text_format(value),
        name => name == "verbosity",
    })
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}
