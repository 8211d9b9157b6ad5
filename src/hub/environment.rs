//! The settings of Hugging Face's own libraries, from the variables that they read.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{HubError, text_of};
use crate::http_client::{CertificateFile, path_of};

/// The hub without `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";
/// Time without a byte after which a connection counts as broken.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where models come from and where they are stored.
#[derive(Debug, Clone)]
pub(crate) struct HubSettings {
    /// Address of the hub, without a slash at its end.
    pub(super) endpoint: String,
    /// The directory that holds `models--ORG--NAME`.
    pub(super) cache: PathBuf,
    pub(super) token: Option<Token>,
    /// The variable that forbids the network.
    pub(super) offline: Option<&'static str>,
    /// Time without a byte after which a connection counts as broken.
    pub(super) timeout: Duration,
    /// The file of root certificates, if a variable names one.
    pub(super) certificates: Option<CertificateFile>,
}

/// An access token and its place.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) secret: String,
    /// The variable or file that it was read from.
    pub(super) from: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.from)
    }
}

impl HubSettings {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// Names the variable, expected and got.
    pub(crate) fn from_environment() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let is_on = |name: &str| {
            let value = text(name).unwrap_or_default().to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let user = variable("HOME").map(PathBuf::from);
        let path = |name: &str| path_of(variable, name);
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let Some(cache) = cache else {
            let message = "HOME: not set; expected it, HF_HOME or HF_HUB_CACHE for the cache of downloads";
            return Err(HubError::fatal(message));
        };
        let token = match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => token(&text, path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token"))))?,
        };
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT"))?,
            cache,
            token,
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| is_on(name)),
            timeout: timeout(text("HF_HUB_DOWNLOAD_TIMEOUT"))?,
            certificates: CertificateFile::named_by(&path),
        })
    }
}

fn endpoint(text: Option<String>) -> Result<String, HubError> {
    let Some(text) = text else { return Ok(ENDPOINT.to_owned()) };
    let is_url = ["http://", "https://"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|host| !host.trim_matches('/').is_empty()));
    if !is_url || text.contains(|c: char| c.is_whitespace() || c.is_control() || "?#".contains(c)) {
        let message = format!("HF_ENDPOINT: expected https://HOST or http://HOST, got `{text}`");
        return Err(HubError::fatal(message));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn timeout(text: Option<String>) -> Result<Duration, HubError> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let seconds = text.parse::<u64>().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let message = format!("HF_HUB_DOWNLOAD_TIMEOUT: expected seconds from 1 to 86400, got `{text}`");
        HubError::fatal(message)
    })
}

/// The token of the environment, else that of the file which `hf auth login` writes.
fn token(text: &dyn Fn(&str) -> Option<String>, file: Option<PathBuf>) -> Result<Option<Token>, HubError> {
    let variable = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .into_iter()
        .find_map(|name| Some((name.to_owned(), text(name)?)));
    let Some((from, secret)) =
        variable.map_or_else(|| from_file(file.as_deref()), |found| Ok(Some(found)))?
    else {
        return Ok(None);
    };
    if secret.is_empty() {
        return Ok(None);
    }
    // The value is a secret, so the message does not quote it.
    if !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(HubError::fatal(format!("{from}: expected a token in visible ASCII characters")));
    }
    Ok(Some(Token { secret, from }))
}

/// The path and the trimmed text of a token's file, if there is one.
fn from_file(file: Option<&Path>) -> Result<Option<(String, String)>, HubError> {
    let Some(path) = file else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.display().to_string(), text.trim().to_owned()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(HubError::fatal(format!("{}: the token cannot be read: {}", path.display(), text_of(&error))))
        }
    }
}
