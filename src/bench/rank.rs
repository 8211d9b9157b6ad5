//! `octant bench rank`: times whole steps of one rank's share of a model with random weights, against the
//! time to read its weights and its KV cache.
//!
//! Communication needs the other ranks. [`SingleDeviceGroup`] replaces it with a kernel that reads and adds
//! the same number of bytes on this device. For eight ranks, published latencies of all-reduces replace the
//! time of that kernel, and the result is called a projection. The floor of a step is the number of bytes
//! that it reads, divided by the bandwidth of a kernel that only reads, measured in the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::measured_device::MeasuredDevice;
use super::steps::{DecodeRun, Steps};
use crate::comm::{Communicator, Message, SingleDeviceGroup};
use crate::config::BenchRankArgs;
use crate::cost::Hardware;
use crate::device::{BLOCK_TOKENS, Device, KvDtype, MakeRandomMatrix, upload_random};
use crate::launch::{Devices, NOTHING_TO_MEASURE};
use crate::model::{Model, ModelConfig, Precision, StepRoom};
use crate::runner::{MemoryNeeds, MemoryPlan, RankParts, Runner, RunnerOptions, gib};
use crate::statistics::{percentile, sorted};
use crate::stdio::results::print_line;
use crate::stdio::{Log, ProgressBars};

/// Maximum time of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(600);

/// Number format of the weights.
const PRECISION: Precision = Precision::Fp8;

/// Ranks for which published latencies of all-reduces exist.
const PROJECTED_RANKS: usize = 8;

/// Runs the benchmark. Prints a line per measurement, and with `--json` one object with all of them at the
/// end.
pub fn run(args: &BenchRankArgs, log: &Log) -> anyhow::Result<ExitCode> {
    // Decode steps need an LM head, also where the model has a reward head in its place.
    let whole = ModelConfig { reward: None, ..ModelConfig::from_dir(&args.rank.config)? };
    let mut config = whole.share(args.rank.tp).map_err(anyhow::Error::msg)?;
    config.layers = args.layers.unwrap_or(config.layers);
    let MeasuredDevice { devices, record } = MeasuredDevice::open(&args.rank, args.deterministic)?;
    let bars = log.handle().bars;
    let limits = DeviceLimits { read: record.read, memory: devices.memory(None)?.bytes, bars };
    let measured = match devices {
        Devices::Cpu(mut cpus) => measure(cpus.remove(0), upload_random, &config, args, &limits)?,
        Devices::Cuda(gpus) => {
            let make_matrix = gpus.random_weights();
            measure(gpus.into_devices().remove(0), make_matrix, &config, args, &limits)?
        }
        Devices::Simulated(_) => anyhow::bail!(NOTHING_TO_MEASURE),
    };
    let figures = json!({ "layers": config.layers, "deterministic": args.deterministic, "steps": measured });
    record.end(&args.rank, args.json, figures)
}

/// Bandwidth and memory of the device.
struct DeviceLimits {
    /// Bytes per second that a kernel reads.
    read: f64,
    /// Bytes of memory to use.
    memory: u64,
    /// Shows how many layers exist.
    bars: ProgressBars,
}

/// A model on a device, ready for timed steps.
struct Setup {
    steps: Steps,
    /// Bytes of weights that a step reads.
    weights: u64,
    /// Bytes of keys and values of one token.
    token: u64,
    /// Bytes per second that a kernel reads.
    read: f64,
    /// Seconds to add to a step for the all-reduces of eight ranks, by the step's number of rows. Empty
    /// unless there are eight ranks.
    projection: BTreeMap<usize, f64>,
}

/// One kind of step.
struct Step {
    kind: &'static str,
    batch: usize,
    context: usize,
    /// Bytes of weights, keys and values that the step reads.
    bytes: u64,
    /// Seconds to add for the all-reduces of eight ranks.
    projection: Option<f64>,
}

