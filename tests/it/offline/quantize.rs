//! `octant quantize`: its output equals the quantisation that serving does on load.

use octant::device::{KvDtype, fp8};
use octant::model::{ModelConfig, Precision, Scheme};
use octant::offline::{Conversion, Granularity};
use serde_json::json;

use super::{conversion, files, floats, is_linear, json_of, quantize, random_model, read, same, write};
use crate::device::model::{fixture, logits};

const IDS: [u32; 6] = [5, 80, 33, 7, 200, 11];
const FIXTURES: [&str; 3] = ["nemotron", "llama", "wide"];

#[test]
fn channel_scales_and_codes_equal_those_of_quantisation_on_load() {
    for name in FIXTURES {
        let out = tempfile::tempdir().unwrap();
        quantize(&fixture(name), out.path(), Granularity::Channel).unwrap();
        let (before, mut after) = (read(&fixture(name)), read(out.path()));
        for (weight, tensor) in &before {
            let written = after.remove(weight).unwrap();
            if !is_linear(weight) {
                assert!(&written == tensor, "{weight} was changed");
                continue;
            }
            let (dtype, shape, codes) = written;
            assert_eq!((dtype.as_str(), &shape), ("F8_E4M3", &tensor.1));
            let (dtype, shape, scales) = after.remove(&format!("{weight}_scale")).unwrap();
            assert_eq!((dtype.as_str(), shape), ("F32", vec![tensor.1[0], 1]));
            let scales: Vec<f32> =
                scales.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            for (row, values) in floats(tensor).chunks_exact(tensor.1[1]).enumerate() {
                let mut expected = vec![0; values.len()];
                assert_eq!(fp8::quantize_row(values, &mut expected), scales[row], "{weight}, row {row}");
                assert!(expected == codes[row * values.len()..][..values.len()], "{weight}, row {row}");
            }
        }
        assert!(after.is_empty(), "{:?}", after.keys());
        for (precision, kv) in [(Precision::Fp8, KvDtype::Fp8), (Precision::Fp8, KvDtype::Bf16)] {
            let on_load = logits(&fixture(name), precision, kv, &IDS);
            assert!(logits(out.path(), precision, kv, &IDS) == on_load, "{name}");
        }
    }
}

