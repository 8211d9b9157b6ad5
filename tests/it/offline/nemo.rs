//! `octant import-nemo`: imports of directories that a zarr library wrote (`scripts/make_nemo_fixture.py`)
//! equal the models that the directories were made from, bit for bit.

use std::path::{Path, PathBuf};

use octant::device::{KvDtype, fp8};
use octant::model::{LoadError, ModelConfig, Precision, RewardHead};
use octant::offline::{Conversion, Converted, Granularity};
use serde_json::json;

use super::resume::runs_until_finished;
use super::{conversion, files, floats, json_of, quantize, read, same};
use crate::device::model::{fixture, load, logits, root};
use crate::device::reward::{RewardGolden, scores};

const IDS: [u32; 6] = [5, 80, 33, 7, 200, 11];
const FORMS: [(Precision, KvDtype); 2] = [(Precision::None, KvDtype::Bf16), (Precision::Fp8, KvDtype::Fp8)];
const LAYERS: &str = "model_weights/model.decoder.layers.";

fn source(name: &str) -> PathBuf {
    root().join("tests/data/nemo").join(name)
}

fn import(input: &Path, output: &Path, granularity: Option<Granularity>) -> Result<Converted, LoadError> {
    octant::offline::import_nemo(&conversion(input, output, granularity), &|_| {})
}

