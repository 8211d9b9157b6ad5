//! Names of models on the hub: `ORG/NAME`, with `@REVISION` for another revision than `main`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::error::HubError;

/// Beginnings of a model's address on Hugging Face.
const SITES: [&str; 5] = [
    "https://huggingface.co/",
    "https://www.huggingface.co/",
    "http://huggingface.co/",
    "https://hf.co/",
    "hf://",
];
/// The revision of a name without one.
pub(super) const MAIN: &str = "main";
/// Most characters of an organisation, a name or a revision.
const MAX_CHARACTERS: usize = 96;

/// A model on the hub at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelName {
    /// `ORG/NAME`.
    pub(crate) id: String,
    /// A branch, a tag, a pull request's ref or a commit.
    pub(crate) revision: String,
}

impl ModelName {
    /// Reads a name from what an operator gave as a model. `None` if it is a path: it exists, it is absolute,
    /// it begins with `.` or `~`, it ends with `/`, or it does not have two parts.
    ///
    /// # Errors
    /// If it has the form of a name and is none, as expected versus got.
    pub(crate) fn from_path(path: &Path) -> Result<Option<Self>, HubError> {
        let absent = matches!(fs::symlink_metadata(path), Err(error) if error.kind() == ErrorKind::NotFound);
        let Some(text) = path.to_str().filter(|_| absent) else { return Ok(None) };
        match SITES.iter().find_map(|site| text.strip_prefix(site)) {
            Some(rest) => Self::from_address(rest).map(Some),
            None if is_path(text) => Ok(None),
            None => Self::from_text(text).map(Some),
        }
    }

    /// Reads the rest of an address, such as `ORG/NAME/tree/REVISION`.
    fn from_address(rest: &str) -> Result<Self, HubError> {
        let rest = rest.trim_end_matches('/');
        match rest.split_once("/tree/") {
            Some((id, revision)) => Self::from_text(&format!("{id}@{revision}")),
            None => Self::from_text(rest),
        }
    }

    fn from_text(text: &str) -> Result<Self, HubError> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let is_valid = id.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name));
        if !is_valid || id.ends_with(".git") {
            return Err(HubError::fatal(format!(
                "expected a directory, or a model's name ORG/NAME[@REVISION] in which ORG and NAME are \
                 letters, digits, `-`, `_` and `.`, got `{text}`, which is neither"
            )));
        }
        if !is_revision(revision) {
            return Err(HubError::fatal(format!(
                "expected a branch, a tag or a commit behind `{id}@`, got {}",
                if revision.is_empty() { "nothing".to_owned() } else { format!("`{revision}`") }
            )));
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// Whether the revision is a whole commit hash, which never names other files.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// The name as the operator gives it.
impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// Whether a text that names no file is still a path rather than a name.
fn is_path(text: &str) -> bool {
    let id = text.split('@').next().unwrap_or(text);
    let starts = ["/", "./", "../", "~"].iter().any(|start| text.starts_with(start));
    starts || id.matches('/').count() != 1 || id.ends_with('/') || text.contains("://")
}

/// Whether the hub allows this organisation's or model's name.
fn is_part(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(ends)
        && text.ends_with(ends)
        && text.len() <= MAX_CHARACTERS
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether Git allows this name of a revision. It also becomes a path within the cache.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock") && !part.ends_with('.')
    };
    text.len() <= MAX_CHARACTERS
        && text.split('/').all(part)
        && !text.contains("..")
        && text.chars().all(|c| !c.is_control() && !" ~^:?*[\\".contains(c))
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

pub(super) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