fn measure<D: Device>(
    device: D,
    make_matrix: MakeRandomMatrix<D>,
    config: &ModelConfig,
    args: &BenchRankArgs,
    limits: &DeviceLimits,
) -> anyhow::Result<Vec<Value>> {
    let mut setup = Setup::new(device, make_matrix, config, args, limits)?;
    let mut report = Vec::new();
    for &context in &args.context {
        for &batch in &args.batch {
            report.extend(setup.decode(args, batch, context).context("decode")?);
        }
    }
    for &tokens in &args.prefill {
        report.push(setup.prefill(args, tokens)?);
    }
    Ok(report)
}

impl Setup {
    /// Plans the memory, times the all-reduces, and creates the model with random weights.
    fn new<D: Device>(
        device: D,
        make_matrix: MakeRandomMatrix<D>,
        config: &ModelConfig,
        args: &BenchRankArgs,
        limits: &DeviceLimits,
    ) -> anyhow::Result<Self> {
        let DeviceLimits { read, memory, ref bars } = *limits;
        let batch = args.batch.iter().copied().max().unwrap_or(1);
        let longest = args.context.iter().map(|context| context + args.reps + args.warm_up + 1);
        let longest = longest.chain(args.prefill.iter().copied()).max().unwrap_or(1);
        let rows = args.prefill.iter().copied().chain([batch]).max().unwrap_or(1);
        let limited = ModelConfig { max_positions: longest.next_multiple_of(BLOCK_TOKENS), ..config.clone() };
        let room = StepRoom {
            ranks: 1,
            rows,
            slots: batch,
            deterministic: args.deterministic,
            two_batch_tokens: None,
        };
        let needs = MemoryNeeds::new(&limited, &D::LAYOUT, PRECISION, KvDtype::Fp8, &room);
        let largest = Message { float_type: PRECISION.results(), rows, cols: config.hidden };
        let comm = SingleDeviceGroup::new(&device, args.rank.tp, largest)?;
        let projection = projection(&device, &comm, config, args)?;
        let memory = memory.saturating_sub(SingleDeviceGroup::<D>::bytes(args.rank.tp, largest));
        let plan = MemoryPlan::new(needs, memory, None, limited.max_positions, batch)?;
        tracing::info!("reads {:.1} GB/s; weights {}", read / 1e9, gib(needs.weights));
        let bar = bars.bar(Some(config.layers as u64), "creating layers {bar:32} {pos}/{len}");
        let model = Model::random(&limited, PRECISION, &device, make_matrix, &mut |layers| {
            bar.iter().for_each(|bar| bar.set_position(layers as u64));
        })?;
        bar.iter().for_each(|bar| bars.remove(bar));
        let vocab = limited.vocab;
        let parts = RankParts {
            device,
            comm,
            processors: Vec::new(),
            model,
            cache: plan.cache(&limited, KvDtype::Fp8),
            draft: None,
            max_num_seqs: batch,
            max_num_batched_tokens: rows,
            two_batch_tokens: None,
            vocab,
        };
        let runner =
            Runner::start(vec![parts], RunnerOptions { step_timeout: STEP_TIMEOUT, mask_threads: 0 });
        // A step reads only a few rows of the embedding, which are negligible, unless the embedding is also
        // the head.
        let embedding = if config.tied { 0 } else { (config.vocab * config.hidden * 2) as u64 };
        Ok(Self {
            steps: Steps::new(runner, vocab, plan.blocks),
            weights: needs.weights - embedding,
            token: (2 * config.layers * config.heads.kv_heads * config.heads.head_dim) as u64,
            read,
            projection,
        })
    }

    /// Times decode steps of `batch` sequences. Returns `None` if the cache cannot hold the sequences.
    fn decode(
        &mut self,
        args: &BenchRankArgs,
        batch: usize,
        context: usize,
    ) -> anyhow::Result<Option<Value>> {
        let (warm_up, reps) = (args.warm_up, args.reps);
        if !self.steps.fits(batch, context + warm_up + reps) {
            print_line!("decode  batch {batch:3} context {context:5}: does not fit")?;
            return Ok(None);
        }
        let bytes = self.weights + self.token * (batch * context) as u64;
        let times = self.steps.decode(DecodeRun { batch, context, warm_up, reps })?;
        let projection = self.projection.get(&batch).copied();
        show(&Step { kind: "decode", batch, context, bytes, projection }, times, self.read).map(Some)
    }

