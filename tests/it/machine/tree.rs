//! A made-up root directory with the files that name the limits of a process.

use std::path::Path;

use octant::machine::{MemoryLimit, memory_limits};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// The limit that version 1 reports where there is none.
pub const NONE_V1: &str = "9223372036854771712";

/// A root directory of a machine with 1,000 MiB of memory, 800 of them available.
pub struct Tree(TempDir);

impl Tree {
    pub fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.file("proc/meminfo", "MemTotal:  1024000 kB\nMemFree: 1 kB\nMemAvailable:  819200 kB\n")
    }

    /// Writes a file and the directories that it is in.
    pub fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// The process's groups, and the mounts with their root, mount point, type and options.
    pub fn process(self, groups: &str, mounts: &[(&str, &str, &str, &str)]) -> Self {
        let lines = mounts.iter().map(|(root, point, kind, options)| {
            format!("31 23 0:28 {root} {point} rw,relatime shared:9 - {kind} {kind} rw,{options}\n")
        });
        let other = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n".to_owned();
        let mountinfo: String = std::iter::once(other).chain(lines).collect();
        self.file("proc/self/cgroup", groups).file("proc/self/mountinfo", &mountinfo)
    }

    /// A version 2 group with a limit and the bytes in use.
    pub fn v2(self, group: &str, max: &str, current: u64) -> Self {
        self.file(&format!("{group}/memory.max"), &format!("{max}\n"))
            .file(&format!("{group}/memory.current"), &format!("{current}\n"))
    }

    /// A version 1 group with a limit and the bytes in use.
    pub fn v1(self, group: &str, limit: &str, usage: u64) -> Self {
        self.file(&format!("{group}/memory.limit_in_bytes"), &format!("{limit}\n"))
            .file(&format!("{group}/memory.usage_in_bytes"), &format!("{usage}\n"))
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn limits(&self) -> Vec<MemoryLimit> {
        memory_limits(self.root()).unwrap()
    }

    /// Source, limit and use of the limit that leaves the least, in MiB.
    pub fn least(&self) -> (String, u64, u64) {
        let least = self.limits().into_iter().min_by_key(MemoryLimit::available).unwrap();
        (least.source, least.bytes / MIB, least.used / MIB)
    }

    /// Asserts the limit that leaves the least, in MiB.
    pub fn is_limited(&self, source: &str, bytes: u64, used: u64) {
        assert_eq!(self.least(), (source.to_owned(), bytes, used), "{:?}", self.limits());
    }

    /// Asserts that nothing but the memory of the machine limits the process.
    pub fn is_unlimited(&self) {
        assert_eq!(self.limits().len(), 1, "{:?}", self.limits());
        self.is_limited("MemTotal of /proc/meminfo", 1000, 200);
    }
}
