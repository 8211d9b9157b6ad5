//! Fields of tools: their definitions, and the calls of earlier answers.

use serde_json::{Value, json};

use super::field_kinds::{
    Any, Flag, List, Object, Pairs, Text, Word, any, flag, list, object, pairs, supported_word, text,
    text_of, word,
};
use super::field_table::{Table as _, request_fields};

/// Most tools of a request.
pub(crate) const MAX_TOOLS: usize = 128;
/// Values of `tool_choice`.
pub(crate) const TOOL_CHOICES: &str =
    "none, auto, required, or an object that names a function or allowed_tools";

request_fields! {
    /// A tool.
    ToolWire {
        /// The function.
        function: Object<FunctionWire> = object().required();
    }
    checked {
        /// Type of the tool. Only functions are supported.
        kind as "type": Word = supported_word(&["function"]);
    }
}

request_fields! {
    /// A function that the answer may call.
    FunctionWire {
        /// Its name: letters, digits and the characters `_-.:/`.
        name: Text = text_of(1, 128).required();
        /// Its purpose, for the model.
        description: Text = text();
        /// JSON schema of the arguments, an object. The default is an object without members.
        parameters: Pairs = pairs(usize::MAX, || json!({}));
        /// Whether arguments follow the schema even if no call is required. If this is true or a call is
        /// required, keywords that cannot be enforced are errors. Otherwise they are ignored; if the answer
        /// follows a grammar, `x-ignored-fields` names them.
        strict: Flag = flag().default("false");
    }
}

request_fields! {
    /// A call of an earlier answer.
    CallWire {
        /// Id of the call.
        id: Text = text();
        /// The function that was called.
        function: Object<CalledWire> = object().required();
    }
    checked {
        /// Type of the call. Only functions are supported.
        kind as "type": Word = supported_word(&["function"]);
    }
}

request_fields! {
    /// The function of a call.
    CalledWire {
        /// Its name.
        name: Text = text().required();
        /// The arguments: a string with JSON, or an object.
        arguments: Any = any("a string with JSON, or an object", arguments);
    }
}

/// JSON schema of `tool_choice`.
pub(crate) fn tool_choice() -> Value {
    json!({ "type": ["string", "object"] })
}

fn arguments() -> Value {
    json!({ "type": ["string", "object"] })
}

request_fields! {
    /// `tool_choice` as an object. The fields of `allowed_tools` may stand in the object itself.
    ToolChoiceWire {
        /// "function" or "allowed_tools".
        kind as "type": Word = supported_word(&["function", "allowed_tools"]);
        /// The function that must be called.
        function: Object<FunctionNameWire> = object();
        /// Name of the function that must be called.
        name: Text = text();
        /// The functions that may be called.
        allowed_tools: Object<AllowedToolsWire> = object();
        /// The same as in `allowed_tools`.
        mode: Word = word(&["auto", "required"]);
        /// The same as in `allowed_tools`.
        tools: List = list(1, MAX_TOOLS, "tools", named);
    }
}

request_fields! {
    /// `tool_choice.allowed_tools`.
    AllowedToolsWire {
        /// Whether a call is required.
        mode: Word = word(&["auto", "required"]).default("\"auto\"");
        /// The functions that may be called.
        tools: List = list(1, MAX_TOOLS, "tools", named).required();
    }
}

request_fields! {
    /// The name of a function, in an object of its own or not.
    NamedWire {
        /// Its name.
        name: Text = text();
        /// An object with its name.
        function: Object<FunctionNameWire> = object();
    }
    checked {
        /// Type of the tool. Only functions are supported.
        kind as "type": Word = supported_word(&["function"]);
    }
}

request_fields! {
    /// The name of a function.
    FunctionNameWire {
        /// Its name.
        name: Text = text().required();
    }
}

fn named() -> Value {
    NamedWire::schema()
}
