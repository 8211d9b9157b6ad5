//! Tools that a model can call: the formats in which models write calls, a parser that finds calls in the
//! text of an answer, the grammar that makes calls valid, and a description of tools for chat templates that
//! have none.

mod format;
mod grammar;
mod object;
mod parser;
mod prompt;

pub use format::ToolFormat;
pub use grammar::{AllowedTool, AnswerWithoutCalls, call_grammar};
pub use parser::{ToolCallDelta, ToolCallParser};
pub use prompt::call_text;
pub(crate) use prompt::{describe_tools, result_text};

use serde_json::{Map, Value, json};

/// A function that the model can call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Name of the function.
    pub name: String,
    /// Purpose of the function, for the model.
    pub description: Option<String>,
    /// JSON schema of the arguments, an object.
    pub parameters: Map<String, Value>,
    /// Whether arguments must follow the schema even where no call is required.
    pub strict: bool,
}

impl Tool {
    /// The tool as chat templates expect it, in OpenAI's form.
    pub(crate) fn for_template(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = Value::Object(self.parameters.clone());
        json!({ "type": "function", "function": function })
    }
}

/// How a model calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolSupport {
    /// The format of calls in answers; `None` if the template's format is not known.
    pub format: Option<ToolFormat>,
    /// Whether the chat template shows tools to the model. If not, [`describe_tools`] does.
    pub in_template: bool,
    /// Whether a chat template that shows tools also shows earlier calls. If not, they become text.
    pub calls_in_template: bool,
}
