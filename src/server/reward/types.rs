//! Tables of the request fields of the routes for scores.

use serde_json::{Value, json};

use super::scoring::{MAX_WEIGHT, MAX_WEIGHTS};
use crate::request::MAX_PRIORITY;
use crate::server::error::ApiError;
use crate::server::field_kinds::{
    Any, Flag, Int, List, Number, Pairs, Text, Word, any, flag, int, list, number_above, pairs,
    supported_word, text, text_of,
};
use crate::server::field_table::{FieldRow, Table, request_fields};
use crate::server::fields::Fields;
use crate::server::types::{
    CommonFields, MAX_MESSAGES, MAX_SEQUENCES, MAX_TIMEOUT, MessageWire, check_label, label,
};
use crate::server::unsupported;

/// Accepted types of a prompt with several answers, for error messages.
pub(crate) const PROMPT: &str = "a string or an array of messages";
/// Accepted types of `input`, for error messages.
pub(crate) const INPUT: &str =
    "a string, an array of strings, an array of token ids, or an array of such arrays";
/// Accepted types of one or more texts, for error messages.
pub(crate) const TEXTS: &str = "a string or an array of strings";

request_fields! {
    /// Body of `POST /v1/reward`. It has `messages`, `messages_list`, or `prompt` with `answers`.
    RewardWire {
        /// A conversation, oldest message first. The last message is the answer, of the role assistant.
        messages: List = list(1, MAX_MESSAGES, "messages", MessageWire::schema);
        /// Several conversations.
        messages_list: List = list(1, MAX_SEQUENCES, "conversations", conversation);
        /// The messages before each of `answers`; a string is one message of the user, or a conversation with
        /// turn markers up to the beginning of the answer.
        prompt: Any = any(PROMPT, prompt);
        /// Answers to `prompt`, each a string. Their prompt is computed once.
        answers: List = list(1, MAX_SEQUENCES, "answers", string);
        /// Whether each answer within a conversation is scored too, as the end of the conversation up to it.
        every_turn: Flag = flag().default("false");
        /// The client's own labels: up to 16 names of at most 64 characters, with strings of at most 512.
        metadata: Pairs = pairs(16, label).without_effect();
    }
    plus {
        /// The shared fields.
        common: ScoreFields,
    }
}

request_fields! {
    /// Body of `POST /pooling` and `POST /classify`. It has `input` or `messages`.
    PoolingWire {
        /// Conversations as text with the turn markers of Nemotron, ChatML, Llama 3 or Llama 2, whichever
        /// model they were written for, or as token ids, which are scored as they are. A model without a
        /// chat template takes any text.
        input: Any = any(INPUT, input);
        /// A conversation that ends with the answer to score.
        messages: List = list(1, MAX_MESSAGES, "messages", MessageWire::schema);
        /// Whether the reply has the attributes before the score, which comes last. If false, it has the
        /// score alone.
        return_attributes: Flag = flag().default("false");
        /// Whether a text gets the tokenizer's special tokens, such as BOS, if the model has no chat
        /// template. A template writes them itself.
        add_special_tokens: Flag = flag().default("true");
        /// The client's own labels: up to 16 names of at most 64 characters, with strings of at most 512.
        metadata: Pairs = pairs(16, label).without_effect();
    }
    checked {
        /// Form of the values. Only numbers are supported.
        encoding_format: Word = supported_word(&["float"]).default("\"float\"");
    }
    plus {
        /// The shared fields.
        common: ScoreFields,
    }
}

request_fields! {
    /// Body of `POST /get_reward`, as OpenRLHF sends it.
    GetRewardWire {
        /// Conversations as text: a prompt and the answer, with turn markers as in `/classify`.
        query: Any = any(TEXTS, texts).required();
        /// The prompt of each query. It tells prompt and answer apart in a query without turn markers, which
        /// begins with it.
        prompts: Any = any(TEXTS, texts);
    }
    checked {
        /// Reference answers, which a reward model has no use for.
        labels: Any = any("any value", anything).without_effect();
        /// The client's own labels.
        metadata: Any = any("any value", anything).without_effect();
    }
    plus {
        /// The shared fields.
        common: ScoreFields,
    }
}

