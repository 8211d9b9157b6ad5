//! One integration-test binary: it compiles once and links once. The modules mirror the crate.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

/// Time after which a test fails rather than hangs: far more than what it waits for takes on a busy machine.
pub const HANG_GUARD: Duration = Duration::from_secs(60);

mod blocks;
mod command_line;
mod compiled;
mod config;
mod demo_reward;
mod dev;
#[path = "../device/mod.rs"]
mod device;
mod engine;
mod eval;
mod fake;
mod fp8;
mod grammar;
mod http;
mod https;
mod hub;
mod kernel_table;
mod load;
mod log;
mod machine;
mod model;
mod offline;
mod plan;
mod private;
mod proxies;
mod runner;
mod scheduler;
mod simulation;
mod synth;
mod tensor_parallel;
mod text;
mod tidy;
mod tools;
mod usage;
mod validate;
