//! The subcommands of the binary, one file each.

pub mod bench;
pub mod bench_host;
pub mod bench_load;
pub mod bench_serving;
pub mod convert;
pub mod devices;
pub mod doctor;
pub mod drain;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod host_bare;
pub mod host_engine;
pub mod host_server;
pub mod numa;
pub mod plan;
pub mod progress;
pub mod reduce;
pub mod serve;
pub mod simulate;
pub mod simulated;
