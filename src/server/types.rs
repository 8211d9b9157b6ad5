//! Tables of the request fields of chat and text completions. Each value that they read is in the range of
//! its row, except fields of the kind [`Any`] and the items of lists and objects: the code that uses those
//! checks them. `validate` checks what depends on other fields or on the model.

use serde_json::{Value, json};

use super::constraint::{self, Constraint};
use super::error::ApiError;
use super::field_kinds::{
    Any, Flag, Int, List, Number, Object, Pairs, Text, Word, any, flag, int, list, number, number_above,
    object, pairs, supported_word, text, text_of, word,
};
use super::field_table::{FieldRow, Table, request_fields};
use super::fields::{Fields, wrong_type};
use super::tool_types::{CallWire, MAX_TOOLS, TOOL_CHOICES, ToolWire, tool_choice};
use super::unsupported;
use crate::request::MAX_PRIORITY;

/// Most choices per prompt.
pub(crate) const MAX_N: i128 = 128;
/// Most sequences per request: prompts times choices.
pub(crate) const MAX_SEQUENCES: usize = 256;
/// Most messages in a conversation.
pub(crate) const MAX_MESSAGES: usize = 2048;
/// Most alternatives reported per token.
pub(crate) const MAX_TOP_LOGPROBS: i128 = 20;
/// Most tokens that a request can ask for.
pub(crate) const MAX_TOKENS: i128 = u32::MAX as i128;
/// Most stop strings per request.
pub(crate) const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 1024;
/// Most texts in `bad_words`.
const MAX_BAD_WORDS: usize = 1024;
/// Longest text in `bad_words`, in bytes.
pub(crate) const MAX_BAD_WORD_BYTES: usize = 1024;
/// Most ids in `allowed_token_ids`.
const MAX_ALLOWED_IDS: usize = 1 << 20;
/// Longest `reasoning_effort` and `verbosity`, in characters.
pub(crate) const MAX_LEVEL_CHARS: usize = 64;
/// Longest `timeout` and [`DEADLINE_HEADER`], in seconds: one day.
pub(crate) const MAX_TIMEOUT: f64 = 86_400.0;
/// Header with the time in milliseconds within which the whole answer must be sent.
pub(crate) const DEADLINE_HEADER: &str = "x-request-deadline-ms";
/// Largest value of [`DEADLINE_HEADER`].
pub(crate) const MAX_DEADLINE_MS: u64 = (MAX_TIMEOUT * 1000.0) as u64;
/// Longest name in `metadata`, in characters.
const MAX_LABEL_NAME: usize = 64;
/// Longest value in `metadata`, in characters.
const MAX_LABEL: usize = 512;
/// Most ids in one `/detokenize` request.
const MAX_DETOKENIZE: usize = 1 << 20;

request_fields! {
    /// Body of `POST /v1/chat/completions`.
    ChatWire {
        /// The conversation, oldest message first.
        messages: List = list(1, MAX_MESSAGES, "messages", MessageWire::schema).required();
        /// The most tokens to generate; 0 is allowed with `prompt_logprobs` and scores the conversation.
        /// Without it, an answer can fill the rest of the context.
        max_completion_tokens: Int = int(0, MAX_TOKENS);
        /// Older name of `max_completion_tokens`. If both are set they must be equal.
        max_tokens: Int = int(0, MAX_TOKENS);
        /// Whether the reply has the log-probability of each generated token.
        logprobs: Flag = flag().default("false");
        /// Number of alternatives to report for each token. Needs `logprobs`.
        top_logprobs: Int = int(0, MAX_TOP_LOGPROBS);
        /// Whether the template begins the assistant's turn. The default is true, unless
        /// `continue_final_message` is set.
        add_generation_prompt: Flag = flag();
        /// Whether the answer continues the last message, which must be the assistant's.
        continue_final_message: Flag = flag().default("false");
        /// Further variables for the chat template.
        chat_template_kwargs: Pairs = pairs(usize::MAX, anything).default("{}");
        /// Functions that the answer may call.
        tools: List = list(0, MAX_TOOLS, "tools", ToolWire::schema).default("[]");
        /// Whether the answer may or must call functions, and which: "none", "auto", "required", an object
        /// that names a function, or an object of the type "allowed_tools". With "none" the model does not
        /// see the functions. The default is "auto".
        tool_choice: Any = any(TOOL_CHOICES, tool_choice);
        /// Whether the answer may have several calls.
        parallel_tool_calls: Flag = flag().default("true");
    }
    plus {
        /// The shared fields.
        common: CommonFields,
    }
}

