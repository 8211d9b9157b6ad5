//! The lists of golden models that tests go through.

use std::path::Path;

/// Files whose tests go through every golden model.
const ALL_MODELS: [&str; 6] = [
    "tests/device/golden.rs",
    "tests/gpu/memory.rs",
    "tests/it/model/loading.rs",
    "tests/it/offline/quantize.rs",
    "tests/it/plan/allocated.rs",
    "tests/it/tensor_parallel.rs",
];

/// Files whose tests go through one model of each family.
const EACH_FAMILY: [&str; 3] =
    ["tests/device/determinism.rs", "tests/device/prompt_logprobs.rs", "tests/it/model/checkpoints.rs"];

/// Golden models that are another size of a family.
const OTHER_SIZES: [&str; 1] = ["wide"];

/// The files of the two lists that do not name a model.
fn files_without(root: &Path, model: &str) -> Vec<&'static str> {
    let families: &[&str] = if OTHER_SIZES.contains(&model) { &[] } else { &EACH_FAMILY };
    let lacks = |file: &&'static str| {
        let text = std::fs::read_to_string(root.join(file)).expect(file);
        !text.contains(&format!("\"{model}\""))
    };
    ALL_MODELS.iter().chain(families).copied().filter(lacks).collect()
}

#[test]
fn golden_models_are_in_every_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(root.join("tests/data/golden")).unwrap();
    let models: Vec<_> = entries.map(|entry| entry.unwrap()).filter(|e| e.path().is_dir()).collect();
    assert!(models.len() >= 3);
    for model in models {
        let name = model.file_name().into_string().unwrap();
        assert_eq!(files_without(root, &name), Vec::<&str>::new(), "files that do not test {name}");
    }
    let all: Vec<&str> = ALL_MODELS.into_iter().chain(EACH_FAMILY).collect();
    assert_eq!(files_without(root, "a model that no test names"), all);
}
