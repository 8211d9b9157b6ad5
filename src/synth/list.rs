//! Lists that a model writes as one constrained JSON object.

use serde_json::{Value, json};

/// The `response_format` of a list with `count` items. A server that enforces it gives exactly that number
/// unless the answer is cut; another server may give fewer.
pub(super) fn response_format(count: usize) -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {
            "name": "list",
            "strict": true,
            "schema": {
                "type": "object",
                "properties": {
                    "items": {
                        "type": "array",
                        "items": { "type": "string" },
                        "minItems": count,
                        "maxItems": count,
                    },
                },
                "required": ["items"],
                "additionalProperties": false,
            },
        },
    })
}

/// The items of a list. Text around the object is passed over, and a list that was cut has its complete
/// strings. `None` if there is no list.
pub(super) fn parse(text: &str) -> Option<Vec<String>> {
    if let Ok(value) = serde_json::from_str::<Value>(text.trim()) {
        let items = value.get("items").unwrap_or(&value).as_array()?;
        return items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    }
    let mut rest = &text[text.find('[')? + 1..];
    let mut items = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if !rest.starts_with('"') {
            return Some(items).filter(|items| !items.is_empty());
        }
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        match strings.next() {
            Some(Ok(item)) => items.push(item),
            _ => return Some(items).filter(|items| !items.is_empty()),
        }
        rest = &rest[strings.byte_offset()..];
    }
}
