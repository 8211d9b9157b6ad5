//! CPU quotas of control groups.

use std::path::Path;

use super::cgroup::{Hierarchy, Version, hierarchies};

/// The smallest CPU quota of the groups of this process and of their parents, in whole cores, rounded down,
/// but at least 1. `None` if there is no quota. `root` is the root of the file system; tests pass a made-up
/// one.
pub fn cpu_quota(root: &Path) -> Option<usize> {
    let quotas = hierarchies(root, "cpu").into_iter().flat_map(|Hierarchy { version, groups }| {
        groups.into_iter().filter_map(move |group| quota(version, &group))
    });
    quotas.min()
}

/// The quota of one group.
fn quota(version: Version, group: &Path) -> Option<usize> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    // Microseconds of CPU time per period, and microseconds of the period. `max` and -1 mean no quota.
    let text = match version {
        Version::V1 => format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
        Version::V2 => read("cpu.max")?,
    };
    let mut numbers = text.split_whitespace().map(|number| number.parse::<usize>().ok());
    let (time, period) = (numbers.next()??, numbers.next()??);
    Some(time.checked_div(period)?.max(1))
}
