//! From a command line to a command, with the layers of settings for `octant serve`.
//!
//! clap parses twice. The first pass checks flags and variables, and finds the file of `--config`. Settings
//! that come from other places are then appended as `--flag=value`, so that every value goes through the
//! flag's own parser: the directory without a flag, variables named after another spelling, and the file.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command as Clap, CommandFactory, FromArgMatches};

use super::api_keys::SEVERAL_KEYS;
use super::clap_errors::{self, Sentence};
use super::file::file_args;
use super::parsers::model;
use super::spellings::{self, Rewritten};
use super::{BenchCommand, Cli, Command, ConfigError, ParseError};

/// Field of the flag `--model`, which a directory without a flag, a variable or the file may give.
const MODEL: &str = "model";
/// The directory without a flag.
const DIRECTORY: &str = "directory";
/// Commands that take the settings of a server, as typed.
const WITH_SETTINGS: [&[&str]; 4] = [&["serve"], &["batch"], &["bench", "throughput"], &["bench", "latency"]];
/// Beginning of every variable's name.
const PREFIX: &str = "OCTANT_";

/// A setting from another place than a flag.
struct Appended {
    /// Source of the argument: a variable, a file, or `DIR`.
    place: String,
    /// `--flag=value`.
    arg: OsString,
}

/// Parses the command line, the environment, and for `octant serve` the file of `--config`. Prints nothing.
///
/// # Errors
/// Names the flag, the variable, or the file and its key. `--help` and `--version` are errors too.
pub fn parse() -> Result<Cli, ParseError> {
    parse_from(std::env::args_os().collect())
}

/// Does what [`parse`] does, with these arguments as the command line. The first one is the program's name.
///
/// # Errors
/// The same as those of [`parse`].
pub fn parse_from(args: Vec<OsString>) -> Result<Cli, ParseError> {
    let (command, mut notes) = without_service_links();
    let rewritten = spellings::rewrite(args, &command)?;
    let Rewritten { mut args, notes: dropped } = rewritten;
    notes.extend(dropped);
    let (settings, _) = spellings::named_command(&args, &command);
    let first = command.clone().try_get_matches_from(&args);
    let first = first.map_err(|error| refused(error, &settings, &args, &[]))?;
    let Some((path, serve)) = WITH_SETTINGS.iter().find_map(|path| Some((*path, matches_of(&first, path)?)))
    else {
        return Ok(Cli::from_arg_matches(&first)?);
    };
    let mut appended = other_variables(serve, &settings, &mut notes);
    if let Some(directory) = directory(serve, &args)? {
        appended.push(Appended { place: "DIR".to_owned(), arg: flag(MODEL, directory.as_os_str()) });
    }
    if let Some(path) = serve.get_one::<PathBuf>("config") {
        let known =
            |id: &str, arg: &OsStr| given(serve, id) || appended.iter().any(|own| same(&own.arg, arg));
        let from_file = file_args(path, &settings, known)?;
        let place = path.display().to_string();
        appended.extend(from_file.into_iter().map(|arg| Appended { place: place.clone(), arg }));
    }
    args.extend(appended.iter().map(|appended| appended.arg.clone()));
    let matches = command.try_get_matches_from(&args);
    let matches = matches.map_err(|error| refused(error, &settings, &args, &appended))?;
    let typed = |field: &str| serve.value_source(field) == Some(ValueSource::CommandLine);
    let Some(serve) = matches_of(&matches, path) else {
        return Ok(Cli::from_arg_matches(&matches)?);
    };
    let needs_model = path != ["batch"] || serve.get_many::<String>("endpoint").is_none();
    if needs_model && !given(serve, MODEL) {
        return Err(missing_model(path, serve).into());
    }
    let mut cli = Cli::from_arg_matches(&matches)?;
    match &mut cli.command {
        Command::Serve(args) => {
            args.check(|field| given(serve, field))?;
            args.notes = notes;
        }
        Command::Batch(args) => {
            args.check(typed, |field| given(serve, field))?;
            args.model.iter_mut().for_each(|model| model.notes.append(&mut notes));
        }
        Command::Bench(BenchCommand::Throughput(args)) => {
            args.check(typed, |field| given(serve, field))?;
            args.model.notes = notes;
        }
        Command::Bench(BenchCommand::Latency(args)) => {
            args.check(typed, |field| given(serve, field))?;
            args.model.notes = notes;
        }
        _ => {}
    }
    Ok(cli)
}

