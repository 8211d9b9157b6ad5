//! Checks that the system can start the threads that a command needs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use super::cgroup::hierarchies;

/// Checks that `count` more threads can run at once, by starting them and letting them end. Libraries that
/// start threads panic if the system refuses.
///
/// # Errors
/// The system refuses; the error has both numbers and the limits that can be the cause.
pub(crate) fn check_threads(count: usize) -> anyhow::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // No thread ends before the last one has started.
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        for started in 0..count {
            let wait = || drop(gate.lock());
            if let Err(error) = Builder::new().spawn_scoped(scope, wait) {
                drop(closed);
                let limits = limits(Path::new("/")).join(", ");
                anyhow::bail!(
                    "{count} more threads are needed, but the system starts only {started}: {error} \
                     ({limits})"
                );
            }
        }
        Ok(())
    })
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