/// Copies a NeMo directory, so that a test can change it.
fn copy(name: &str) -> tempfile::TempDir {
    fn into(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                into(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    into(&source(name), dir.path());
    dir
}

/// Asserts that an import fails with a message that holds all `parts`, and leaves nothing that can be loaded.
fn fails(dir: &Path, parts: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let error = import(dir, out.path(), None).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
    assert!(load(out.path(), Precision::Fp8).is_err());
}

/// Replaces text in a file of a directory; asserts that the file holds it.
fn replace(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} lacks `{from}`: {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn imported_tensors_equal_those_of_the_original_model() {
    for (name, golden) in [("base", "wide"), ("reward", "nemotron")] {
        let out = tempfile::tempdir().unwrap();
        import(&source(name), out.path(), None).unwrap();
        let mut imported = read(out.path());
        if name == "reward" {
            let weight = std::fs::read(source(name).join("rm_head.expected")).unwrap();
            assert_eq!(imported.remove("rm_head.weight").unwrap(), ("BF16".to_owned(), vec![9, 64], weight));
            let bias = std::fs::read(source(name).join("model_weights/model.rm_head.bias/0")).unwrap();
            assert_eq!(imported.remove("rm_head.bias").unwrap(), ("BF16".to_owned(), vec![9], bias));
        }
        let expected = read(&fixture(golden));
        assert_eq!(imported.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (tensor, stored) in &expected {
            assert!(&imported[tensor] == stored, "{name}: {tensor} differs");
        }
        for (precision, kv) in FORMS.into_iter().filter(|_| name != "reward") {
            let original = logits(&fixture(golden), precision, kv, &IDS);
            assert!(logits(out.path(), precision, kv, &IDS) == original, "{name}, {precision:?}");
        }
        let model = std::fs::read(source(name).join("0123456789abcdef_nemotron.model")).unwrap();
        assert_eq!(std::fs::read(out.path().join("tokenizer.model")).unwrap(), model);
    }
}

/// The weight \[9, 64\] and the bias of the head that NeMo's directory has, in BF16.
fn nemo_head() -> [Vec<u8>; 2] {
    ["rm_head.expected", "model_weights/model.rm_head.bias/0"]
        .map(|file| std::fs::read(source("reward").join(file)).unwrap())
}

/// The checkpoint of the original layers with NeMo's head, or with some of its rows. `bias` returns the bias
/// of a row, given the stored one, and `None` for a row to leave out.
fn original_reward(bias: impl Fn(usize, f32) -> Option<f32>) -> tempfile::TempDir {
    let [weight, biases] = nemo_head().map(|bytes| -> Vec<f32> {
        bytes.as_chunks::<2>().0.iter().map(|b| fp8::bf16_value(u16::from_le_bytes(*b))).collect()
    });
    let rows = weight.chunks_exact(64).zip(biases.iter().enumerate().map(|(row, stored)| bias(row, *stored)));
    let rows: Vec<(&[f32], f32)> = rows.filter_map(|(row, bias)| bias.map(|bias| (row, bias))).collect();
    let golden = RewardGolden {
        trunk: "nemotron".to_owned(),
        architecture: "NemotronForSequenceClassification".to_owned(),
        module: "rm_head".to_owned(),
        weight: rows.iter().map(|(row, _)| row.to_vec()).collect(),
        bias: Some(rows.iter().map(|(_, bias)| *bias).collect()),
        labels: None,
        figures: Default::default(),
        values: Vec::new(),
        prompts: Vec::new(),
    };
    golden.checkpoint()
}

#[test]
fn an_imported_reward_model_gives_the_scores_of_the_original() {
    let (out, original) = (tempfile::tempdir().unwrap(), original_reward(|_, bias| Some(bias)));
    import(&source("reward"), out.path(), None).unwrap();
    for (precision, kv) in FORMS {
        let expected = scores(original.path(), precision, kv, &IDS);
        assert_eq!(expected.len(), 9);
        assert!(scores(out.path(), precision, kv, &IDS) == expected, "{precision:?}");
    }
    let quantised = tempfile::tempdir().unwrap();
    quantize(out.path(), quantised.path(), Granularity::Channel).unwrap();
    let expected = scores(original.path(), Precision::Fp8, KvDtype::Fp8, &IDS);
    assert!(scores(quantised.path(), Precision::Fp8, KvDtype::Fp8, &IDS) == expected, "quantised on disk");
}

/// The last five rows of the head, without a bias, written as an array of NeMo's.
#[test]
fn an_imported_head_of_five_values_has_the_names_of_the_trained_ones() {
    let (dir, out) = (copy("reward"), tempfile::tempdir().unwrap());
    let weights = dir.path().join("model_weights");
    std::fs::remove_dir_all(weights.join("model.rm_head.bias")).unwrap();
    let (head, [bytes, _]) = (weights.join("model.rm_head.weight"), nemo_head());
    std::fs::remove_dir_all(head.join("0")).unwrap();
    std::fs::create_dir(head.join("0")).unwrap();
    std::fs::write(head.join("0/0"), &bytes[4 * 128..]).unwrap();
    let zarray = "model_weights/model.rm_head.weight/.zarray";
    replace(dir.path(), zarray, "\"shape\":[9,64]", "\"shape\":[5,64]");
    replace(dir.path(), zarray, "\"chunks\":[9,16]", "\"chunks\":[5,64]");
    import(dir.path(), out.path(), Some(Granularity::Channel)).unwrap();
    let names = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"];
    assert_eq!(ModelConfig::from_dir(out.path()).unwrap().reward.unwrap().attributes, names);
    let original = original_reward(|row, _| (row >= 4).then_some(0.0));
    let expected = scores(original.path(), Precision::Fp8, KvDtype::Fp8, &IDS);
    assert_eq!(expected.len(), 5);
    assert!(scores(out.path(), Precision::Fp8, KvDtype::Fp8, &IDS) == expected);
}

#[test]
fn the_imported_configuration_equals_that_of_the_original_model() {
    for (name, golden) in [("base", "wide"), ("reward", "nemotron")] {
        let out = tempfile::tempdir().unwrap();
        import(&source(name), out.path(), None).unwrap();
        let reward = name == "reward";
        let mut expected = ModelConfig::from_dir(&fixture(golden)).unwrap();
        let names =
            "quality toxicity humor creativity helpfulness correctness coherence complexity verbosity";
        expected.reward = reward.then(|| RewardHead {
            module: "rm_head",
            width: 9,
            attributes: names.split(' ').map(str::to_owned).collect(),
        });
        expected.architecture =
            if reward { "NemotronForSequenceClassification" } else { "NemotronForCausalLM" };
        assert_eq!(format!("{:?}", ModelConfig::from_dir(out.path()).unwrap()), format!("{expected:?}"));
        let config = json_of(&out.path().join("config.json"));
        assert_eq!(config["torch_dtype"], "bfloat16");
        assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(2), &json!(3)));
    }
}

#[test]
fn quantising_during_import_equals_quantising_afterwards() {
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        for name in ["base", "reward"] {
            let [plain, after, directly] = [(); 3].map(|()| tempfile::tempdir().unwrap());
            import(&source(name), plain.path(), None).unwrap();
            quantize(plain.path(), after.path(), granularity).unwrap();
            import(&source(name), directly.path(), Some(granularity)).unwrap();
            assert!(read(directly.path()) == read(after.path()), "{name}");
            let (one, two) = (files(directly.path()), files(after.path()));
            assert_eq!(one["config.json"], two["config.json"]);
            let reports = [&one, &two].map(|files| {
                let report: serde_json::Value =
                    serde_json::from_slice(&files["quantization_report.json"]).unwrap();
                report["tensors"].as_object().unwrap().len()
            });
            assert_eq!(reports, [12, 12]);
            load(directly.path(), Precision::Fp8).unwrap();
        }
    }
}

#[test]
fn an_interrupted_import_continues_to_the_same_bytes() {
    for granularity in [None, Some(Granularity::Channel)] {
        let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let to =
            |out: &Path| Conversion { shard_size: 60_000, ..conversion(&source("reward"), out, granularity) };
        octant::offline::import_nemo(&to(whole.path()), &|_| {}).unwrap();
        let runs = runs_until_finished(4, |progress| {
            octant::offline::import_nemo(&to(out.path()), progress).unwrap()
        });
        assert!(runs > 5, "{runs} runs");
        same(out.path(), whole.path());
    }
}

#[test]
fn an_import_does_not_continue_after_a_chunk_has_changed() {
    let (dir, out) = (copy("base"), tempfile::tempdir().unwrap());
    // The last weight has an infinite element, so the conversion fails there.
    let head = dir.path().join("model_weights/model.output_layer.weight/0.0");
    let mut bytes = std::fs::read(&head).unwrap();
    bytes[..2].copy_from_slice(&0x7F80u16.to_le_bytes());
    std::fs::write(&head, &bytes).unwrap();
    let error = import(dir.path(), out.path(), None).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("NaN or infinity"), "{error}");
    bytes[..2].fill(0);
    std::fs::write(&head, &bytes).unwrap();
    let error = import(dir.path(), out.path(), None).unwrap_err().to_string();
    assert!(error.contains("`model.output_layer.weight` has changed"), "{error}");
}