/// The arguments of a command that was given.
fn matches_of<'a>(matches: &'a ArgMatches, path: &[&str]) -> Option<&'a ArgMatches> {
    path.iter().try_fold(matches, |matches, name| matches.subcommand_matches(name))
}

/// Changes a command below `command`.
fn with_command(command: Clap, path: &[&str], change: &dyn Fn(Clap) -> Clap) -> Clap {
    match path {
        [] => change(command),
        [name, rest @ ..] => command.mut_subcommand(name, |inner| with_command(inner, rest, change)),
    }
}

/// The whole command line for clap.
pub(crate) fn command() -> Clap {
    let directory = clap::Arg::new(DIRECTORY)
        .value_name("MODEL")
        .help("Directory or name of the model; the same as --model MODEL")
        .help_heading(None::<&str>)
        .value_parser(model());
    let with_model =
        |command: Clap| command.mut_arg(MODEL, |model| model.required(false)).arg(directory.clone());
    let command = WITH_SETTINGS.iter().fold(Cli::command(), |all, path| with_command(all, path, &with_model));
    command.mut_subcommand("serve", |serve| {
        serve.after_help(
            "Flags of vLLM, SGLang, TGI and llama.cpp's server for these settings are taken too, with \
             hyphens or underscores. For their other flags, the error says what to do instead.",
        )
    })
}

/// The command line, which ignores the variable `OCTANT_PORT` if Kubernetes has set it to the address of a
/// service named octant; and a note if it does.
fn without_service_links() -> (Clap, Vec<String>) {
    let command = command();
    let Some(link) = std::env::var("OCTANT_PORT").ok().filter(|value| value.starts_with("tcp://")) else {
        return (command, Vec::new());
    };
    let note = format!("OCTANT_PORT: not used: Kubernetes set it to `{link}` for a service named octant");
    let unset = |command: Clap| command.mut_arg("port", |port| port.env(None::<&'static str>));
    let command = WITH_SETTINGS.iter().fold(command, |all, path| with_command(all, path, &unset));
    (command, vec![note])
}

/// The directory without a flag, unless `--model` gives the same directory.
fn directory(serve: &ArgMatches, args: &[OsString]) -> Result<Option<PathBuf>, ConfigError> {
    let Some(directory) = serve.get_one::<PathBuf>(DIRECTORY) else { return Ok(None) };
    if serve.value_source(MODEL) != Some(ValueSource::CommandLine) {
        return Ok(Some(directory.clone()));
    }
    let model = serve.get_one::<PathBuf>(MODEL).unwrap_or(directory);
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.components().collect());
    if real(directory) == real(model) {
        return Ok(None);
    }
    if is_second_key(args, directory.as_os_str()) {
        return Err(ConfigError::new("--api-key", SEVERAL_KEYS));
    }
    let message = format!(
        "expected one model, got --model `{}` and the directory `{}`",
        model.display(),
        directory.display()
    );
    Err(ConfigError::new("--model", message))
}

fn missing_model(path: &[&str], serve: &ArgMatches) -> ConfigError {
    let names = serve.get_many::<String>("served_model_name").into_iter().flatten();
    let taken = match names.last() {
        Some(last) if Path::new(last).is_dir() => {
            format!("; `{last}` was read as a name for --served-model-name: write the directory first")
        }
        _ => String::new(),
    };
    let message = if path == ["batch"] {
        "missing; expected a directory or a name, octant batch IN OUT MODEL, or --endpoint URL".to_owned()
    } else {
        format!("missing; expected a directory or a name: octant {} MODEL{taken}", path.join(" "))
    };
    ConfigError::new("--model", message)
}

/// Settings from variables that are named after another spelling of their flag. Adds notes about variables
/// that are no setting.
fn other_variables(serve: &ArgMatches, settings: &Clap, notes: &mut Vec<String>) -> Vec<Appended> {
    let mut found: Vec<Appended> = Vec::new();
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let service_link = rest.starts_with("SERVICE_") || rest.starts_with("PORT_") || rest == "PORT";
        let known = settings.get_arguments().any(|arg| arg.get_env() == Some(OsStr::new(&name)));
        if known || service_link || rest == "LOG" {
            continue;
        }
        let Some(arg) = spellings::find(settings, &rest.to_lowercase().replace('_', "-")) else {
            notes.push(format!("{name}: not used: no setting has this variable"));
            continue;
        };
        let arg = flag(arg.get_long().unwrap_or_default(), &value);
        let setting = spellings::find(settings, &flag_name(&arg));
        let earlier = setting.is_some_and(|setting| given(serve, setting.get_id().as_str()));
        if !earlier && !found.iter().any(|own| same(&own.arg, &arg)) {
            found.push(Appended { place: name, arg });
        }
    }
    found
}

