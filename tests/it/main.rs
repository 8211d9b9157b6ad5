//! One integration-test binary: it compiles once and links once. The modules mirror the crate.

#![allow(clippy::unwrap_used)]

mod blocks;
mod config;
mod dev;
#[path = "../device/mod.rs"]
mod device;
mod engine;
mod fake;
mod fp8;
mod http;
mod load;
mod log;
mod model;
mod offline;
mod plan;
mod proxies;
mod runner;
mod scheduler;
mod simulation;
mod tensor_parallel;
mod text;
mod tidy;
mod usage;
mod validate;