#[test]
fn a_setting_of_another_family_is_refused_by_name() {
    for (from, to, key) in [
        ("activation: squared-relu", "activation: gelu", "activation"),
        ("normalization: layernorm1p", "normalization: rmsnorm", "normalization"),
        ("bias: false", "bias: true", "bias"),
        ("bias: false\n", "", "bias"),
        (
            "position_embedding_type: rope",
            "position_embedding_type: learned_absolute",
            "position_embedding_type",
        ),
        ("rotary_percentage: 0.5", "rotary_percentage: 1.5", "rotary_percentage"),
        ("rotary_percentage: 0.5\n", "", "rotary_percentage"),
        (
            "seq_len_interpolation_factor: null",
            "seq_len_interpolation_factor: 2",
            "seq_len_interpolation_factor",
        ),
        ("weights: false", "weights: true", "share_embeddings_and_output_weights"),
        ("pre_ln", "post_ln", "transformer_block_type"),
        ("headscale: false", "headscale: true", "headscale"),
        ("num_layers: 2", "num_layers: two", "num_layers"),
        ("layernorm_epsilon: 1.0e-05\n", "", "layernorm_epsilon"),
        ("ffn_hidden_size: 128", "ffn_hidden_size: ${multiply:4, ${.hidden_size}}", "ffn_hidden_size"),
        ("library: sentencepiece", "library: megatron", "tokenizer.library"),
        ("tokenizer_model: nemo:0", "tokenizer_model: nemo:1", "tokenizer.tokenizer_model"),
        ("tokenizer_model: nemo:0", "tokenizer_model: nemo:../0", "tokenizer.tokenizer_model"),
    ] {
        let dir = copy("base");
        replace(dir.path(), "model_config.yaml", from, to);
        fails(dir.path(), &["model_config.yaml", &format!("`{key}`")]);
    }
    let dir = copy("base");
    std::fs::write(dir.path().join("model_config.yaml"), "a: [").unwrap();
    fails(dir.path(), &["model_config.yaml", "not YAML"]);
}

