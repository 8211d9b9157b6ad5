//! FP8 checkpoints of every supported scheme load exactly. With scales that are powers of two the dequantised
//! weights are BF16 numbers, so the same model stored as BF16 must give the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use octant::device::{KvDtype, fp8};
use octant::model::Precision;
use serde_json::{Value, json};

use super::{copy, edit, load, logits};

/// A tensor: dtype, shape, bytes.
pub type Tensor = (&'static str, Vec<usize>, Vec<u8>);
pub type Tensors = BTreeMap<String, Tensor>;
/// Converts a module's row scales to a stored tensor.
pub(super) type Form = fn(&[f32]) -> Tensor;

pub(super) const IDS: [u32; 6] = [5, 80, 33, 7, 200, 11];

pub fn read(dir: &Path) -> Tensors {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let tensor = |info: &Value| {
        let offset = |i: usize| 8 + size + info["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = info["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        ("BF16", shape, bytes[offset(0)..offset(1)].to_vec())
    };
    tensors.map(|(name, info)| (name.clone(), tensor(info))).collect()
}

/// Writes a safetensors file; dtypes are given by name.
pub fn write<N: serde::Serialize>(path: &Path, tensors: &BTreeMap<String, (N, Vec<usize>, Vec<u8>)>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let text = serde_json::to_vec(&header).unwrap();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.extend(data);
    std::fs::write(path, out).unwrap();
}

pub fn is_linear(name: &str) -> bool {
    name.contains("_proj.weight")
}

/// The scale of a row: a power of two that differs between rows or between tensors.
fn scale(name: &str, row: usize, per_row: bool) -> f32 {
    let seed = name.bytes().map(usize::from).sum::<usize>() + if per_row { row } else { 0 };
    [1.0 / 512.0, 1.0 / 256.0, 1.0 / 1024.0][seed % 3]
}

/// A fixture with its linear weights quantised, and the same model dequantised to BF16.
pub(super) struct Quantised {
    pub(super) codes: Tensors,
    pub(super) dequantised: Tensors,
    pub(super) scales: BTreeMap<String, Vec<f32>>,
}

pub(super) fn quantise(name: &str, per_row: bool) -> Quantised {
    let original = read(copy(name).path());
    let mut q = Quantised { codes: original.clone(), dequantised: original.clone(), scales: BTreeMap::new() };
    for (name, (_, shape, bytes)) in original.into_iter().filter(|(name, _)| is_linear(name)) {
        let (mut codes, mut values, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for (row, bytes) in bytes.chunks_exact(shape[1] * 2).enumerate() {
            let scale = scale(&name, row, per_row);
            scales.push(scale);
            for pair in bytes.chunks_exact(2) {
                let x = fp8::bf16_value(u16::from_le_bytes([pair[0], pair[1]]));
                let code = fp8::encode(x / scale);
                codes.push(code);
                values.extend(fp8::bf16_bits(fp8::decode(code) * scale).to_le_bytes());
            }
        }
        q.codes.insert(name.clone(), ("F8_E4M3", shape.clone(), codes));
        q.dequantised.insert(name.clone(), ("BF16", shape, values));
        q.scales.insert(name, scales);
    }
    q
}

pub(super) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| fp8::bf16_bits(*x).to_le_bytes()).collect()
}

/// Adds the scales to the codes; `form` makes the tensor of a module's row scales.
pub(super) fn with_scales(q: &Quantised, form: impl Fn(&[f32]) -> Tensor) -> Tensors {
    let mut tensors = q.codes.clone();
    for (name, scales) in &q.scales {
        tensors.insert(format!("{name}_scale"), form(scales));
    }
    tensors
}

/// Adds an `input_scale` to every linear module.
fn with_inputs(mut tensors: Tensors, value: f32, shape: &[usize]) -> Tensors {
    let modules: Vec<String> = tensors
        .keys()
        .filter(|n| is_linear(n))
        .filter_map(|n| n.strip_suffix(".weight"))
        .map(str::to_owned)
        .collect();
    for module in modules {
        tensors.insert(format!("{module}.input_scale"), ("F32", shape.to_vec(), f32s(&[value])));
    }
    tensors
}

pub(super) fn directory(name: &str, tensors: &Tensors, config: Value) -> tempfile::TempDir {
    let dir = copy(name);
    edit(dir.path(), config);
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

pub(super) fn auto_fp8(scheme: &str) -> Value {
    json!({"quantization_config": {
        "quant_method": "fp8", "activation_scheme": scheme, "ignored_layers": ["lm_head"]}})
}

pub(super) fn compressed(strategy: &str, dynamic: bool) -> Value {
    let activations = if dynamic { "token" } else { "tensor" };
    json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": false},
        "input_activations":
            {"num_bits": 8, "type": "float", "strategy": activations, "dynamic": dynamic}}}}})
}

pub(super) fn model_opt(algorithm: &str) -> Value {
    json!({"quantization_config": {
        "quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head*"]}})
}

