//! Which added tokens are the turn markers of a chat template: those that it writes between the texts of a
//! small conversation.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::json;

use super::chat_message::{ChatMessage, RenderOptions, Role};
use super::marked_template::marked_name;
use super::tokenizer::Tokenizer;
use super::turn_marker_guard::TurnMarkers;
use super::vocabulary::TokenizerJsonError;

/// Texts of the small conversations. No template and no tokenizer has a special case for them.
const TEXTS: [&str; 4] = ["qzvxk", "jwqzf", "xkqvj", "zfwxq"];

/// A small conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    /// Roles of the messages.
    roles: &'static [Role],
    /// Whether the assistant's message has a tool call, which the tool's message names.
    calls: bool,
}

impl Probe {
    const fn new(roles: &'static [Role]) -> Self {
        Self { roles, calls: false }
    }

    /// Roles and texts of the messages.
    fn messages(self) -> impl Iterator<Item = (Role, &'static str)> {
        self.roles.iter().copied().zip(TEXTS)
    }

    /// The messages.
    pub(super) fn conversation(self) -> Vec<ChatMessage> {
        let mut messages: Vec<_> = self.messages().map(|(role, text)| ChatMessage::new(role, text)).collect();
        for message in messages.iter_mut().filter(|_| self.calls) {
            match message.role {
                Role::Assistant => {
                    let call = json!({ "name": "vqkjx", "arguments": {} });
                    let calls = json!([{ "id": "kvqxz0123", "type": "function", "function": call }]);
                    message.fields.insert("tool_calls".to_owned(), calls);
                }
                Role::Tool => {
                    message.fields.insert("tool_call_id".to_owned(), "kvqxz0123".into());
                    message.name = Some("vqkjx".to_owned());
                }
                _ => {}
            }
        }
        messages
    }
}

/// Lists of conversations, each of which a template may refuse. The first list is used of which the template
/// renders at least one.
const PROBES: [&[Probe]; 3] = [
    &[
        Probe::new(&[Role::System, Role::User, Role::Assistant, Role::User]),
        Probe::new(&[Role::User, Role::Assistant, Role::User]),
    ],
    &[Probe::new(&[Role::System, Role::User]), Probe::new(&[Role::User])],
    &[Probe::new(&[Role::System, Role::User, Role::Assistant]), Probe::new(&[Role::User, Role::Assistant])],
];

/// The small conversations that have a message of `role`, with its index and text.
pub(super) fn small_conversations(
    role: Role,
) -> impl Iterator<Item = (usize, &'static str, Vec<ChatMessage>)> {
    let tools = [TOOL_PROBE, Probe { calls: true, ..TOOL_PROBE }];
    let probes = PROBES.into_iter().flatten().copied().chain(tools);
    probes.filter_map(move |probe| {
        let at = probe.roles.iter().position(|&own| own == role)?;
        Some((at, TEXTS[at], probe.conversation()))
    })
}

/// A conversation with a tool's answer.
const TOOL_PROBE: Probe = Probe::new(&[Role::User, Role::Assistant, Role::Tool]);

/// The options with which a template renders the probes. `tool_use` only gets requests that have tools.
pub(super) fn probe_options(name: &str) -> RenderOptions {
    let mut options = RenderOptions::default();
    if name == "tool_use" || name == marked_name("tool_use") {
        let parameters = json!({ "type": "object", "properties": {}, "required": [] });
        let function = json!({ "name": "vqkjx", "description": "kvqzj", "parameters": parameters });
        let tools = json!([{ "type": "function", "function": function }]);
        options.kwargs.insert("tools".to_owned(), tools);
    }
    options
}

/// A rendered probe.
pub(super) struct ProbeText {
    pub(super) probe: Probe,
    pub(super) text: String,
    /// Matches of added tokens outside the texts of the messages.
    outside: Vec<(u32, Range<usize>)>,
}

impl ProbeText {
    fn new(probe: Probe, text: String, tokenizer: &Tokenizer) -> Self {
        let texts: Vec<Range<usize>> = probe
            .messages()
            .flat_map(|(_, message)| text.match_indices(message))
            .map(|(start, message)| start..start + message.len())
            .collect();
        let mut outside = tokenizer.find_added_tokens(&text);
        outside
            .retain(|(_, found)| texts.iter().all(|text| found.end <= text.start || text.end <= found.start));
        Self { probe, text, outside }
    }

    /// End of the last message's text, in bytes.
    fn tail(&self) -> usize {
        self.probe
            .messages()
            .filter_map(|(_, text)| Some(self.text.rfind(text)? + text.len()))
            .max()
            .unwrap_or(0)
    }

    /// The ids of the matches outside message text that overlap a range of `written`, or of those that
    /// overlap none.
    fn ids(&self, written: &[Range<usize>], overlap: bool) -> impl Iterator<Item = u32> {
        let known = |found: &Range<usize>| {
            written.iter().any(|written| written.start < found.end && found.start < written.end)
        };
        self.outside.iter().filter(move |(_, found)| known(found) == overlap).map(|&(id, _)| id)
    }
}

