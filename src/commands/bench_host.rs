//! `octant bench host`: what everything above the device costs, beside a device that takes no time of this machine.
//!
//! Four measurements. The scheduler alone: a plan and a commit, as running, waiting and prompts grow. The engine: from a
//! step's results to the next launch, while clients are told. The server: another process of this program, over steps of
//! a fixed length, and a client here that shares the machine with it. And what of that no server could do without.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{host_bare, host_engine, host_server};
use crate::config::BenchHostArgs;
use crate::statistics::Distribution;

/// Measures and prints; with `--json` all figures as one object at the end.
pub fn run(args: &BenchHostArgs) -> anyhow::Result<ExitCode> {
    let mut all = serde_json::Map::new();
    all.insert("growth".to_owned(), growth());
    println!("\nFrom a step's results to the next launch, steps of {} ms, us", args.step);
    println!("{:>8} {:>8} {:>8} {:>8} {:>8}", "rows", "p50", "p90", "p99", "max");
    let gaps = args.streams.iter().map(|&rows| {
        let micros = host_engine::gaps(rows, args.tokens, args.step / 1e3)?;
        let Distribution { p50, p90, p99, max, .. } = Distribution::of(micros);
        println!("{rows:>8} {p50:>8.1} {p90:>8.1} {p99:>8.1} {max:>8.1}");
        Ok(json!({"rows": rows, "us": {"p50": p50, "p90": p90, "p99": p99, "max": max}}))
    });
    all.insert("gap".to_owned(), gaps.collect::<anyhow::Result<Value>>()?);
    println!("\nThe server, end to end; its processor time includes the system's");
    println!(
        "{:>8} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "streams", "step ms", "tokens/s", "us/token", "of system", "late p50", "late p99", "settled", "MB"
    );
    let mut servers = Vec::new();
    for step in [args.step, 0.0] {
        for &streams in &args.streams {
            let figures = host_server::measure(args, streams, step)?;
            println!("{figures}");
            servers.push(serde_json::to_value(&figures)?);
        }
    }
    all.insert("server".to_owned(), Value::Array(servers));
    println!("A thread that only writes an event to each stream, under the same client");
    let mut bare = Vec::new();
    for &streams in &args.streams {
        let figures = host_bare::measure(args, streams, args.step)?;
        println!("{figures}");
        bare.push(serde_json::to_value(&figures)?);
    }
    all.insert("bare".to_owned(), Value::Array(bare));
    println!(
        "late: milliseconds between two tokens of a stream beyond a step's length; settled: its p99 without the"
    );
    println!("first {} tokens of each answer, while which all others arrive", host_server::SETTLED);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Times of the scheduler as its load grows in each direction.
fn growth() -> Value {
    println!("The scheduler alone, medians, us");
    println!("{:>8} {:>8} {:>8} {:>8} {:>8}", "running", "waiting", "prompt", "plan", "commit");
    let base = host_engine::Load { running: 128, waiting: 1250, prompt: 512 };
    let mut loads = vec![base];
    for factor in [2, 4, 8] {
        loads.push(host_engine::Load { running: base.running * factor, ..base });
    }
    for factor in [2, 4, 8] {
        loads.push(host_engine::Load { waiting: base.waiting * factor, ..base });
    }
    for factor in [2, 4, 8] {
        loads.push(host_engine::Load { prompt: base.prompt * factor, ..base });
    }
    loads.push(host_engine::Load { running: 1024, waiting: 10_000, prompt: 512 });
    let rows = loads.into_iter().map(|load| {
        let host_engine::Load { running, waiting, prompt } = load;
        let (plan, commit) = host_engine::scheduler(load);
        println!("{running:>8} {waiting:>8} {prompt:>8} {plan:>8.1} {commit:>8.1}");
        json!({"running": running, "waiting": waiting, "prompt": prompt, "plan_us": plan, "commit_us": commit})
    });
    Value::Array(rows.collect())
}