/// Whether a flag, a variable or the file gives the setting.
fn given(matches: &ArgMatches, field: &str) -> bool {
    matches.value_source(field).is_some_and(|source| source != ValueSource::DefaultValue)
}

fn flag(long: &str, value: &OsStr) -> OsString {
    let mut arg = OsString::from(format!("--{long}="));
    arg.push(value);
    arg
}

/// Long name of an argument `--flag` or `--flag=value`.
fn flag_name(arg: &OsStr) -> String {
    let text = arg.to_string_lossy();
    text.split('=').next().unwrap_or_default().trim_start_matches('-').to_owned()
}

/// Whether two arguments are for the same setting.
fn same(one: &OsStr, other: &OsStr) -> bool {
    flag_name(one) == flag_name(other)
}

/// Whether an argument may be a second key: it follows the value of `--api-key`, and neither it nor an
/// argument between them is a directory.
fn is_second_key(args: &[OsString], word: &OsStr) -> bool {
    let Some(at) = args.iter().rposition(|arg| arg == word) else { return false };
    let flag = args[..at].iter().rposition(|arg| arg.to_string_lossy().starts_with('-'));
    flag.is_some_and(|flag| {
        let first = if args[flag].to_string_lossy().contains('=') { flag + 1 } else { flag + 2 };
        let further = args.get(first..=at).unwrap_or_default();
        let directory = further.iter().any(|value| Path::new(value).is_dir());
        flag_name(&args[flag]) == "api-key" && !further.is_empty() && !directory
    })
}

/// Converts an error of clap about a setting of `command` to one that names the flag, variable or file that
/// gives the value. Help, and errors without a [`Sentence`], keep clap's text.
fn refused(error: clap::Error, command: &Clap, args: &[OsString], appended: &[Appended]) -> ParseError {
    let Some(Sentence { setting, message }) = clap_errors::sentence(&error, command) else {
        return error.into();
    };
    let name = OsStr::new(&setting);
    if error.kind() == ErrorKind::UnknownArgument && is_second_key(args, name) {
        return ConfigError::new("--api-key", SEVERAL_KEYS).into();
    }
    if let Some(Appended { place, .. }) = appended.iter().find(|appended| same(&appended.arg, name)) {
        return ConfigError::new(place, format!("{setting}: {message}")).into();
    }
    let typed = args.iter().any(|arg| same(arg, name));
    let variable = format!("{PREFIX}{}", flag_name(name).to_uppercase().replace('-', "_"));
    let from_variable = setting.starts_with('-') && !typed && std::env::var_os(&variable).is_some();
    ConfigError::new(if from_variable { variable } else { setting }, message).into()
}
