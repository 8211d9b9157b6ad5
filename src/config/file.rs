//! The TOML file of `octant serve --config`, below the command line and the environment.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches};

use super::{Cli, Command, ConfigError, LogArgs, ParseError, ServeArgs, Size};

/// The required flag of `octant serve`, which the file may give.
const MODEL: &str = "model";

/// Parses the command line, the environment, and for `octant serve` the file of `--config`. Prints nothing.
///
/// A setting of the file that neither a flag nor a variable gives is appended to the arguments as
/// `--key=value`, so that every value goes through the flag's own parser.
///
/// # Errors
/// Names the flag, or the file and its key. `--help` and `--version` are errors too.
pub fn parse() -> Result<Cli, ParseError> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let without_required =
        Cli::command().mut_subcommand("serve", |serve| serve.mut_arg(MODEL, |model| model.required(false)));
    let matches = without_required.try_get_matches_from(&args)?;
    let Some(serve) = matches.subcommand_matches("serve") else {
        return Ok(Cli::from_arg_matches(&matches)?);
    };
    let file = serve.get_one::<PathBuf>("config");
    if let Some(path) = file {
        args.extend(file_args(path, serve)?);
    }
    // The first pass has accepted every flag and variable, so that an error here is the file's.
    let matches = Cli::command().try_get_matches_from(args).map_err(|error| match (error.kind(), file) {
        (ErrorKind::MissingRequiredArgument, _) => {
            ConfigError::new("--model", "missing; expected a directory").into()
        }
        (_, Some(path)) => ConfigError::new(path.display(), first_paragraph(&error)).into(),
        (_, None) => ParseError::from(error),
    })?;
    let cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Serve(args), Some(serve)) = (&cli.command, matches.subcommand_matches("serve")) {
        args.check(|field| given(serve, field))?;
    }
    Ok(cli)
}

/// Whether a flag or a variable gives the setting.
fn given(matches: &ArgMatches, field: &str) -> bool {
    matches.value_source(field).is_some_and(|source| source != ValueSource::DefaultValue)
}

/// Arguments for the settings of the file that `matches` does not give.
fn file_args(path: &Path, matches: &ArgMatches) -> Result<Vec<OsString>, ConfigError> {
    let wrong = |message: String| ConfigError::new(path.display(), message);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    let serve = LogArgs::augment_args(ServeArgs::augment_args(clap::Command::new("serve")));
    let mut args = Vec::new();
    for (key, value) in &table {
        let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(key) && key != "config");
        let arg = arg.ok_or_else(|| wrong(format!("unknown field `{key}`")))?;
        let value = text_of(value, arg).map_err(|message| wrong(format!("{key}: {message}")))?;
        let flag = format!("--{key}={value}");
        if given(matches, arg.get_id().as_str()) {
            // Not used, but a wrong value in the file is still an error.
            let alone = serve.clone().mut_arg(MODEL, |model| model.required(false));
            alone.try_get_matches_from(["serve", &flag]).map_err(|error| wrong(first_paragraph(&error)))?;
        } else {
            args.push(flag.into());
        }
    }
    Ok(args)
}

/// A TOML value as the flag's text. A flag that takes a list needs an array, any other a value of its own
/// type.
fn text_of(value: &toml::Value, arg: &Arg) -> anyhow::Result<String> {
    match value {
        toml::Value::Array(values) if arg.get_value_delimiter().is_some() => {
            let texts: Vec<String> =
                values.iter().map(|value| scalar_text(value, arg)).collect::<anyhow::Result<_>>()?;
            ensure!(texts.iter().all(|text| !text.contains(',')), "expected items without a comma");
            Ok(texts.join(","))
        }
        other if arg.get_value_delimiter().is_some() => bail!("expected an array, got {}", other.type_str()),
        scalar => scalar_text(scalar, arg),
    }
}

/// The text of a value that is no array. Numbers and booleans must have the type that the flag parses to.
fn scalar_text(value: &toml::Value, arg: &Arg) -> anyhow::Result<String> {
    let parsed = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|id| parsed == *id);
    let integer = is(&[
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        // Whole seconds.
        TypeId::of::<Duration>(),
    ]);
    let float = is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]);
    let (boolean, size) = (is(&[TypeId::of::<bool>()]), is(&[TypeId::of::<Size>()]));
    let expected = match () {
        () if integer => "an integer",
        () if float => "a number",
        () if boolean => "a boolean",
        () if size => "an integer or a string",
        () => "a string",
    };
    match value {
        toml::Value::String(text) if !integer && !float && !boolean => Ok(text.clone()),
        toml::Value::Integer(value) if integer || float || size => Ok(value.to_string()),
        toml::Value::Float(value) if float => Ok(value.to_string()),
        toml::Value::Boolean(value) if boolean => Ok(value.to_string()),
        other => bail!("expected {expected}, got {}", other.type_str()),
    }
}

/// clap's message without its prefix and its hint about `--help`.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}
