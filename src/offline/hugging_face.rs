//! `octant quantize`: converts a Hugging Face checkpoint in BF16, F16 or F32 to one in E4M3.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::conversion::{Conversion, Converted, OnProgress};
use super::granularity::Granularity;
use super::identity::{ConversionIdentity, InputState, hex};
use super::output_weight::{OutputWeight, WeightSource};
use super::row_map::RowMap;
use super::writer::{CONFIG, ConversionOutput, FileContents, REPORT, SmallFile, write};
use crate::model::{
    self, Checkpoint, LoadError, ModelConfig, Object, RewardHead, Scheme, Stored, check_model_directory,
};

/// Largest file that is copied beside the weights, in bytes; a larger one is taken for weights.
const MAX_SMALL_FILE_BYTES: u64 = 64 << 20;

/// Endings of weight files and their indexes, which are not copied.
const WEIGHT_ENDINGS: [&str; 9] =
    [".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf"];

/// Quantises the linear weights of a Hugging Face checkpoint in BF16, F16 or F32 to E4M3, with the scales
/// that serving would compute on load. Writes the `float-quantized` format of compressed-tensors with
/// activations scaled per token. Embeddings, LM head, reward head and norms are copied as they are stored.
///
/// # Errors
/// If the input is not a supported unquantised model, an element is not finite, the input or the settings
/// have changed since the run that is continued, or the output directory holds other files.
pub fn quantize(conversion: &Conversion, on_progress: OnProgress<'_>) -> Result<Converted, LoadError> {
    let dir = conversion.input.as_path();
    check_model_directory(dir)?;
    let config = Object::read(&dir.join(CONFIG))?;
    let model = ModelConfig::from_object(dir, &config)?;
    if model.scheme != Scheme::None {
        let message = "expected BF16, F16 or F32 weights, got a model that is quantised already";
        return Err(LoadError::config(&dir.join(CONFIG), "quantization_config", message));
    }
    let stored = Checkpoint::open(dir)?.stored();
    let weights = output_weights(dir, &model, &stored, conversion.granularity)?;
    let (small_files, not_copied) = small_files(dir)?;
    let mut map = config.into_map();
    if let Some(granularity) = conversion.granularity {
        map.insert("quantization_config".to_owned(), quantization_config(granularity, model.reward.as_ref()));
    }
    let identity = ConversionIdentity::new(settings("quantize", conversion), input_states(dir, &stored)?);
    let config = Value::Object(map);
    let output = ConversionOutput { weights, identity, small_files, config, not_copied };
    write(&output, conversion, on_progress)
}

/// Returns the settings that the bytes of the output depend on.
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

/// Returns the `quantization_config` by which compressed-tensors and vLLM read E4M3 weights, with E4M3
/// activations scaled per token.
pub(super) fn quantization_config(granularity: Granularity, reward: Option<&RewardHead>) -> Value {
    let ignore: Vec<&str> = ["lm_head"].into_iter().chain(reward.map(|head| head.module)).collect();
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

/// Returns every stored tensor, in the order of the files.
///
/// # Errors
/// If a tensor of the model is missing, has another shape or type, or does not belong to the model.
fn output_weights(
    dir: &Path,
    config: &ModelConfig,
    stored: &[Stored],
    granularity: Option<Granularity>,
) -> Result<Vec<OutputWeight>, LoadError> {
    let mut expected: BTreeMap<String, model::Expected> =
        model::tensors(config).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut weights = Vec::new();
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
        weights.push(OutputWeight {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            granularity: granularity.filter(|_| linear),
            source: WeightSource::File { path: tensor.path.clone(), offset: tensor.offset },
            rows: RowMap::ALL,
        });
    }
    match expected.keys().next() {
        Some(name) => Err(LoadError::tensor(dir, name, "missing from the checkpoint")),
        None => Ok(weights),
    }
}

/// Returns the state of the input: size, time and layout of each weight file, and a hash of the
/// configuration.
fn input_states(dir: &Path, stored: &[Stored]) -> Result<BTreeMap<String, InputState>, LoadError> {
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
        let mut input = InputState { layout, ..InputState::default() };
        input.add(meta.modified().map_err(|e| LoadError::io(path, e))?);
        inputs.insert(name, input);
    }
    let path = dir.join(CONFIG);
    let config = std::fs::read(&path).map_err(|e| LoadError::io(&path, e))?;
    let layout = hex(&Sha256::digest(config));
    inputs.insert(CONFIG.to_owned(), InputState { layout, ..InputState::default() });
    Ok(inputs)
}

/// Returns the files that are copied beside the weights, and the names of those that are not.
fn small_files(dir: &Path) -> Result<(Vec<SmallFile>, Vec<String>), LoadError> {
    let (mut small, mut not_copied) = (Vec::new(), Vec::new());
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
        let weights = WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending));
        if meta.is_file() && meta.len() <= MAX_SMALL_FILE_BYTES && !weights {
            small.push(SmallFile { name, contents: FileContents::CopyOf(path) });
        } else {
            not_copied.push(name);
        }
    }
    Ok((small, not_copied))
}
