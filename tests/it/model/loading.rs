//! Loading: bytes are read once for all ranks, only those that ranks need, and not after the first error.

use std::path::Path;
use std::time::Duration;

use octant::device::fp8;
use octant::launch::loading_progress::line;
use octant::model::{LoadError, LoadProgress, Model, ModelConfig, Precision, Shard};
use serde_json::json;

use super::checkpoints::{Tensors, read, write};
use super::{copy, edit};
use crate::dev::{self, Dev};
use crate::device::model::fixture;
use crate::tensor_parallel::gated;

/// The last progress report, and the number of reports.
#[derive(Default)]
struct Progress {
    done: u64,
    total: u64,
    times: usize,
}

impl Progress {
    fn add(&mut self, progress: &LoadProgress<'_>) {
        assert!(progress.done > self.done && progress.done <= progress.total);
        (self.done, self.total) = (progress.done, progress.total);
        self.times += 1;
    }
}

/// Loads all ranks at once.
fn together(
    dir: &Path,
    precision: Precision,
    ranks: usize,
) -> (Result<Vec<Model<Dev>>, LoadError>, Progress) {
    let config = ModelConfig::from_dir(dir).unwrap();
    let devices: Vec<Dev> = (0..ranks).map(|_| dev::one()).collect();
    let mut reports = Progress::default();
    let models = Model::load_all(dir, &config, precision, &devices, &mut |progress| reports.add(&progress));
    (models, reports)
}

/// Loads one rank.
fn apart(dir: &Path, precision: Precision, shard: Shard) -> (Model<Dev>, Progress) {
    let config = ModelConfig::from_dir(dir).unwrap();
    let mut reports = Progress::default();
    let mut add = |progress: LoadProgress<'_>| reports.add(&progress);
    let model = Model::load(dir, &config, shard, precision, &dev::one(), &mut add).unwrap();
    (model, reports)
}

/// Bytes of the rows of linear weights and tables that a rank reads, for a dtype of 2 bytes. It reads all
/// rows of O and down, because it has columns of each.
fn bytes_of_rows(config: &ModelConfig, ranks: usize) -> u64 {
    let (share, [qkv, _, up, _]) =
        (config.share(ranks).unwrap(), config.share(ranks).unwrap().linear_shapes());
    let [_, output, _, down] = config.linear_shapes();
    let layer: usize = [qkv, output, up, down].iter().map(|(out, input)| out * input).sum();
    (2 * (config.layers * layer + 2 * share.vocab * config.hidden)) as u64
}

#[test]
fn loading_all_ranks_together_equals_loading_each_alone() {
    for (name, ranks) in [("nemotron", 4), ("llama", 2), ("wide", 8)] {
        for precision in [Precision::Fp8, Precision::None] {
            check_together(&fixture(name), precision, ranks);
        }
    }
    // Read tasks begin in the middle of a group of eight outputs of a gate.
    check_together(gated::checkpoint(0).path(), Precision::Fp8, 4);
}

/// Fails if loading all ranks together gives another model than loading each alone.
fn check_together(dir: &Path, precision: Precision, ranks: usize) {
    let (models, reports) = together(dir, precision, ranks);
    assert_eq!(reports.done, reports.total);
    for (model, shard) in models.unwrap().iter().zip(Shard::all(ranks)) {
        let (alone, _) = apart(dir, precision, shard);
        assert!(format!("{model:?}") == format!("{alone:?}"), "{}, {precision:?}, {shard:?}", dir.display());
    }
}

#[test]
fn a_rank_reads_only_its_rows_and_a_group_reads_all_bytes_once() {
    let dir = fixture("wide");
    let config = ModelConfig::from_dir(&dir).unwrap();
    let (_, group) = together(&dir, Precision::Fp8, 8);
    assert_eq!(group.total, bytes_of_rows(&config, 1));
    let (_, rank) = apart(&dir, Precision::Fp8, Shard { rank: 3, ranks: 8 });
    assert_eq!(rank.total, bytes_of_rows(&config, 8));
    assert!(rank.total * 2 < group.total, "{} of {}", rank.total, group.total);
}

