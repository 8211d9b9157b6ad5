//! Limits on memory, in made-up trees: control groups of both versions, resource limits, overcommitment.

use std::path::Path;

use octant::machine::memory_limits;

use super::tree::{MIB, NONE_V1, Tree};

/// Version 2 at its usual place, and a process in `/a/b/c`.
fn v2_in_abc() -> Tree {
    Tree::new().process("0::/a/b/c\n", &[("/", "/sys/fs/cgroup", "cgroup2", "nsdelegate")])
}

/// Version 1 at its usual place, and a process in `/a/b`.
fn v1_in_ab() -> Tree {
    let groups = "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/\n0::/\n";
    Tree::new().process(groups, &[("/", "/sys/fs/cgroup/memory", "cgroup", "memory")])
}

fn mib(count: u64) -> String {
    (count * MIB).to_string()
}

#[test]
fn without_control_groups_the_memory_of_the_machine_is_the_limit() {
    Tree::new().is_unlimited();
    v2_in_abc().is_unlimited();
    Tree::new().process("", &[]).is_unlimited();
    Tree::new().process("nonsense\n4:memory\n", &[("/", "/x", "tmpfs", "")]).is_unlimited();
}

#[test]
fn the_smallest_limit_on_the_way_to_the_root_counts() {
    let tree = || v2_in_abc().v2("sys/fs/cgroup/a/b/c", "max", 10 * MIB);
    tree().v2("sys/fs/cgroup/a", &mib(300), 30 * MIB).is_limited("/sys/fs/cgroup/a/memory.max", 300, 30);
    let both = tree().v2("sys/fs/cgroup/a", &mib(300), 30 * MIB).v2("sys/fs/cgroup/a/b", &mib(200), 20 * MIB);
    both.is_limited("/sys/fs/cgroup/a/b/memory.max", 200, 20);
    let root = tree().v2("sys/fs/cgroup", &mib(100), 0);
    root.is_limited("/sys/fs/cgroup/memory.max", 100, 0);
    // The larger limit leaves less memory if more of it is in use.
    let full =
        tree().v2("sys/fs/cgroup/a", &mib(300), 290 * MIB).v2("sys/fs/cgroup/a/b", &mib(200), 20 * MIB);
    full.is_limited("/sys/fs/cgroup/a/memory.max", 300, 290);
    // Limits of other groups do not count.
    tree().v2("sys/fs/cgroup/a/b/d", &mib(50), 0).is_unlimited();
}

#[test]
fn page_cache_is_not_in_use() {
    let stat = format!("anon 1\nfile 9\ninactive_file {}\nactive_file {}\n", 30 * MIB, 20 * MIB);
    let tree = v2_in_abc().v2("sys/fs/cgroup/a/b/c", &mib(200), 90 * MIB);
    let tree = tree.file("sys/fs/cgroup/a/b/c/memory.stat", &(stat + &format!("slab_reclaimable {MIB}\n")));
    tree.is_limited("/sys/fs/cgroup/a/b/c/memory.max", 200, 39);
    let stat = format!("inactive_file 7\ntotal_inactive_file {}\ntotal_active_file {MIB}\n", 30 * MIB);
    let tree = v1_in_ab().v1("sys/fs/cgroup/memory/a/b", &mib(200), 90 * MIB);
    let tree = tree.file("sys/fs/cgroup/memory/a/b/memory.stat", &stat);
    tree.is_limited("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", 200, 59);
}

#[test]
fn memory_high_counts_like_memory_max() {
    let tree = v2_in_abc().v2("sys/fs/cgroup/a", &mib(300), 30 * MIB);
    let tree = tree.file("sys/fs/cgroup/a/memory.high", &mib(250));
    tree.is_limited("/sys/fs/cgroup/a/memory.high", 250, 30);
}

#[test]
fn limits_of_version_1_count_up_to_the_root() {
    let file = |group: &str| format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes");
    let tree = || v1_in_ab().v1("sys/fs/cgroup/memory/a/b", NONE_V1, 10 * MIB);
    tree().v1("sys/fs/cgroup/memory/a", &mib(160), 20 * MIB).is_limited(&file("/a"), 160, 20);
    tree().v1("sys/fs/cgroup/memory", &mib(160), 20 * MIB).is_limited(&file(""), 160, 20);
    // A group of `cpu` is not one of `memory`.
    tree().v1("sys/fs/cgroup/cpu/a", &mib(160), 20 * MIB).is_unlimited();
    // A parent that does not use the hierarchy does not count its children.
    let apart = tree().v1("sys/fs/cgroup/memory/a", &mib(160), 0);
    apart.file("sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n").is_unlimited();
    let joined = tree().v1("sys/fs/cgroup/memory/a", &mib(160), 0);
    let joined = joined.file("sys/fs/cgroup/memory/a/memory.use_hierarchy", "1\n");
    joined.is_limited(&file("/a"), 160, 0);
}

