//! Tables of the request fields of `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use serde_json::{Value, json};

use crate::server::constraint;
use crate::server::error::ApiError;
use crate::server::field_kinds::{
    Any, Flag, Int, List, Object, Pairs, Text, Word, any, exact_object, flag, int, list, object, pairs,
    supported_word, text, text_of, word,
};
use crate::server::field_table::{FieldRow, Table, request_fields};
use crate::server::fields::Fields;
use crate::server::tool_types::MAX_TOOLS;
use crate::server::types::{CommonFields, MAX_MESSAGES, MAX_STOP_BYTES, MAX_STOP_STRINGS, MAX_TOKENS};
use crate::server::unsupported;

/// Forms of a message's content.
pub(crate) const CONTENT: &str = "a string or an array of content blocks";

request_fields! {
    /// Body of `POST /v1/messages`, without the fields that counting tokens shares.
    MessagesWire {
        /// The most tokens to generate. An answer that fills the context before ends there.
        max_tokens: Int = int(1, MAX_TOKENS).required();
        /// Up to 16 texts, each of at most 1,024 bytes, that end the answer.
        stop_sequences: List = list(0, MAX_STOP_STRINGS, "strings", stop).default("[]");
        /// Data about the request.
        metadata: Object<MetadataWire> = object();
    }
    plus {
        /// The conversation.
        conversation: ConversationWire,
        /// The shared fields.
        common: CommonFields,
    }
}

request_fields! {
    /// Fields of `POST /v1/messages` and `POST /v1/messages/count_tokens`.
    ConversationWire {
        /// The conversation, oldest message first. If the last message is the assistant's, the answer
        /// continues it.
        messages: List = list(1, MAX_MESSAGES, "messages", TurnWire::schema).required();
        /// Instructions: a string, or an array of text blocks.
        system: Any = any("a string or an array of text blocks", system);
        /// Tools that the answer may call.
        tools: List = list(0, MAX_TOOLS, "tools", AnthropicToolWire::schema).default("[]");
        /// Whether the answer may or must call tools, and which.
        tool_choice: Object<ChoiceWire> = object();
        /// Form of the answer.
        output_config: Object<OutputConfigWire> = object();
    }
    checked {
        /// Only answers without thinking are supported.
        thinking: Object<ThinkingWire> = object();
        /// A hint. Prefixes are cached without it.
        cache_control: Pairs = pairs(usize::MAX, anything).without_effect();
    }
}

request_fields! {
    /// Body of `POST /v1/messages/count_tokens`, without the shared fields.
    CountTokensWire {
        /// Name of the model, as `/v1/models` lists it.
        model: Text = text();
    }
    plus {
        /// The conversation.
        conversation: ConversationWire,
    }
}

request_fields! {
    /// `metadata` of a request.
    MetadataWire {
        /// The client's user. Each user gets an equal share of the server, unless API keys have names.
        user_id: Text = text_of(0, 512);
    }
}

request_fields! {
    /// `thinking` of a request.
    ThinkingWire {}
    checked {
        /// "disabled", or "adaptive", with which a model that does not think need not.
        kind as "type": Word = supported_word(&["disabled", "adaptive"]).required();
    }
}

request_fields! {
    /// `output_config` of a request.
    OutputConfigWire {
        /// JSON schema that the answer follows.
        format: Object<OutputFormat> = exact_object();
    }
}

request_fields! {
    /// `output_config.format` of a request.
    OutputFormat {
        /// JSON schema that the answer follows.
        schema: Any = any("a JSON schema", || json!({ "type": ["object", "boolean"] })).required();
    }
    checked {
        /// Type of the format.
        kind as "type": Word = supported_word(&["json_schema"]).required();
    }
}

request_fields! {
    /// A tool of the Messages API.
    AnthropicToolWire {
        /// Its name: letters, digits and the characters `_-.:/`.
        name: Text = text_of(1, 128).required();
        /// Its purpose, for the model.
        description: Text = text();
        /// JSON schema of the input, an object.
        input_schema: Pairs = pairs(usize::MAX, anything).required();
        /// Whether the input follows the schema even if no call is required.
        strict: Flag = flag().default("false");
    }
    checked {
        /// Type of the tool. Tools that the server itself runs are not supported.
        kind as "type": Word = supported_word(&["custom"]);
    }
}

