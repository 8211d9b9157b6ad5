//! `octant plan`: the memory plan and predicted step times of a model on GPUs. It needs no GPU.
//!
//! JSON output has the exact figures; the tables round them. The memory plan is the one that the server
//! computes at start, with the layout of the CUDA device. Times come from the cost model.

mod report;
mod tables;

use std::process::ExitCode;

use anyhow::Context;

use crate::config::{PlanArgs, Speculate};
use crate::hub::{self, Part};
use crate::stdio::{Log, results};

/// Prints the plan. Exits with status 1 if a full-length request does not fit, whatever the element type of
/// the KV cache.
pub fn run(mut args: PlanArgs, log: &Log) -> anyhow::Result<ExitCode> {
    args.config = hub::directory(&args.config, Part::Configuration, &log.handle().bars)?;
    if let Speculate::Draft(draft) = &mut args.speculate {
        let found = hub::directory(draft, Part::Configuration, &log.handle().bars);
        *draft = found.context("--speculate")?;
    }
    let report = report::report(&args)?;
    let text = match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => tables::tables(&report),
    };
    results::print(&text)?;
    let fits = report.kv.iter().any(|kv| kv.short_by == 0);
    Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