#[test]
fn tensor_granularity_stores_one_scale_per_weight() {
    for name in FIXTURES {
        let (out, channels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        quantize(&fixture(name), out.path(), Granularity::Tensor).unwrap();
        quantize(&fixture(name), channels.path(), Granularity::Channel).unwrap();
        let (before, after) = (read(&fixture(name)), read(out.path()));
        for (weight, tensor) in before.iter().filter(|(name, _)| is_linear(name)) {
            let values = floats(tensor);
            let scale = values.iter().fold(0.0f32, |m, x| m.max(x.abs())) / fp8::MAX;
            let stored = &after[&format!("{weight}_scale")];
            assert_eq!((stored.0.as_str(), &stored.1[..], floats(stored)), ("F32", &[1][..], vec![scale]));
            let codes: Vec<u8> = values.iter().map(|x| fp8::encode(x * (1.0 / scale))).collect();
            assert!(after[weight].2 == codes, "{weight}");
        }
        let run = |dir| logits(dir, Precision::Fp8, KvDtype::Fp8, &IDS);
        let (one, many) = (run(out.path()), run(channels.path()));
        assert!(one != many, "{name}: both granularities give the same logits");
        assert!(one.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn the_configuration_describes_the_quantisation() {
    for (granularity, strategy) in [(Granularity::Channel, "channel"), (Granularity::Tensor, "tensor")] {
        let out = tempfile::tempdir().unwrap();
        quantize(&fixture("nemotron"), out.path(), granularity).unwrap();
        let (before, mut after) =
            (json_of(&fixture("nemotron").join("config.json")), json_of(&out.path().join("config.json")));
        let quant = after.as_object_mut().unwrap().remove("quantization_config").unwrap();
        assert_eq!(before, after, "another key has changed");
        assert_eq!(quant["quant_method"], "compressed-tensors");
        assert_eq!(quant["format"], "float-quantized");
        assert_eq!(quant["ignore"], json!(["lm_head"]));
        let group = &quant["config_groups"]["group_0"];
        assert_eq!(group["weights"]["strategy"], strategy);
        assert_eq!(
            (&group["input_activations"]["strategy"], &group["input_activations"]["dynamic"]),
            (&json!("token"), &json!(true))
        );
        let Scheme::Fp8(scheme) = ModelConfig::from_dir(out.path()).unwrap().scheme else {
            panic!("no scheme")
        };
        assert!(!scheme.static_activations);
    }
}

#[test]
fn small_files_are_copied_and_other_weight_files_are_not() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, bytes) in files(&fixture("nemotron")) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    for name in
        ["tokenizer.json", "generation_config.json", "chat_template.jinja", "pytorch_model.bin", ".lock"]
    {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    std::fs::create_dir(dir.path().join("original")).unwrap();
    let converted = quantize(dir.path(), out.path(), Granularity::Channel).unwrap();
    assert_eq!(converted.not_copied, ["original", "pytorch_model.bin"]);
    let names: Vec<String> = files(out.path()).into_keys().collect();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "golden.json",
        "logprobs.f32",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "quantization_report.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(std::fs::read(out.path().join("tokenizer.json")).unwrap(), b"tokenizer.json");
}

#[test]
fn shards_respect_the_size_limit_and_load_like_one_file() {
    let (out, one) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let small = Conversion {
        shard_size: 30_000,
        ..conversion(&fixture("nemotron"), out.path(), Some(Granularity::Channel))
    };
    octant::offline::quantize(&small, &|_| {}).unwrap();
    quantize(&fixture("nemotron"), one.path(), Granularity::Channel).unwrap();
    assert!(read(out.path()) == read(one.path()));
    let shards: Vec<(String, Vec<u8>)> =
        files(out.path()).into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 4, "{} shards", shards.len());
    for (name, bytes) in &shards {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let data: usize = file.tensors().iter().map(|(_, view)| view.data().len()).sum();
        assert!(data <= 30_000 || file.len() == 1, "{name} has {data} bytes in {} tensors", file.len());
    }
    let index = json_of(&out.path().join("model.safetensors.index.json"));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), read(out.path()).len());
    let run = |dir| logits(dir, Precision::Fp8, KvDtype::Fp8, &IDS);
    assert!(run(out.path()) == run(&fixture("nemotron")));
}

#[test]
fn f16_and_f32_weights_give_the_same_codes_as_bf16() {
    let out = tempfile::tempdir().unwrap();
    let mut original = read(&fixture("nemotron"));
    for tensor in original.values_mut() {
        let kept = floats(tensor).into_iter().map(|x| half::f16::from_f32(x).to_f32());
        // Values that all three types can hold.
        let kept: Vec<f32> = kept.map(|x| fp8::bf16_value(fp8::bf16_bits(x))).collect();
        tensor.2 = kept.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        tensor.0 = "F16".to_owned();
    }
    let mut results = Vec::new();
    for dtype in ["BF16", "F16", "F32"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("nemotron").join("config.json"), dir.path().join("config.json")).unwrap();
        let mut tensors = original.clone();
        for tensor in tensors.values_mut() {
            let values = floats(tensor).into_iter();
            tensor.2 = match dtype {
                "BF16" => values.flat_map(|x| fp8::bf16_bits(x).to_le_bytes()).collect(),
                "F16" => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            tensor.0 = dtype.to_owned();
        }
        write(&dir.path().join("model.safetensors"), &tensors);
        let out = out.path().join(dtype);
        quantize(dir.path(), &out, Granularity::Channel).unwrap();
        let mut written = read(&out);
        assert_eq!(written["model.norm.weight"].0, dtype, "norms keep their type");
        written.retain(|name, _| is_linear(name));
        results.push(written);
    }
    assert_eq!(results[0].len(), 24);
    assert!(results[0] == results[1] && results[0] == results[2]);
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let model = tempfile::tempdir().unwrap();
    // The largest weights have 8 MiB, more than one band.
    random_model(model.path(), 1024, 1, 64);
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        let outs = [1, 3].map(|threads| {
            let out = tempfile::tempdir().unwrap();
            let conversion =
                Conversion { threads, ..conversion(model.path(), out.path(), Some(granularity)) };
            octant::offline::quantize(&conversion, &|_| {}).unwrap();
            out
        });
        same(outs[0].path(), outs[1].path());
    }
}

