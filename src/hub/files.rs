//! Which files of a repository a model needs: its configuration, its tokenizer and its safetensors. Pickles
//! are never among them.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::HubError;
use super::name::ModelName;

pub(super) const CONFIG: &str = "config.json";
/// The file that names the files of a checkpoint in several.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// A checkpoint in one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Files about the architecture.
const CONFIGURATION: [&str; 3] = [CONFIG, "generation_config.json", "hf_quant_config.json"];
/// Files of tokenizers and chat templates. Octant reads some; the others are for programs that use the same
/// cache.
const TOKENIZER: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];
/// Endings of weights in other formats.
const OTHER_WEIGHTS: [&str; 9] =
    [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".nemo", ".h5", ".msgpack", ".safetensors"];
/// Most files of one checkpoint.
const MAX_SHARDS: usize = 100_000;

/// The part of a model that a command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The architecture.
    Configuration,
    /// All but the weights.
    WithoutWeights,
    /// Everything.
    Model,
}

/// The small files of a part, as far as the repository has them. The index of the weights is one of them.
///
/// # Errors
/// If the repository holds no model that Octant reads.
pub(super) fn small_files(
    listed: &[String],
    part: Part,
    name: &ModelName,
) -> Result<Vec<&'static str>, HubError> {
    let has = |file: &str| listed.iter().any(|known| known == file);
    if !has(CONFIG) {
        return Err(HubError::fatal(without_config(listed, name)));
    }
    let mut wanted: Vec<&'static str> = CONFIGURATION.to_vec();
    if part != Part::Configuration {
        wanted.extend(TOKENIZER);
    }
    if part == Part::Model {
        if !has(INDEX) && !has(SINGLE) {
            return Err(HubError::fatal(without_weights(listed)));
        }
        wanted.push(INDEX);
    }
    wanted.retain(|file| has(file));
    Ok(wanted)
}

/// The files that an index of weights names, in order.
///
/// # Errors
/// If it is no index, or a name is not that of a safetensors file in the same directory or below it.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
        #[serde(flatten)]
        _others: std::collections::BTreeMap<String, IgnoredAny>,
    }
    let wrong = |text: String| HubError::fatal(format!("{INDEX}: {text}"));
    let index: Index = serde_json::from_slice(index).map_err(|error| wrong(error.to_string()))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        let got = files.len();
        return Err(wrong(format!("`weight_map`: expected from 1 to {MAX_SHARDS} files, got {got}")));
    }
    match files.iter().find(|file| !is_shard(file)) {
        Some(file) => {
            Err(wrong(format!("`weight_map`: expected *.safetensors beside the index, got {file:?}")))
        }
        None => Ok(files.into_iter().collect()),
    }
}

/// Whether a name of a file stays within its snapshot and ends in `.safetensors`.
fn is_shard(file: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    file.ends_with(".safetensors")
        && file.len() <= 512
        && file.split('/').all(part)
        && !file.contains(|c: char| c.is_control() || c == '\\')
}

fn without_config(listed: &[String], name: &ModelName) -> String {
    let nemo = |file: &String| file.ends_with(".nemo") || file.ends_with("model_config.yaml");
    if listed.iter().any(nemo) {
        return format!(
            "a NeMo repository without {CONFIG}: run `hf download {} --local-dir IN`, convert it with \
             `octant import-nemo IN OUT`, and serve OUT",
            name.id
        );
    }
    if listed.iter().any(|file| file.ends_with(".gguf")) {
        return format!("a repository of GGUF files without {CONFIG}, which Octant does not read");
    }
    format!("no {CONFIG} in the repository; expected {CONFIG}, *.safetensors and tokenizer.json")
}

fn without_weights(listed: &[String]) -> String {
    let other = |file: &&String| OTHER_WEIGHTS.iter().any(|ending| file.ends_with(ending));
    let others: Vec<&str> = listed.iter().filter(other).take(3).map(String::as_str).collect();
    let got = if others.is_empty() { "no weights".to_owned() } else { others.join(", ") };
    format!("expected weights in {SINGLE} or in the files that {INDEX} names, got {got}")
}
