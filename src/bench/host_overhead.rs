//! `octant bench host`: measures the host cost of everything above the device, with simulated steps that use
//! no CPU.
//!
//! Measurements:
//! - The scheduler alone: the times of a plan and of a commit, by number of running sequences, number of
//!   waiting sequences and prompt length.
//! - The engine: the time from the results of a step to the next launch, while clients receive tokens.
//! - The server: a second process of this program with steps of a fixed length, loaded by a client in this
//!   process.
//! - With `--constrained`, the CPU time of masks alone.
//! - A lower bound of the server's cost: a thread that only writes one event per token, loaded by the same
//!   client.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::mask_cost::ConstrainedRows;
use super::server_overhead::SETTLED;
use super::{engine_overhead, server_overhead, write_floor};
use crate::config::{BenchHostArgs, ConstrainedBy};
use crate::statistics::Distribution;
use crate::stdio::results::print_line;

/// Runs the benchmark. With `--json`, prints all figures as one object at the end.
pub fn run(args: &BenchHostArgs) -> anyhow::Result<ExitCode> {
    if let Some(by) = args.constrained {
        return masks(args, by);
    }
    let mut all = serde_json::Map::new();
    all.insert("growth".to_owned(), growth()?);
    print_line!("\nFrom a step's results to the next launch, steps of {} ms, us", args.step)?;
    print_line!("{:>8} {:>8} {:>8} {:>8} {:>8}", "rows", "p50", "p90", "p99", "max")?;
    let gaps = args.streams.iter().map(|&rows| {
        let micros = engine_overhead::gaps(rows, args.tokens, args.step / 1e3)?;
        let Distribution { p50, p90, p99, max, .. } = Distribution::of(micros);
        print_line!("{rows:>8} {p50:>8.1} {p90:>8.1} {p99:>8.1} {max:>8.1}")?;
        Ok(json!({"rows": rows, "us": {"p50": p50, "p90": p90, "p99": p99, "max": max}}))
    });
    all.insert("gap".to_owned(), gaps.collect::<anyhow::Result<Value>>()?);
    print_line!("\nThe server, end to end; its CPU time includes time in the kernel")?;
    print_line!(
        "{:>8} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "streams",
        "step ms",
        "tokens/s",
        "us/token",
        "of system",
        "late p50",
        "late p99",
        "settled",
        "MB"
    )?;
    let mut servers = Vec::new();
    for step in [args.step, 0.0] {
        for &streams in &args.streams {
            let figures = server_overhead::measure(args, streams, step)?;
            print_line!("{figures}")?;
            servers.push(serde_json::to_value(&figures)?);
        }
    }
    all.insert("server".to_owned(), Value::Array(servers));
    print_line!("A thread that only writes an event to each stream, under the same client")?;
    let mut bare = Vec::new();
    for &streams in &args.streams {
        let figures = write_floor::measure(args, streams, args.step)?;
        print_line!("{figures}")?;
        bare.push(serde_json::to_value(&figures)?);
    }
    all.insert("bare".to_owned(), Value::Array(bare));
    print_line!("late: time between two tokens of a stream minus the length of a step, ms")?;
    print_line!(
        "settled: late p99 without the first {SETTLED} tokens of each answer, while other requests start"
    )?;
    if args.json {
        print_line!("{}", serde_json::to_string_pretty(&all)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The CPU time of masks by number of rows.
fn masks(args: &BenchHostArgs, by: ConstrainedBy) -> anyhow::Result<ExitCode> {
    let constrained = ConstrainedRows::new(args, by)?;
    print_line!("Masks of a step, core-ms; {} of the tokens are synthetic", constrained.synthetic)?;
    print_line!("{:>8} {:>10} {:>10} {:>10} {:>8}", "rows", "mean", "p99", "step ms", "cores")?;
    let mut all = Vec::new();
    for &rows in &args.streams {
        let figures = constrained.measure(rows)?;
        print_line!("{figures}")?;
        all.push(serde_json::to_value(&figures)?);
    }
    print_line!("step: the modelled time of a step on 8 H100. cores: mean / step")?;
    if args.json {
        print_line!("{}", serde_json::to_string_pretty(&json!({ "masks": all }))?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Times of the scheduler at a base load; with 2, 4 and 8 times its running sequences, its waiting sequences
/// or its prompt length; and with 8 times its running and waiting sequences together.
fn growth() -> anyhow::Result<Value> {
    print_line!("The scheduler alone, medians, us")?;
    print_line!("{:>8} {:>8} {:>8} {:>8} {:>8}", "running", "waiting", "prompt", "plan", "commit")?;
    let base = engine_overhead::SchedulerLoad { running: 128, waiting: 1250, prompt: 512 };
    let mut loads = vec![base];
    for factor in [2, 4, 8] {
        loads.push(engine_overhead::SchedulerLoad { running: base.running * factor, ..base });
    }
    for factor in [2, 4, 8] {
        loads.push(engine_overhead::SchedulerLoad { waiting: base.waiting * factor, ..base });
    }
    for factor in [2, 4, 8] {
        loads.push(engine_overhead::SchedulerLoad { prompt: base.prompt * factor, ..base });
    }
    loads.push(engine_overhead::SchedulerLoad { running: 1024, waiting: 10_000, prompt: 512 });
    let rows = loads.into_iter().map(|load| {
        let engine_overhead::SchedulerLoad { running, waiting, prompt } = load;
        let (plan, commit) = engine_overhead::scheduler(load);
        print_line!("{running:>8} {waiting:>8} {prompt:>8} {plan:>8.1} {commit:>8.1}")?;
        Ok(json!({
            "running": running, "waiting": waiting, "prompt": prompt, "plan_us": plan, "commit_us": commit,
        }))
    });
    rows.collect()
}
