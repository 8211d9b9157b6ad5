//! `octant import-nemo`: converts NVIDIA's unpacked `.nemo` directories to Hugging Face's names and layout.
//!
//! The directory `model_weights` holds one zarr array per tensor; tensors of layers are stacked along the
//! first axis. Q, K and V are one matrix, grouped by KV head: the query heads of a group, its key head, its
//! value head, then the next group. A norm is named after the linear weight that follows it. The weights of
//! LayerNorm1p are copied as they are stored; the 1 is added at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::conversion::{Conversion, Converted, OnProgress};
use super::hugging_face::{quantization_config, settings};
use super::identity::{ConversionIdentity, InputState, hex};
use super::nemo_config::{self, ArrayFacts};
use super::output_weight::{OutputWeight, WeightSource};
use super::row_map::RowMap;
use super::sentencepiece::{self, SentencePieceError};
use super::writer::{ConversionOutput, FileContents, SmallFile, write};
use super::zarr::ZarrArray;
use crate::device::HeadShape;
use crate::model::{self, LoadError, ModelConfig, Object, RewardHead};

const NEMO_CONFIG: &str = "model_config.yaml";
const WEIGHTS: &str = "model_weights";
const LAYERS: &str = "model.decoder.layers.";
const REWARD_HEAD: &str = "model.rm_head.weight";

/// Converts an unpacked `.nemo` directory of a Nemotron model to a Hugging Face one. Weights are copied as
/// they are stored, or the linear ones are quantised to E4M3 as by [`super::quantize`]. The SentencePiece
/// model is copied as `tokenizer.model` and converted to `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// If the input is not such a model, a weight or a chunk of one is missing, the input holds other weights, an
/// element is not finite, the input or the settings have changed since the run that is continued, or the
/// output directory holds other files.
pub fn import_nemo(conversion: &Conversion, on_progress: OnProgress<'_>) -> Result<Converted, LoadError> {
    let dir = conversion.input.as_path();
    if dir.is_file() {
        let message = "expected an unpacked directory, got a file. A .nemo file is an archive: \
                       `mkdir UNPACKED && tar -xf FILE -C UNPACKED`, then give UNPACKED";
        return Err(LoadError::file(dir, message));
    }
    let yaml = nemo_config::read(&dir.join(NEMO_CONFIG))?;
    let weights = dir.join(WEIGHTS);
    check_backend(&weights)?;
    let mut arrays = Arrays { root: &weights, open: BTreeMap::new() };
    let (config, model) = configuration(dir, &yaml, &mut arrays)?;
    let weights = output_weights(&model, &mut arrays, conversion)?;
    arrays.check_no_other_weights()?;
    let mut config = config;
    let small_files = tokenizer_files(dir, &yaml, conversion.tokenizer.then_some(&config))?;
    if let Some(granularity) = conversion.granularity {
        config.insert(
            "quantization_config".to_owned(),
            quantization_config(granularity, model.reward.as_ref()),
        );
    }
    let mut inputs: BTreeMap<String, InputState> = BTreeMap::new();
    let text = std::fs::read(dir.join(NEMO_CONFIG)).map_err(|e| LoadError::io(&dir.join(NEMO_CONFIG), e))?;
    let layout = hex(&Sha256::digest(text));
    inputs.insert(NEMO_CONFIG.to_owned(), InputState { layout, ..InputState::default() });
    inputs.extend(arrays.open.iter().map(|(name, array)| (name.clone(), array.state().clone())));
    let output = ConversionOutput {
        weights,
        identity: ConversionIdentity::new(settings("import-nemo", conversion), inputs),
        small_files,
        config: Value::Object(config),
        not_copied: Vec::new(),
    };
    write(&output, conversion, on_progress)
}

/// The opened arrays of a checkpoint, by name.
struct Arrays<'a> {
    root: &'a Path,
    open: BTreeMap<String, Arc<ZarrArray>>,
}