#[test]
fn a_shape_that_contradicts_the_configuration_names_the_tensor() {
    for (from, to, tensor) in [
        ("num_layers: 2", "num_layers: 3", "self_attention.linear_qkv.layer_norm_weight"),
        ("ffn_hidden_size: 128", "ffn_hidden_size: 256", "mlp.linear_fc1.weight"),
        ("num_query_groups: 2", "num_query_groups: 4", "self_attention.linear_qkv.weight"),
        ("hidden_size: 64\n", "hidden_size: 32\n", "word_embeddings.weight"),
    ] {
        let dir = copy("base");
        replace(dir.path(), "model_config.yaml", from, to);
        fails(dir.path(), &[tensor, "expected shape", "got"]);
    }
}

#[test]
fn unsupported_zarr_arrays_are_refused_by_name() {
    let zarray = format!("{LAYERS}mlp.linear_fc2.weight/.zarray");
    for (from, to, key) in [
        (
            "\"compressor\":null",
            "\"compressor\":{\"id\":\"zstd\",\"level\":5}",
            "`compressor`: expected null, got \"zstd\"",
        ),
        ("\"filters\":null", "\"filters\":[{\"id\":\"delta\"}]", "`filters`"),
        ("\"order\":\"C\"", "\"order\":\"F\"", "`order`"),
        ("\"bfloat16\"", "\"<i2\"", "`dtype`"),
        ("\"shape\":[2,", "\"shape\":[1099511627776,1099511627776,", "`shape`"),
        ("\"shape\":[2,64,", "\"shape\":[1099511627776,1099511627776,", "expected a size below 2^64 bytes"),
        ("\"zarr_format\":2", "\"zarr_format\":3", "`zarr_format`"),
        ("\"chunks\":[1,", "\"chunks\":[0,", "`chunks`"),
        ("\"chunks\":[1,64,", "\"chunks\":[1,32,", "expected 1024 bytes, got 2048"),
        ("\"shape\":[2,64,", "\"shape\":[2,65,", "chunk `0.1.0` is missing"),
    ] {
        let dir = copy("base");
        replace(dir.path(), &zarray, from, to);
        fails(dir.path(), &["linear_fc2.weight", key]);
    }
}

#[test]
fn missing_and_surplus_parts_are_named() {
    let base = "model.decoder.layers.self_attention.linear_proj.weight";
    let dir = copy("base");
    let chunk = dir.path().join("model_weights").join(base).join("1.0.3");
    let bytes = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, &bytes[1..]).unwrap();
    fails(dir.path(), &[base, "chunk `1.0.3`", "truncated?"]);
    std::fs::remove_file(&chunk).unwrap();
    fails(dir.path(), &[base, "chunk `1.0.3` is missing"]);
    std::fs::remove_dir_all(dir.path().join("model_weights").join(base)).unwrap();
    fails(dir.path(), &[base, "missing from the checkpoint"]);

    let dir = copy("base");
    let bias = "model.decoder.layers.self_attention.linear_qkv.bias";
    std::fs::create_dir(dir.path().join("model_weights").join(bias)).unwrap();
    fails(dir.path(), &[bias, "not part of this model"]);

    let dir = copy("base");
    replace(dir.path(), "model_weights/metadata.json", "\"zarr\"", "\"torch_dist\"");
    fails(dir.path(), &["metadata.json", "sharded_backend", "torch_dist"]);

    let archive = tempfile::NamedTempFile::new().unwrap();
    fails(archive.path(), &["unpacked", "tar -xf"]);
}

