//! Finds the control groups of this process: the directories from its own group up to the mount point, in
//! hierarchies of version 1 and version 2.

use std::path::{Path, PathBuf};

/// The groups of this process in one mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    /// Version 1 has a hierarchy for each controller, version 2 one for all.
    pub(super) version: Version,
    /// Directories, the process's own group first, then its parents up to the mount point.
    pub(super) groups: Vec<PathBuf>,
}

/// The version of the control group interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    /// Version, and for version 1 the controllers.
    version: Version,
    controllers: Vec<String>,
    /// The group that is mounted, by its path in the hierarchy.
    root: Vec<String>,
    /// The mount point, without the leading slash.
    point: PathBuf,
}

/// The hierarchies that can have this controller: the one of version 1 that has it, and all mounts of
/// version 2. `root` is the root of the file system. A process without control groups has none.
pub(super) fn hierarchies(root: &Path, controller: &str) -> Vec<Hierarchy> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
    groups.lines().flat_map(|line| of_group(root, line, controller, &mounts)).collect()
}

/// The hierarchies that a line of `/proc/self/cgroup` names: `number:controllers:path`.
fn of_group(root: &Path, line: &str, controller: &str, mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let version = if controllers.is_empty() { Version::V2 } else { Version::V1 };
    if version == Version::V1 && !controllers.split(',').any(|name| name == controller) {
        return Vec::new();
    }
    let path = components(path);
    let has_it = |mount: &&Mount| {
        mount.version == version
            && (version == Version::V2 || mount.controllers.iter().any(|name| name == controller))
    };
    let mounts: Vec<&Mount> = mounts.iter().filter(has_it).collect();
    let mut found: Vec<Vec<PathBuf>> =
        mounts.iter().filter_map(|mount| Some(up(root, mount, below(&path, &mount.root)?))).collect();
    if found.is_empty() {
        // The process's own group is outside every mount, as it is after a move out of a container's group.
        // The mounted group is the nearest visible one.
        found.extend(mounts.iter().map(|mount| up(root, mount, &[])));
    }
    found.into_iter().map(|groups| Hierarchy { version, groups }).collect()
}

/// The names of the directories in a path.
fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The part of a group's path below the mounted group. In a namespace of control groups, both may start with
/// `..`, and the group may then be outside the mount.
fn below<'a>(path: &'a [String], mounted: &[String]) -> Option<&'a [String]> {
    path.strip_prefix(mounted).filter(|rest| rest.iter().all(|name| name != ".."))
}

/// The directories from the group `rest` below a mount up to the mount point.
fn up(root: &Path, mount: &Mount, rest: &[String]) -> Vec<PathBuf> {
    let point = root.join(&mount.point);
    (0..=rest.len()).rev().map(|count| point.join(rest[..count].iter().collect::<PathBuf>())).collect()
}

/// Parses a line of `/proc/self/mountinfo`; `None` if it mounts no control groups.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (group, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options = after.nth(1).unwrap_or_default();
    Some(Mount {
        version,
        controllers: options.split(',').map(str::to_owned).collect(),
        root: components(&unescaped(group)),
        point: PathBuf::from(unescaped(point).trim_start_matches('/')),
    })
}

/// Replaces the octal escapes of a space, tab, newline and backslash.
fn unescaped(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, character);
    }
    text
}