request_fields! {
    /// Body of `POST /v1/completions`.
    CompletionWire {
        /// The prompt: a text, several texts, token ids, or several arrays of token ids. Several prompts get
        /// `n` choices each.
        prompt: Any = any(PROMPT, prompt).required();
        /// The most tokens to generate; 0 is allowed with `echo` or `prompt_logprobs` and scores the prompt
        /// alone.
        max_tokens: Int = int(0, MAX_TOKENS).default("16");
        /// Whether the answer begins with the prompt.
        echo: Flag = flag().default("false");
        /// Number of alternatives to report for each token, beside its own log-probability. With `echo`,
        /// prompt tokens are scored too.
        logprobs: Int = int(0, MAX_TOP_LOGPROBS);
        /// Whether a text gets the tokenizer's special tokens, such as BOS.
        add_special_tokens: Flag = flag().default("true");
    }
    checked {
        /// Accepted because a text completion has no functions to call.
        parallel_tool_calls: Flag = flag().without_effect();
    }
    plus {
        /// The shared fields.
        common: CommonFields,
    }
}

request_fields! {
    /// Fields that chat and text completions share.
    CommonFields {
        /// Name of the model, as `/v1/models` lists it. The default is the first name.
        model: Text = text();
        /// Number of choices for each prompt. Choice i is sampled with the seed `seed` + i.
        n: Int = int(1, MAX_N).default("1");
        /// Must equal 1: only `n` choices are generated, and none is dropped.
        best_of: Int = int(1, MAX_N);
        /// Divisor of the logits; 0 is greedy decoding. The default is the model's, or else 1. Values between
        /// 0 and 0.01 count as 0.01.
        temperature: Number = number(0.0, 2.0);
        /// Keeps the smallest set of most probable tokens whose probabilities sum to at least this; 0 is
        /// greedy decoding. The default is the model's, or else 1.
        top_p: Number = number(0.0, 1.0);
        /// Keeps this many most probable tokens; 0 and -1 keep all. The default is the model's, or else 0.
        top_k: Int = int(-1, i32::MAX as i128);
        /// Keeps tokens whose probability is at least this fraction of the greatest one. The default is the
        /// model's, or else 0.
        min_p: Number = number(0.0, 1.0);
        /// Subtracted once from the logit of every token that the answer has.
        presence_penalty: Number = number(-2.0, 2.0).default("0");
        /// Subtracted from a token's logit for each time that the answer has it.
        frequency_penalty: Number = number(-2.0, 2.0).default("0");
        /// Makes tokens of prompt and answer less probable if it is above 1. The default is the model's, or
        /// else 1.
        repetition_penalty: Number = number(0.01, 100.0);
        /// Values from -100 to 100 that are added to the logits of tokens; the names are token ids.
        logit_bias: Pairs = pairs(1024, || json!({ "type": "number", "minimum": -100, "maximum": 100 }));
        /// Seed of the random choice. The same request with the same seed gets the same answer. The default
        /// is a random seed.
        seed: Int = int(i64::MIN as i128, u64::MAX as i128);
        /// Up to 16 texts, each of at most 1,024 bytes, that end the answer.
        stop: Any = any("a string or an array of strings", stop);
        /// Token ids that end the answer.
        stop_token_ids: List = list(0, 64, "token ids", token_id).default("[]");
        /// Texts that never occur in the answer, found as in vLLM: by the tokens that each text has alone and
        /// after a space.
        bad_words: List = list(0, MAX_BAD_WORDS, "texts", bad_word).default("[]");
        /// The only token ids that may occur in the answer. It ends before `max_tokens` only if they contain
        /// an id that ends it.
        allowed_token_ids: List = list(1, MAX_ALLOWED_IDS, "token ids", token_id);
        /// Tokens that are generated before the answer may end.
        min_tokens: Int = int(0, MAX_TOKENS).default("0");
        /// Whether the answer goes on after the model's end tokens.
        ignore_eos: Flag = flag().default("false");
        /// Whether special tokens are left out of the text.
        skip_special_tokens: Flag = flag().default("true");
        /// Whether the answer contains the text that ended it.
        include_stop_str_in_output: Flag = flag().default("false");
        /// The number of tokens that are kept of the prompt: its last ones. -1 keeps as many as fit the
        /// context. 0 is refused.
        truncate_prompt_tokens: Int = int(-1, MAX_TOKENS);
        /// Number of alternatives to report for each token of the prompt, beside its own log-probability. Not
        /// for streams.
        prompt_logprobs: Int = int(0, MAX_TOP_LOGPROBS);
        /// Index of the first prompt token in `prompt_logprobs`, below the number of prompt tokens. Tokens
        /// before it may come from the prefix cache, and `prompt_logprobs_sum` is the sum from it on: with
        /// the number of tokens of a conversation without its last answer, that of the answer alone. Needs
        /// `prompt_logprobs`.
        prompt_logprobs_start: Int = int(0, MAX_TOKENS).default("0");
        /// Whether the reply has the token ids of the prompt and of the answer.
        return_token_ids: Flag = flag().default("false");
        /// Whether log-probabilities name tokens `token_id:N` instead of by their text.
        return_tokens_as_token_ids: Flag = flag().default("false");
        /// The variable `reasoning_effort` of the chat template. Named in `x-ignored-fields` if the template
        /// does not read it.
        reasoning_effort: Text = text_of(1, MAX_LEVEL_CHARS);
        /// The variable `verbosity` of the chat template. Named in `x-ignored-fields` if the template does
        /// not read it.
        verbosity: Text = text_of(1, MAX_LEVEL_CHARS);
        /// Whether the reply is a stream of server-sent events.
        stream: Flag = flag().default("false");
        /// Options of a stream. Needs `stream`.
        stream_options: Object<StreamOptions> = object();
        /// Requests share cached prefixes only with requests of the same salt.
        cache_salt: Text = text_of(1, 1024);
        /// A smaller number runs first. Negative numbers are refused where API keys have priorities.
        priority: Int = int(-(MAX_PRIORITY as i128), MAX_PRIORITY as i128).default("0");
        /// The client's user. Each user gets an equal share of the server, unless API keys have names.
        user: Text = text_of(0, 512);
        /// Seconds within which the whole answer must be sent.
        timeout: Number = number_above(0.0, MAX_TIMEOUT);
        /// Whether the reply ends with the request's cost.
        return_cost: Flag = flag().default("false");
        /// The client's own labels: up to 16 names of at most 64 characters, with strings of at most 512.
        metadata: Pairs = pairs(16, label).without_effect();
        /// Answers are not stored; `true` is named in `x-ignored-fields`.
        store: Flag = flag().default("false").without_effect();
        /// Values other than "auto" and "default" are named in `x-ignored-fields`.
        service_tier: Text = text().without_effect();
    }
    plus {
        /// The constraint on the answer, from any of its fields.
        constraint: Option<Constraint>,
        /// Paths of unknown fields.
        ignored: Vec<String>,
    }
}

