//! CPU quotas of control groups, in made-up trees.

use octant::machine::cpu_quota;

use super::tree::Tree;

/// Version 2, and a process in `/a/b/c`.
fn v2_in_abc() -> Tree {
    Tree::new().process("0::/a/b/c\n", &[("/", "/sys/fs/cgroup", "cgroup2", "nsdelegate")])
}

/// Version 1, and a process in `/a/b`, for the controllers `cpu` and `cpuacct`, which are mounted at `point`.
fn v1_in_ab(point: &str) -> Tree {
    let groups = "5:cpu,cpuacct:/a/b\n4:memory:/m\n0::/\n";
    Tree::new().process(groups, &[("/", point, "cgroup", "cpu,cpuacct")])
}

/// A version 1 group with a quota and a period, in microseconds.
fn v1(tree: Tree, group: &str, quota: &str, period: &str) -> Tree {
    tree.file(&format!("{group}/cpu.cfs_quota_us"), quota).file(&format!("{group}/cpu.cfs_period_us"), period)
}

#[test]
fn the_smallest_quota_on_the_way_to_the_root_counts() {
    let quota = |tree: Tree| cpu_quota(tree.root());
    assert_eq!(quota(Tree::new()), None);
    assert_eq!(quota(v2_in_abc()), None);
    let own = |text: &str| v2_in_abc().file("sys/fs/cgroup/a/b/c/cpu.max", text);
    assert_eq!(quota(own("max 100000\n")), None);
    assert_eq!(quota(own("400000 100000\n")), Some(4));
    assert_eq!(quota(own("max 100000\n").file("sys/fs/cgroup/a/cpu.max", "300000 100000\n")), Some(3));
    assert_eq!(quota(own("400000 100000\n").file("sys/fs/cgroup/a/b/cpu.max", "100000 50000\n")), Some(2));
    assert_eq!(quota(own("200000 100000\n").file("sys/fs/cgroup/a/cpu.max", "300000 100000\n")), Some(2));
    assert_eq!(quota(v2_in_abc().file("sys/fs/cgroup/cpu.max", "600000 100000\n")), Some(6));
    // Other groups do not count.
    assert_eq!(quota(own("max 100000\n").file("sys/fs/cgroup/a/b/d/cpu.max", "100000 100000\n")), None);
    // Parts of a core are rounded down, but at least one core is left.
    assert_eq!(quota(own("199999 100000\n")), Some(1));
    assert_eq!(quota(own("1000 100000\n")), Some(1));
    for damaged in ["", "100000\n", "x 100000\n", "100000 0\n", "-1 100000\n"] {
        assert_eq!(quota(own(damaged)), None, "{damaged:?}");
    }
}

#[test]
fn quotas_of_version_1_count_wherever_it_is_mounted() {
    for point in ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu", "/cgroups/all of them"] {
        let tree =
            || v1(v1_in_ab(&point.replace(' ', "\\040")), &format!("{point}/a/b")[1..], "-1\n", "100000\n");
        assert_eq!(cpu_quota(tree().root()), None, "{point}");
        let parent = v1(tree(), &format!("{point}/a")[1..], "250000\n", "100000\n");
        assert_eq!(cpu_quota(parent.root()), Some(2), "{point}");
        let both = v1(parent, &point[1..], "50000\n", "50000\n");
        assert_eq!(cpu_quota(both.root()), Some(1), "{point}");
    }
    // A group of `memory` is not one of `cpu`.
    let other = v1(v1_in_ab("/sys/fs/cgroup/cpu"), "sys/fs/cgroup/memory/m", "100000\n", "100000\n");
    assert_eq!(cpu_quota(other.root()), None);
}