#[test]
fn a_parent_outside_the_container_shows_in_the_statistics_of_version_1() {
    let mount = [("/docker/abc", "/sys/fs/cgroup/memory", "cgroup", "memory")];
    let tree = |path: &str| Tree::new().process(&format!("4:memory:{path}\n"), &mount);
    let stat = format!("cache 5\nhierarchical_memory_limit {}\n", 150 * MIB);
    let outer = tree("/docker/abc").v1("sys/fs/cgroup/memory", &mib(180), 7 * MIB);
    outer.is_limited("/sys/fs/cgroup/memory/memory.limit_in_bytes", 180, 7);
    let outer = tree("/docker/abc").v1("sys/fs/cgroup/memory", &mib(180), 7 * MIB);
    let outer = outer.file("sys/fs/cgroup/memory/memory.stat", &stat);
    let source = "hierarchical_memory_limit of /sys/fs/cgroup/memory/memory.stat";
    outer.is_limited(source, 150, 7);
    // A group inside the container.
    let inner = tree("/docker/abc/x").v1("sys/fs/cgroup/memory/x", &mib(90), MIB);
    inner.is_limited("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", 90, 1);
}

#[test]
fn both_versions_may_be_mounted() {
    let groups = "4:memory:/a\n0::/a\n";
    let mounts = [
        ("/", "/sys/fs/cgroup/memory", "cgroup", "memory"),
        ("/", "/sys/fs/cgroup/unified", "cgroup2", "nsdelegate"),
    ];
    let hybrid = || Tree::new().process(groups, &mounts);
    let first = hybrid().v1("sys/fs/cgroup/memory/a", &mib(160), 0);
    first.is_limited("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", 160, 0);
    let second = hybrid().v2("sys/fs/cgroup/unified/a", &mib(150), 0);
    second.is_limited("/sys/fs/cgroup/unified/a/memory.max", 150, 0);
}

#[test]
fn a_namespace_hides_the_path_but_not_the_limit() {
    // The group is the root of the namespace.
    let mount = |root| [(root, "/sys/fs/cgroup", "cgroup2", "nsdelegate")];
    let own = Tree::new().process("0::/\n", &mount("/")).v2("sys/fs/cgroup", &mib(160), 0);
    own.is_limited("/sys/fs/cgroup/memory.max", 160, 0);
    // The group is outside the namespace: the mounted group is the nearest one, and nothing else is read.
    let outside = Tree::new().process("0::/../x\n", &mount("/")).v2("sys/fs/x", &mib(10), 0);
    outside.v2("sys/fs/cgroup", &mib(160), 0).is_limited("/sys/fs/cgroup/memory.max", 160, 0);
    // The mount is outside the namespace too.
    let mounted = Tree::new().process("0::/../x/y\n", &mount("/..")).v2("sys/fs/cgroup/x", &mib(150), 0);
    mounted.is_limited("/sys/fs/cgroup/x/memory.max", 150, 0);
    let above = Tree::new().process("0::/\n", &mount("/../..")).v2("sys/fs/cgroup", &mib(140), 0);
    above.is_limited("/sys/fs/cgroup/memory.max", 140, 0);
}

#[test]
fn paths_may_be_unusual() {
    // A colon and a space, a mount point with a space, a group that was deleted, two mounts of one hierarchy.
    let mounts =
        [("/", "/mnt/all\\040groups", "cgroup2", "rw"), ("/a:b", "/mnt/part", "cgroup2", "nsdelegate")];
    let tree = || Tree::new().process("0::/a:b/c d (deleted)\n", &mounts);
    tree().v2("mnt/all groups/a:b", &mib(90), 0).is_limited("/mnt/all groups/a:b/memory.max", 90, 0);
    tree().v2("mnt/part", &mib(80), 0).is_limited("/mnt/part/memory.max", 80, 0);
}

#[test]
fn huge_limits_mean_none() {
    for limit in [NONE_V1, "9223372036854775807", "18446744073709551615", "-1", "1048576000"] {
        v1_in_ab().v1("sys/fs/cgroup/memory/a", limit, 10 * MIB).is_unlimited();
    }
    for limit in ["max", "1048576000", "1099511627776"] {
        v2_in_abc().v2("sys/fs/cgroup/a", limit, 10 * MIB).is_unlimited();
    }
    // One byte less than the machine has is a limit.
    assert_eq!(v2_in_abc().v2("sys/fs/cgroup/a", "1048575999", 0).limits().len(), 2);
}

