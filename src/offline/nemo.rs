//! `octant import-nemo`: NVIDIA's unpacked `.nemo` directories to Hugging Face's names and layout.
//!
//! The weights lie in `model_weights`, one zarr array a tensor, those of layers stacked over the layers. Q, K and V are
//! one matrix, grouped by KV head: a group's query heads, its key head, its value head, then the next group. Norms are
//! stored next to the linear weight that follows them, as they are: nothing is added to LayerNorm1p's weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::hugging_face::{quantization_config, settings};
use super::item::{Item, RowMap, Source};
use super::journal::{Identity, Input, hex};
use super::nemo_config::{self, Stored};
use super::sentencepiece::{self, SentencePieceError};
use super::writer::{Beside, Contents, Output, write};
use super::zarr::Array;
use super::{Conversion, Converted, OnProgress};
use crate::device::HeadShape;
use crate::model::{self, LoadError, ModelConfig, Object};

const CONFIG: &str = "model_config.yaml";
const WEIGHTS: &str = "model_weights";
const LAYERS: &str = "model.decoder.layers.";

/// Writes an unpacked `.nemo` directory of a Nemotron model as a Hugging Face one: weights as they are stored, or with
/// linear ones in E4M3 as [`super::quantize`] makes them; the SentencePiece model as `tokenizer.model`, and as
/// `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// If the input is not such a model, lacks a part of a weight or has weights beside, or has changed since a run that is
/// gone on with, or if the output is somebody else's.
pub fn import_nemo(conversion: &Conversion, on_progress: OnProgress<'_>) -> Result<Converted, LoadError> {
    let dir = conversion.input.as_path();
    if dir.is_file() {
        let message = "expected an unpacked directory, got a file. A .nemo file is an archive: \
                       `mkdir UNPACKED && tar -xf FILE -C UNPACKED`, then give UNPACKED";
        return Err(LoadError::file(dir, message));
    }
    let yaml = nemo_config::read(&dir.join(CONFIG))?;
    let weights = dir.join(WEIGHTS);
    check_backend(&weights)?;
    let mut arrays = Arrays { root: &weights, open: BTreeMap::new() };
    let (config, model) = configuration(dir, &yaml, &mut arrays)?;
    let items = items(&model, &mut arrays, conversion)?;
    arrays.check_none_left()?;
    let mut config = config;
    let beside = tokenizer(dir, &yaml, conversion.tokenizer.then_some(&config))?;
    if let Some(granularity) = conversion.granularity {
        config.insert("quantization_config".to_owned(), quantization_config(granularity, model.reward));
    }
    let mut inputs: BTreeMap<String, Input> = BTreeMap::new();
    let text = std::fs::read(dir.join(CONFIG)).map_err(|e| LoadError::io(&dir.join(CONFIG), e))?;
    inputs.insert(CONFIG.to_owned(), Input { layout: hex(&Sha256::digest(text)), ..Input::default() });
    inputs.extend(arrays.open.iter().map(|(name, array)| (name.clone(), array.state().clone())));
    let output = Output {
        items,
        identity: Identity::new(settings("import-nemo", conversion), inputs),
        beside,
        config: Value::Object(config),
        left_behind: Vec::new(),
    };
    write(&output, conversion, on_progress)
}

/// The arrays of a checkpoint that have been opened, by name.
struct Arrays<'a> {
    root: &'a Path,
    open: BTreeMap<String, Arc<Array>>,
}

impl Arrays<'_> {
    fn open(&mut self, name: &str) -> Result<Arc<Array>, LoadError> {
        if let Some(array) = self.open.get(name) {
            return Ok(Arc::clone(array));
        }
        let array = Arc::new(Array::open(self.root, name, name.starts_with(LAYERS))?);
        self.open.insert(name.to_owned(), Arc::clone(&array));
        Ok(array)
    }

    fn has(&self, name: &str) -> bool {
        self.root.join(name).join(".zarray").exists()
    }

    /// Fails if there is a weight that nothing asked for: a checkpoint with more in it than the model is not this model.
    fn check_none_left(&self) -> Result<(), LoadError> {
        let entries = std::fs::read_dir(self.root).map_err(|e| LoadError::io(self.root, e))?;
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(|e| LoadError::io(self.root, e))?;
            if entry.path().is_dir() {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        // What Transformer Engine keeps of FP8 training, and what the optimizer keeps, are not weights.
        let known = |name: &&String| {
            self.open.contains_key(*name) || name.ends_with("_extra_state") || name.starts_with("optimizer.")
        };
        match names.iter().find(|name| !known(name)) {
            Some(name) => Err(LoadError::tensor(self.root, name, "not part of this model")),
            None => Ok(()),
        }
    }
}

fn check_backend(weights: &Path) -> Result<(), LoadError> {
    let meta = Object::read(&weights.join("metadata.json"))?;
    match meta.text("sharded_backend")? {
        Some("zarr") => Ok(()),
        other => Err(meta.error("sharded_backend", format!("expected `zarr`, got {other:?}"))),
    }
}

