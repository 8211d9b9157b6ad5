//! Facts about this machine: CPU cores, the memory that this process may take, and its limit of threads.

mod cgroup;
mod cpu;
mod memory;
mod threads;

use std::path::Path;

pub use cpu::cpu_quota;
pub use memory::{MemoryLimit, memory_limits};
pub(crate) use threads::check_threads;

/// CPU cores that this process may use, at least 1. Affinity and the CPU quotas of control groups count.
pub fn cores() -> usize {
    // The standard library misses CPU quotas if control groups are mounted at an unusual place.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cpu_quota(Path::new("/")).map_or(cores, |quota| cores.min(quota))
}

/// The limit that leaves the least memory to this process.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn memory_limit() -> anyhow::Result<MemoryLimit> {
    let limits = memory_limits(Path::new("/"))?;
    let least = limits.into_iter().min_by_key(MemoryLimit::available);
    least.ok_or_else(|| anyhow::anyhow!("/proc/meminfo names no memory"))
}