impl Arrays<'_> {
    /// Opens an array, or returns the one that is open.
    fn open(&mut self, name: &str) -> Result<Arc<ZarrArray>, LoadError> {
        if let Some(array) = self.open.get(name) {
            return Ok(Arc::clone(array));
        }
        let array = Arc::new(ZarrArray::open(self.root, name, name.starts_with(LAYERS))?);
        self.open.insert(name.to_owned(), Arc::clone(&array));
        Ok(array)
    }

    /// Returns whether the checkpoint has an array.
    fn has(&self, name: &str) -> bool {
        self.root.join(name).join(".zarray").exists()
    }

    /// Fails if the checkpoint holds a weight that has not been opened: it is then another model than the
    /// configuration says.
    fn check_no_other_weights(&self) -> Result<(), LoadError> {
        let entries = std::fs::read_dir(self.root).map_err(|e| LoadError::io(self.root, e))?;
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(|e| LoadError::io(self.root, e))?;
            if entry.path().is_dir() {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        // FP8 states of Transformer Engine and states of the optimizer are not weights.
        let known = |name: &&String| {
            self.open.contains_key(*name) || name.ends_with("_extra_state") || name.starts_with("optimizer.")
        };
        match names.iter().find(|name| !known(name)) {
            Some(name) => Err(LoadError::tensor(self.root, name, "not part of this model")),
            None => Ok(()),
        }
    }
}

/// Fails unless the checkpoint is stored as zarr.
fn check_backend(weights: &Path) -> Result<(), LoadError> {
    let meta = Object::read(&weights.join("metadata.json"))?;
    match meta.text("sharded_backend")? {
        Some("zarr") => Ok(()),
        other => Err(meta.error("sharded_backend", format!("expected `zarr`, got {other:?}"))),
    }
}

/// Returns the contents of `config.json`, and the model configuration that they describe.
fn configuration(
    dir: &Path,
    yaml: &Object,
    arrays: &mut Arrays<'_>,
) -> Result<(serde_json::Map<String, Value>, ModelConfig), LoadError> {
    let embedding = arrays.open("model.embedding.word_embeddings.weight")?;
    let dtype = match embedding.dtype() {
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
        _ => "bfloat16",
    };
    let reward = match arrays.has(REWARD_HEAD) {
        true => Some(RewardHead::nemo(arrays.open(REWARD_HEAD)?.shape()[0])),
        false => None,
    };
    let facts = ArrayFacts { vocab: embedding.shape()[0], dtype, reward };
    let config = nemo_config::hugging_face(yaml, &facts)?;
    let object = Object::from_map(&dir.join(NEMO_CONFIG), config.clone());
    let model = ModelConfig::from_object(dir, &object)?;
    Ok((config, model))
}

/// Returns every weight of the model with its source.
fn output_weights(
    model: &ModelConfig,
    arrays: &mut Arrays<'_>,
    conversion: &Conversion,
) -> Result<Vec<OutputWeight>, LoadError> {
    let mut expected = model::tensors(model);
    if let Some(head) = &model.reward {
        // A reward model may keep the LM head that it was trained from, and may lack a bias.
        let bias = model::Expected { name: head.bias(), shape: vec![head.width], linear: false };
        let stored = |tensor: &model::Expected| arrays.has(&array_of(&tensor.name).0);
        expected.extend([bias, model::lm_head(model)].into_iter().filter(stored));
    }
    let mut weights = Vec::new();
    for model::Expected { name, shape, linear } in expected {
        let (array, layer) = array_of(&name);
        let array = arrays.open(&array)?;
        let (rows, stored) = rows(&name, &shape, model.heads);
        let stacked = if array.name().starts_with(LAYERS) { vec![model.layers] } else { Vec::new() };
        array.expect(&[stacked, stored].concat())?;
        weights.push(OutputWeight {
            name,
            shape,
            dtype: array.dtype(),
            granularity: conversion.granularity.filter(|_| linear),
            source: WeightSource::Zarr { array, layer },
            rows,
        });
    }
    Ok(weights)
}