/// `config.json`, and what it means.
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
    let reward = arrays.has("model.rm_head.weight");
    let stored = Stored { vocab: embedding.shape()[0], dtype, reward };
    let config = nemo_config::hugging_face(yaml, &stored)?;
    let object = Object::from_map(&dir.join(CONFIG), config.clone());
    let model = ModelConfig::from_object(dir, &object)?;
    Ok((config, model))
}

/// Every weight of the model, and where it is stored.
fn items(
    model: &ModelConfig,
    arrays: &mut Arrays<'_>,
    conversion: &Conversion,
) -> Result<Vec<Item>, LoadError> {
    let mut items = Vec::new();
    for expected in model::tensors(model) {
        let model::Expected { name, shape, linear } = expected;
        let (array, layer) = array_of(&name);
        // A reward model need not have a head for tokens.
        if model.reward && name == "lm_head.weight" && !arrays.has(&array) {
            continue;
        }
        let array = arrays.open(&array)?;
        let (rows, stored) = rows(&name, &shape, model.heads);
        let stacked = if array.name().starts_with(LAYERS) { vec![model.layers] } else { Vec::new() };
        array.expect(&[stacked, stored].concat())?;
        items.push(Item {
            name,
            shape,
            dtype: array.dtype(),
            granularity: conversion.granularity.filter(|_| linear),
            source: Source::Zarr { array, layer },
            rows,
        });
    }
    if model.reward {
        items.extend(reward_head(model, arrays)?);
    }
    Ok(items)
}

fn reward_head(model: &ModelConfig, arrays: &mut Arrays<'_>) -> Result<Vec<Item>, LoadError> {
    let item = |name: &str, array: Arc<Array>| Item {
        name: name.to_owned(),
        shape: array.shape().to_vec(),
        dtype: array.dtype(),
        granularity: None,
        source: Source::Zarr { array, layer: 0 },
        rows: RowMap::ALL,
    };
    let weight = arrays.open("model.rm_head.weight")?;
    let rewards = weight.shape()[0];
    weight.expect(&[rewards, model.hidden])?;
    let mut items = vec![item("rm_head.weight", weight)];
    if arrays.has("model.rm_head.bias") {
        let bias = arrays.open("model.rm_head.bias")?;
        bias.expect(&[rewards])?;
        items.push(item("rm_head.bias", bias));
    }
    Ok(items)
}

/// NeMo's name for a weight, and its layer; 0 for what is in no layer.
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

/// Which rows of what is stored are a weight's, and the shape of what is stored.
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

/// The SentencePiece model that the configuration names, as `nemo:FILE`, as the files that go with the output; with the
/// output's `config.json`, what Hugging Face's tokenizers read too.
fn tokenizer(
    dir: &Path,
    yaml: &Object,
    config: Option<&Map<String, Value>>,
) -> Result<Vec<Beside>, LoadError> {
    let tokenizer = yaml.object("tokenizer")?.ok_or_else(|| yaml.error("tokenizer", "missing"))?;
    match tokenizer.text("library")? {
        Some("sentencepiece") => {}
        other => return Err(tokenizer.error("library", format!("expected `sentencepiece`, got {other:?}"))),
    }
    let key = if tokenizer.get("tokenizer_model").is_some() { "tokenizer_model" } else { "model" };
    let named = tokenizer.text(key)?.ok_or_else(|| tokenizer.error(key, "missing"))?;
    let file = named.strip_prefix("nemo:").unwrap_or(named);
    if file.is_empty() || file.contains('/') {
        return Err(tokenizer.error(key, format!("expected `nemo:` and the name of a file, got `{named}`")));
    }
    let path = dir.join(file);
    if !path.is_file() {
        return Err(tokenizer.error(key, format!("expected a file of this directory, got `{named}`")));
    }
    let model = std::fs::read(&path).map_err(|e| LoadError::io(&path, e))?;
    let mut files = Vec::new();
    if let Some(config) = config {
        let error = |e: SentencePieceError| {
            let advice = "--without-tokenizer converts the rest, for a tokenizer.json from elsewhere";
            LoadError::file(&path, format!("{e} ({advice})"))
        };
        let mut settings = sentencepiece::tokenizer_config(&model).map_err(error)?;
        settings["model_max_length"] = config["max_position_embeddings"].clone();
        files.push(("tokenizer.json", sentencepiece::tokenizer_json(&model).map_err(error)?.into_bytes()));
        files.push(("tokenizer_config.json", format!("{settings:#}\n").into_bytes()));
    }
    files.push(("tokenizer.model", model));
    let beside =
        |(name, bytes): (&str, _)| Beside { name: name.to_owned(), contents: Contents::Bytes(bytes) };
    Ok(files.into_iter().map(beside).collect())
}
