//! Measures whole steps of a real model on the CPU through the runner, without scheduler or HTTP: prefill of
//! one prompt of 512 tokens, and decode at batch sizes 1, 4, 16 and 64, in tokens per second. Last, decode
//! after 8,000 tokens of context, and the share of such a step that is attention over them: what it takes
//! longer than a step after one token.
//!
//!     cargo bench --bench forward -- DIR [--threads N] [--unquantized] [--fp8-head] [--reps N]
//!
//! Decode starts at position 128 of each sequence and generates 64 tokens; the contents of the cache before
//! that position are arbitrary. Each figure is the median over the repetitions.

mod cpu;

use std::path::PathBuf;

use cpu::{RunnerSettings, kv_dtype};
use octant::bench::steps::{DecodeRun, Steps};
use octant::device::cpu::Cpu;
use octant::device::{BLOCK_TOKENS, Device};
use octant::model::{HeadDtype, ModelConfig, Precision, StepRoom};
use octant::runner::{MemoryNeeds, MemoryPlan};
use octant::statistics::Distribution;

const PREFILL: usize = 512;
const CONTEXT: usize = 128;
const GENERATED: usize = 64;
const BATCHES: [usize; 4] = [1, 4, 16, 64];

/// Tokens of context whose attention is measured, and the batch sizes.
const LONG_CONTEXT: usize = 8000;
const LONG_BATCHES: [usize; 2] = [1, 4];

struct Options {
    dir: PathBuf,
    threads: usize,
    precision: Precision,
    head: HeadDtype,
    reps: usize,
}

fn options() -> Options {
    let threads = octant::machine::cores();
    let mut o =
        Options { dir: PathBuf::new(), threads, precision: Precision::Fp8, head: HeadDtype::Bf16, reps: 5 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number after the option");
        match arg.as_str() {
            "--threads" => o.threads = number(),
            "--reps" => o.reps = number(),
            "--fp8-head" => o.head = HeadDtype::Fp8,
            "--unquantized" => o.precision = Precision::None,
            // Cargo passes this flag itself.
            "--bench" => {}
            other => o.dir = PathBuf::from(other),
        }
    }
    o
}

fn main() {
    let o = options();
    if o.dir.as_os_str().is_empty() {
        println!(
            "usage: cargo bench --bench forward -- DIR [--threads N] [--unquantized] [--fp8-head] [--reps N]"
        );
        return;
    }
    let mut config = ModelConfig::from_dir(&o.dir).expect("a model directory");
    config.head_dtype = o.head;
    let needs = MemoryNeeds::new(
        &config,
        &Cpu::LAYOUT,
        o.precision,
        kv_dtype(o.precision),
        &StepRoom { ranks: 1, rows: PREFILL, slots: 64, deterministic: true, two_batch_tokens: None },
    );
    let plan = MemoryPlan::new(needs, u64::MAX, None, PREFILL + BLOCK_TOKENS, 64)
        .expect("a plan without a memory limit");
    println!("weights {} bytes", needs.weights);
    let settings = RunnerSettings {
        threads: o.threads,
        precision: o.precision,
        blocks: plan.blocks,
        max_num_seqs: 64,
        max_num_batched_tokens: PREFILL,
    };
    let runner = cpu::start(&o.dir, &config, &settings);
    let mut steps = Steps::new(runner, config.vocab, plan.blocks);
    steps.prefill(0, 1).expect("a step");
    let rate = |seconds: f64| PREFILL as f64 / seconds;
    let rates: Vec<f64> = (0..o.reps).map(|_| rate(steps.prefill(0, PREFILL).expect("a step"))).collect();
    println!("prefill {PREFILL:4} tokens  {:9.1} tokens/s", Distribution::of(rates).p50);
    for batch in BATCHES {
        let rates = (0..o.reps).map(|_| decode_rate(&mut steps, batch, CONTEXT)).collect();
        println!("decode  batch {batch:4}  {:9.1} tokens/s", Distribution::of(rates).p50);
    }
    for batch in LONG_BATCHES.into_iter().filter(|_| config.max_positions >= LONG_CONTEXT + GENERATED) {
        let mut rate = |context| {
            let rates = (0..o.reps).map(|_| decode_rate(&mut steps, batch, context)).collect();
            Distribution::of(rates).p50
        };
        let (short, long) = (rate(1), rate(LONG_CONTEXT));
        println!(
            "decode  batch {batch:4}  {long:9.1} tokens/s after {LONG_CONTEXT} tokens; attention over them \
             is {:.0} % of a step",
            (1.0 - long / short) * 100.0
        );
    }
}

/// Tokens per second of some decode steps of `batch` sequences.
fn decode_rate(steps: &mut Steps, batch: usize, context: usize) -> f64 {
    let run = DecodeRun { batch, context, warm_up: 0, reps: GENERATED };
    (batch * GENERATED) as f64 / steps.decode(run).expect("steps").iter().sum::<f64>()
}
