//! Limits on the memory of this process: physical memory, control groups, resource limits and overcommitment.
//!
//! Each limit comes with the bytes that count against it already. Page cache and reclaimable kernel memory of
//! a control group do not count, because the system frees them when a process needs memory; `MemAvailable`
//! leaves them out too. Swap does not count as memory.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cgroup::{Hierarchy, Version, hierarchies};

/// A limit on the memory that this process may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The file, resource limit or setting that limits the memory.
    pub source: String,
    /// The limit, in bytes.
    pub bytes: u64,
    /// Bytes that are in use and cannot be reclaimed.
    pub used: u64,
}

impl MemoryLimit {
    /// Bytes that are left.
    pub fn available(&self) -> u64 {
        self.bytes.saturating_sub(self.used)
    }
}

/// The physical memory, followed by every limit of this process that is below it or leaves less than it. No
/// other limit matters. `root` is the root of the file system; tests pass a made-up one.
///
/// # Errors
/// `proc/meminfo` cannot be read.
pub fn memory_limits(root: &Path) -> anyhow::Result<Vec<MemoryLimit>> {
    let physical = physical(root)?;
    let (most, left) = (physical.bytes, physical.available());
    let mut limits = vec![physical];
    for hierarchy in hierarchies(root, "memory") {
        limits.extend(match hierarchy.version {
            Version::V1 => group_limits_v1(root, &hierarchy),
            Version::V2 => group_limits_v2(root, &hierarchy),
        });
    }
    limits.extend(resource_limits(root));
    limits.extend(commit_limit(root));
    let mut kept: Vec<MemoryLimit> = Vec::new();
    for limit in limits {
        // A hierarchy can be mounted twice. Version 1 reports almost 2^63 bytes where there is no limit. What
        // counts against a limit may be more than what is in use: a commit limit or one on address space can
        // be above the physical memory and leave the least.
        let known = kept.iter().any(|other| other.source == limit.source);
        let matters = limit.bytes < most || limit.available() < left;
        if !known && (kept.is_empty() || matters) {
            kept.push(limit);
        }
    }
    Ok(kept)
}

/// The memory of the machine.
fn physical(root: &Path) -> anyhow::Result<MemoryLimit> {
    let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).context("cannot read /proc/meminfo")?;
    let bytes = kib_field(&meminfo, "MemTotal:").context("/proc/meminfo has no MemTotal")?;
    let free = kib_field(&meminfo, "MemAvailable:").context("/proc/meminfo has no MemAvailable")?;
    let source = "MemTotal of /proc/meminfo".to_owned();
    Ok(MemoryLimit { source, bytes, used: bytes.saturating_sub(free) })
}

/// The limits of control groups of version 2. A group above `memory.high` is not killed, but slowed down
/// until it takes less, so a server must stay below `memory.high` too.
fn group_limits_v2(root: &Path, hierarchy: &Hierarchy) -> Vec<MemoryLimit> {
    let mut limits = Vec::new();
    for group in &hierarchy.groups {
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let reclaimable =
            ["inactive_file", "active_file", "slab_reclaimable"].map(|key| stat_field(&stat, key));
        let reclaimable: u64 = reclaimable.into_iter().flatten().sum();
        let used = number(&group.join("memory.current")).unwrap_or_default().saturating_sub(reclaimable);
        for file in ["memory.max", "memory.high"].map(|name| group.join(name)) {
            let source = shown(root, &file);
            limits.extend(number(&file).map(|bytes| MemoryLimit { source, bytes, used }));
        }
    }
    limits
}