/// Asserts that the quantised checkpoint gives the same bits as the dequantised one, with BF16 inputs.
pub(super) fn loads_exactly(name: &str, q: &Quantised, tensors: &Tensors, config: Value) {
    let stored = directory(name, tensors, config.clone());
    let plain = directory(name, &q.dequantised, json!({}));
    let got = logits(stored.path(), Precision::None, KvDtype::Bf16, &IDS);
    let expected = logits(plain.path(), Precision::None, KvDtype::Bf16, &IDS);
    assert!(got == expected, "{name}, {config}");
}

#[test]
fn all_forms_of_per_tensor_scales_load_exactly() {
    for name in ["nemotron", "llama"] {
        let q = quantise(name, false);
        let forms: [(Form, Value); 4] = [
            (|s| ("F32", vec![], f32s(&s[..1])), auto_fp8("dynamic")),
            (|s| ("F32", vec![1], f32s(&s[..1])), auto_fp8("dynamic")),
            (|s| ("BF16", vec![1], bf16s(&s[..1])), compressed("tensor", true)),
            (|s| ("F32", vec![], f32s(&s[..1])), model_opt("FP8_PER_CHANNEL_PER_TOKEN")),
        ];
        for (form, config) in forms {
            loads_exactly(name, &q, &with_scales(&q, form), config);
        }
    }
}

#[test]
fn all_forms_of_per_channel_scales_load_exactly() {
    for name in ["nemotron", "llama"] {
        let q = quantise(name, true);
        let forms: [(Form, Value); 3] = [
            (|s| ("BF16", vec![s.len(), 1], bf16s(s)), compressed("channel", true)),
            (|s| ("F32", vec![s.len(), 1], f32s(s)), compressed("channel", true)),
            (|s| ("F32", vec![s.len()], f32s(s)), model_opt("FP8_PER_CHANNEL_PER_TOKEN")),
        ];
        for (form, config) in forms {
            loads_exactly(name, &q, &with_scales(&q, form), config);
        }
    }
}

#[test]
fn static_activation_scales_are_read_and_used() {
    let q = quantise("nemotron", false);
    let tensors = with_scales(&q, |s| ("F32", vec![], f32s(&s[..1])));
    let dynamic = directory("nemotron", &tensors, auto_fp8("dynamic"));
    let dynamic = logits(dynamic.path(), Precision::Fp8, KvDtype::Fp8, &IDS);
    for config in [auto_fp8("static"), model_opt("FP8"), compressed("tensor", false)] {
        let with = |scale: f32| {
            let dir = directory("nemotron", &with_inputs(tensors.clone(), scale, &[]), config.clone());
            logits(dir.path(), Precision::Fp8, KvDtype::Fp8, &IDS)
        };
        let (fine, coarse) = (with(1.0 / 64.0), with(1.0));
        assert!(fine != dynamic && coarse != fine, "{config}: the scale has no effect");
        let dir = directory("nemotron", &tensors, config);
        let error = load(dir.path(), Precision::Fp8).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("input_scale"), "without one: {error}");
    }
}

#[test]
fn ignored_modules_are_loaded_as_floats() {
    let q = quantise("llama", true);
    let name = "model.layers.0.mlp.down_proj";
    let mut tensors = with_scales(&q, |s| ("F32", vec![s.len(), 1], f32s(s)));
    tensors.remove(&format!("{name}.weight_scale"));
    tensors.insert(format!("{name}.weight"), q.dequantised[&format!("{name}.weight")].clone());
    let mut config = compressed("channel", true);
    config["quantization_config"]["ignore"] = json!(["lm_head", name]);
    loads_exactly("llama", &q, &tensors, config);
}

