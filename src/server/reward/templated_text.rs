//! Reads the turns of a conversation that is given as text with turn markers.
//!
//! Trainers send the text that their own policy was trained on, with its turn markers. A reward model that
//! gets another model's markers as plain text answers with a plausible wrong number, so the turns are read
//! here and written again by the reward model's own template. Text that cannot be read is refused.

use crate::generation::{ChatMessage, Role};

/// Tokens that stand before or after a whole conversation.
const EDGES: [&str; 12] = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "[PAD]",
    "<|pad|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|vision_pad|>",
    "<bos>",
];

/// Markers of formats that are not read. A text with one of them is refused.
const UNREAD: [&str; 31] = [
    "<|im_sep|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eot|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_turn|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[SYSTEM_PROMPT]",
];

/// System messages that chat templates write if a conversation has none.
const DEFAULT_SYSTEMS: [&str; 6] = [
    "",
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
     detailed, and polite answers to the user's questions.",
];

/// The markers of each format that is read.
const FORMATS: [(Format, &[&str]); 4] = [
    (Format::Nemotron, &["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]),
    (Format::ChatMl, &["<|im_start|>", "<|im_end|>"]),
    (Format::Llama3, &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    (Format::Llama2, &["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]),
];

/// A format of conversations as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Nemotron,
    ChatMl,
    Llama3,
    /// Llama 2 and Mistral.
    Llama2,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nemotron => "Nemotron",
            Self::ChatMl => "ChatML",
            Self::Llama3 => "Llama 3",
            Self::Llama2 => "Llama 2",
        })
    }
}

/// Why the turns of a text cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum TurnsError {
    /// Markers of two formats, one of which may be text of a message.
    #[error("expected turn markers of one format, got those of {0} and of {1}; send messages instead")]
    Mixed(Format, Format),
    /// A marker of a format that is not read.
    #[error("expected turn markers of Nemotron, ChatML, Llama 3 or Llama 2, got {0}; send messages instead")]
    Unread(&'static str),
    /// Text outside turns, or a marker where none may stand.
    #[error("expected turns of the format {format}, got `{got}` {place}")]
    Stray {
        /// The format.
        format: Format,
        /// The beginning of what was found.
        got: String,
        /// Where it stands.
        place: &'static str,
    },
    /// A turn of another role.
    #[error("expected turns of system, user and assistant, got one of `{0}`; send messages instead")]
    Role(String),
    /// The last turn is not the assistant's.
    #[error("expected a last turn of the assistant, got one of the {0}")]
    NoAnswer(&'static str),
    /// The text ends with the beginning of an answer.
    #[error("expected an answer after the assistant's turn marker, got nothing")]
    Unanswered,
}

/// A turn as it stands in the text.
struct Turn<'t> {
    role: Role,
    text: &'t str,
    /// Whether a marker ends it.
    closed: bool,
}

/// The messages of a conversation that ends with an answer; `None` if the text has no turn marker.
///
/// # Errors
/// The text has turn markers and is no such conversation.
pub(crate) fn messages(text: &str) -> Result<Option<Vec<ChatMessage>>, TurnsError> {
    let inner = without_edges(text);
    let mut formats =
        FORMATS.iter().filter(|(_, markers)| markers.iter().any(|marker| inner.contains(marker)));
    let format = formats.next().map(|(format, _)| *format);
    if let (Some(first), Some((second, _))) = (format, formats.next()) {
        return Err(TurnsError::Mixed(first, *second));
    }
    if let Some(marker) = UNREAD.iter().find(|marker| inner.contains(**marker)) {
        return Err(TurnsError::Unread(marker));
    }
    let Some(format) = format else { return Ok(None) };
    let turns = match format {
        Format::Nemotron => nemotron(inner)?,
        Format::ChatMl => headed(inner, &Headed::CHATML)?,
        Format::Llama3 => headed(inner, &Headed::LLAMA3)?,
        Format::Llama2 => llama2(inner)?,
    };
    match turns.last() {
        Some(Turn { role: Role::Assistant, text, closed }) => {
            if text.trim().is_empty() && !closed {
                return Err(TurnsError::Unanswered);
            }
        }
        Some(Turn { role: Role::User, .. }) => return Err(TurnsError::NoAnswer("user")),
        _ => return Err(TurnsError::NoAnswer("system")),
    }
    Ok(Some(turns.into_iter().map(|turn| ChatMessage::new(turn.role, turn.text)).collect()))
}

/// The turn markers of all formats.
pub(crate) fn turn_markers() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().flat_map(|(_, markers)| markers.iter().copied()).chain(UNREAD)
}

/// A marker in an answer that stands alone: any turn marker, or a token before or after a conversation at the
/// answer's beginning or end.
pub(crate) fn marker_in_answer(answer: &str) -> Option<&'static str> {
    let inner = answer.trim();
    let at_edge = |edge: &&str| inner.starts_with(edge) || inner.ends_with(edge);
    turn_markers().find(|marker| answer.contains(marker)).or_else(|| EDGES.into_iter().find(at_edge))
}

/// Whether a text begins with a turn, as a chat template writes it.
pub(crate) fn begins_with_turn(text: &str) -> bool {
    let inner = without_edges(text).trim_start();
    turn_markers().any(|marker| inner.starts_with(marker))
}

/// Whether a system message is one that a chat template writes of itself.
pub(crate) fn is_default_system(text: &str) -> bool {
    let text = text.trim();
    let is_date = |line: &str| {
        line.is_empty() || line.starts_with("Cutting Knowledge Date:") || line.starts_with("Today Date:")
    };
    DEFAULT_SYSTEMS.contains(&text) || text.lines().map(str::trim).all(is_date)
}

