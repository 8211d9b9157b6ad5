//! The file of `--api-keys`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};
use serde::Deserialize;

/// The message for several values of `--api-key`. It quotes none of them.
pub(super) const SEVERAL_KEYS: &str = "expected one key, got several; --api-keys FILE takes several keys, \
                                       each in a table [[keys]] with name and key";

/// One client's key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiKey {
    /// Name for logs and metrics, 1 to 64 bytes.
    pub(crate) name: String,
    /// The secret that the client sends.
    pub(crate) key: String,
    /// Weight, 1 to 1000: while requests wait, keys are served in proportion to their weights.
    #[serde(default = "default_weight")]
    pub(crate) weight: u32,
    /// Added to the priority of each request of this key. With `--api-keys`, a request's own priority must
    /// be at least 0.
    #[serde(default)]
    pub(crate) priority: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: Vec<ApiKey>,
}

fn default_weight() -> u32 {
    1
}

/// Whether `key` consists of visible ASCII characters, at least one.
pub(super) fn is_valid(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic())
}

/// Reads and validates the keys. No error text contains a key.
pub(super) fn read(path: &Path) -> anyhow::Result<Arc<[ApiKey]>> {
    let text = std::fs::read_to_string(path).map_err(|e| anyhow!("cannot read {}: {e}", path.display()))?;
    // The TOML parser's own message quotes a line of the file, which may hold a key.
    let KeyFile { mut keys } = toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(0, |span| text[..span.start].lines().count()).max(1);
        anyhow!("line {line}: expected tables [[keys]] with name and key, and optionally weight and priority")
    })?;
    ensure!(!keys.is_empty(), "expected at least one key");
    for ApiKey { name, key, .. } in &mut keys {
        (*name, *key) = (name.trim().to_owned(), key.trim().to_owned());
    }
    for (i, ApiKey { name, key, weight, .. }) in keys.iter().enumerate() {
        ensure!(
            (1..=64).contains(&name.len()),
            "key {}: expected a name of 1 to 64 bytes, got {}",
            i + 1,
            name.len()
        );
        ensure!((1..=1000).contains(weight), "{name}: expected a weight from 1 to 1000, got {weight}");
        ensure!(
            is_valid(key),
            "{name}: expected a key of visible ASCII characters, got other characters or none"
        );
        if let Some(twin) = keys[..i].iter().find(|other| other.name == *name || other.key == *key) {
            bail!("{name}: its name or key is also that of {}", twin.name);
        }
    }
    Ok(keys.into())
}
