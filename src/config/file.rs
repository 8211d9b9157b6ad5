//! The TOML file of `octant serve --config`, below the command line and the environment.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::{Arg, Command};

use super::api_keys::SEVERAL_KEYS;
use super::{ConfigError, Size, clap_errors, other_servers, spellings};

/// Arguments for the settings of the file, without those `given` by a flag or a variable. Keys have the same
/// spellings as flags.
///
/// # Errors
/// Names the file, and the key if there is one.
pub(super) fn file_args(
    path: &Path,
    settings: &Command,
    given: impl Fn(&str, &OsStr) -> bool,
) -> Result<Vec<OsString>, ConfigError> {
    let wrong = |message: String| ConfigError::new(path.display(), message);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let expected = if yaml { "expected TOML, such as `max-model-len = 4096`, got YAML?\n" } else { "" };
        wrong(format!("{expected}{}", error.to_string().trim_end()))
    })?;
    let mut args: Vec<OsString> = Vec::new();
    let mut seen: Vec<(&str, &String)> = Vec::new();
    for (key, value) in &table {
        let spelled = key.replace('_', "-");
        let arg = spellings::find(settings, &spelled).filter(|arg| arg.get_id() != "config");
        let arg = arg.ok_or_else(|| wrong(unknown(key, &spelled, settings)))?;
        let long = arg.get_long().unwrap_or_default();
        if let Some((_, twin)) = seen.iter().find(|(other, _)| *other == long) {
            return Err(wrong(format!("{twin} and {key}: both are --{long}; expected one of them")));
        }
        seen.push((long, key));
        let value = text_of(value, arg).map_err(|message| wrong(format!("{key}: {message}")))?;
        let flag = OsString::from(format!("--{long}={value}"));
        if given(arg.get_id().as_str(), &flag) {
            // Not used, but a wrong value in the file is still an error.
            let alone = Command::new("serve").arg(arg.clone().required(false));
            let parsed = alone.try_get_matches_from([OsStr::new("serve"), &flag]);
            parsed.map_err(|error| wrong(clap_errors::text(&error, settings)))?;
        } else {
            args.push(flag);
        }
    }
    Ok(args)
}

/// The message for a key that is no setting.
fn unknown(key: &str, spelled: &str, settings: &Command) -> String {
    let advice = match other_servers::find(spelled).map(|flag| flag.judge("")) {
        Some(Err(sentence)) => format!(": {sentence}"),
        Some(Ok(note)) => format!(": {note}; leave it out"),
        None if spelled == "config" => "; a file cannot name another file".to_owned(),
        None => clap_errors::advice(spelled, "", settings).unwrap_or_default(),
    };
    format!("unknown field `{key}`{advice}")
}

/// A TOML value as the text of a flag's value. A flag with a list of values needs an array; every other flag
/// needs a value of its own type.
fn text_of(value: &toml::Value, arg: &Arg) -> anyhow::Result<String> {
    match value {
        toml::Value::Array(values) if arg.get_value_delimiter().is_some() => {
            let texts: Vec<String> =
                values.iter().map(|value| scalar_text(value, arg)).collect::<anyhow::Result<_>>()?;
            match texts.iter().find(|text| text.contains(',')) {
                Some(text) => bail!("expected items without a comma, got `{text}`"),
                None => Ok(texts.join(",")),
            }
        }
        toml::Value::Array(_) if arg.get_id() == "api_key" => bail!(SEVERAL_KEYS),
        other if arg.get_value_delimiter().is_some() => bail!("expected an array, got {}", other.type_str()),
        scalar => scalar_text(scalar, arg),
    }
}

/// The text of a value that is no array. Numbers and booleans must have the type that the flag parses to.
fn scalar_text(value: &toml::Value, arg: &Arg) -> anyhow::Result<String> {
    let parsed = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|id| parsed == *id);
    let integer = is(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]);
    let float = is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]);
    let boolean = is(&[TypeId::of::<bool>()]);
    // A number, or text with a unit.
    let with_unit = is(&[TypeId::of::<Size>(), TypeId::of::<Duration>()]);
    let expected = match () {
        () if integer => "an integer",
        () if float => "a number",
        () if boolean => "a boolean",
        () if with_unit => "an integer or a string",
        () => "a string",
    };
    match value {
        toml::Value::String(text) if !integer && !float && !boolean => Ok(text.clone()),
        toml::Value::Integer(value) if integer || float || with_unit => Ok(value.to_string()),
        toml::Value::Float(value) if float => Ok(value.to_string()),
        toml::Value::Boolean(value) if boolean => Ok(value.to_string()),
        other => bail!("expected {expected}, got {}", other.type_str()),
    }
}