/// A checkpoint with down projections wide enough that a rank's columns are read row by row.
fn wide_rows() -> tempfile::TempDir {
    const FFN: usize = 32_768;
    let dir = copy("nemotron");
    edit(dir.path(), json!({"intermediate_size": FFN}));
    let mut tensors = read(dir.path());
    let hidden = 64;
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains(".mlp.")) {
        tensor.1 = if name.contains("down") { vec![hidden, FFN] } else { vec![FFN, hidden] };
        let value = |i: usize| fp8::bf16_bits(((i * 37 + name.len()) % 251) as f32 / 256.0 - 0.5);
        tensor.2 = (0..hidden * FFN).flat_map(|i| value(i).to_le_bytes()).collect();
    }
    write(&dir.path().join("model.safetensors"), &tensors);
    dir
}

#[test]
fn only_a_ranks_columns_of_wide_rows_are_read() {
    let dir = wide_rows();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let (models, _) = together(dir.path(), Precision::None, 2);
    for (model, shard) in models.unwrap().iter().zip(Shard::all(2)) {
        let (alone, reports) = apart(dir.path(), Precision::None, shard);
        assert!(format!("{model:?}") == format!("{alone:?}"), "{shard:?}");
        // The other rank has half of each down projection.
        let other = config.layers * config.hidden * config.ffn / 2 * 2;
        assert_eq!(reports.total, bytes_of_rows(&config, 2) - other as u64);
        assert_eq!(reports.done, reports.total);
    }
}

/// Rows of [`many_ids`]' tables in one read task of 2 MiB.
const TASK_ROWS: usize = (2 << 20) / (64 * 2);

/// A checkpoint whose `lm_head.weight` and embedding table, in this order, take `tasks` read tasks each.
fn many_ids(tasks: usize) -> (tempfile::TempDir, Tensors) {
    let ids = tasks * TASK_ROWS;
    let dir = copy("nemotron");
    edit(dir.path(), json!({"vocab_size": ids}));
    let mut tensors = read(dir.path());
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        tensors.insert(name.to_owned(), ("BF16", vec![ids, 64], vec![0; ids * 64 * 2]));
    }
    (dir, tensors)
}

#[test]
fn an_error_in_one_ranks_part_stops_loading_for_all() {
    // Each reading thread may hold one task back, and each converting thread may be slow with one. With more
    // tasks that fail than threads, one has failed before the first task behind them is converted.
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = (2 * cores).clamp(16, 64) + cores;
    let (dir, mut tensors) = many_ids(2 * threads);
    let path = dir.path().join("model.safetensors");
    // A NaN in each task of the second rank's half of the first tensor.
    let head = tensors.get_mut("lm_head.weight").unwrap();
    for task in threads..2 * threads {
        head.2[(task * TASK_ROWS + 10) * 128..][..2].copy_from_slice(&0x7FC0u16.to_le_bytes());
    }
    write(&path, &tensors);
    let (models, reports) = together(dir.path(), Precision::Fp8, 2);
    let error = models.err().map(|e| e.to_string()).unwrap_or_default();
    for part in ["model.safetensors", "lm_head.weight", "row ", "NaN"] {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
    // The first rank's half may be converted, and nothing of the tensors behind.
    let half = (threads * TASK_ROWS * 64 * 2) as u64;
    assert!(reports.done <= half, "{} bytes were converted, expected at most {half}", reports.done);
}

#[test]
fn header_errors_are_found_before_any_weight_is_read() {
    let (dir, mut tensors) = many_ids(4);
    tensors.remove("model.norm.bias");
    write(&dir.path().join("model.safetensors"), &tensors);
    let (models, reports) = together(dir.path(), Precision::Fp8, 2);
    assert!(models.is_err_and(|e| e.to_string().contains("model.norm.bias")));
    assert_eq!(reports.times, 0);
}

#[test]
fn the_progress_line_has_gigabytes_rate_and_remaining_time() {
    let tensor = "model.layers.3.mlp.up_proj.weight";
    let progress = LoadProgress { done: 12_000_000_000, total: 350_000_000_000, tensor };
    assert_eq!(
        line(&progress, Duration::from_secs(4)),
        format!("loading 12.00 of 350.00 GB (3 %), 3.00 GB/s, 113 s left: {tensor}")
    );
    let nothing = LoadProgress { done: 0, total: 0, tensor: "x" };
    assert!(line(&nothing, Duration::ZERO).starts_with("loading 0.00 of 0.00 GB"));
}
