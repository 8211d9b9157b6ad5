//! Tables of the request fields of `POST /v1/responses`.

use serde_json::{Value, json};

use crate::server::constraint;
use crate::server::error::ApiError;
use crate::server::field_kinds::{
    Any, Flag, Int, List, Object, Pairs, Text, Word, any, exact_object, flag, int, list, object, pairs,
    supported_word, text, text_of, word,
};
use crate::server::field_table::{FieldRow, Table, request_fields};
use crate::server::fields::Fields;
use crate::server::tool_types::{CalledWire, MAX_TOOLS, TOOL_CHOICES, tool_choice};
use crate::server::types::{CommonFields, MAX_LEVEL_CHARS, MAX_TOKENS, MAX_TOP_LOGPROBS};
use crate::server::unsupported::{self, RefusedNames};

/// Most items of an input.
pub(crate) const MAX_ITEMS: usize = 4096;
/// Forms of an item's content.
pub(crate) const CONTENT: &str = "a string or an array of text parts";

request_fields! {
    /// Body of `POST /v1/responses`.
    ResponsesWire {
        /// The user's text, or the items of the conversation, oldest first: messages, function calls of
        /// earlier answers and their outputs. Items with reasoning are skipped.
        input: Any = any("a string or an array of items", input).required();
        /// A system message before the input.
        instructions: Text = text();
        /// The most tokens to generate. Without it, an answer can fill the rest of the context.
        max_output_tokens: Int = int(1, MAX_TOKENS);
        /// Functions that the answer may call.
        tools: List = list(0, MAX_TOOLS, "tools", FlatToolWire::schema).default("[]");
        /// Whether the answer may or must call functions, and which: "none", "auto", "required", an object
        /// that names a function, or an object of the type "allowed_tools". The default is "auto".
        tool_choice: Any = any(TOOL_CHOICES, tool_choice);
        /// Whether the answer may have several calls.
        parallel_tool_calls: Flag = flag().default("true");
        /// Form of the answer's text.
        text: Object<TextWire> = object();
        /// Reasoning of the answer.
        reasoning: Object<ReasoningWire> = object();
        /// Further parts of the reply: "message.output_text.logprobs". Others are named in
        /// `x-ignored-fields`.
        include: List = list(0, 64, "names", || json!({ "type": "string" })).default("[]");
        /// Number of alternatives to report for each token of the text. Above 0, the reply has
        /// log-probabilities whether or not `include` asks for them.
        top_logprobs: Int = int(0, MAX_TOP_LOGPROBS).default("0");
        /// An input that does not fit the context is refused; "auto" is named in `x-ignored-fields`.
        truncation: Word = word(&["auto", "disabled"]).default("\"disabled\"");
        /// Further variables for the chat template.
        chat_template_kwargs: Pairs = pairs(usize::MAX, || json!({})).default("{}");
        /// The client's label, which the reply repeats. Prefixes are cached without it.
        prompt_cache_key: Text = text_of(0, 1024).without_effect();
        /// The client's label, which the reply repeats.
        safety_identifier: Text = text_of(0, 512).without_effect();
    }
    checked {
        /// Accepted because there are no built-in tools whose calls it could limit.
        max_tool_calls: Int = int(1, MAX_TOKENS).without_effect();
    }
    plus {
        /// The shared fields.
        common: CommonFields,
    }
}

request_fields! {
    /// `text` of a request.
    TextWire {
        /// Form of the text.
        format: Object<TextFormat> = exact_object();
        /// The variable `verbosity` of the chat template. Named in `x-ignored-fields` if the template does
        /// not read it.
        verbosity: Text = text_of(1, MAX_LEVEL_CHARS);
    }
}

request_fields! {
    /// `reasoning` of a request.
    ReasoningWire {
        /// The variable `reasoning_effort` of the chat template. Named in `x-ignored-fields` if the template
        /// does not read it.
        effort: Text = text_of(1, MAX_LEVEL_CHARS);
    }
}

request_fields! {
    /// `text.format` of a request.
    TextFormat {
        /// `text` for no constraint, `json_object` for any JSON object, `json_schema` for a schema.
        kind as "type": Word = supported_word(&["text", "json_object", "json_schema"]).required();
        /// JSON schema that the text follows, for the type `json_schema`.
        schema: Any = any("a JSON schema", || json!({ "type": ["object", "boolean", "string"] }));
        /// The client's label.
        name: Text = text().without_effect();
        /// The client's label.
        description: Text = text().without_effect();
        /// The text follows the schema whether or not `strict` asks for it.
        strict: Flag = flag().without_effect();
    }
}