/// Returns the name of the NeMo array that holds a weight, and its layer; 0 for a weight outside the layers.
fn array_of(name: &str) -> (String, usize) {
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| {
        let (layer, rest) = rest.split_once('.')?;
        Some((layer.parse().ok()?, rest))
    });
    let Some((layer, rest)) = in_layer else {
        let array = match name {
            "model.embed_tokens.weight" => "model.embedding.word_embeddings.weight",
            "lm_head.weight" => "model.output_layer.weight",
            "model.norm.weight" => "model.decoder.final_layernorm.weight",
            "rm_head.weight" => REWARD_HEAD,
            "rm_head.bias" => "model.rm_head.bias",
            _ => "model.decoder.final_layernorm.bias",
        };
        return (array.to_owned(), 0);
    };
    let array = match rest {
        "input_layernorm.weight" => "self_attention.linear_qkv.layer_norm_weight",
        "input_layernorm.bias" => "self_attention.linear_qkv.layer_norm_bias",
        "post_attention_layernorm.weight" => "mlp.linear_fc1.layer_norm_weight",
        "post_attention_layernorm.bias" => "mlp.linear_fc1.layer_norm_bias",
        "self_attn.o_proj.weight" => "self_attention.linear_proj.weight",
        "mlp.up_proj.weight" => "mlp.linear_fc1.weight",
        "mlp.down_proj.weight" => "mlp.linear_fc2.weight",
        _ => "self_attention.linear_qkv.weight",
    };
    (format!("{LAYERS}{array}"), layer)
}

/// Returns the rows of a stored matrix that belong to a weight, and the shape of the stored matrix (of one
/// layer).
fn rows(name: &str, shape: &[usize], heads: HeadShape) -> (RowMap, Vec<usize>) {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    let queries = q_heads / kv_heads;
    let stride = (queries + 2) * head_dim;
    let (first, block) = if name.ends_with("q_proj.weight") {
        (0, queries * head_dim)
    } else if name.ends_with("k_proj.weight") {
        (queries * head_dim, head_dim)
    } else if name.ends_with("v_proj.weight") {
        ((queries + 1) * head_dim, head_dim)
    } else {
        return (RowMap::ALL, shape.to_vec());
    };
    (RowMap { first, block, stride }, vec![kv_heads * stride, shape[1]])
}

/// Returns the tokenizer files of the output: a copy of the SentencePiece model that the configuration names
/// as `nemo:FILE` and, if the output's `config.json` is given, the files that Hugging Face's tokenizers read.
fn tokenizer_files(
    dir: &Path,
    yaml: &Object,
    config: Option<&Map<String, Value>>,
) -> Result<Vec<SmallFile>, LoadError> {
    let tokenizer = yaml.object("tokenizer")?.ok_or_else(|| yaml.error("tokenizer", "missing"))?;
    match tokenizer.text("library")? {
        Some("sentencepiece") => {}
        other => return Err(tokenizer.error("library", format!("expected `sentencepiece`, got {other:?}"))),
    }
    let key = if tokenizer.get("tokenizer_model").is_some() { "tokenizer_model" } else { "model" };
    let named = tokenizer.text(key)?.ok_or_else(|| tokenizer.error(key, "missing"))?;
    let file = named.strip_prefix("nemo:").unwrap_or(named);
    if file.is_empty() || file.contains('/') {
        return Err(tokenizer.error(key, format!("expected `nemo:` and a file name, got `{named}`")));
    }
    let path = dir.join(file);
    if !path.is_file() {
        return Err(tokenizer.error(key, format!("expected a file in the same directory, got `{named}`")));
    }
    let model = std::fs::read(&path).map_err(|e| LoadError::io(&path, e))?;
    let mut files = Vec::new();
    if let Some(config) = config {
        let error = |e: SentencePieceError| {
            let advice = "to convert the weights alone, use --without-tokenizer";
            LoadError::file(&path, format!("{e} ({advice})"))
        };
        let mut settings = sentencepiece::tokenizer_config(&model).map_err(error)?;
        settings["model_max_length"] = config["max_position_embeddings"].clone();
        files.push(("tokenizer.json", sentencepiece::tokenizer_json(&model).map_err(error)?.into_bytes()));
        files.push(("tokenizer_config.json", format!("{settings:#}\n").into_bytes()));
    }
    files.push(("tokenizer.model", model));
    let small_file =
        |(name, bytes): (&str, _)| SmallFile { name: name.to_owned(), contents: FileContents::Bytes(bytes) };
    Ok(files.into_iter().map(small_file).collect())
}
