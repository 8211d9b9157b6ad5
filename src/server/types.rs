//! Wire types of the two request bodies. Each field has the right JSON type; its value is not checked yet. A
//! field that the client left out is `None`. `validate` turns them into valid requests.

use serde_json::{Map, Value};

use super::constraint::{self, Constraint};
use super::error::ApiError;
use super::fields::Fields;
use super::unsupported;

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
    /// The constraint on the answer, from any of its fields.
    pub(crate) constraint: Option<Constraint>,
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
    pub(crate) tools: Option<Vec<Value>>,
    pub(crate) tool_choice: Option<Value>,
    pub(crate) parallel_tool_calls: Option<bool>,
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
        unsupported::refuse_in_chat(&mut fields)?;
        let object = |map: Option<Fields>| map.map(Fields::into_map);
        let mut wire = Self {
            messages: fields.array("messages")?,
            max_completion_tokens: fields.int("max_completion_tokens")?,
            logprobs: fields.bool("logprobs")?,
            top_logprobs: fields.int("top_logprobs")?,
            add_generation_prompt: fields.bool("add_generation_prompt")?,
            continue_final_message: fields.bool("continue_final_message")?,
            chat_template_kwargs: object(fields.object("chat_template_kwargs")?),
            tools: fields.array("tools")?,
            tool_choice: fields.value("tool_choice"),
            parallel_tool_calls: fields.bool("parallel_tool_calls")?,
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
        unsupported::refuse_in_completions(&mut fields)?;
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
    ///
    /// # Errors
    /// 400 if a field has the wrong type, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let constraint = constraint::take(&mut fields)?;
        unsupported::refuse(&mut fields)?;
        for (name, harmless) in WITHOUT_EFFECT {
            fields.drop_if(name, harmless);
        }
        let mut ignored = Vec::new();
        let stream_options = match fields.object("stream_options")? {
            None => None,
            Some(mut options) => {
                let include_usage = options.bool("include_usage")?;
                ignored.extend(unsupported::ignored(options)?);
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
            constraint,
            ignored,
        };
        common.ignored.extend(unsupported::ignored(fields)?);
        Ok(common)
    }
}

/// Fields whose harmless values are accepted without effect. Other values are reported as ignored.
const WITHOUT_EFFECT: [(&str, Harmless); 4] = [
    // The client's own labels.
    ("metadata", |_| true),
    // A text completion has no tools to call.
    ("parallel_tool_calls", |_| true),
    ("store", |value| value == &Value::Bool(false)),
    ("service_tier", |value| value == "auto" || value == "default"),
];

/// Says whether the answer is the same as without the field.
type Harmless = fn(&Value) -> bool;
