//! Describes tools in the messages, for models whose chat template does not show tools.
//!
//! The system message gets the tools and the format of a call, earlier calls become text of the assistant,
//! and results become text of the user.

use serde_json::Value;

use super::ToolFormat;

/// The text that a system message gets for these tools.
pub(crate) fn describe_tools(format: ToolFormat, tools: &[Value]) -> String {
    let (open, close) = match format {
        ToolFormat::Nemotron | ToolFormat::NemotronNano => ("<tool> ", " </tool>"),
        ToolFormat::Hermes | ToolFormat::Llama3 => ("", ""),
    };
    let list: Vec<String> = tools.iter().map(|tool| format!("{open}{tool}{close}")).collect();
    let example = call_text(format, "NAME", "{\"ARGUMENT\": \"VALUE\"}");
    format!(
        "You can call these functions. Each is described by a JSON schema:\n{}\n\n\
         To call a function, answer with its name and its arguments in this form:\n{example}",
        list.join("\n")
    )
}

/// A call as the model writes it.
pub fn call_text(format: ToolFormat, name: &str, arguments: &str) -> String {
    let markers = format.markers();
    let name = Value::from(name);
    let object = format!("{{\"name\": {name}, \"{}\": {arguments}}}", markers.arguments);
    let (open, close) = match markers.in_array {
        true => ("[", "]"),
        false => (markers.space, markers.space),
    };
    format!("{}{open}{object}{close}{}", markers.begin, markers.end)
}

/// The result of a call as text of the user.
pub(crate) fn result_text(text: &str) -> String {
    format!("<tool_response>\n{text}\n</tool_response>")
}