request_fields! {
    /// `stream_options` of a request.
    StreamOptions {
        /// Whether the last event has the usage.
        include_usage: Flag = flag().default("false");
        /// Whether every event has the usage of its choice so far.
        continuous_usage_stats: Flag = flag().default("false");
    }
}

request_fields! {
    /// A message of a conversation.
    MessageWire {
        /// The author. `developer` is another name of `system`.
        role: Word = word(&["system", "developer", "user", "assistant", "tool"]).required();
        /// The text, or an array of text parts.
        content: Any = any("a string or an array of text parts", content);
        /// The author's name, for templates that print it.
        name: Text = text();
        /// Calls of an earlier answer, in messages of the assistant.
        tool_calls: List = list(0, usize::MAX, "tool calls", CallWire::schema);
        /// Id of the call whose result the message is. Messages of tools need it.
        tool_call_id: Text = text();
        /// Reasoning of an earlier answer, for templates that print it.
        reasoning_content: Any = any("any value", anything);
        /// The same as `reasoning_content`.
        reasoning: Any = any("any value", anything);
        /// The same as `reasoning_content`.
        thinking: Any = any("any value", anything);
        /// Refusal of an earlier answer.
        refusal: Any = any("any value", anything);
        /// Annotations of an earlier answer.
        annotations: Any = any("any value", anything);
    }
}

request_fields! {
    /// A part of a message's content.
    PartWire {
        /// The text.
        text: Text = text().required();
    }
    checked {
        /// Type of the part. Only text is supported.
        kind as "type": Word = supported_word(&["text"]).required();
        /// A hint of Anthropic's clients. Prefixes are cached without it.
        cache_control: Any = any("any value", anything).without_effect();
    }
}

request_fields! {
    /// Body of `POST /tokenize`.
    TokenizeWire {
        /// Name of the model, as `/v1/models` lists it.
        model: Text = text();
        /// The text. Either it or `messages` must be set.
        prompt: Text = text();
        /// The conversation. Either it or `prompt` must be set.
        messages: List = list(1, MAX_MESSAGES, "messages", MessageWire::schema);
        /// Whether the text gets the tokenizer's special tokens, such as BOS. The default is true for a text;
        /// for messages only false is supported, since the chat template adds special tokens itself.
        add_special_tokens: Flag = flag();
        /// Whether the reply has the text of each token.
        return_token_strs: Flag = flag().default("false");
        /// Has the same meaning as in a chat completion.
        add_generation_prompt: Flag = flag();
        /// Has the same meaning as in a chat completion.
        continue_final_message: Flag = flag().default("false");
        /// Has the same meaning as in a chat completion.
        chat_template_kwargs: Pairs = pairs(usize::MAX, anything).default("{}");
        /// Has the same meaning as in a chat completion.
        tools: List = list(0, MAX_TOOLS, "tools", ToolWire::schema).default("[]");
        /// Has the same meaning as in a chat completion.
        tool_choice: Any = any(TOOL_CHOICES, tool_choice);
    }
}

