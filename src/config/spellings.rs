//! The command line as people type it, rewritten to Octant's own spelling before clap reads it.
//!
//! Underscores in flag names become hyphens, short names such as `-tp` become long ones, and flags with a
//! boolean may stand without a value or with `no-` before their name. Flags of other servers for which Octant
//! has no setting are dropped with a note, if the default does what they ask for, or refused with a sentence
//! ([`super::other_servers`]). Spellings of a setting that Octant has are aliases of its field.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

use super::parsers::is_boolean;
use super::{ConfigError, clap_errors, other_servers};

/// Names with one hyphen, and the flags that they stand for.
const SHORT: [(&str, &str); 8] = [
    ("-tp", "tensor-parallel-size"),
    ("-m", "model"),
    ("-a", "served-model-name"),
    ("-q", "quantization"),
    ("-md", "speculate"),
    ("-np", "max-num-seqs"),
    ("-p", "port"),
    ("-t", "threads"),
];

/// Flags that turn a boolean setting off.
const TURNED_OFF: [(&str, &str); 1] = [("disable-radix-cache", "enable-prefix-caching")];

/// A rewritten command line.
pub(super) struct Rewritten {
    /// The arguments for clap, the program's name first.
    pub(super) args: Vec<OsString>,
    /// Notes for the operator about flags that were dropped.
    pub(super) notes: Vec<String>,
}

/// Rewrites the arguments of the command that they name.
///
/// # Errors
/// Names a flag of another server, and says what to do instead.
pub(super) fn rewrite(args: Vec<OsString>, root: &Command) -> Result<Rewritten, ConfigError> {
    let (command, taken) = named_command(&args, root);
    let command = &command;
    let takes_foreign = command.get_name() == "serve";
    let mut rewritten = Rewritten { args: args[..taken].to_vec(), notes: Vec::new() };
    let mut rest = args[taken..].iter().peekable();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            rewritten.args.push(arg.clone());
            rewritten.args.extend(rest.cloned());
            break;
        }
        let Some(Flag { name, value, typed }) = Flag::read(arg, command) else {
            rewritten.args.push(arg.clone());
            continue;
        };
        let next = rest.peek().and_then(|next| next.to_str());
        if let Some(setting) = find(command, &name) {
            let joined = if value.is_some() {
                value
            } else if is_boolean_setting(setting) {
                Some(next.filter(|next| is_boolean(next).is_some()).map_or("true", |next| {
                    rest.next();
                    next
                }))
            } else {
                // clap would take a negative number for a flag.
                next.filter(|next| setting.get_action().takes_values() && is_negative(next)).inspect(|_| {
                    rest.next();
                })
            };
            rewritten.args.push(flag_arg(setting.get_long().unwrap_or(&name), joined));
        } else if let Some(setting) = turned_off(command, &name) {
            if let Some(value) = value {
                return Err(ConfigError::new(typed, format!("expected no value, got `{value}`")));
            }
            rewritten.args.push(flag_arg(&setting, Some("false")));
        } else if let Some(other) = other_servers::find(&name).filter(|_| takes_foreign) {
            let next = next.filter(|next| !next.starts_with('-'));
            let value = value.or(next.filter(|_| other.takes_value())).unwrap_or_default();
            let sentence = other.judge(value).map_err(|sentence| ConfigError::new(typed, sentence))?;
            if other.takes_value() && !arg.to_string_lossy().contains('=') {
                rest.next();
            }
            rewritten.notes.push(format!("{typed}: {sentence}"));
        } else if let Some(advice) = one_hyphen(&name, command) {
            return Err(ConfigError::new(typed, format!("unknown flag{advice}")));
        } else {
            rewritten.args.push(flag_arg(&name, value));
        }
    }
    Ok(rewritten)
}

/// Advice about an unknown name with one hyphen. clap would read its letters as separate flags.
fn one_hyphen(name: &str, command: &Command) -> Option<String> {
    let long = name.strip_prefix('-').filter(|long| long.len() > 1)?;
    clap_errors::advice(long, "--", command)
}

/// The command that the arguments name, with the flags that every command has, and how many arguments come
/// before its own.
pub(super) fn named_command(args: &[OsString], root: &Command) -> (Command, usize) {
    // Flags that every command has may stand before its name.
    let first = args.iter().skip(1).position(|word| root.find_subcommand(word).is_some());
    let (mut command, mut taken) = (root, first.map_or(args.len(), |first| first + 1));
    while let Some(inner) = args.get(taken).and_then(|word| command.find_subcommand(word)) {
        (command, taken) = (inner, taken + 1);
    }
    let everywhere = root.get_arguments().filter(|arg| arg.is_global_set());
    (command.clone().args(everywhere), taken)
}

/// A flag as typed.
struct Flag<'a> {
    /// Long name without hyphens before it; a short name that is none of [`SHORT`] keeps its hyphen.
    name: String,
    /// Text after `=`.
    value: Option<&'a str>,
    /// The flag without its value, for messages.
    typed: &'a str,
}

impl<'a> Flag<'a> {
    /// Reads an argument of a command; `None` if it is no flag.
    fn read(arg: &'a OsStr, command: &Command) -> Option<Self> {
        let text = arg.to_str()?;
        let (typed, value) = match text.split_once('=') {
            Some((typed, value)) => (typed, Some(value)),
            None => (text, None),
        };
        if is_negative(text) || !typed.starts_with('-') || typed.len() < 2 {
            return None;
        }
        let short = SHORT.iter().find(|(short, long)| *short == typed && find(command, long).is_some());
        let name = match (typed.strip_prefix("--"), short) {
            (Some(long), _) => long.replace('_', "-"),
            (None, Some((_, long))) => (*long).to_owned(),
            (None, None) => typed.to_owned(),
        };
        Some(Self { name, value, typed })
    }
}

fn flag_arg(name: &str, value: Option<&str>) -> OsString {
    let hyphens = if name.starts_with('-') { "" } else { "--" };
    match value {
        Some(value) => format!("{hyphens}{name}={value}").into(),
        None => format!("{hyphens}{name}").into(),
    }
}

/// The setting of a command with this long name or alias.
pub(super) fn find<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// Whether the setting takes a boolean as its value.
fn is_boolean_setting(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set) && arg.get_value_parser().type_id() == TypeId::of::<bool>()
}

/// The boolean setting that a flag turns off.
fn turned_off(command: &Command, name: &str) -> Option<String> {
    let off = TURNED_OFF.iter().find(|(off, _)| *off == name).map(|(_, setting)| *setting);
    let setting = off.or(name.strip_prefix("no-"))?;
    find(command, setting).filter(|arg| is_boolean_setting(arg)).map(|_| setting.to_owned())
}

fn is_negative(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}
