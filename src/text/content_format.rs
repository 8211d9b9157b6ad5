//! Finds whether a chat template takes the content of a message as a string or as a list of parts
//! (`{"type": "text", "text": …}`): small conversations are rendered with strings and with lists.
//!
//! A template that prints the texts of all parts gets a client's list. For other templates, and for tool
//! messages under a template that prints strings, the texts are joined by line ends, as in vLLM. A template
//! gets a client's string as a list of one part only if it would not print the string.

use serde_json::{Value, json};

use super::chat_message::{ChatMessage, Content, Role};
use super::provenance::small_conversations;

/// Text of a second part. No template has a special case for it.
const SECOND: &str = "wvqjk";

/// Renders a small conversation; `None` if the template refuses it.
type RenderSmall<'a, E> = dyn Fn(&[ChatMessage]) -> Result<Option<String>, E> + 'a;

/// The roles whose content a template gets as a list.
#[derive(Debug, Clone, Default)]
pub(super) struct ContentFormat {
    /// Roles whose lists the template gets as lists.
    lists: Vec<Role>,
    /// Roles whose text the template gets as a list of one part.
    texts: Vec<Role>,
}

impl ContentFormat {
    /// Finds the format. `render` gives lists to the template as they are.
    pub(super) fn find<E>(render: &RenderSmall<'_, E>) -> Self {
        let prints = |role: Role, extra: Option<&[&str]>| {
            for (at, text, mut messages) in small_conversations(role) {
                if let Some(extra) = extra {
                    let parts = [&[text], extra].concat();
                    messages[at].content = Content::Parts(parts.into_iter().map(str::to_owned).collect());
                }
                match render(&messages) {
                    Ok(Some(output)) => {
                        let mut texts = [text].into_iter().chain(extra.into_iter().flatten().copied());
                        let as_code = ["'text'", "\"text\""].iter().any(|key| output.contains(key));
                        if texts.all(|text| output.contains(text)) && !(extra.is_some() && as_code) {
                            return Ok(true);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        };
        let mut format = Self::default();
        for role in [Role::System, Role::User, Role::Assistant, Role::Tool] {
            let list = prints(role, Some(&[]));
            if matches!(list, Ok(false)) {
                continue;
            }
            let string = prints(role, None);
            match (list, &string) {
                (Ok(_), _) => {}
                (Err(_), Ok(_)) => continue,
                // If the template renders neither, the remaining roles are not tried.
                (Err(_), Err(_)) => break,
            }
            let string = matches!(string, Ok(true));
            if !string {
                format.texts.push(role);
            }
            // vLLM joins the texts of a tool for all templates.
            if (role != Role::Tool || !string) && matches!(prints(role, Some(&[SECOND])), Ok(true)) {
                format.lists.push(role);
            }
        }
        format
    }

    /// The content of a message as the template gets it; without a format, as the client wrote it. `protect`
    /// is applied to the client's texts.
    pub(super) fn value(
        format: Option<&Self>,
        message: &ChatMessage,
        protect: &dyn Fn(&str) -> String,
    ) -> Value {
        let part = |text: &str| json!({ "type": "text", "text": protect(text) });
        let has_parts = matches!(message.content, Content::Parts(_));
        if has_parts && format.is_none_or(|format| format.lists.contains(&message.role)) {
            return message.content.texts().map(part).collect();
        }
        let text = message.content.texts().collect::<Vec<_>>().join("\n");
        let is_part = format.is_some_and(|format| format.texts.contains(&message.role));
        if is_part { json!([part(&text)]) } else { protect(&text).into() }
    }
}
