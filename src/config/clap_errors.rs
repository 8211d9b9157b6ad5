//! Errors of clap in one sentence that names the setting, what was expected and what was given.

use std::error::Error;
use std::num::{ParseFloatError, ParseIntError};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::api_keys::SEVERAL_KEYS;
use super::other_servers;
use super::parsers::got;

/// Minimum similarity, from 0 to 1, of a flag that is suggested in place of an unknown one.
const LEAST_LIKENESS: f64 = 0.6;
/// The same for a flag of another server. Only a spelling mistake is that similar.
const LEAST_LIKENESS_OF_OTHERS: f64 = 0.8;

/// An error about one setting.
pub(super) struct Sentence {
    /// The flag, or the name of an argument without a flag.
    pub(super) setting: String,
    /// The expected value and the value given.
    pub(super) message: String,
}

/// The error of a command as a sentence about one setting; `None` for an error that keeps clap's own message.
pub(super) fn sentence(error: &clap::Error, command: &Command) -> Option<Sentence> {
    let context = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let value = context(ContextKind::InvalidValue);
    let setting = context(ContextKind::InvalidArg).trim_matches(['[', ']', '<', '>']);
    let setting = setting.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let message = match error.kind() {
        ErrorKind::ValueValidation => expected(error, value),
        ErrorKind::InvalidValue => {
            let given = if value.is_empty() { "expected a value, got none".to_owned() } else { got(value) };
            match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) if !values.is_empty() => {
                    format!("{given}; possible values: {}", values.join(", "))
                }
                _ => given,
            }
        }
        ErrorKind::UnknownArgument => unknown(&setting, command),
        ErrorKind::ArgumentConflict if setting == "--api-key" => SEVERAL_KEYS.to_owned(),
        _ => return None,
    };
    Some(Sentence { setting, message })
}

/// The sentence, or clap's message without its prefix and its hint about `--help`.
pub(super) fn text(error: &clap::Error, command: &Command) -> String {
    match sentence(error, command) {
        Some(Sentence { setting, message }) => format!("{setting}: {message}"),
        None => first_paragraph(error),
    }
}

/// The value that its parser expected.
fn expected(error: &clap::Error, value: &str) -> String {
    match error.source() {
        Some(source) if source.is::<ParseIntError>() => format!("expected a whole number, {}", got(value)),
        Some(source) if source.is::<ParseFloatError>() => format!("expected a number, {}", got(value)),
        Some(source) => source.to_string(),
        None => first_paragraph(error),
    }
}

/// The message about an argument that the command does not have.
fn unknown(arg: &str, command: &Command) -> String {
    if !arg.starts_with('-') {
        return "expected no further argument here".to_owned();
    }
    let advice = advice(arg.trim_start_matches('-'), "--", command);
    format!("unknown flag{}", advice.unwrap_or_else(|| "; --help lists all flags".to_owned()))
}

/// Advice about an unknown name: the most similar flag, written with `hyphens`, and what to do instead if it
/// is a flag of another server. `None` if no flag is similar enough.
pub(super) fn advice(name: &str, hyphens: &str, command: &Command) -> Option<String> {
    let likeness = |known: &str| {
        strsim::normalized_damerau_levenshtein(name, known).max(strsim::sorensen_dice(name, known))
    };
    let own = command.get_arguments().filter_map(|arg| {
        let long = arg.get_long()?;
        let aliases = arg.get_all_aliases().unwrap_or_default();
        let likeness = aliases.into_iter().map(likeness).fold(likeness(long), f64::max);
        Some((likeness, format!("; did you mean {hyphens}{long}?")))
    });
    let others = other_servers::flags().filter(|_| command.get_name() == "serve").map(|(known, flag)| {
        let sentence = flag.judge("").map_or_else(|sentence| sentence, str::to_owned);
        (likeness(known), format!(", like {hyphens}{known} of other servers: {sentence}"))
    });
    let own = own.filter(|(likeness, _)| *likeness >= LEAST_LIKENESS);
    let others = others.filter(|(likeness, _)| *likeness >= LEAST_LIKENESS_OF_OTHERS);
    own.chain(others).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, advice)| advice)
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}
