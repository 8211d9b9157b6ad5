//! `octant bench kernels`: times operations of a device one by one at the shapes of one rank's share of a
//! model, against the time to read their bytes from memory.
//!
//! Steps of `octant bench rank` sample greedily and score nothing, so they do not run random sampling,
//! shortlists, log-probabilities of prompts and reward heads. Here each of these is measured, with attention
//! of decode rows and the operations of the residual stream. Operations repeat over the same buffers, which
//! stay in the GPU's L2 cache where they fit, so an operation may take less than its floor.

mod attention;
mod bytes;
mod layer;
mod measured;
mod sampling;
mod timer;

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};

pub use measured::KernelTime;
pub use timer::Timing;

use super::measured_device::MeasuredDevice;
use crate::config::BenchKernelsArgs;
use crate::device::{Device, DeviceError, MatrixShape};
use crate::launch::{Devices, NOTHING_TO_MEASURE};
use crate::model::ModelConfig;
use crate::stdio::results::print_line;
use attention::AttentionOperation;
use layer::LayerOperations;
use sampling::{SamplingOperations, Vocabulary};
use timer::Timer;

/// The most runs of an operation that are enqueued before one wait.
const RUNS: usize = 20;

/// A measurement of all operations.
#[derive(Debug)]
pub struct KernelBench<'a> {
    /// The whole model.
    pub config: &'a ModelConfig,
    /// Ranks that share the model.
    pub ranks: usize,
    /// Numbers of rows, each at least 1.
    pub rows: &'a [usize],
    /// Positions that a row of attention attends to, at least 1.
    pub context: usize,
    /// The most runs that are enqueued before one wait, on devices that run asynchronously; at least 1.
    pub runs: usize,
    /// Timed measurements, of which the median counts; at least 1.
    pub reps: usize,
}

/// Runs the benchmark. Prints a line per operation and number of rows, and with `--json` one object with all
/// of them at the end.
pub fn run(args: &BenchKernelsArgs) -> anyhow::Result<ExitCode> {
    let config = ModelConfig::from_dir(&args.rank.config)?;
    let MeasuredDevice { devices, record } = MeasuredDevice::open(&args.rank, true)?;
    let read = record.read;
    tracing::info!("reads {:.1} GB/s", read / 1e9);
    let bench = KernelBench {
        config: &config,
        ranks: args.rank.tp,
        rows: &args.rows,
        context: args.context,
        runs: RUNS,
        reps: args.reps,
    };
    let mut rows = Vec::new();
    print_line!("{HEADER}")?;
    let mut each = |time: KernelTime| {
        print_line!("{}", line(&time, read))?;
        rows.push(figures(&time, read)?);
        Ok(())
    };
    match devices {
        Devices::Cpu(mut cpus) => measure(&cpus.remove(0), &bench, &mut each)?,
        Devices::Cuda(gpus) => measure(&gpus.into_devices().remove(0), &bench, &mut each)?,
        Devices::Simulated(_) => anyhow::bail!(NOTHING_TO_MEASURE),
    }
    if config.reward.is_none() {
        print_line!("reward_head  not measured: the model has no reward head")?;
    }
    let figures = json!({ "context": args.context, "reps": args.reps, "kernels": rows });
    record.end(&args.rank, args.json, figures)
}

const HEADER: &str = "operation    kernel        rows launches shape                 timed         us  \
                      enqueue us         MB   floor us    times";

/// A line of the table. `read` is in bytes per second.
fn line(time: &KernelTime, read: f64) -> String {
    let KernelTime { operation, kernel, rows, launches, shape, timing, us, enqueue_us, bytes } = time;
    let (shape, timing, floor) = (format!("{shape:?}"), timing.name(), time.floor_us(read));
    let enqueue = enqueue_us.map_or("-".to_owned(), |us| format!("{us:.1}"));
    format!(
        "{operation:12} {kernel:12} {rows:5} {launches:8} {shape:21} {timing:5} {us:10.1} {enqueue:>11} \
         {:10.2} {floor:10.2} {:8.2}",
        *bytes as f64 / 1e6,
        us / floor
    )
}

/// The same figures in JSON.
fn figures(time: &KernelTime, read: f64) -> anyhow::Result<Value> {
    let mut figures = serde_json::to_value(time)?;
    let floor = time.floor_us(read);
    figures["floor_us"] = floor.into();
    figures["times_the_floor"] = (time.us / floor).into();
    Ok(figures)
}

/// Times every operation for each number of rows, and passes the results to `each`. A model without a reward
/// head has no `reward_head`.
///
/// # Errors
/// If the model cannot be divided, memory runs out, an operation fails, or `each` fails.
pub fn measure<D: Device>(
    device: &D,
    bench: &KernelBench<'_>,
    each: &mut dyn FnMut(KernelTime) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let KernelBench { config, ranks, rows, context, runs, reps } = *bench;
    let share = config.share(ranks).map_err(|error| anyhow::anyhow!("--tp: {error}"))?;
    let vocabulary = Vocabulary { ids: config.vocab, share: share.vocab, ranks };
    let most = rows.iter().copied().max().unwrap_or(1);
    let timer = Timer::new(device, runs, reps)?;
    let mut step =
        device.step(vocabulary.capacity(most, context, timer.most_runs())).context("buffers of a step")?;
    let table = embedding(device, &share).context("embedding")?;
    let layer = LayerOperations { device, timer: &timer, share: &share, ranks };
    let mut attention = AttentionOperation::new(device, &timer, &share, context, most).context("KV cache")?;
    let sampling = SamplingOperations::new(device, &timer, &vocabulary, most).context("logits")?;
    for &rows in rows {
        each(sampling.sample(rows, &mut step).context("sample")?)?;
        each(sampling.shortlist(rows).context("shortlist")?)?;
        each(sampling.pick(rows, &mut step).context("pick")?)?;
        each(sampling.score(rows).context("score")?)?;
        if let Some(head) = &config.reward {
            each(layer.reward_head(rows, head.width).context("reward_head")?)?;
        }
        each(layer.embed(&table, &mut step, rows).context("embed")?)?;
        each(layer.select(rows).context("select")?)?;
        each(layer.norm(rows).context("norm")?)?;
        each(layer.activation(rows).context("activation")?)?;
        each(attention.decode(&mut step, rows).context("attention")?)?;
        each(layer.add(rows).context("add")?)?;
    }
    Ok(())
}

/// A rank's share of an embedding in BF16, of zeros, since the time does not depend on the values.
fn embedding<D: Device>(device: &D, share: &ModelConfig) -> Result<D::Matrix, DeviceError> {
    let shape = MatrixShape { out: share.vocab, input: share.hidden, bf16: true };
    device.finish_matrix(device.begin_matrix(shape)?)
}