request_fields! {
    /// A tool of a response.
    FlatToolWire {
        /// Name of the function: letters, digits and the characters `_-.:/`.
        name: Text = text_of(1, 128).required();
        /// Its purpose, for the model.
        description: Text = text();
        /// JSON schema of the arguments, an object. The default is an object without members.
        parameters: Pairs = pairs(usize::MAX, || json!({}));
        /// Whether arguments follow the schema even if no call is required.
        strict: Flag = flag().default("false");
    }
    checked {
        /// Type of the tool. Only functions are supported.
        kind as "type": Word = supported_word(&["function"]).required();
    }
}

request_fields! {
    /// An item that is a message.
    MessageItem {
        /// The author. `developer` is another name of `system`.
        role: Word = word(&["system", "developer", "user", "assistant"]).required();
        /// The text, or an array of text parts.
        content: Any = any(CONTENT, content).required();
    }
    checked {
        /// Id of an earlier answer's item.
        id: Any = any("any value", || json!({})).without_effect();
        /// Status of an earlier answer's item.
        status: Any = any("any value", || json!({})).without_effect();
        /// Phase of an earlier answer's item.
        phase: Any = any("any value", || json!({})).without_effect();
    }
}

request_fields! {
    /// An item that is a function call of an earlier answer, without the function.
    CallItem {
        /// Id of the call.
        call_id: Text = text().required();
    }
    checked {
        /// Id of the item.
        id: Any = any("any value", || json!({})).without_effect();
        /// Status of the item.
        status: Any = any("any value", || json!({})).without_effect();
    }
}

request_fields! {
    /// An item that is the output of a function.
    CallOutputItem {
        /// Id of the call.
        call_id: Text = text().required();
        /// The text, or an array of text parts.
        output: Any = any(CONTENT, content).required();
    }
    checked {
        /// Id of the item.
        id: Any = any("any value", || json!({})).without_effect();
        /// Status of the item.
        status: Any = any("any value", || json!({})).without_effect();
    }
}

request_fields! {
    /// A part of an item's content.
    ContentPart {
        /// The text.
        text: Text = text();
        /// The text of a refusal.
        refusal: Text = text();
    }
    checked {
        /// Type of the part. Only text is supported.
        kind as "type": Word = supported_word(&["input_text", "output_text", "text", "refusal"]).required();
        /// Annotations of an earlier answer.
        annotations: Any = any("any value", || json!({})).without_effect();
        /// Log-probabilities of an earlier answer.
        logprobs: Any = any("any value", || json!({})).without_effect();
    }
}

impl ResponsesWire {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or is known but not supported.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        unsupported::refuse_in_responses(&mut fields)?;
        let mut wire = Self::take(&mut fields)?;
        // Fields that ask for what is not done count as unknown.
        if wire.truncation == Some("auto") {
            fields.put("truncation", "auto".into());
        }
        wire.common = CommonFields::read(fields)?;
        Ok(wire)
    }

    /// All rows of the body.
    pub(crate) fn body_rows() -> Vec<FieldRow> {
        let refused = RefusedNames::new().responses;
        let shared = CommonFields::rows().into_iter().filter(|row| !refused.contains(&row.name));
        Self::rows().into_iter().chain(shared).chain(constraint::rows()).collect()
    }
}

fn input() -> Value {
    let items = json!({ "type": "array", "items": item(), "minItems": 1, "maxItems": MAX_ITEMS });
    json!({ "anyOf": [{ "type": "string" }, items] })
}

fn item() -> Value {
    let typed = |mut schema: Value, kind: &str| {
        schema["properties"]["type"] = json!({ "const": kind });
        schema
    };
    let mut call = CallItem::schema();
    for (name, schema) in CalledWire::schema()["properties"].as_object().into_iter().flatten() {
        call["properties"][name] = schema.clone();
    }
    let mut message = MessageItem::schema();
    // An item without a type is a message.
    message["properties"]["type"] = json!({ "enum": ["message", null] });
    json!({ "anyOf": [
        message,
        typed(call, "function_call"),
        typed(CallOutputItem::schema(), "function_call_output"),
        typed(json!({ "type": "object", "properties": {} }), "reasoning"),
    ] })
}

fn content() -> Value {
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": ContentPart::schema() }] })
}
