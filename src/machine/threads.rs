//! Checks that the system can start the threads that a command needs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use super::cgroup::hierarchies;
use super::memory::kib_field;

/// Bytes of a thread's default stack, with its guard and the stack of its signal handler.
const STACK: u64 = (2 << 20) + (64 << 10);

/// Checks that `count` more threads can run at once, by starting them and letting them end. Libraries that
/// start threads panic if the system refuses.
///
/// # Errors
/// The system refuses; the error has both numbers and the limits that can be the cause.
pub(crate) fn check_threads(count: usize) -> anyhow::Result<()> {
    let refused = |started: usize, error: &str| {
        let limits = limits(Path::new("/")).join(", ");
        anyhow::anyhow!(
            "{count} more threads are needed, but the system starts only {started}: {error} ({limits})"
        )
    };
    // A thread that has started needs a little more memory and aborts the process if it gets none.
    let room = room_for_stacks(Path::new("/"));
    if room < count {
        return Err(refused(room, "more stacks do not fit into the address space"));
    }
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // No thread ends before the last one has started.
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        for started in 0..count {
            let wait = || drop(gate.lock());
            if let Err(error) = Builder::new().spawn_scoped(scope, wait) {
                drop(closed);
                return Err(refused(started, &error.to_string()));
            }
        }
        Ok(())
    })
}

/// The number of threads whose stacks fit into the limits on the address space and on the data segment.
fn room_for_stacks(root: &Path) -> usize {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (limits, status) = (read("proc/self/limits"), read("proc/self/status"));
    let room = |(line, field): (&str, &str)| {
        let soft = limits.lines().find_map(|text| text.strip_prefix(line))?.split_whitespace().next()?;
        let free = soft.parse::<u64>().ok()?.saturating_sub(kib_field(&status, field)?);
        usize::try_from(free / STACK).ok()
    };
    let known = [("Max address space", "VmSize:"), ("Max data size", "VmData:")];
    known.into_iter().filter_map(room).min().unwrap_or(usize::MAX)
}

/// The limits on threads, each with its source. The memory for the threads' stacks can also be the cause.
fn limits(root: &Path) -> Vec<String> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let limits = read(&root.join("proc/self/limits"));
    let value = |line: &str, source: &str| {
        let value = limits.lines().find_map(|text| text.strip_prefix(line))?.split_whitespace().next()?;
        Some(format!("{source}: {value}"))
    };
    let mut found: Vec<String> = Vec::new();
    found.extend(value("Max processes", "RLIMIT_NPROC (`ulimit -u`)"));
    found.extend(value("Max address space", "RLIMIT_AS (`ulimit -v`)"));
    for file in hierarchies(root, "pids").into_iter().flat_map(|hierarchy| hierarchy.groups) {
        let file = file.join("pids.max");
        let text = read(&file);
        if text.trim().parse::<u64>().is_ok() {
            found.push(format!("{}: {}", file.display(), text.trim()));
        }
    }
    found
}
