//! The grammar of an answer that may or must call tools.

use serde_json::{Map, Value, json};

use super::format::Markers;
use super::{Tool, ToolFormat};
use crate::grammar::{GrammarSource, SchemaPlace, SchemaRule};

/// The answer without a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerWithoutCalls {
    /// There must be a call.
    Never,
    /// Any text, which may also stand before, between and after calls.
    Text,
    /// A text that follows a JSON schema.
    Json {
        /// The schema, as JSON text.
        schema: String,
        /// Path of the schema in the request.
        path: String,
    },
}

/// A tool that the answer may call.
#[derive(Debug, Clone, Copy)]
pub struct AllowedTool<'a> {
    /// The tool.
    pub tool: &'a Tool,
    /// Path of its parameters in the request.
    pub path: &'a str,
    /// Whether keywords of its parameters that cannot be enforced are ignored. If not, they are errors.
    pub lenient: bool,
}

/// The grammar of an answer with calls of these tools, several if `several` is set.
pub fn call_grammar(
    format: ToolFormat,
    tools: &[AllowedTool<'_>],
    several: bool,
    without: &AnswerWithoutCalls,
) -> GrammarSource {
    let mut schemas = Vec::new();
    let mut rules = match format.is_bare() {
        true => bare_calls(format, tools, several, without, &mut schemas),
        false => marked_calls(format, tools, several, without, &mut schemas),
    };
    if let AnswerWithoutCalls::Json { schema, path } = without {
        rules[0].push_str(" | json");
        schemas.push(SchemaRule::new("json".to_owned(), schema.clone(), path.clone(), false));
    }
    GrammarSource::WithSchemas { lark: rules.join("\n"), schemas }
}

/// The rules of calls between markers; the first is `start`.
fn marked_calls(
    format: ToolFormat,
    tools: &[AllowedTool<'_>],
    several: bool,
    without: &AnswerWithoutCalls,
    schemas: &mut Vec<SchemaRule>,
) -> Vec<String> {
    let Markers { begin, end, space, separator, arguments, in_array } = format.markers();
    let (open, close) = if in_array { ("[", "]") } else { (space, space) };
    let free = *without == AnswerWithoutCalls::Text;
    let start = match (free, several) {
        (true, true) => "call* TEXT".to_owned(),
        (true, false) => "call | TEXT".to_owned(),
        (false, true) if !in_array => format!("call ({} call)*", quoted(separator)),
        (false, _) => "call".to_owned(),
    };
    let objects = if in_array && several { "object (\", \" object)*" } else { "object" };
    let named: Vec<String> = (0..tools.len()).map(|i| format!("tool{i}")).collect();
    let mut rules = vec![
        format!("start: {start}"),
        format!("call: head {objects} {}", quoted(&format!("{close}{end}"))),
        format!("object: {} ({}) \"}}\"", quoted("{\"name\": \""), named.join(" | ")),
    ];
    if free {
        // The text before a call ends where its marker is complete.
        rules.push("TEXT: /(?s:.)*/".to_owned());
        rules.push(format!("head: marker {}", quoted(open)));
        rules.push(format!("marker[lazy]: TEXT {}", quoted(begin)));
    } else {
        rules.push(format!("head: {}", quoted(&format!("{begin}{open}"))));
    }
    for (i, AllowedTool { tool, path, lenient }) in tools.iter().enumerate() {
        let name = Value::from(tool.name.as_str()).to_string();
        let before = format!("{}\", \"{arguments}\": ", name.trim_matches('"'));
        rules.push(format!("tool{i}: {} args{i}", quoted(&before)));
        let schema = Value::Object(tool.parameters.clone()).to_string();
        schemas.push(SchemaRule::new(format!("args{i}"), schema, (*path).to_owned(), *lenient));
    }
    rules
}

/// The rules of calls without markers; the first is `start`. A call and another JSON text begin alike, so a
/// call is a schema too.
fn bare_calls(
    format: ToolFormat,
    tools: &[AllowedTool<'_>],
    several: bool,
    without: &AnswerWithoutCalls,
    schemas: &mut Vec<SchemaRule>,
) -> Vec<String> {
    let Markers { separator, arguments, .. } = format.markers();
    let mut start = "start: call".to_owned();
    if several {
        start.push_str(&format!(" ({} call)*", quoted(separator)));
    }
    let mut rules = Vec::new();
    if *without == AnswerWithoutCalls::Text {
        start.push_str(" | TEXT");
        rules.push(r"TEXT: /\s*[^{\s](?s:.)*/".to_owned());
    }
    rules.insert(0, start);
    let pointer = |i: usize| format!("/anyOf/{i}/properties/{arguments}");
    let call = |(i, allowed): (usize, &AllowedTool<'_>)| {
        let mut parameters = allowed.tool.parameters.clone();
        // The schema is moved from the root of its document.
        parameters.retain(|key, _| key != "$schema" && key != "$id");
        let parameters = moved(Value::Object(parameters), &format!("#{}", pointer(i)));
        json!({
            "type": "object",
            "properties": { "name": { "const": allowed.tool.name }, arguments: parameters },
            "required": ["name", arguments],
            "additionalProperties": false,
        })
    };
    let calls: Vec<Value> = tools.iter().enumerate().map(call).collect();
    let schema = json!({ "anyOf": calls }).to_string();
    let mut rule = SchemaRule::new("call".to_owned(), schema, "tools".to_owned(), false);
    rule.places.extend(tools.iter().enumerate().map(|(i, AllowedTool { path, lenient, .. })| SchemaPlace {
        pointer: pointer(i),
        path: (*path).to_owned(),
        lenient: *lenient,
    }));
    schemas.push(rule);
    rules
}

/// A schema whose references to its own root point to `place`.
fn moved(schema: Value, place: &str) -> Value {
    match schema {
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| {
                let value = match value {
                    Value::String(to) if key == "$ref" && (to == "#" || to.starts_with("#/")) => {
                        format!("{place}{}", &to[1..]).into()
                    }
                    other => moved(other, place),
                };
                (key, value)
            };
            Value::Object(map.into_iter().map(entry).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(|item| moved(item, place)).collect(),
        other => other,
    }
}

/// A text in the notation of Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