request_fields! {
    /// Fields that the routes for scores share.
    ScoreFields {
        /// Name of the model, as `/v1/models` lists it. The default is the first name.
        model: Text = text();
        /// Weights of the values in the score, by their names; values without one do not count. The default
        /// is the server's.
        weights: Pairs = pairs(MAX_WEIGHTS, weight);
        /// Further variables for the chat template.
        chat_template_kwargs: Pairs = pairs(usize::MAX, || json!({})).default("{}");
        /// Requests share cached prefixes only with requests of the same salt.
        cache_salt: Text = text_of(1, 1024);
        /// A smaller number runs first. Negative numbers are refused where API keys have priorities.
        priority: Int = int(-(MAX_PRIORITY as i128), MAX_PRIORITY as i128).default("0");
        /// The client's user. Each user gets an equal share of the server, unless API keys have names.
        user: Text = text_of(0, 512);
        /// Seconds within which the whole answer must be sent.
        timeout: Number = number_above(0.0, MAX_TIMEOUT);
        /// Whether the reply has the request's cost.
        return_cost: Flag = flag().default("false");
    }
    plus {
        /// Paths of unknown fields.
        ignored: Vec<String>,
    }
}

impl RewardWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_scores(&mut fields)?;
        let wire = Self::take(&mut fields)?;
        wire.metadata.iter().flatten().try_for_each(|(name, value)| check_label(name, value))?;
        Ok(Self { common: ScoreFields::read(fields)?, ..wire })
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        Self::rows().into_iter().chain(ScoreFields::rows()).collect()
    }
}

impl PoolingWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_pooling(&mut fields)?;
        let wire = Self::take(&mut fields)?;
        wire.metadata.iter().flatten().try_for_each(|(name, value)| check_label(name, value))?;
        Ok(Self { common: ScoreFields::read(fields)?, ..wire })
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        Self::rows().into_iter().chain(ScoreFields::rows()).collect()
    }
}

impl GetRewardWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_scores(&mut fields)?;
        let wire = Self::take(&mut fields)?;
        Ok(Self { common: ScoreFields::read(fields)?, ..wire })
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        Self::rows().into_iter().chain(ScoreFields::rows()).collect()
    }
}

impl ScoreFields {
    /// Takes the shared fields. Call it last: every field that is left afterwards counts as unknown.
    fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse(&mut fields)?;
        let wire = Self::take(&mut fields)?;
        Ok(Self { ignored: unsupported::ignored(fields)?, ..wire })
    }

    /// The fields that requests for an answer have too.
    pub(crate) fn into_common(self) -> CommonFields {
        CommonFields {
            model: self.model,
            cache_salt: self.cache_salt,
            priority: self.priority,
            user: self.user,
            timeout: self.timeout,
            return_cost: self.return_cost,
            ignored: self.ignored,
            ..CommonFields::default()
        }
    }
}

fn weight() -> Value {
    json!({ "type": "number", "minimum": -MAX_WEIGHT, "maximum": MAX_WEIGHT })
}

fn anything() -> Value {
    json!({ "type": ["array", "boolean", "number", "object", "string"] })
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn conversation() -> Value {
    json!({ "type": "array", "items": MessageWire::schema(), "minItems": 1, "maxItems": MAX_MESSAGES })
}

fn prompt() -> Value {
    json!({ "anyOf": [string(), conversation()] })
}

fn several(items: Value) -> Value {
    json!({ "type": "array", "items": items, "minItems": 1, "maxItems": MAX_SEQUENCES })
}

fn texts() -> Value {
    json!({ "anyOf": [string(), several(string())] })
}

fn input() -> Value {
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
    json!({ "anyOf": [string(), several(string()), &ids, several(ids.clone())] })
}