/// The text without the tokens before and after the conversation.
pub(crate) fn without_edges(text: &str) -> &str {
    let mut inner = text;
    loop {
        let (start, end) = (inner.trim_start(), inner.trim_end());
        let edge = EDGES.iter().find_map(|edge| {
            start.strip_prefix(edge).or_else(|| end.strip_suffix(edge)).filter(|_| !inner.is_empty())
        });
        match edge {
            Some(rest) => inner = rest,
            None => return inner,
        }
    }
}

/// A format whose turns have a header with the role and a marker at the end.
struct Headed {
    format: Format,
    open: &'static str,
    /// Ends the role.
    header_end: &'static str,
    /// Whether the text begins after up to two newlines, which the header's end has not.
    newlines: bool,
    close: &'static str,
}

impl Headed {
    const CHATML: Self = Self {
        format: Format::ChatMl,
        open: "<|im_start|>",
        header_end: "\n",
        newlines: false,
        close: "<|im_end|>",
    };
    const LLAMA3: Self = Self {
        format: Format::Llama3,
        open: "<|start_header_id|>",
        header_end: "<|end_header_id|>",
        newlines: true,
        close: "<|eot_id|>",
    };
}

fn headed<'t>(text: &'t str, format: &Headed) -> Result<Vec<Turn<'t>>, TurnsError> {
    let stray = |got: &str, place| Err(TurnsError::Stray { format: format.format, got: begin(got), place });
    let (mut rest, mut turns) = (text.trim_start(), Vec::new());
    while !rest.is_empty() {
        let Some(header) = rest.strip_prefix(format.open) else { return stray(rest, "outside turns") };
        let Some((name, body)) = header.split_once(format.header_end) else {
            return stray(rest, "without the end of its header");
        };
        let (mut content, after) = match body.split_once(format.close) {
            Some((content, after)) => (content, Some(after)),
            None => (body, None),
        };
        if format.newlines {
            content = content.strip_prefix('\n').unwrap_or(content);
            content = content.strip_prefix('\n').unwrap_or(content);
        }
        if content.contains(format.open) {
            return stray(content, "without the end of its turn");
        }
        turns.push(Turn { role: role(name)?, text: content, closed: after.is_some() });
        rest = after.unwrap_or_default().trim_start();
    }
    Ok(turns)
}

/// Reads `<extra_id_0>System\n…\n<extra_id_1>User\n…\n<extra_id_1>Assistant\n…\n`, which may end with the
/// marker of another turn or of the score.
fn nemotron(text: &str) -> Result<Vec<Turn<'_>>, TurnsError> {
    let stray =
        |got: &str, place| Err(TurnsError::Stray { format: Format::Nemotron, got: begin(got), place });
    let mut parts = text.split("<extra_id_");
    let before = parts.next().unwrap_or_default();
    if !before.trim().is_empty() {
        return stray(before, "before the first turn");
    }
    let mut turns: Vec<Turn<'_>> = Vec::new();
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let Some((number, body)) = part.split_once('>') else { return stray(part, "as a marker") };
        let is_last = parts.peek().is_none();
        match number {
            "1" | "2" if is_last && body.trim().is_empty() => {
                if let Some(turn) = turns.last_mut() {
                    turn.closed = true;
                }
            }
            "0" | "1" => {
                let (name, content) = body.split_once('\n').unwrap_or((body, ""));
                let content = content.strip_suffix('\n').unwrap_or(content);
                turns.push(Turn { role: role(name)?, text: content, closed: !is_last });
            }
            _ => return stray(body, "after <extra_id_2>, which ends a conversation"),
        }
    }
    Ok(turns)
}

/// Reads `[INST] <<SYS>>\n…\n<</SYS>>\n\n… [/INST] … </s><s>[INST] …`.
fn llama2(text: &str) -> Result<Vec<Turn<'_>>, TurnsError> {
    let stray = |got: &str, place| Err(TurnsError::Stray { format: Format::Llama2, got: begin(got), place });
    let mut parts = text.split("[INST]");
    let before = parts.next().unwrap_or_default();
    if !before.trim().is_empty() {
        return stray(before, "before the first turn");
    }
    let mut turns = Vec::new();
    for part in parts {
        let Some((question, answer)) = part.split_once("[/INST]") else {
            return stray(part, "without [/INST]");
        };
        let question = question.trim();
        let question = match question.strip_prefix("<<SYS>>").and_then(|rest| rest.split_once("<</SYS>>")) {
            Some((system, question)) => {
                turns.push(Turn { role: Role::System, text: system.trim(), closed: true });
                question.trim()
            }
            None => question,
        };
        let answer = answer.trim();
        let answer = answer.strip_suffix("<s>").unwrap_or(answer).trim_end();
        let answer = answer.strip_suffix("</s>").unwrap_or(answer).trim_end();
        for text in [question, answer] {
            let marker = ["[/INST]", "<<SYS>>", "<</SYS>>"].into_iter().find(|marker| text.contains(marker));
            if marker.is_some() {
                return stray(text, "within a turn");
            }
        }
        turns.push(Turn { role: Role::User, text: question, closed: true });
        turns.push(Turn { role: Role::Assistant, text: answer, closed: false });
    }
    Ok(turns)
}

fn role(name: &str) -> Result<Role, TurnsError> {
    match name.trim().to_ascii_lowercase().as_str() {
        "system" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        _ => Err(TurnsError::Role(begin(name))),
    }
}

/// The beginning of a text, for an error.
fn begin(text: &str) -> String {
    text.trim().chars().take(40).collect()
}
