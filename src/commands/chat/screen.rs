//! Standard output of a chat. On a terminal, notes and errors stand between the answers.

use crate::stdio::results;
use crate::stdio::results::OutputError;

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";
/// Colours of tokens by probability, with the limits of the page: the first limit that is reached counts.
const SHADES: [(f64, &str); 4] = [(0.9, ""), (0.6, "\x1b[36m"), (0.3, "\x1b[33m"), (0.1, "\x1b[35m")];
/// Colour of tokens below all limits.
const IMPROBABLE: &str = RED;

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

    pub(super) fn is_colored(&self) -> bool {
        self.is_colored
    }

    /// Prints a part of an answer. It has no control characters. `logprob` colours it.
    pub(super) fn print(&mut self, text: &str, logprob: Option<f64>) -> Result<(), OutputError> {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
        }
        match logprob.map_or("", shade) {
            colour if self.is_colored && !colour.is_empty() => {
                results::write(&format!("{colour}{text}{PLAIN}"))
            }
            _ => results::write(text),
        }
    }

    /// Says what the colours of tokens mean, or that there are none.
    pub(super) fn legend(&self) -> anyhow::Result<()> {
        if !self.is_colored {
            return self.error("the terminal shows no colours, because NO_COLOR is set");
        }
        let limits = SHADES.map(|(limit, colour)| format!("{colour}{} %{PLAIN}", (100.0 * limit).round()));
        let limits = limits.join(", ");
        let line = format!("Probability of a token: at least {limits}, {IMPROBABLE}less{PLAIN}\n");
        Ok(results::write(&line)?)
    }

    /// Ends the line of an answer.
    pub(super) fn end_line(&mut self) -> anyhow::Result<()> {
        if !self.at_line_start {
            self.print("\n", None)?;
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

/// The colour of a token.
fn shade(logprob: f64) -> &'static str {
    let reached = SHADES.into_iter().find(|(limit, _)| logprob.exp() >= *limit);
    reached.map_or(IMPROBABLE, |(_, colour)| colour)
}