    /// Times prefill steps of one prompt, a tenth as many as decode steps.
    fn prefill(&mut self, args: &BenchRankArgs, tokens: usize) -> anyhow::Result<Value> {
        let times: anyhow::Result<Vec<f64>> =
            (0..args.reps.div_ceil(10)).map(|_| self.steps.prefill(0, tokens)).collect();
        let projection = self.projection.get(&tokens).copied();
        let step = Step { kind: "prefill", batch: 1, context: tokens, bytes: self.weights, projection };
        show(&step, times?, self.read)
    }
}

/// Returns the seconds that the all-reduces of eight ranks add to a step, by the step's number of rows. A
/// layer has two all-reduces. Each adds its published latency minus the measured time of the kernel that
/// replaces it. The map is empty unless there are eight ranks.
fn projection<D: Device>(
    device: &D,
    comm: &SingleDeviceGroup<D>,
    config: &ModelConfig,
    args: &BenchRankArgs,
) -> anyhow::Result<BTreeMap<usize, f64>> {
    if args.rank.tp != PROJECTED_RANKS {
        return Ok(BTreeMap::new());
    }
    let published = Hardware::named(Hardware::H100).map_err(anyhow::Error::msg)?;
    let counts: BTreeSet<usize> = args.batch.iter().chain(&args.prefill).copied().collect();
    let seconds = |rows: usize| {
        let message = (rows * config.hidden * 2) as f64;
        let alone = single_device_seconds(device, comm, rows, config.hidden)?;
        let added = published.all_reduce_seconds(message) - alone;
        Ok((rows, 2.0 * config.layers as f64 * added))
    };
    counts.into_iter().map(seconds).collect()
}

/// Mean seconds of an all-reduce of \[rows, cols\] on this device alone.
fn single_device_seconds<D: Device>(
    device: &D,
    comm: &SingleDeviceGroup<D>,
    rows: usize,
    cols: usize,
) -> anyhow::Result<f64> {
    const TIMES: usize = 50;
    let mut x = device.floats_of(PRECISION.results(), rows, cols)?;
    device.write(&vec![0.0; rows * cols], &mut x)?;
    let mut last = device.floats(1, 1)?;
    device.write(&[0.0], &mut last)?;
    // Reading a buffer waits for all work enqueued before.
    device.read(&last)?;
    let start = Instant::now();
    for _ in 0..TIMES {
        comm.all_reduce(device, &mut x)?;
    }
    device.read(&last)?;
    Ok(start.elapsed().as_secs_f64() / TIMES as f64)
}

/// Prints one measurement: median, 10th and 90th percentile of the times, floor, and median / floor.
fn show(step: &Step, times: Vec<f64>, read: f64) -> anyhow::Result<Value> {
    let times = sorted(times);
    let at = |share: f64| percentile(&times, share) * 1e3;
    let floor = step.bytes as f64 / read * 1e3;
    let (p10, median, p90) = (at(0.1), at(0.5), at(0.9));
    let Step { kind, batch, context, bytes, projection } = step;
    let projected = projection.map(|seconds| median + seconds * 1e3);
    let projection = projected.map_or(String::new(), |ms| format!(", projection for 8 GPUs {ms:.3} ms"));
    print_line!(
        "{kind:7} batch {batch:3} context {context:5}: {median:9.3} ms ({p10:.3} to {p90:.3}), \
         floor {floor:9.3} ms, ratio {:.2}{projection}",
        median / floor
    )?;
    Ok(json!({
        "kind": kind, "batch": batch, "context": context, "bytes": bytes, "ms": median, "p10_ms": p10,
        "p90_ms": p90, "floor_ms": floor, "ratio": median / floor, "projected_8_gpus_ms": projected,
    }))
}
