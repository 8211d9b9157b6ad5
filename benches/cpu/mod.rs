//! A runner with a real model on the CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use octant::comm::SingleDeviceGroup;
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::{CacheSpec, KvDtype};
use octant::model::{Model, ModelConfig, Precision, Shard};
use octant::runner::{RankParts, Runner, RunnerOptions};

/// Settings of a runner.
pub struct RunnerSettings {
    pub threads: usize,
    pub precision: Precision,
    /// Blocks of the KV cache.
    pub blocks: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
}

/// The type of keys and values beside weights of this precision.
pub fn kv_dtype(precision: Precision) -> KvDtype {
    if precision == Precision::Fp8 { KvDtype::Fp8 } else { KvDtype::Bf16 }
}

/// Loads the model in `dir` and starts a runner.
pub fn start(dir: &Path, model: &ModelConfig, settings: &RunnerSettings) -> Runner {
    let RunnerSettings { threads, precision, blocks, max_num_seqs, max_num_batched_tokens } = *settings;
    let device = Cpu::new(CpuOptions { threads, ..Default::default() }).expect("a CPU device");
    let start = Instant::now();
    let weights = Model::load(dir, model, Shard::WHOLE, precision, &device, &mut |_| {});
    let weights = weights.expect("a whole checkpoint");
    let seconds = start.elapsed().as_secs_f64();
    println!("{:?}, {threads} threads, {precision:?}, loaded in {seconds:.3} s", device.isa());
    let parts = RankParts {
        device,
        comm: SingleDeviceGroup::alone(),
        processors: Vec::new(),
        model: weights,
        cache: CacheSpec { layers: model.layers, blocks, heads: model.heads, dtype: kv_dtype(precision) },
        draft: None,
        max_num_seqs,
        max_num_batched_tokens,
        two_batch_tokens: None,
        vocab: model.vocab,
    };
    Runner::start(vec![parts], RunnerOptions { step_timeout: Duration::from_secs(600), mask_threads: 0 })
}