#[test]
fn the_report_matches_the_written_weights() {
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        let out = tempfile::tempdir().unwrap();
        let converted = quantize(&fixture("wide"), out.path(), granularity).unwrap();
        let report = json_of(&out.path().join("quantization_report.json"));
        let (before, after) = (read(&fixture("wide")), read(out.path()));
        let linear: Vec<&String> = before.keys().filter(|name| is_linear(name)).collect();
        assert_eq!(report["tensors"].as_object().unwrap().len(), linear.len());
        assert_eq!(converted.reports.len(), linear.len());
        for name in linear {
            let (stored, codes) = (floats(&before[name]), &after[name].2);
            let scales = floats(&after[&format!("{name}_scale")]);
            let cols = before[name].1[1];
            let scale = |i: usize| f64::from(scales[if scales.len() == 1 { 0 } else { i / cols }]);
            let (mut square, mut error, mut max, mut saturated, mut zeroed) = (0.0, 0.0, 0.0f64, 0, 0);
            for (i, (x, code)) in stored.iter().zip(codes).enumerate() {
                let difference = f64::from(*x) - f64::from(fp8::decode(*code)) * scale(i);
                square += f64::from(*x) * f64::from(*x);
                error += difference * difference;
                max = max.max(difference.abs());
                saturated += u64::from(code & 0x7F == 0x7E);
                zeroed += u64::from(code & 0x7F == 0 && *x != 0.0);
            }
            let entry = &report["tensors"][name];
            let near = |key: &str, expected: f64| {
                let got = entry[key].as_f64().unwrap();
                assert!(
                    (got - expected).abs() <= 1e-4 * expected,
                    "{name}: {key} {got}, expected {expected}"
                );
            };
            near("relative_rms_error", (error / square).sqrt());
            near("max_abs_error", max);
            assert_eq!(
                (&entry["saturated"], &entry["zeroed"]),
                (&json!(saturated), &json!(zeroed)),
                "{name}"
            );
            assert_eq!(entry["shape"], json!(before[name].1));
            // The error of rounding to 3 mantissa bits.
            assert!((0.01..0.04).contains(&entry["relative_rms_error"].as_f64().unwrap()), "{name}: {entry}");
        }
    }
}

#[test]
fn the_report_matches_rows_computed_by_hand() {
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    random_model(model.path(), 64, 1, 64);
    let path = model.path().join("model.safetensors");
    let mut tensors = read(model.path());
    // 448 and -448 are exact; 17 lies between 16 and 18 and rounds to the even code; 2^-11 is less than half
    // of the smallest code, so it becomes 0. The squares of the other two rows overflow and underflow F32.
    let rows: [(&str, &[f32]); 3] = [
        ("q", &[448.0, -448.0, 17.0, 0.000_488_2, 0.0, 1.0]),
        ("k", &[1e-28, 0.37e-28, 0.11e-28]),
        ("v", &[1e30, 0.37e30, 0.11e30]),
    ];
    let weight = |name: &str| format!("model.layers.0.self_attn.{name}_proj.weight");
    for (name, row) in rows {
        // The other rows are zeros.
        let bytes = &mut tensors.get_mut(&weight(name)).unwrap().2;
        bytes.fill(0);
        for (bytes, x) in bytes.chunks_exact_mut(2).zip(row) {
            bytes.copy_from_slice(&fp8::bf16_bits(*x).to_le_bytes());
        }
    }
    write(&path, &tensors);
    let reports = quantize(model.path(), out.path(), Granularity::Channel).unwrap().reports;
    let [by_hand, small, large] =
        rows.map(|(name, _)| reports.iter().find(|report| report.name == weight(name)).unwrap());
    assert_eq!((by_hand.saturated, by_hand.zeroed), (2, 1));
    assert_eq!(by_hand.max_abs_error, 1.0);
    let expected = (1.0f64 / (2.0 * 448.0 * 448.0 + 290.0)).sqrt();
    assert!((by_hand.relative_rms_error / expected - 1.0).abs() < 1e-6, "{by_hand:?}");
    for report in [small, large] {
        let relative = report.relative_rms_error;
        assert!(relative > 1e-4 && relative < 0.05, "{report:?}");
    }
}