#[test]
fn a_limit_above_the_memory_of_the_machine_may_leave_the_least() {
    // Committed memory and address space count whether they are touched or not.
    let commit = |committed: u64| {
        let meminfo = format!(
            "MemTotal: 1024000 kB\nMemAvailable: 819200 kB\nCommitLimit: 1536000 kB\n\
             Committed_AS: {committed} kB\n"
        );
        Tree::new().file("proc/meminfo", &meminfo).file("proc/sys/vm/overcommit_memory", "2\n")
    };
    let source = "CommitLimit of /proc/meminfo (vm.overcommit_memory is 2)";
    commit(1_433_600).is_limited(source, 1500, 1400);
    commit(102_400).is_unlimited();
    let space = |bytes: &str, kib: u64| {
        let limits = format!("Max address space  {bytes}  unlimited  bytes\n");
        let status = format!("VmSize:\t  {kib} kB\nRssAnon:\t   40960 kB\nVmData:\t   51200 kB\n");
        Tree::new().file("proc/self/limits", &limits).file("proc/self/status", &status)
    };
    space(&mib(1200), 1_126_400).is_limited("RLIMIT_AS (`ulimit -v`)", 1200, 1100);
    space(&mib(1000), 1_013_760).is_limited("RLIMIT_AS (`ulimit -v`)", 1000, 990);
    space("unlimited", 1_126_400).is_unlimited();
    // A group may count memory that the machine has moved to swap since.
    let group = |limit: &str| v2_in_abc().v2("sys/fs/cgroup/a", limit, 1150 * MIB);
    group(&mib(1200)).is_limited("/sys/fs/cgroup/a/memory.max", 1200, 1150);
    group("max").is_unlimited();
    v1_in_ab().v1("sys/fs/cgroup/memory/a", NONE_V1, 1150 * MIB).is_unlimited();
}

#[test]
fn resource_limits_count_with_what_the_process_has_taken() {
    let limits = |space: &str, data: &str| {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max data size             {data}            unlimited            bytes     \n\
             Max resident set          1            1            bytes     \n\
             Max address space         {space}            unlimited            bytes     \n"
        )
    };
    let tree = |text: &str| {
        let status = "Name:\toctant\nVmPeak:\t  999999 kB\nVmSize:\t  102400 kB\nRssAnon:\t   40960 kB\n\
                      VmData:\t   51200 kB\n";
        Tree::new().file("proc/self/limits", text).file("proc/self/status", status)
    };
    tree(&limits("unlimited", "unlimited")).is_unlimited();
    tree(&limits(&mib(300), "unlimited")).is_limited("RLIMIT_AS (`ulimit -v`)", 300, 100);
    tree(&limits("unlimited", &mib(300))).is_limited("RLIMIT_DATA (`ulimit -d`)", 300, 50);
    // The data segment has more left than the address space.
    tree(&limits(&mib(300), &mib(300))).is_limited("RLIMIT_AS (`ulimit -v`)", 300, 100);
    // The allocator has more address space that it has not touched than the limit leaves.
    let status = "VmSize:\t  286720 kB\nRssAnon:\t   51200 kB\nVmData:\t   204800 kB\n";
    let full = tree(&limits(&mib(300), "unlimited")).file("proc/self/status", status);
    full.is_limited("RLIMIT_AS (`ulimit -v`)", 300, 150);
}

#[test]
fn without_overcommitment_the_commit_limit_counts() {
    let tree = |mode: &str| {
        let meminfo = "MemTotal: 1024000 kB\nMemAvailable: 819200 kB\nCommitLimit: 512000 kB\n\
                       Committed_AS: 102400 kB\n";
        Tree::new().file("proc/meminfo", meminfo).file("proc/sys/vm/overcommit_memory", mode)
    };
    tree("0\n").is_unlimited();
    tree("1\n").is_unlimited();
    tree("2\n").is_limited("CommitLimit of /proc/meminfo (vm.overcommit_memory is 2)", 500, 100);
}

#[test]
fn a_machine_without_meminfo_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    let error = memory_limits(empty.path()).unwrap_err();
    assert!(error.to_string().contains("/proc/meminfo"), "{error}");
    assert!(memory_limits(Path::new("/")).unwrap()[0].bytes > 0);
}