#[test]
fn a_reward_model_may_lack_its_bias_and_the_lm_head() {
    let (dir, out) = (copy("reward"), tempfile::tempdir().unwrap());
    let weights = dir.path().join("model_weights");
    std::fs::remove_dir_all(weights.join("model.rm_head.bias")).unwrap();
    std::fs::remove_dir_all(weights.join("model.output_layer.weight")).unwrap();
    import(dir.path(), out.path(), None).unwrap();
    let imported = read(out.path());
    assert_eq!(imported["rm_head.weight"].1, [9, 64]);
    assert!(!imported.contains_key("rm_head.bias") && !imported.contains_key("lm_head.weight"));
    let unbiased = original_reward(|_, _| Some(0.0));
    for (precision, kv) in FORMS {
        let expected = scores(unbiased.path(), precision, kv, &IDS);
        assert!(scores(out.path(), precision, kv, &IDS) == expected, "{precision:?}");
    }
    // Every other model needs the LM head.
    let dir = copy("base");
    std::fs::remove_dir_all(dir.path().join("model_weights/model.output_layer.weight")).unwrap();
    fails(dir.path(), &["model.output_layer.weight", "missing"]);
    let dir = copy("reward");
    let zarray = "model_weights/model.rm_head.weight/.zarray";
    replace(dir.path(), zarray, "\"shape\":[9,64]", "\"shape\":[9,48]");
    fails(dir.path(), &["model.rm_head.weight", "expected shape [9, 64], got [9, 48]"]);
}

#[test]
fn f32_and_untyped_bf16_arrays_keep_their_values() {
    let dir = copy("base");
    let norm = "model_weights/model.decoder.final_layernorm.weight";
    let chunk = dir.path().join(norm).join("0");
    let tensor = ("BF16".to_owned(), vec![64], std::fs::read(&chunk).unwrap());
    let values = floats(&tensor);
    std::fs::write(&chunk, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    replace(dir.path(), &format!("{norm}/.zarray"), "bfloat16", "<f4");
    // Untyped elements of two bytes are read as BF16.
    replace(dir.path(), &format!("{LAYERS}mlp.linear_fc1.weight/.zarray"), "bfloat16", "|V2");
    let out = tempfile::tempdir().unwrap();
    import(dir.path(), out.path(), None).unwrap();
    let imported = read(out.path());
    assert_eq!(imported["model.norm.weight"].0, "F32");
    assert_eq!(floats(&imported["model.norm.weight"]), values);
    let run = |dir: &Path| logits(dir, Precision::Fp8, KvDtype::Fp8, &IDS);
    assert!(run(out.path()) == run(&fixture("wide")));
}

#[test]
fn the_command_writes_the_same_files_as_the_library() {
    let (out, expected) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    import(&source("reward"), expected.path(), Some(Granularity::Tensor)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_octant"));
    command.args(["import-nemo", "--quantize", "tensor"]).args([&source("reward"), out.path()]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    same(out.path(), expected.path());
}

#[test]
fn the_import_writes_the_tokenizer_of_the_sentencepiece_model() {
    let out = tempfile::tempdir().unwrap();
    import(&source("base"), out.path(), None).unwrap();
    let model = std::fs::read(source("base").join("0123456789abcdef_nemotron.model")).unwrap();
    let expected = octant::offline::sentencepiece::tokenizer_json(&model).unwrap();
    assert_eq!(std::fs::read_to_string(out.path().join("tokenizer.json")).unwrap(), expected);
    let text = std::fs::read_to_string(out.path().join("tokenizer_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["model_max_length"], 256);
    octant::text::Tokenizer::from_dir(out.path()).unwrap();
}

#[test]
fn an_unreadable_sentencepiece_model_can_be_left_out() {
    let copy = copy("base");
    std::fs::write(copy.path().join("0123456789abcdef_nemotron.model"), b"no protobuf at all").unwrap();
    let out = tempfile::tempdir().unwrap();
    let message = import(copy.path(), out.path(), None).unwrap_err().to_string();
    assert!(message.contains("0123456789abcdef_nemotron.model: not a SentencePiece model"), "{message}");
    assert!(message.contains("--without-tokenizer"), "{message}");
    assert!(
        std::fs::read_dir(out.path()).unwrap().next().is_none(),
        "something was written before the error"
    );
    let without = Conversion { tokenizer: false, ..conversion(copy.path(), out.path(), None) };
    octant::offline::import_nemo(&without, &|_| {}).unwrap();
    assert!(out.path().join("tokenizer.model").is_file() && !out.path().join("tokenizer.json").exists());
}