/// The rendered probes of a template.
pub(super) struct Probed<E> {
    pub(super) texts: Vec<ProbeText>,
    /// The probe with a tool's answer.
    pub(super) tool: Option<ProbeText>,
    /// The first failure. No probe was rendered after it.
    pub(super) failed: Option<E>,
}

/// Renders the probes that a template accepts. `render` returns `None` if the template refuses one.
pub(super) fn probe_texts<E>(
    tokenizer: &Tokenizer,
    render: &dyn Fn(Probe) -> Result<Option<String>, E>,
) -> Probed<E> {
    let one = |probe: Probe| {
        let text = render(probe)?;
        Ok(text.map(|text| ProbeText::new(probe, text, tokenizer)))
    };
    let mut probed = Probed { texts: Vec::new(), tool: None, failed: None };
    for list in PROBES {
        for &probe in list {
            match one(probe) {
                Ok(text) => probed.texts.extend(text),
                Err(error) => {
                    probed.failed = Some(error);
                    return probed;
                }
            }
        }
        if !probed.texts.is_empty() {
            break;
        }
    }
    // Some templates fail if no tool was called.
    match one(TOOL_PROBE).or_else(|_| one(Probe { calls: true, ..TOOL_PROBE })) {
        Ok(text) => probed.tool = text,
        Err(error) => probed.failed = Some(error),
    }
    probed
}

/// How the turn markers of one template are told from message text.
pub(super) struct Guard {
    /// Whether there is a template with placeholders too.
    pub(super) marked: bool,
    /// The markers that the template puts together from parts.
    pub(super) composed: TurnMarkers,
    /// The same and the markers that no probe has, if there are any.
    pub(super) wider: Option<TurnMarkers>,
}

impl Guard {
    /// `places` has the rendered probes with the places of the placeholders.
    pub(super) fn new(
        marked: bool,
        markers: &TurnMarkers,
        places: &[(&ProbeText, Vec<Range<usize>>)],
        tokenizer: &Tokenizer,
    ) -> Result<Self, TokenizerJsonError> {
        let ids = |overlap| places.iter().flat_map(move |(text, written)| text.ids(written, overlap));
        let (with, without): (HashSet<u32>, HashSet<u32>) = (ids(true).collect(), ids(false).collect());
        let named = |id: u32| tokenizer.added_token(id).map(|(text, _)| (text.to_owned(), id));
        let set = |chosen: &dyn Fn(u32) -> bool| {
            TurnMarkers::new(markers.ids().filter(|&id| chosen(id)).filter_map(named))
        };
        let composed = set(&|id| !marked || without.contains(&id))?;
        let wider = set(&|id| !marked || without.contains(&id) || !with.contains(&id))?;
        let wider = Some(wider).filter(|wider| wider.ids().count() > composed.ids().count());
        Ok(Self { marked, composed, wider })
    }
}

/// The ids of the turn markers, from the renderings of the probes: the added tokens that open or close a
/// turn.
pub(super) fn turn_markers(texts: &[ProbeText], tool: Option<&ProbeText>, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut markers = Vec::new();
    for text in texts {
        let tail = text.tail();
        let (before, behind): (Vec<_>, Vec<_>) =
            text.outside.iter().partition(|(_, found)| found.start < tail);
        markers.extend(before.iter().map(|(id, _)| *id));
        // If the conversation has an assistant's turn, only the tokens before the first known marker can be
        // markers here. A new token behind a known marker begins the answer, such as `<think>`.
        let known = if text.probe.roles.contains(&Role::Assistant) { markers.clone() } else { Vec::new() };
        markers.extend(behind.iter().map(|(id, _)| *id).take_while(|id| !known.contains(id)));
    }
    markers.extend(tool.and_then(|tool| tool_marker(tool, &markers, tokenizer)));
    markers.sort_unstable();
    markers.dedup();
    markers.retain(|&id| tokenizer.added_token(id).is_some_and(|(text, special)| is_marker(text, special)));
    markers
}

/// The token that opens a tool's turn, if it is not a known marker. Tags within the turn, such as
/// `<tool_response>`, are not special or follow the turn's header.
fn tool_marker(text: &ProbeText, known: &[u32], tokenizer: &Tokenizer) -> Option<u32> {
    let messages: Vec<&str> = text.probe.messages().map(|(_, text)| text).collect();
    let from = text.text.rfind(messages[messages.len() - 2])?;
    let to = from + text.text[from..].find(messages[messages.len() - 1])?;
    let from = from + messages[messages.len() - 2].len();
    let mut end = from;
    for (id, found) in text.outside.iter().filter(|(_, found)| from <= found.start && found.end <= to) {
        if text.text[end..found.start].contains(char::is_alphanumeric) {
            return None;
        }
        if !known.contains(id) {
            return tokenizer.is_special(*id).then_some(*id);
        }
        end = found.end;
    }
    None
}

/// Whether a token that a template writes can be a turn marker. Spaces and words are ordinary text, and tags
/// of reasoning and of tool calls stand within turns.
fn is_marker(text: &str, special: bool) -> bool {
    let name = text.to_lowercase();
    let word = text.chars().all(|c| c.is_alphanumeric() || c.is_whitespace());
    !text.trim().is_empty() && !name.contains("think") && (special || !word && !name.contains("tool"))
}
