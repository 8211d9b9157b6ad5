//! Model directories as operators name them: what is wrong with one that cannot be a model's, in one
//! sentence.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::error::LoadError;

/// Files that a model directory must have.
const EXPECTED: &str = "expected a Hugging Face directory with config.json, *.safetensors and tokenizer.json";

/// Checks that a path is a directory that can be read.
///
/// # Errors
/// Says what the path is instead, and what to do about it.
pub(crate) fn check_directory(dir: &Path) -> Result<(), LoadError> {
    let wrong = |message: String| Err(LoadError::file(dir, message));
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return wrong(about_file(dir)),
        Err(error) if error.kind() == ErrorKind::NotFound => return wrong(about_missing(dir)),
        Err(error) => return wrong(about_unreadable(&error)),
    }
    match fs::read_dir(dir) {
        Ok(_) => Ok(()),
        Err(error) => wrong(about_unreadable(&error)),
    }
}

/// Checks that a path is a directory with a `config.json` that can be read.
///
/// # Errors
/// The same as those of [`check_directory`].
pub(crate) fn check_model_directory(dir: &Path) -> Result<(), LoadError> {
    check_directory(dir)?;
    let config = dir.join("config.json");
    match fs::File::open(&config) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => match dangling(&config) {
            Some(message) => Err(LoadError::file(&config, message)),
            None => Err(LoadError::file(dir, without_config(dir))),
        },
        Err(error) => Err(LoadError::file(&config, about_unreadable(&error))),
    }
}

/// The sentence about a path that does not exist.
fn about_missing(dir: &Path) -> String {
    if let Some(message) = dangling(dir) {
        return message;
    }
    let text = dir.to_string_lossy();
    if text.contains("://") {
        return "expected a local directory or ORG/NAME on Hugging Face, got a URL".to_owned();
    }
    if text.starts_with('~') {
        return "no such directory: the shell did not replace `~`; write the whole path".to_owned();
    }
    let hint = match text.contains('/') {
        true => "",
        false => "; a model on Hugging Face is named ORG/NAME",
    };
    match std::env::current_dir() {
        Ok(current) if dir.is_relative() => format!("no such directory in {}{hint}", current.display()),
        _ => "no such directory".to_owned(),
    }
}

/// The sentence about a symbolic link whose target does not exist; `None` if the path is none.
fn dangling(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let advice = if target.components().any(|part| part.as_os_str() == "blobs") {
        "; copy the files themselves, as `hf download ORG/NAME --local-dir DIR` does"
    } else {
        ""
    };
    Some(format!("a symbolic link to {}, which does not exist{advice}", target.display()))
}

/// The sentence about a file in place of a directory.
fn about_file(path: &Path) -> String {
    let mut magic = [0; 4];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if has_extension(path, "gguf") || (read.is_ok() && magic == *b"GGUF") {
        return format!("a GGUF file, which Octant does not read; {EXPECTED}");
    }
    if has_extension(path, "nemo") {
        return "a .nemo archive; unpack it with tar, convert it with `octant import-nemo IN OUT`, and serve \
                OUT"
            .to_owned();
    }
    match path.parent().filter(|parent| parent.join("config.json").is_file()) {
        Some(parent) if parent.as_os_str().is_empty() => "a file; give its directory: .".to_owned(),
        Some(parent) => format!("a file; give its directory: {}", parent.display()),
        None => format!("a file; {EXPECTED}"),
    }
}

fn about_unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            format!("permission denied: the user of this process, {user}, cannot read it")
        }
        _ => format!("cannot be read: {error}"),
    }
}

/// The sentence about a directory without `config.json`.
fn without_config(dir: &Path) -> String {
    let entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    let is = |name: &str| entries.iter().any(|path| path.file_name().is_some_and(|own| own == name));
    if entries.is_empty() {
        return format!("an empty directory; {EXPECTED}");
    }
    if is("snapshots") {
        let found = below(&dir.join("snapshots"));
        let example = found.first().map_or(String::new(), |path| format!(": {}", path.display()));
        return format!("a directory of Hugging Face's cache; give the one in its snapshots{example}");
    }
    if is("model_config.yaml") {
        return "a NeMo directory; convert it with `octant import-nemo IN OUT`, and serve OUT".to_owned();
    }
    if entries.iter().any(|path| has_extension(path, "gguf")) {
        return format!("GGUF files without config.json, which Octant does not read; {EXPECTED}");
    }
    match &below(dir)[..] {
        [only] => format!("no config.json here; there is one in {}", only.display()),
        _ => format!("no config.json here; {EXPECTED}"),
    }
}

/// Directories in a directory that have a `config.json`, in order.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = entries.filter(|path| path.join("config.json").is_file()).collect();
    found.sort();
    found
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension))
}