#[test]
fn mixed_dtypes_in_one_matrix_are_named() {
    let q = quantise("nemotron", true);
    let name = "model.layers.1.self_attn.k_proj";
    let weight = format!("{name}.weight");
    let mut tensors = with_scales(&q, |s| ("F32", vec![s.len(), 1], f32s(s)));
    tensors.remove(&format!("{name}.weight_scale"));
    tensors.insert(weight.clone(), q.dequantised[&weight].clone());
    let fails = |config: Value, precision, parts: &[&str]| {
        let dir = directory("nemotron", &tensors, config);
        let error = load(dir.path(), precision).err().map(|e| e.to_string()).unwrap_or_default();
        for part in parts.iter().chain(&["model.safetensors", weight.as_str()]) {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    };
    // The configuration does not list the module as unquantised.
    fails(compressed("channel", true), Precision::Fp8, &["expected F8_E4M3", "got BF16"]);
    // It does, but without FP8 quantisation the matrix has two dtypes.
    let mut config = compressed("channel", true);
    config["quantization_config"]["ignore"] = json!(["lm_head", name]);
    fails(config.clone(), Precision::None, &["BF16", "F8_E4M3", "model.layers.1.self_attn.q_proj.weight"]);
    let dir = directory("nemotron", &tensors, config);
    load(dir.path(), Precision::Fp8).unwrap();
}

#[test]
fn kv_cache_scales_are_found_under_every_name() {
    let q = quantise("nemotron", false);
    let base = with_scales(&q, |s| ("F32", vec![], f32s(&s[..1])));
    let run = |tensors: &Tensors| {
        let dir = directory("nemotron", tensors, auto_fp8("dynamic"));
        logits(dir.path(), Precision::None, KvDtype::Fp8, &IDS)
    };
    let plain = run(&base);
    let names =
        [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale"), ("attn.k_scale", "attn.v_scale")];
    let names =
        names.into_iter().chain([("k_proj.output_scale", "v_proj.output_scale"), ("kv_scale", "kv_scale")]);
    let mut first: Option<Vec<f32>> = None;
    for (k, v) in names {
        let mut tensors = base.clone();
        for layer in 0..2 {
            for name in [k, v] {
                // A power of two would only shift the exponents of the stored values.
                let tensor = ("F32", vec![], f32s(&[0.3]));
                tensors.insert(format!("model.layers.{layer}.self_attn.{name}"), tensor);
            }
        }
        let got = run(&tensors);
        assert!(got != plain, "{k}, {v} have no effect");
        assert!(first.get_or_insert_with(|| got.clone()) == &got, "{k}, {v} differ from k_scale, v_scale");
    }
}

#[test]
fn invalid_codes_and_scales_are_named() {
    let q = quantise("nemotron", true);
    let good = with_scales(&q, |s| ("F32", vec![s.len(), 1], f32s(s)));
    let name = "model.layers.1.mlp.up_proj.weight";
    let fails = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut tensors = good.clone();
        change(&mut tensors);
        let dir = directory("nemotron", &tensors, compressed("channel", true));
        let error = load(dir.path(), Precision::Fp8).err().map(|e| e.to_string()).unwrap_or_default();
        for part in parts.iter().chain(&["model.layers.1.mlp.up_proj.weight"]) {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    };
    let scale = format!("{name}_scale");
    fails(&|t| t.get_mut(name).unwrap().2[77] = 0xFF, &["element 77", "NaN", "0xff"]);
    fails(&|t| t.get_mut(name).unwrap().0 = "F8_E5M2", &["expected F8_E4M3"]);
    fails(&|t| t.get_mut(&scale).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()), &["NaN"]);
    fails(
        &|t| t.get_mut(&scale).unwrap().2[..4].copy_from_slice(&(-1f32).to_le_bytes()),
        &["positive", "-1"],
    );
    fails(&|t| t.get_mut(&scale).unwrap().1 = vec![64, 2], &["[128, 1]", "[64, 2]"]);
    fails(&|t| _ = t.remove(&scale), &["missing"]);
}

#[test]
fn sharded_checkpoints_load_like_single_files() {
    let dir = copy("llama");
    let tensors = read(dir.path());
    let whole = logits(dir.path(), Precision::Fp8, KvDtype::Fp8, &IDS);
    let (mut map, mut halves) = (serde_json::Map::new(), [Tensors::new(), Tensors::new()]);
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("part-{}.safetensors", i % 2)));
        halves[i % 2].insert(name, tensor);
    }
    for (i, half) in halves.iter().enumerate() {
        write(&dir.path().join(format!("part-{i}.safetensors")), half);
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(logits(dir.path(), Precision::Fp8, KvDtype::Fp8, &IDS) == whole);
}

#[test]
fn f16_and_f32_weights_load_like_bf16() {
    let mut original = read(copy("nemotron").path());
    for (_, _, bytes) in original.values_mut() {
        for pair in bytes.chunks_exact_mut(2) {
            // F16 cannot hold these exactly: it has 11 significant bits, but fewer below 2^-14.
            if fp8::bf16_value(u16::from_le_bytes([pair[0], pair[1]])).abs() < 1e-3 {
                pair.fill(0);
            }
        }
    }
    let widened = |dtype: &'static str, convert: fn(f32) -> Vec<u8>| -> Tensors {
        let tensor = |(_, shape, bytes): &Tensor| {
            let values = bytes.chunks_exact(2).map(|p| fp8::bf16_value(u16::from_le_bytes([p[0], p[1]])));
            (dtype, shape.clone(), values.flat_map(convert).collect())
        };
        original.iter().map(|(name, value)| (name.clone(), tensor(value))).collect()
    };
    let f16 = widened("F16", |x| half::f16::from_f32(x).to_le_bytes().to_vec());
    let f32 = widened("F32", |x| x.to_le_bytes().to_vec());
    for precision in [Precision::None, Precision::Fp8] {
        let run = |tensors: &Tensors| {
            let dir = directory("nemotron", tensors, json!({}));
            logits(dir.path(), precision, KvDtype::Bf16, &IDS)
        };
        let expected = run(&original);
        assert!(run(&f16) == expected, "F16, {precision:?}");
        assert!(run(&f32) == expected, "F32, {precision:?}");
    }
}
