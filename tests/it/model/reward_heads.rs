//! Reward heads in configurations and checkpoints: names, widths, and contradictions.

use octant::model::{ModelConfig, RewardHead};
use serde_json::{Value, json};

use super::{copy, edit};
use crate::device::model::root;
use crate::device::reward::reward_golden;

/// The head of a configuration without a checkpoint.
fn stated(architecture: &str, more: Value) -> Result<RewardHead, String> {
    let fixture = if architecture.starts_with("Llama") { "llama" } else { "nemotron" };
    let dir = copy(fixture);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    edit(dir.path(), json!({"architectures": [architecture]}));
    edit(dir.path(), more);
    let config = ModelConfig::from_dir(dir.path()).map_err(|error| error.to_string())?;
    Ok(config.reward.unwrap())
}

const NEMOTRON: &str = "NemotronForSequenceClassification";
const LLAMA: &str = "LlamaForSequenceClassification";

#[test]
fn without_a_checkpoint_the_configuration_gives_the_width() {
    let head = |module, attributes: &[&str]| RewardHead {
        module,
        width: attributes.len(),
        attributes: attributes.iter().map(|name| (*name).to_owned()).collect(),
    };
    let trained = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"];
    let all = [&["quality", "toxicity", "humor", "creativity"][..], &trained].concat();
    assert_eq!(stated(NEMOTRON, json!({})).unwrap(), head("rm_head", &all));
    assert_eq!(stated(NEMOTRON, json!({"num_labels": 5})).unwrap(), head("rm_head", &trained));
    assert_eq!(stated(NEMOTRON, json!({"num_labels": 1})).unwrap(), head("rm_head", &["reward"]));
    assert_eq!(stated(LLAMA, json!({})).unwrap(), head("score", &["LABEL_0", "LABEL_1"]));
    assert_eq!(stated(LLAMA, json!({"id2label": {"0": "LABEL_0"}})).unwrap(), head("score", &["reward"]));
    let named = json!({"id2label": {"1": "style", "0": "truth"}, "num_labels": 2});
    assert_eq!(stated(LLAMA, named).unwrap(), head("score", &["truth", "style"]));
    let reward = ModelConfig::from_dir(&root().join("models/nemotron-4-340b-reward")).unwrap();
    assert_eq!(reward.reward, Some(head("rm_head", &all)));
    // 331.6 billion parameters of layers and norms, the embedding, and nine rows of the head with a bias.
    assert_eq!(reward.parameters(), 331_592_011_776 + 256_000 * 18_432 + 9 * 18_433);
}

#[test]
fn labels_that_cannot_name_the_values_are_refused() {
    let refused = |more: Value, parts: &[&str]| {
        let error = stated(LLAMA, more).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    };
    refused(json!({"id2label": ["a", "b"]}), &["config.json", "id2label", "expected an object of names"]);
    refused(
        json!({"id2label": {"0": "a", "2": "b"}}),
        &["id2label", "expected the keys 0 to 1", "`1` is missing"],
    );
    refused(json!({"id2label": {"0": 7}}), &["id2label", "`0`: expected a name, got 7"]);
    refused(
        json!({"id2label": {"0": "a", "1": "a"}}),
        &["id2label", "expected each name once, got `a` twice"],
    );
    refused(
        json!({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}),
        &["num_labels", "expected 2 labels", "got 3"],
    );
    refused(json!({"num_labels": 0}), &["num_labels", "expected a positive integer, got 0"]);
}

#[test]
fn the_stored_weight_gives_the_width_and_contradictions_are_named() {
    for golden in reward_golden() {
        let dir = golden.checkpoint();
        let width = golden.width();
        let head = ModelConfig::from_dir(dir.path()).unwrap().reward.unwrap();
        assert_eq!((head.width, head.attributes.len()), (width, width));
        edit(dir.path(), json!({"id2label": null, "num_labels": width + 1}));
        let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        let expected = format!("expected {width} labels, as many as `{}.weight` has rows", head.module);
        assert!(error.contains("num_labels") && error.contains(&expected), "{error}");
        let one_more: serde_json::Map<String, Value> =
            (0..=width).map(|i| (i.to_string(), json!(format!("value {i}")))).collect();
        edit(dir.path(), json!({"num_labels": null, "id2label": one_more}));
        let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("id2label") && error.contains(&format!("got {}", width + 1)), "{error}");
    }
}
