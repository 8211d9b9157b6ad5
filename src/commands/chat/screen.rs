//! Standard output of a chat. On a terminal, notes and errors stand between the answers.

use crate::stdio::results;
use crate::stdio::results::OutputError;

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// Standard output.
pub(super) struct Screen {
    is_interactive: bool,
    is_colored: bool,
    /// Whether the cursor stands at the beginning of a line.
    at_line_start: bool,
}

impl Screen {
    /// `is_interactive` says that a person reads and types. Colours are left out if `NO_COLOR` is set.
    pub(super) fn new(is_interactive: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_interactive, is_colored: is_interactive && !no_color, at_line_start: true }
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.is_interactive
    }

    /// Prints a part of an answer. It has no control characters.
    pub(super) fn print(&mut self, text: &str) -> Result<(), OutputError> {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
        }
        results::write(text)
    }

    /// Ends the line of an answer.
    pub(super) fn end_line(&mut self) -> anyhow::Result<()> {
        if !self.at_line_start {
            self.print("\n")?;
        }
        Ok(())
    }

    /// Prints a note in dim letters.
    pub(super) fn note(&self, text: &str) -> anyhow::Result<()> {
        self.styled(DIM, text)
    }

    /// Prints an error.
    pub(super) fn error(&self, text: &str) -> anyhow::Result<()> {
        self.styled(RED, &format!("error: {text}"))
    }

    fn styled(&self, style: &str, text: &str) -> anyhow::Result<()> {
        let line = if self.is_colored { format!("{style}{text}{PLAIN}\n") } else { format!("{text}\n") };
        Ok(results::write(&line)?)
    }
}