request_fields! {
    /// `tool_choice` of a request.
    ChoiceWire {
        /// Whether a call is allowed (`auto`), required (`any`), required of one tool (`tool`) or not
        /// allowed (`none`).
        kind as "type": Word = word(&["auto", "any", "tool", "none"]).required();
        /// The tool that must be called, for the type `tool`.
        name: Text = text();
        /// Whether the answer has one call at most.
        disable_parallel_tool_use: Flag = flag().default("false");
    }
}

request_fields! {
    /// A message of a conversation.
    TurnWire {
        /// The author.
        role: Word = word(&["user", "assistant", "system"]).required();
        /// The text, or an array of content blocks: `text`, `tool_use`, `tool_result`. Blocks with thinking
        /// are passed to templates that print it.
        content: Any = any(CONTENT, content).required();
    }
}

request_fields! {
    /// A block of text.
    TextBlock {
        /// The text.
        text: Text = text().required();
    }
    checked {
        /// A hint. Prefixes are cached without it.
        cache_control: Any = any("any value", anything).without_effect();
        /// Citations of an earlier answer.
        citations: Any = any("any value", anything).without_effect();
    }
}

request_fields! {
    /// A call of an earlier answer.
    ToolUseBlock {
        /// Id of the call.
        id: Text = text().required();
        /// The tool that was called.
        name: Text = text().required();
        /// The input of the call.
        input: Pairs = pairs(usize::MAX, anything);
    }
    checked {
        /// A hint. Prefixes are cached without it.
        cache_control: Any = any("any value", anything).without_effect();
        /// The caller of an earlier answer.
        caller: Any = any("any value", anything).without_effect();
    }
}

request_fields! {
    /// The result of a call.
    ToolResultBlock {
        /// Id of the call.
        tool_use_id: Text = text().required();
        /// The result: a string, or an array of text blocks.
        content: Any = any("a string or an array of text blocks", system);
        /// Whether the call failed. Its text then begins with "Error: ".
        is_error: Flag = flag().default("false");
    }
    checked {
        /// A hint. Prefixes are cached without it.
        cache_control: Any = any("any value", anything).without_effect();
    }
}

request_fields! {
    /// Thinking of an earlier answer.
    ThinkingBlock {
        /// The text, for templates that print it.
        thinking: Text = text();
    }
    checked {
        /// Only its model can use it.
        signature: Any = any("any value", anything).without_effect();
        /// Only its model can use it.
        data: Any = any("any value", anything).without_effect();
    }
}

impl MessagesWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_messages(&mut fields)?;
        let mut wire = Self::take(&mut fields)?;
        wire.conversation = ConversationWire::take(&mut fields)?;
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        // Fields that have another form or name here.
        let others = ["n", "best_of", "stop", "metadata"];
        let shared = CommonFields::rows().into_iter().filter(|row| !others.contains(&row.name));
        [Self::rows(), ConversationWire::rows()]
            .into_iter()
            .flatten()
            .chain(shared)
            .chain(constraint::rows())
            .collect()
    }
}

impl CountTokensWire {
    /// Reads the body. Paths of unknown fields are dropped.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        Ok(Self { conversation: ConversationWire::take(fields)?, ..Self::take(fields)? })
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        [Self::rows(), ConversationWire::rows()].into_iter().flatten().collect()
    }
}

fn anything() -> Value {
    json!({})
}

fn stop() -> Value {
    json!({ "type": "string", "maxLength": MAX_STOP_BYTES })
}

fn typed(mut schema: Value, kind: &str) -> Value {
    schema["properties"]["type"] = json!({ "const": kind });
    schema
}

fn system() -> Value {
    let block = typed(TextBlock::schema(), "text");
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": block }] })
}

fn content() -> Value {
    let block = json!({ "anyOf": [
        typed(TextBlock::schema(), "text"),
        typed(ToolUseBlock::schema(), "tool_use"),
        typed(ToolResultBlock::schema(), "tool_result"),
        typed(ThinkingBlock::schema(), "thinking"),
        typed(ThinkingBlock::schema(), "redacted_thinking"),
    ] });
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": block }] })
}
