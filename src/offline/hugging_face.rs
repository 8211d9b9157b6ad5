//! `octant quantize`: from a Hugging Face directory of floats to one of E4M3.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::item::{Item, RowMap, Source};
use super::journal::{Identity, Input, hex};
use super::writer::{Beside, Contents, Output, REPORT, write};
use super::{Conversion, Converted, Granularity, OnProgress};
use crate::model::{self, Checkpoint, LoadError, ModelConfig, Object, Scheme, Stored};

/// The name of a model's configuration.
pub(super) const CONFIG: &str = "config.json";

/// A file beside the weights that is larger is taken for weights.
const SMALL: u64 = 64 << 20;

/// Endings of files of weights, and of what goes with them.
const WEIGHTS: [&str; 9] =
    [".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf"];

/// Quantises the linear weights of a Hugging Face directory of BF16, F16 or F32 to E4M3, with the scales that serving
/// would compute; writes them as compressed-tensors' `float-quantized` does, with activations scaled per token.
/// Embeddings, LM head and norms stay as they are stored.
///
/// # Errors
/// If the input is no model of floats that could be served, or has changed since a run that is gone on with, or if the
/// output is somebody else's.
pub fn quantize(conversion: &Conversion, on_progress: OnProgress<'_>) -> Result<Converted, LoadError> {
    let dir = conversion.input.as_path();
    let config = Object::read(&dir.join(CONFIG))?;
    let model = ModelConfig::from_object(dir, &config)?;
    if model.scheme != Scheme::None {
        let message = "expected a model of floats, got one that is quantised already";
        return Err(LoadError::config(&dir.join(CONFIG), "quantization_config", message));
    }
    let stored = Checkpoint::open(dir)?.stored();
    let items = items(dir, &model, &stored, conversion.granularity)?;
    let (beside, left_behind) = small_files(dir)?;
    let mut map = config.into_map();
    if let Some(granularity) = conversion.granularity {
        map.insert("quantization_config".to_owned(), quantization_config(granularity, model.reward));
    }
    let identity = Identity::new(settings("quantize", conversion), inputs(dir, &stored)?);
    let output = Output { items, identity, beside, config: Value::Object(map), left_behind };
    write(&output, conversion, on_progress)
}

/// The settings that the output's bytes depend on.
pub(super) fn settings(command: &str, conversion: &Conversion) -> Map<String, Value> {
    let scheme = conversion.granularity.map(Granularity::strategy);
    let settings = [
        ("command", json!(command)),
        ("scheme", json!(scheme)),
        ("shard-size", json!(conversion.shard_size)),
        ("tokenizer", json!(conversion.tokenizer)),
    ];
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What compressed-tensors, and vLLM with it, takes for E4M3 weights and E4M3 activations scaled per token.
pub(super) fn quantization_config(granularity: Granularity, reward: bool) -> Value {
    let ignore: &[&str] = if reward { &["lm_head", "rm_head"] } else { &["lm_head"] };
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "kv_cache_scheme": null,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": granularity.strategy(),
                    "symmetric": true,
                    "dynamic": false,
                },
                "input_activations": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "token",
                    "symmetric": true,
                    "dynamic": true,
                },
                "output_activations": null,
            },
        },
    })
}

/// Every stored tensor, in the order of the files. All that the model needs are there, and nothing that it does not know.
fn items(
    dir: &Path,
    config: &ModelConfig,
    stored: &[Stored],
    granularity: Option<Granularity>,
) -> Result<Vec<Item>, LoadError> {
    let mut expected: BTreeMap<String, model::Expected> =
        model::tensors(config).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut items = Vec::new();
    for tensor in stored {
        let error = |message: String| LoadError::tensor(&tensor.path, &tensor.name, message);
        let expected = expected.remove(&tensor.name);
        match &expected {
            Some(expected) if expected.shape != tensor.shape => {
                return Err(error(format!("expected shape {:?}, got {:?}", expected.shape, tensor.shape)));
            }
            None if !model::is_optional(&tensor.name, config) => {
                return Err(error(format!("not part of this model, shape {:?}", tensor.shape)));
            }
            _ => {}
        }
        if !matches!(tensor.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(error(format!("expected BF16, F16 or F32, got {:?}", tensor.dtype)));
        }
        let linear = expected.is_some_and(|tensor| tensor.linear);
        items.push(Item {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            granularity: granularity.filter(|_| linear),
            source: Source::File { path: tensor.path.clone(), offset: tensor.offset },
            rows: RowMap::ALL,
        });
    }
    match expected.keys().next() {
        Some(name) => Err(LoadError::tensor(dir, name, "missing from the checkpoint")),
        None => Ok(items),
    }
}

/// What tells this input from any other: the files of weights by size, time and layout, and the configuration.
fn inputs(dir: &Path, stored: &[Stored]) -> Result<BTreeMap<String, Input>, LoadError> {
    let mut layouts: BTreeMap<&Path, Sha256> = BTreeMap::new();
    for tensor in stored {
        let Stored { name, path, dtype, shape, offset } = tensor;
        layouts.entry(path).or_default().update(format!("{name} {dtype:?} {shape:?} {offset}\n"));
    }
    let mut inputs = BTreeMap::new();
    for (path, layout) in layouts {
        let meta = std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?;
        let name = path.strip_prefix(dir).unwrap_or(path).display().to_string();
        let layout = format!("{} bytes, {}", meta.len(), hex(&layout.finalize()));
        let mut input = Input { layout, ..Input::default() };
        input.add(meta.modified().map_err(|e| LoadError::io(path, e))?);
        inputs.insert(name, input);
    }
    let path = dir.join(CONFIG);
    let config = std::fs::read(&path).map_err(|e| LoadError::io(&path, e))?;
    inputs.insert(CONFIG.to_owned(), Input { layout: hex(&Sha256::digest(config)), ..Input::default() });
    Ok(inputs)
}

/// Files that go along as they are, and names of those that do not.
fn small_files(dir: &Path) -> Result<(Vec<Beside>, Vec<String>), LoadError> {
    let (mut small, mut left_behind) = (Vec::new(), Vec::new());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| LoadError::io(dir, e))? {
        paths.push(entry.map_err(|e| LoadError::io(dir, e))?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let meta = std::fs::metadata(&path).map_err(|e| LoadError::io(&path, e))?;
        let read = name.ends_with(".safetensors") || name.ends_with(".index.json");
        if read || name == CONFIG || name == REPORT || name.starts_with('.') {
            continue;
        }
        let weights = WEIGHTS.iter().any(|ending| name.ends_with(ending));
        if meta.is_file() && meta.len() <= SMALL && !weights {
            small.push(Beside { name, contents: Contents::Of(path) });
        } else {
            left_behind.push(name);
        }
    }
    Ok((small, left_behind))
}
