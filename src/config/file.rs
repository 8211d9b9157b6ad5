//! The TOML file of `octant serve --config`, below the command line and the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches};

use super::{Cli, Command, ConfigError, ServeArgs};

/// The required flag of `octant serve`, which the file may give.
const MODEL: &str = "model";

/// Parses the command line, the environment, and for `octant serve` the file of `--config`. Prints help and
/// exits for `--help`; prints the error and exits with status 2 for an invalid flag or variable.
///
/// A setting of the file that neither a flag nor a variable gives is appended to the arguments as
/// `--key=value`, so that every value goes through the flag's own parser.
///
/// # Errors
/// Names the flag, or the file and its key.
pub fn parse() -> Result<Cli, ConfigError> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let without_required =
        Cli::command().mut_subcommand("serve", |serve| serve.mut_arg(MODEL, |model| model.required(false)));
    let matches = without_required.get_matches_from(&args);
    let Some(serve) = matches.subcommand_matches("serve") else {
        return Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()));
    };
    let file = serve.get_one::<PathBuf>("config");
    if let Some(path) = file {
        args.extend(file_args(path, serve)?);
    }
    // The first pass has accepted every flag and variable, so that an error here is the file's.
    let matches = Cli::command().try_get_matches_from(args).map_err(|error| match (error.kind(), file) {
        (ErrorKind::MissingRequiredArgument, _) => {
            ConfigError::new("--model", "missing; expected a directory")
        }
        (_, Some(path)) => ConfigError::new(path.display(), first_paragraph(&error)),
        (_, None) => error.exit(),
    })?;
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
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
    let serve = ServeArgs::augment_args(clap::Command::new("serve"));
    let mut args = Vec::new();
    for (key, value) in &table {
        let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(key) && key != "config");
        let arg = arg.ok_or_else(|| wrong(format!("unknown field `{key}`")))?;
        let value = text_of(value, arg).map_err(|message| wrong(format!("{key}: {message}")))?;
        if !given(matches, arg.get_id().as_str()) {
            args.push(format!("--{key}={value}").into());
        }
    }
    Ok(args)
}

/// A TOML value as the flag's text. Only flags that take lists accept an array.
fn text_of(value: &toml::Value, arg: &Arg) -> anyhow::Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(value) => Ok(value.to_string()),
        toml::Value::Float(value) => Ok(value.to_string()),
        toml::Value::Boolean(value) => Ok(value.to_string()),
        toml::Value::Array(values) if arg.get_value_delimiter().is_some() => {
            let scalar = |value: &toml::Value| match value {
                toml::Value::Array(_) => bail!("expected a list of strings or numbers"),
                scalar => text_of(scalar, arg),
            };
            Ok(values.iter().map(scalar).collect::<anyhow::Result<Vec<_>>>()?.join(","))
        }
        other => bail!("expected a string, number or boolean, got {}", other.type_str()),
    }
}

/// clap's message without its prefix and its hint about `--help`.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}
