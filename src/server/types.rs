//! Wire types of the two request bodies. Each field has the right JSON type; its value is not checked yet. A
//! field that the client left out is `None`. `validate` turns them into valid requests.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;

/// Fields that chat and text completions share; each has the name of its JSON field.
#[derive(Debug, Default)]
pub(crate) struct CommonFields {
    pub(crate) model: Option<String>,
    pub(crate) n: Option<i128>,
    pub(crate) best_of: Option<i128>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<i128>,
    pub(crate) min_p: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) logit_bias: Option<Map<String, Value>>,
    pub(crate) seed: Option<i128>,
    pub(crate) stop: Option<Value>,
    pub(crate) stop_token_ids: Option<Vec<Value>>,
    pub(crate) max_tokens: Option<i128>,
    pub(crate) min_tokens: Option<i128>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) include_stop_str_in_output: Option<bool>,
    pub(crate) stream: Option<bool>,
    /// `stream_options.include_usage`. The outer `None` means that `stream_options` is absent.
    pub(crate) stream_options: Option<Option<bool>>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: Option<i128>,
    pub(crate) user: Option<String>,
    pub(crate) timeout: Option<f64>,
    pub(crate) return_cost: Option<bool>,
    /// Paths of unknown fields.
    pub(crate) ignored: Vec<String>,
}

/// Body of `POST /v1/chat/completions`; each field has the name of its JSON field.
#[derive(Debug, Default)]
pub(crate) struct ChatWire {
    pub(crate) common: CommonFields,
    pub(crate) messages: Option<Vec<Value>>,
    pub(crate) max_completion_tokens: Option<i128>,
    pub(crate) logprobs: Option<bool>,
    pub(crate) top_logprobs: Option<i128>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

/// Body of `POST /v1/completions`; each field has the name of its JSON field.
#[derive(Debug, Default)]
pub(crate) struct CompletionWire {
    pub(crate) common: CommonFields,
    pub(crate) prompt: Option<Value>,
    pub(crate) echo: Option<bool>,
    pub(crate) logprobs: Option<i128>,
    pub(crate) add_special_tokens: Option<bool>,
}

impl ChatWire {
    /// Reads the body of a chat completion.
    ///
    /// # Errors
    /// 400 if a field has the wrong type, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        refuse(&mut fields, UNSUPPORTED_IN_CHAT)?;
        let object = |map: Option<Fields>| map.map(Fields::into_map);
        let mut wire = Self {
            messages: fields.array("messages")?,
            max_completion_tokens: fields.int("max_completion_tokens")?,
            logprobs: fields.bool("logprobs")?,
            top_logprobs: fields.int("top_logprobs")?,
            add_generation_prompt: fields.bool("add_generation_prompt")?,
            continue_final_message: fields.bool("continue_final_message")?,
            chat_template_kwargs: object(fields.object("chat_template_kwargs")?),
            ..Self::default()
        };
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }
}

impl CompletionWire {
    /// Reads the body of a text completion.
    ///
    /// # Errors
    /// 400 if a field has the wrong type, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        refuse(&mut fields, UNSUPPORTED_IN_COMPLETIONS)?;
        let mut wire = Self {
            prompt: fields.value("prompt"),
            echo: fields.bool("echo")?,
            logprobs: fields.int("logprobs")?,
            add_special_tokens: fields.bool("add_special_tokens")?,
            ..Self::default()
        };
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }
}

impl CommonFields {
    /// Takes the shared fields. Call it last: every field that is left afterwards counts as unknown.
    fn read(mut fields: Fields) -> Result<Self, ApiError> {
        refuse_unsupported(&mut fields)?;
        for name in ACCEPTED_AND_UNUSED {
            let _unused = fields.value(name);
        }
        let mut ignored = Vec::new();
        let stream_options = match fields.object("stream_options")? {
            None => None,
            Some(mut options) => {
                let include_usage = options.bool("include_usage")?;
                ignored.extend(options.rest());
                Some(include_usage)
            }
        };
        let mut common = Self {
            model: fields.string("model")?,
            n: fields.int("n")?,
            best_of: fields.int("best_of")?,
            temperature: fields.float("temperature")?,
            top_p: fields.float("top_p")?,
            top_k: fields.int("top_k")?,
            min_p: fields.float("min_p")?,
            presence_penalty: fields.float("presence_penalty")?,
            frequency_penalty: fields.float("frequency_penalty")?,
            repetition_penalty: fields.float("repetition_penalty")?,
            logit_bias: fields.object("logit_bias")?.map(Fields::into_map),
            seed: fields.int("seed")?,
            stop: fields.value("stop"),
            stop_token_ids: fields.array("stop_token_ids")?,
            max_tokens: fields.int("max_tokens")?,
            min_tokens: fields.int("min_tokens")?,
            ignore_eos: fields.bool("ignore_eos")?,
            skip_special_tokens: fields.bool("skip_special_tokens")?,
            include_stop_str_in_output: fields.bool("include_stop_str_in_output")?,
            stream: fields.bool("stream")?,
            stream_options,
            cache_salt: fields.string("cache_salt")?,
            priority: fields.int("priority")?,
            user: fields.string("user")?,
            timeout: fields.float("timeout")?,
            return_cost: fields.bool("return_cost")?,
            ignored,
        };
        common.ignored.extend(fields.rest());
        Ok(common)
    }
}

/// Fields that are accepted and have no effect.
const ACCEPTED_AND_UNUSED: [&str; 4] = ["metadata", "store", "service_tier", "parallel_tool_calls"];

/// Says whether a value of an unsupported field asks for nothing, so that the request can be served. Null is
/// always harmless and is not passed to it.
type Harmless = fn(&Value) -> bool;

/// Fields of OpenAI's or vLLM's API that no route supports.
const UNSUPPORTED: &[(&str, Harmless)] = &[
    ("tools", is_empty),
    ("tool_choice", is_none),
    ("functions", is_empty),
    ("function_call", is_none),
    ("response_format", is_text_format),
    ("audio", never),
    ("modalities", is_text_only),
    ("prediction", never),
    ("web_search_options", never),
    ("suffix", is_empty),
    ("use_beam_search", is_false),
    ("structured_outputs", never),
    ("guided_json", never),
    ("guided_regex", never),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("guided_decoding_backend", never),
    ("guided_whitespace_pattern", never),
    ("structural_tag", never),
    ("prompt_logprobs", never),
    ("truncate_prompt_tokens", never),
    ("allowed_token_ids", never),
    ("bad_words", is_empty),
    ("logits_processors", is_empty),
    ("prompt_embeds", never),
    ("return_token_ids", is_false),
    ("return_tokens_as_token_ids", is_false),
    ("kv_transfer_params", never),
    ("thinking_token_budget", never),
    ("min_new_tokens", never),
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

/// Fields that are refused for text completions, in addition to [`UNSUPPORTED`].
const UNSUPPORTED_IN_COMPLETIONS: &[(&str, Harmless)] =
    &[("messages", never), ("max_completion_tokens", never), ("top_logprobs", never)];

/// Refuses fields that no route supports.
///
/// # Errors
/// 400 that names the first such field with a value that asks for something.
pub(crate) fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    refuse(fields, UNSUPPORTED)
}

fn refuse(fields: &mut Fields, known: &[(&str, Harmless)]) -> Result<(), ApiError> {
    for (name, harmless) in known {
        if fields.value(name).is_some_and(|value| !harmless(&value)) {
            return Err(ApiError::unsupported(*name, "this field is not supported"));
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
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

fn is_text_format(value: &Value) -> bool {
    value.get("type").is_some_and(|kind| kind == "text")
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}
