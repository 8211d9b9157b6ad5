//! The benchmarks of `octant bench`. Nothing that serves imports this module.

pub mod all_reduce;
mod engine_overhead;
pub mod host_overhead;
pub mod kernels;
pub mod load_client;
mod mask_cost;
mod measured_device;
pub mod model_loading;
pub(crate) mod offline_engine;
pub mod rank;
mod read_bandwidth;
mod server_overhead;
pub mod serving;
pub mod steps;
mod write_floor;

pub use read_bandwidth::cpu_read_bandwidth;
