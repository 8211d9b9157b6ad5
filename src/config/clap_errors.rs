//! Errors of clap in one sentence that names the setting, what was expected and what was given.

use std::error::Error;
use std::num::{ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::parsers::got;

/// Largest number of edits for which a flag is suggested in place of an unknown one.
const MOST_EDITS: usize = 2;

/// An error about one setting.
pub(super) struct Sentence {
    /// The flag, or the name of an argument without a flag.
    pub(super) setting: String,
    /// The expected value and the value given.
    pub(super) message: String,
}

/// The error as a sentence about one setting; `None` for an error that keeps clap's own message.
pub(super) fn sentence(error: &clap::Error) -> Option<Sentence> {
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
        ErrorKind::UnknownArgument => unknown(error, &setting),
        _ => return None,
    };
    Some(Sentence { setting, message })
}

/// The sentence, or clap's message without its prefix and its hint about `--help`.
pub(super) fn text(error: &clap::Error) -> String {
    match sentence(error) {
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

/// Advice about an argument that the command does not have.
fn unknown(error: &clap::Error, arg: &str) -> String {
    if !arg.starts_with('-') {
        return "expected no further argument here".to_owned();
    }
    let similar = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(similar)) => similar.split(' ').next(),
        _ => None,
    };
    let near = |similar: &&str| {
        similar.starts_with(arg)
            || arg.starts_with(*similar)
            || strsim::damerau_levenshtein(similar, arg) <= MOST_EDITS
    };
    match similar.filter(near) {
        Some(similar) => format!("unknown flag; did you mean {similar}?"),
        None => "unknown flag; --help lists all flags".to_owned(),
    }
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}
