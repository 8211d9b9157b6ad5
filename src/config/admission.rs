//! The settings of admission: who waits for whom, and who is refused.

use std::path::Path;

use serde::Deserialize;

use super::{ConfigError, ServeArgs, api_key};

/// Who waits for whom, and who is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// Predicted seconds to a first token, at most.
    pub max_ttft: Option<f64>,
    /// Steps of waiting per priority; 0 is never.
    pub ageing_steps: u64,
    /// Of one sequence, at most.
    pub max_preemptions: u32,
    /// Of the blocks that a sequence may grow by; from 0 to 1.
    pub kv_reserve: f32,
    /// Each a tenant.
    pub keys: Vec<ApiKey>,
}

/// A client's key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// For logs.
    pub name: String,
    /// What the client sends.
    pub key: String,
    /// Of its share of the server, where others wait too.
    #[serde(default = "one")]
    pub weight: u32,
    /// Added to that of its requests, which is not below 0.
    #[serde(default)]
    pub priority: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: Vec<ApiKey>,
}

fn one() -> u32 {
    1
}

/// Whether two of these numbers make sense, if they are given.
pub(super) fn check(max_ttft: Option<f64>, kv_reserve: Option<f32>) -> Result<(), ConfigError> {
    if let Some(bad) = max_ttft.filter(|seconds| !(*seconds > 0.0 && *seconds <= 1e9)) {
        return Err(ConfigError::new("--max-ttft", format!("expected seconds above 0, got {bad}")));
    }
    if let Some(bad) = kv_reserve.filter(|share| !(0.0..=1.0).contains(share)) {
        return Err(ConfigError::new("--kv-reserve", format!("expected from 0 to 1, got {bad}")));
    }
    Ok(())
}

/// What the arguments say, with the file of keys that they name.
pub(super) fn admission(args: &ServeArgs) -> Result<Admission, ConfigError> {
    check(args.max_ttft, args.kv_reserve)?;
    Ok(Admission {
        max_ttft: args.max_ttft,
        ageing_steps: args.ageing_steps.unwrap_or(1000),
        max_preemptions: args.max_preemptions.unwrap_or(3),
        kv_reserve: args.kv_reserve.unwrap_or(0.0),
        keys: args.api_keys.as_deref().map(keys).transpose()?.unwrap_or_default(),
    })
}

fn keys(path: &Path) -> Result<Vec<ApiKey>, ConfigError> {
    let wrong = |message: String| ConfigError::new(format!("--api-keys: {}", path.display()), message);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    // The parser's own message would quote a line of the file, and with it a key.
    let file: KeyFile = toml::from_str(&text).map_err(|e| {
        let at = e.span().map_or(0, |span| text[..span.start].lines().count()).max(1);
        wrong(format!("line {at}: expected tables [[keys]] with name, key, weight and priority"))
    })?;
    if file.keys.is_empty() {
        return Err(wrong("expected at least one key".to_owned()));
    }
    for (i, key) in file.keys.iter().enumerate() {
        let name = &key.name;
        if name.is_empty() || name.len() > 64 {
            return Err(wrong(format!("key {}: expected a name of 1 to 64 bytes", i + 1)));
        }
        if !(1..=1000).contains(&key.weight) {
            return Err(wrong(format!("{name}: expected a weight from 1 to 1000, got {}", key.weight)));
        }
        api_key(key.key.clone())
            .map_err(|_| wrong(format!("{name}: expected a key of visible ASCII characters")))?;
        if let Some(twin) = file.keys[..i].iter().find(|other| other.name == *name || other.key == key.key) {
            return Err(wrong(format!("{name}: its name or key is also that of {}", twin.name)));
        }
    }
    Ok(file.keys)
}