request_fields! {
    /// Body of `POST /detokenize`.
    DetokenizeWire {
        /// Name of the model, as `/v1/models` lists it.
        model: Text = text();
        /// Token ids.
        tokens: List = list(0, MAX_DETOKENIZE, "token ids", token_id).required();
    }
}

request_fields! {
    /// Body of `POST /v1/batches`.
    BatchWire {
        /// Id of a file with one request in each line.
        input_file_id: Text = text().required();
        /// The route that all requests are for.
        endpoint: Word =
            word(&["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/reward"]).required();
        /// The client's own labels: up to 16 names of at most 64 characters, with strings of at most 512.
        metadata: Pairs = pairs(16, label);
    }
    checked {
        /// Time after which requests that have not been answered expire.
        completion_window: Word = word(&["24h"]).required();
    }
}

impl BatchWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field is missing, has the wrong type or is out of range.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_batches(fields)?;
        let wire = Self::take(fields)?;
        wire.metadata.iter().flatten().try_for_each(|(name, value)| check_label(name, value))?;
        Ok(wire)
    }
}

impl ChatWire {
    /// Reads the body of a chat completion.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_chat(&mut fields)?;
        let mut wire = Self::take(&mut fields)?;
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        [Self::rows(), CommonFields::rows(), constraint::rows()].into_iter().flatten().collect()
    }
}

impl CompletionWire {
    /// Reads the body of a text completion.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_completions(&mut fields)?;
        let mut wire = Self::take(&mut fields)?;
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        [Self::rows(), CommonFields::rows(), constraint::rows()].into_iter().flatten().collect()
    }
}

impl CommonFields {
    /// Takes the shared fields. Call it last: every field that is left afterwards counts as unknown.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let constraint = constraint::take(&mut fields)?;
        unsupported::refuse(&mut fields)?;
        let mut common = Self { constraint, ..Self::take(&mut fields)? };
        common.metadata.iter().flatten().try_for_each(|(name, value)| check_label(name, value))?;
        // Fields that ask for what is not done count as unknown.
        if common.store == Some(true) {
            fields.put("store", Value::Bool(true));
        }
        if let Some(tier) = common.service_tier.take().filter(|tier| tier != "auto" && tier != "default") {
            fields.put("service_tier", Value::String(tier));
        }
        common.ignored = unsupported::ignored(fields)?;
        Ok(common)
    }
}

impl CommonFields {
    /// Takes the fields that are variables of the chat template.
    pub(crate) fn take_template_fields(&mut self) -> [(&'static str, Option<String>); 2] {
        [("reasoning_effort", self.reasoning_effort.take()), ("verbosity", self.verbosity.take())]
    }
}

/// Checks a name of `metadata` and its value.
pub(crate) fn check_label(name: &str, value: &Value) -> Result<(), ApiError> {
    if name.chars().count() > MAX_LABEL_NAME {
        let text =
            format!("expected names of at most {MAX_LABEL_NAME} characters, got {}", name.chars().count());
        return Err(ApiError::invalid("metadata", text));
    }
    let path = || format!("metadata.{name}");
    let Value::String(text) = value else { return Err(wrong_type(&path(), "a string", value)) };
    match text.chars().count() {
        got if got > MAX_LABEL => {
            Err(ApiError::invalid(path(), format!("expected at most {MAX_LABEL} characters, got {got}")))
        }
        _ => Ok(()),
    }
}

/// A value of `metadata`.
pub(crate) fn label() -> Value {
    json!({ "type": "string", "maxLength": MAX_LABEL })
}

/// The forms of a prompt.
pub(crate) const PROMPT: &str =
    "a string, an array of strings, an array of token ids, or an array of such arrays";

fn anything() -> Value {
    json!({})
}

fn bad_word() -> Value {
    json!({ "type": "string", "maxLength": MAX_BAD_WORD_BYTES })
}

fn token_id() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn prompt() -> Value {
    let ids = json!({ "type": "array", "items": token_id(), "minItems": 1 });
    let list =
        |items: Value| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": MAX_SEQUENCES });
    json!({ "anyOf": [{ "type": "string" }, list(json!({ "type": "string" })), &ids, list(ids.clone())] })
}

fn stop() -> Value {
    let text = json!({ "type": "string", "maxLength": MAX_STOP_BYTES });
    json!({ "anyOf": [&text, { "type": "array", "items": text, "maxItems": MAX_STOP_STRINGS }] })
}

fn content() -> Value {
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": PartWire::schema() }] })
}