/// The limits of version 1. A group counts against its parent only if the parent uses the hierarchy.
fn group_limits_v1(root: &Path, hierarchy: &Hierarchy) -> Vec<MemoryLimit> {
    let mut limits: Vec<MemoryLimit> = Vec::new();
    for (index, group) in hierarchy.groups.iter().enumerate() {
        if index > 0 && number(&group.join("memory.use_hierarchy")) == Some(0) {
            break;
        }
        let file = group.join("memory.limit_in_bytes");
        let (used, source) = (used_v1(group), shown(root, &file));
        limits.extend(number(&file).map(|bytes| MemoryLimit { source, bytes, used }));
    }
    // In a container, parents are not mounted. Their limit is then in the group's statistics only.
    let visible = limits.iter().map(|limit| limit.bytes).min().unwrap_or(u64::MAX);
    if let Some(own) = hierarchy.groups.iter().find(|group| group.join("memory.stat").exists()) {
        let file = own.join("memory.stat");
        let stat = read(&file).unwrap_or_default();
        let least = stat_field(&stat, "hierarchical_memory_limit").filter(|bytes| *bytes < visible);
        let source = format!("hierarchical_memory_limit of {}", shown(root, &file));
        limits.extend(least.map(|bytes| MemoryLimit { source, bytes, used: used_v1(own) }));
    }
    limits
}

/// Bytes that a group of version 1 uses with its children, without the page cache.
fn used_v1(group: &Path) -> u64 {
    let stat = read(&group.join("memory.stat")).unwrap_or_default();
    let cache = ["total_inactive_file", "total_active_file"].map(|key| stat_field(&stat, key));
    let cache: u64 = cache.into_iter().flatten().sum();
    number(&group.join("memory.usage_in_bytes")).unwrap_or_default().saturating_sub(cache)
}

/// The resource limits that make an allocation fail: of the address space and of the data segment. The
/// allocator reserves address space in large pieces, which count against both limits before they are touched.
/// An allocation uses such a piece or new address space, so the larger of the two counts as available.
fn resource_limits(root: &Path) -> Vec<MemoryLimit> {
    let limits = read(&root.join("proc/self/limits")).unwrap_or_default();
    let status = read(&root.join("proc/self/status")).unwrap_or_default();
    let taken = |field: &str| kib_field(&status, field).unwrap_or_default();
    let untouched = taken("VmData:").saturating_sub(taken("RssAnon:"));
    let limit = |(line, field, source): (&str, &str, &str)| {
        let soft = limits.lines().find_map(|text| text.strip_prefix(line))?.split_whitespace().next()?;
        let bytes: u64 = soft.parse().ok()?;
        let used = taken(field).min(bytes.saturating_sub(untouched));
        Some(MemoryLimit { source: source.to_owned(), bytes, used })
    };
    let known = [
        ("Max address space", "VmSize:", "RLIMIT_AS (`ulimit -v`)"),
        ("Max data size", "VmData:", "RLIMIT_DATA (`ulimit -d`)"),
    ];
    known.into_iter().filter_map(limit).collect()
}

/// The limit on committed memory, if the system does not overcommit.
fn commit_limit(root: &Path) -> Option<MemoryLimit> {
    number(&root.join("proc/sys/vm/overcommit_memory")).filter(|mode| *mode == 2)?;
    let meminfo = read(&root.join("proc/meminfo"))?;
    let source = "CommitLimit of /proc/meminfo (vm.overcommit_memory is 2)".to_owned();
    let used = kib_field(&meminfo, "Committed_AS:").unwrap_or_default();
    Some(MemoryLimit { source, bytes: kib_field(&meminfo, "CommitLimit:")?, used })
}

/// The text of a file; `None` if it cannot be read, since a group may lack a file or end at any time.
fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The number in a file; `None` for `max` and for -1, which mean no limit.
fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The bytes of a line `key: N kB`.
pub(super) fn kib_field(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = rest.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The number in a line `key N`.
fn stat_field(text: &str, key: &str) -> Option<u64> {
    let mut fields = text.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| (fields.next() == Some(key)).then(|| fields.next()?.parse().ok())?)
}

/// A path as the process sees it.
fn shown(root: &Path, path: &Path) -> String {
    let inner: PathBuf = Path::new("/").join(path.strip_prefix(root).unwrap_or(path));
    inner.display().to_string()
}
