//! Which added tokens are the turn markers of a chat template: those that it writes between the texts of a
//! small conversation.

use std::ops::Range;

use super::tokenizer::Tokenizer;

/// Texts of the small conversations. No template and no tokenizer has a special case for them.
const TEXTS: [&str; 4] = ["qzvxk", "jwqzf", "xkqvj", "zfwxq"];

/// A small conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    /// Roles of the messages.
    pub(super) roles: &'static [&'static str],
}

impl Probe {
    /// Roles and texts of the messages.
    pub(super) fn messages(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.roles.iter().copied().zip(TEXTS)
    }
}

/// Lists of conversations, each of which a template may refuse. The first list is used of which the template
/// renders at least one.
const PROBES: [&[Probe]; 3] = [
    &[
        Probe { roles: &["system", "user", "assistant", "user"] },
        Probe { roles: &["user", "assistant", "user"] },
    ],
    &[Probe { roles: &["system", "user"] }, Probe { roles: &["user"] }],
    &[Probe { roles: &["system", "user", "assistant"] }, Probe { roles: &["user", "assistant"] }],
];

/// A conversation with a tool's answer.
const TOOL_PROBE: Probe = Probe { roles: &["user", "assistant", "tool"] };

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

    /// The ids of the matches outside message text that overlap no range of `written`.
    pub(super) fn ids_without(&self, written: &[Range<usize>]) -> impl Iterator<Item = u32> {
        let known = |found: &Range<usize>| {
            written.iter().any(|written| written.start < found.end && found.start < written.end)
        };
        self.outside.iter().filter(move |(_, found)| !known(found)).map(|&(id, _)| id)
    }
}

/// Renders the probes that a template accepts. `render` returns `None` if the template refuses one.
pub(super) fn probe_texts(
    tokenizer: &Tokenizer,
    render: &dyn Fn(Probe) -> Option<String>,
) -> (Vec<ProbeText>, Option<ProbeText>) {
    let one = |probe: &Probe| Some(ProbeText::new(*probe, render(*probe)?, tokenizer));
    let accepted = PROBES.iter().map(|list| list.iter().filter_map(one).collect::<Vec<_>>());
    (accepted.into_iter().find(|texts| !texts.is_empty()).unwrap_or_default(), one(&TOOL_PROBE))
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
        let known = if text.probe.roles.contains(&"assistant") { markers.clone() } else { Vec::new() };
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
