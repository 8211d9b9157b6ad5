//! `octant bench rank`: whole steps of one rank's share of a model, with random weights, against the time that reading
//! its weights and its keys and values would take.
//!
//! What the ranks say to each other needs the others: a kernel that reads and adds as much on this device stands in for
//! it. For eight ranks published latencies are put in its place, and the result is called a projection. The floor is bytes over the bandwidth of a kernel that only reads, measured in
//! the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::devices::{DeviceChoice, Devices, NOT_THERE};
use crate::comm::{Communicator, SingleDeviceGroup};
use crate::config::{BenchRankArgs, DeviceName};
use crate::cost::Hardware;
use crate::device::{BLOCK_TOKENS, Device, KvDtype};
use crate::engine::Executor;
use crate::model::{Model, ModelConfig, Precision, StepRoom};
use crate::request::SamplingParams;
use crate::runner::{MemoryNeeds, MemoryPlan, RankParts, Runner, gib};
use crate::scheduler::step_plan::{Row, SlotStart, StepPlan, TokenSource};
use crate::statistics::{percentile, sorted};

/// Runs the benchmark and prints a line per measurement, and with `--json` all of them as one object at the end.
pub fn rank(args: &BenchRankArgs) -> anyhow::Result<ExitCode> {
    let whole = ModelConfig::from_dir(&args.config)?;
    let mut config = whole.share(args.tp).map_err(anyhow::Error::msg)?;
    config.layers = args.layers.unwrap_or(config.layers);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = args.device.unwrap_or(DeviceName::Cpu);
    let place = Devices::open_devices(&DeviceChoice {
        device,
        gpus: vec![0],
        threads,
        deterministic: args.deterministic,
    })?;
    let device = place.describe();
    let conditions = place.conditions()?;
    let before = conditions();
    eprintln!("{device}{}", before.as_ref().map_or(String::new(), |before| format!(": {before}")));
    let machine = Machine { read: place.read_bandwidth()?, memory: place.memory()? };
    let measured = match place {
        Devices::Cpu(mut cpus) => measure(cpus.remove(0), &config, args, machine)?,
        #[cfg(feature = "cuda")]
        Devices::Cuda(mut gpus) => measure(gpus.remove(0), &config, args, machine)?,
        Devices::Simulated(_) => anyhow::bail!(NOT_THERE),
    };
    let after = conditions();
    if let Some(after) = &after {
        eprintln!("after: {after}");
    }
    if args.json {
        let report = json!({
            "device": device, "before": before, "after": after, "config": args.config, "tp": args.tp, "layers": config.layers,
            "deterministic": args.deterministic,
            "read_bytes_per_s": machine.read, "steps": measured,
        });
        println!("{report:#}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What the device can do.
#[derive(Clone, Copy)]
struct Machine {
    /// Bytes per second.
    read: f64,
    /// Bytes.
    memory: u64,
}

/// What is measured of one kind of step.
struct Step {
    kind: &'static str,
    batch: usize,
    context: usize,
    /// Bytes of weights, and of keys and values, that it must read.
    bytes: u64,
    /// Seconds that eight ranks' all-reduces would add to what their stand-in takes.
    reduces: Option<f64>,
}

fn measure<D: Device>(
    device: D,
    config: &ModelConfig,
    args: &BenchRankArgs,
    Machine { read, memory }: Machine,
) -> anyhow::Result<Vec<Value>> {
    let (batches, contexts, prefills) = (&args.batch, &args.context, &args.prefill);
    let batch = batches.iter().copied().max().unwrap_or(1);
    let longest = contexts.iter().map(|context| context + args.reps + args.warm_up + 1);
    let longest = longest.chain(prefills.iter().copied()).max().unwrap_or(1);
    let rows = prefills.iter().copied().chain([batch]).max().unwrap_or(1);
    let limited = ModelConfig { max_positions: longest.next_multiple_of(BLOCK_TOKENS), ..config.clone() };
    let room = StepRoom { ranks: 1, rows, slots: batch, deterministic: args.deterministic };
    let needs = MemoryNeeds::new(&limited, &D::LAYOUT, (Precision::Fp8, KvDtype::Fp8), &room);
    let comm = SingleDeviceGroup::new(&device, args.tp, rows, config.hidden)?;
    let counts: BTreeSet<usize> = batches.iter().chain(prefills).copied().collect();
    let single_device: BTreeMap<usize, f64> = counts
        .into_iter()
        .map(|rows| Ok((rows, stand_in_seconds(&device, &comm, rows, config.hidden)?)))
        .collect::<anyhow::Result<_>>()?;
    let memory = memory.saturating_sub(SingleDeviceGroup::<D>::bytes(args.tp, rows, config.hidden));
    let plan = MemoryPlan::new(needs, memory, None, limited.max_positions, batch)?;
    eprintln!("reads {:.1} GB/s; weights {}", read / 1e9, gib(needs.weights));
    let model = Model::random(&limited, Precision::Fp8, &device, &mut |layers| {
        eprint!("\rmade {layers} of {} layers", config.layers);
        let _shown = std::io::stderr().flush();
    })?;
    eprintln!();
    let vocab = limited.vocab;
    let parts = RankParts {
        device,
        comm,
        processors: Vec::new(),
        model,
        cache: plan.cache(&limited, KvDtype::Fp8),
        max_num_seqs: batch,
        max_num_batched_tokens: rows,
        vocab,
    };
    let runner = Runner::start(vec![parts], Duration::from_secs(600));
    let mut steps = Steps::new(runner, vocab, plan.blocks);
    // Of the embedding a step reads its tokens' rows, which are nothing, unless it is the head too.
    let embedding = if config.tied { 0 } else { (config.vocab * config.hidden * 2) as u64 };
    let weights = needs.weights - embedding;
    let token = (2 * config.layers * config.heads.kv_heads * config.heads.head_dim) as u64;
    let published = Hardware::named(Hardware::H100).map_err(anyhow::Error::msg)?;
    let reduces = |rows: usize| {
        let message = (rows * config.hidden * 2) as f64;
        let more = published.all_reduce_seconds(message) - single_device[&rows];
        (args.tp == 8).then_some(2.0 * config.layers as f64 * more)
    };
    let mut report = Vec::new();
    for &context in contexts {
        for &batch in batches {
            if !steps.fits(batch, context + args.warm_up + args.reps) {
                println!("decode  batch {batch:3} context {context:5}: does not fit");
                continue;
            }
            let bytes = weights + token * (batch * context) as u64;
            let times = steps.decode(batch, context, args.warm_up, args.reps).context("decode")?;
            report.push(show(
                &Step { kind: "decode", batch, context, bytes, reduces: reduces(batch) },
                times,
                read,
            ));
        }
    }
    for &context in prefills {
        let times: anyhow::Result<Vec<f64>> =
            (0..args.reps.div_ceil(10)).map(|_| steps.prefill(0, context)).collect();
        report.push(show(
            &Step { kind: "prefill", batch: 1, context, bytes: weights, reduces: reduces(context) },
            times?,
            read,
        ));
    }
    Ok(report)
}

/// Seconds of the all-reduce that is done on this device alone, of so many rows.
fn stand_in_seconds<D: Device>(
    device: &D,
    comm: &SingleDeviceGroup<D>,
    rows: usize,
    cols: usize,
) -> anyhow::Result<f64> {
    const TIMES: usize = 50;
    let mut x = device.floats(rows, cols)?;
    device.write(&vec![0.0; rows * cols], &mut x)?;
    let mut mark = device.floats(1, 1)?;
    device.write(&[0.0], &mut mark)?;
    // Reading back waits for all that was begun.
    device.read(&mark)?;
    let start = Instant::now();
    for _ in 0..TIMES {
        comm.all_reduce(device, &mut x)?;
    }
    device.read(&mark)?;
    Ok(start.elapsed().as_secs_f64() / TIMES as f64)
}

/// Prints one measurement, its median against the floor.
fn show(step: &Step, times: Vec<f64>, read: f64) -> Value {
    let times = sorted(times);
    let at = |share: f64| percentile(&times, share) * 1e3;
    let floor = step.bytes as f64 / read * 1e3;
    let (p10, median, p90) = (at(0.1), at(0.5), at(0.9));
    let Step { kind, batch, context, bytes, reduces } = step;
    let projected = reduces.map(|seconds| median + seconds * 1e3);
    let projection = projected.map_or(String::new(), |ms| format!(", projection for 8 GPUs {ms:.3} ms"));
    println!(
        "{kind:7} batch {batch:3} context {context:5}: {median:9.3} ms ({p10:.3} to {p90:.3}), floor {floor:9.3} ms, \
         ratio {:.2}{projection}",
        median / floor
    );
    json!({
        "kind": kind, "batch": batch, "context": context, "bytes": bytes, "ms": median, "p10_ms": p10,
        "p90_ms": p90, "floor_ms": floor, "ratio": median / floor, "projected_8_gpus_ms": projected,
    })
}

/// Steps of made-up sequences through a runner, without scheduler or HTTP.
pub struct Steps {
    runner: Runner,
    steps: u64,
    vocab: usize,
    /// Blocks of the cache.
    blocks: usize,
    /// Blocks of a sequence: sequence `slot` has those from `slot` times this on.
    each: usize,
}

impl Steps {
    /// Over a cache of so many blocks.
    pub fn new(runner: Runner, vocab: usize, blocks: usize) -> Self {
        Self { runner, steps: 0, vocab, blocks, each: blocks }
    }

    /// Whether the cache holds so many sequences of so many tokens.
    pub fn fits(&self, batch: usize, tokens: usize) -> bool {
        batch * tokens.div_ceil(BLOCK_TOKENS) <= self.blocks
    }

    /// Seconds of one step over one prompt.
    pub fn prefill(&mut self, slot: usize, tokens: usize) -> anyhow::Result<f64> {
        let row = self.start(slot, tokens);
        self.step(vec![row])
    }

    /// Seconds of each of `reps` steps in which `batch` sequences of `context` tokens generate one each, after
    /// `warm_up` such steps. Keys and values of the context are whatever the cache holds.
    pub fn decode(
        &mut self,
        batch: usize,
        context: usize,
        warm_up: usize,
        reps: usize,
    ) -> anyhow::Result<Vec<f64>> {
        self.each = (context + warm_up + reps).div_ceil(BLOCK_TOKENS);
        for slot in 0..batch {
            self.prefill(slot, 1)?;
        }
        let mut times = Vec::with_capacity(reps);
        for i in 0..warm_up + reps {
            let rows = (0..batch).map(|slot| self.row(slot, None, TokenSource::LastSampled, context + i));
            times.push(self.step(rows.collect())?);
        }
        Ok(times.split_off(warm_up))
    }

    fn start(&self, slot: usize, tokens: usize) -> Row {
        let prompt: Vec<u32> =
            (0..tokens).map(|i| ((i * 7919 + slot * 104_729 + 17) % self.vocab) as u32).collect();
        let start = SlotStart {
            sampling: Arc::new(SamplingParams::greedy()),
            prompt_len: 1,
            tokens: prompt.clone(),
            prompt_logprobs: None,
        };
        self.row(slot, Some(Arc::new(start)), TokenSource::Host(prompt), 0)
    }

    fn row(&self, slot: usize, start: Option<Arc<SlotStart>>, tokens: TokenSource, position: usize) -> Row {
        let (first, blocks) = (slot * self.each, (position + tokens.len()).div_ceil(BLOCK_TOKENS));
        Row {
            slot: slot as u32,
            start,
            tokens,
            position: position as u32,
            blocks: (first..first + blocks).map(|b| b as u32).collect(),
            sample: true,
            score: Vec::new(),
        }
    }

    fn step(&mut self, rows: Vec<Row>) -> anyhow::Result<f64> {
        let plan = StepPlan { id: self.steps, rows };
        self.steps += 1;
        let start = Instant::now();
        self.runner.enqueue(&plan)?;
        let output = self.runner.collect()?;
        let seconds = start.elapsed().as_secs_f64();
        anyhow::ensure!(output.rows.iter().all(|row| !row.non_finite), "a row computed NaN or infinity");
        Ok(seconds)
    }
}

/// Bytes per second of plain sums by all threads over a buffer much larger than any cache, best of three.
pub fn cpu_read_bandwidth(threads: usize, bytes: usize) -> f64 {
    let data = vec![1u64; bytes / 8];
    let part = data.len() / threads;
    let run = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in data.chunks(part) {
                scope.spawn(move || black_box(chunk.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))));
            }
        });
        bytes as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| run()).fold(0.0, f64::max)
}
