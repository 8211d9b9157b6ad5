//! A model on the device, alone and behind an engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use octant::comm::SingleDeviceGroup;
use octant::device::{CacheSpec, Device, KvDtype, Segment, StepInputs, Token};
use octant::engine::{Engine, EngineHandle, EngineThread, SchedulerConfig};
use octant::model::{
    HeadDtype, LOGIT_ROWS, LoadError, Model, ModelConfig, Pass, Precision, Shard, Workspace,
};
use octant::request::{Request, SamplingParams, StopRules};
use octant::runner::{DraftParts, RankParts, Runner, RunnerOptions};

use crate::dev::{self, Dev};

/// The project's folder: `OCTANT_ROOT` if it is set, otherwise the folder in which the tests were built.
pub fn root() -> PathBuf {
    std::env::var_os("OCTANT_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The folder of a fixture's checkpoint and reference.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/data/golden").join(name)
}

/// Loads a model on a new device.
pub fn load(dir: &Path, precision: Precision) -> Result<(ModelConfig, Dev, Model<Dev>), LoadError> {
    let config = ModelConfig::from_dir(dir)?;
    let (device, model) = load_as(dir, &config, precision)?;
    Ok((config, device, model))
}

/// Loads a model of this configuration on a new device.
fn load_as(dir: &Path, config: &ModelConfig, precision: Precision) -> Result<(Dev, Model<Dev>), LoadError> {
    let device = dev::one();
    let model = Model::load(dir, config, Shard::WHOLE, precision, &device, &mut |_| {})?;
    Ok((device, model))
}

/// Computes the logits of all positions of a prompt, \[tokens, vocab\], in one step.
pub fn logits(dir: &Path, precision: Precision, kv: KvDtype, ids: &[u32]) -> Vec<f32> {
    logits_as(dir, &ModelConfig::from_dir(dir).unwrap(), (precision, kv), ids)
}

/// [`logits`] of a model whose LM head, stored as floats, is loaded as E4M3.
pub fn logits_of_fp8_head(dir: &Path, precision: Precision, kv: KvDtype, ids: &[u32]) -> Vec<f32> {
    let config = ModelConfig { head_dtype: HeadDtype::Fp8, ..ModelConfig::from_dir(dir).unwrap() };
    logits_as(dir, &config, (precision, kv), ids)
}

fn logits_as(
    dir: &Path,
    config: &ModelConfig,
    (precision, kv): (Precision, KvDtype),
    ids: &[u32],
) -> Vec<f32> {
    let (device, model) = load_as(dir, config, precision).unwrap();
    let blocks = ids.len().div_ceil(64);
    let spec = CacheSpec { layers: config.layers, blocks, heads: config.heads, dtype: kv };
    let mut cache = device.cache(spec).unwrap();
    let comm = SingleDeviceGroup::alone();
    let mut space = Workspace::new(&device, &model, ids.len(), 1).unwrap();
    let blocks = (0..blocks as u32).rev().collect();
    let segment = Segment { first: 0, len: ids.len(), position: 0, blocks };
    let inputs = StepInputs {
        tokens: ids.iter().map(|id| Token::Id(*id)).collect(),
        segments: vec![segment],
        ..Default::default()
    };
    model.forward(&inputs, &mut space, Pass { device: &device, comm: &comm, cache: &mut cache }).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let mut all = Vec::new();
    for rows in rows.chunks(LOGIT_ROWS) {
        model.logits(&device, &comm, rows, &mut space).unwrap();
        all.extend(device.read(&space.logits).unwrap());
    }
    all
}

/// Computes the log-probabilities of each row of logits, in F64.
pub fn logprobs(logits: &[f32], vocab: usize) -> Vec<Vec<f64>> {
    let row = |row: &[f32]| {
        let largest = row.iter().fold(f32::MIN, |m, x| m.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        row.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
    };
    logits.chunks_exact(vocab).map(row).collect()
}

/// Starts an engine with a fixture's model in FP8. `config` changes the scheduler's configuration.
pub fn engine(
    dir: &Path,
    config: impl FnOnce(&mut SchedulerConfig),
    in_flight: usize,
) -> (EngineHandle, EngineThread) {
    let mut scheduler = scheduler_config(dir);
    config(&mut scheduler);
    let runner = runner(dir, &scheduler);
    Engine::start(scheduler, in_flight, Box::new(runner)).unwrap()
}

/// Starts an engine with a fixture's model in FP8 and another one as its draft model.
pub fn engine_with_draft_model(
    dir: &Path,
    draft: &Path,
    config: impl FnOnce(&mut SchedulerConfig),
    in_flight: usize,
) -> (EngineHandle, EngineThread) {
    let mut scheduler = SchedulerConfig { draft_model: true, ..scheduler_config(dir) };
    config(&mut scheduler);
    let runner = runner_with(dir, Some(draft), &scheduler);
    Engine::start(scheduler, in_flight, Box::new(runner)).unwrap()
}

/// A configuration for a fixture's model.
pub fn scheduler_config(dir: &Path) -> SchedulerConfig {
    let model = ModelConfig::from_dir(dir).unwrap();
    SchedulerConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_model_len: 256,
        num_blocks: 64,
        vocab_size: model.vocab,
        max_queue_requests: 100,
        max_queue_tokens: 100_000,
        prefix_caching: true,
        reward_width: model.reward_width(),
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

/// A fixture's model in FP8, for an engine with this configuration.
pub fn runner(dir: &Path, scheduler: &SchedulerConfig) -> Runner {
    runner_with(dir, None, scheduler)
}

/// The same with the model of another fixture as a draft model.
pub fn runner_with(dir: &Path, draft: Option<&Path>, scheduler: &SchedulerConfig) -> Runner {
    let (model_config, device, model) = load(dir, Precision::Fp8).unwrap();
    let spec = |config: &ModelConfig| CacheSpec {
        layers: config.layers,
        blocks: scheduler.num_blocks,
        heads: config.heads,
        dtype: KvDtype::Fp8,
    };
    let draft = draft.map(|dir| {
        let (config, device) = (ModelConfig::from_dir(dir).unwrap(), device.sibling());
        let model = Model::load(dir, &config, Shard::WHOLE, Precision::Fp8, &device, &mut |_| {}).unwrap();
        DraftParts { device, comm: SingleDeviceGroup::alone(), model, cache: spec(&config) }
    });
    let rank = RankParts {
        device,
        comm: SingleDeviceGroup::alone(),
        processors: Vec::new(),
        model,
        cache: spec(&model_config),
        draft,
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        two_batch_tokens: None,
        vocab: model_config.vocab,
    };
    let options = RunnerOptions { step_timeout: Duration::from_secs(600), mask_threads: 1 };
    Runner::start(vec![rank], options)
}

/// A request with penalties and top-2 log-probabilities.
pub fn request(prompt: &[u32], max_tokens: u32, temperature: f32, seed: u64) -> Request {
    Request {
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams {
            temperature,
            top_p: 0.95,
            top_k: 50,
            repetition_penalty: 1.1,
            presence_penalty: 0.1,
            frequency_penalty: 0.1,
            seed,
            logprobs: Some(2),
            ..SamplingParams::greedy()
        }),
        stop: StopRules { max_tokens, stop_ids: Vec::new() },
        priority: 0,
        tenant: Default::default(),
        reward: false,
        batch: false,
        cache_salt: None,
        prompt_logprobs: None,
        prompt_logprobs_start: 0,
    }
}
