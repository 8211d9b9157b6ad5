//! `octant bench kernels` at the shapes of a tiny model.

use std::path::Path;

use octant::bench::kernels::{KernelBench, KernelTime, Timing, measure};
use octant::device::Device;
use octant::model::{ModelConfig, RewardHead};

use crate::dev::{self, Dev};

/// Whether the device captures launches.
const CAPTURES: bool = Dev::LAYOUT.graph_launches != 0;

/// The tiny Nemotron: 64 wide, an MLP of 128, 384 ids.
fn config(reward: Option<RewardHead>) -> ModelConfig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/nemotron");
    ModelConfig { reward, ..ModelConfig::from_dir(&dir).unwrap() }
}

/// Measures every operation for these rows of one of two ranks.
fn times(config: &ModelConfig, rows: &[usize]) -> Vec<KernelTime> {
    let bench = KernelBench { config, ranks: 2, rows, context: 300, runs: 2, reps: 1 };
    let mut times = Vec::new();
    let mut each = |time| {
        times.push(time);
        Ok(())
    };
    measure(&dev::one(), &bench, &mut each).unwrap();
    times
}

/// Every operation has a row with the bytes of its COST line at the shapes of a rank. Sampling, scores and
/// reward heads take 64 rows at a time, so that 65 rows take two launches.
#[test]
fn every_operation_is_timed_at_the_shapes_of_a_rank() {
    let head = RewardHead { module: "rm_head", width: 9, attributes: Vec::new() };
    let times = times(&config(Some(head)), &[1, 65]);
    let found: Vec<_> =
        times.iter().map(|time| (time.kernel, time.rows, time.launches, time.bytes)).collect();
    // Six query heads and one of keys and values, of 16 elements, in the cache of 64. 300 positions are five
    // blocks and two splits.
    let rope = (6 + 2) * 16 * 2 + 6 * 16 * 4 + 2 * 16;
    let attention = rope + 5 * 64 * 2 * 64 + 2 * 6 * (16 + 2) * 4 + 6 * 16;
    assert_eq!(
        found,
        [
            ("sample", 1, 1, 384 * 4),
            ("shortlist", 1, 1, 192 * 4),
            ("pick", 1, 1, 2 * 64 * 4),
            ("score", 1, 1, 384 * 4),
            ("reward_head", 1, 1, 64 * 4 + 9 * 64 * 4),
            ("embed", 1, 1, 64 * 6),
            ("select", 1, 1, 64 * 8),
            ("norm", 1, 1, 64 * 11 + 64 * 8),
            ("activation", 1, 1, 64 * 2 + 64),
            ("attention", 1, 3, attention),
            ("add", 1, 1, 64 * 2 * 3),
            ("sample", 65, 2, 65 * 384 * 4),
            ("shortlist", 65, 2, 65 * 192 * 4),
            ("pick", 65, 2, 65 * 2 * 64 * 4),
            ("score", 65, 2, 65 * 384 * 4),
            ("reward_head", 65, 2, 65 * 64 * 4 + 2 * 9 * 64 * 4),
            ("embed", 65, 1, 65 * 64 * 6),
            ("select", 65, 1, 65 * 64 * 8),
            ("norm", 65, 1, 65 * 64 * 11 + 64 * 8),
            ("activation", 65, 1, 65 * (64 * 2 + 64)),
            ("attention", 65, 3, 65 * attention),
            ("add", 65, 1, 65 * 64 * 2 * 3),
        ]
    );
    for time in &times {
        let expected = match time.kernel {
            _ if !CAPTURES => Timing::Call,
            "sample" | "shortlist" | "pick" | "select" => Timing::Queue,
            "score" => Timing::Call,
            _ => Timing::Graph,
        };
        assert_eq!(time.timing, expected, "{time:?}");
        assert_eq!(time.enqueue_us.is_some(), expected == Timing::Queue, "{time:?}");
        assert!(time.us > 0.0 && time.enqueue_us.is_none_or(|us| us <= time.us), "{time:?}");
    }
    let pick = times.iter().find(|time| time.kernel == "pick").unwrap();
    assert_eq!((pick.operation, &pick.shape[..]), ("sample", &[1, 2 * 2 * 64][..]));
    // 1,536 bytes at 1 GB/s.
    assert!((times[0].floor_us(1e9) - 1.536).abs() < 1e-9);
}

#[test]
fn a_model_without_a_reward_head_has_no_row_for_it() {
    let times = times(&config(None), &[3]);
    assert_eq!(times.len(), 10);
    assert!(times.iter().all(|time| time.kernel != "reward_head" && time.rows == 3), "{times:?}");
}

#[test]
fn a_model_that_cannot_be_divided_is_refused() {
    let bench = KernelBench { config: &config(None), ranks: 5, rows: &[1], context: 1, runs: 1, reps: 1 };
    let refused = measure(&dev::one(), &bench, &mut |_| Ok(()));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("--tp: query heads: expected a multiple of 5 ranks, got 12"), "{error}");
}
