//! The lines that a user types: messages, and commands that begin with a slash.

/// The text of `/help`.
pub(super) const HELP: &str = "\
/system TEXT   set the system prompt; /system shows it, /system - removes it
/retry         answer the last message again
/continue      continue an answer that was stopped or reached its token limit
/clear         forget the conversation, but not the system prompt
/logprobs on   colour the tokens of answers by their probability; /logprobs off ends it
/load          show the requests and the KV cache use of the server
/quit          end the chat; Ctrl-D does the same
//TEXT         a message that begins with a slash
A backslash at the end of a line continues the message on the next line.";

/// A line that a user typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Nothing,
    Message(String),
    Help,
    ShowSystem,
    /// The new system prompt; `None` removes it.
    SetSystem(Option<String>),
    Retry,
    Continue,
    Clear,
    /// Whether tokens are coloured by their probability.
    Logprobs(bool),
    Load,
    Quit,
    Unknown(String),
}

impl Command {
    /// Reads a line.
    pub(super) fn parse(line: &str) -> Self {
        let text = line.trim();
        if text.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = text.strip_prefix('/') else { return Self::Message(line.to_owned()) };
        if command.starts_with('/') {
            return Self::Message(command.to_owned());
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("help" | "?", "") => Self::Help,
            ("system", "") => Self::ShowSystem,
            ("system", "-") => Self::SetSystem(None),
            ("system", prompt) => Self::SetSystem(Some(prompt.to_owned())),
            ("retry", "") => Self::Retry,
            ("continue", "") => Self::Continue,
            ("clear", "") => Self::Clear,
            ("logprobs", "on") => Self::Logprobs(true),
            ("logprobs", "off") => Self::Logprobs(false),
            ("load", "") => Self::Load,
            ("quit" | "exit" | "bye" | "q", "") => Self::Quit,
            _ => Self::Unknown(text.to_owned()),
        }
    }
}
