//! Imports of a source file: `use` trees with their braces expanded, and the files that they name.

use std::collections::{BTreeMap, BTreeSet};

/// A `use` declaration's path as segments, and the line it begins on.
pub struct Import {
    pub line: usize,
    pub path: Vec<String>,
}

/// The code of a line: without its comment. A `//` within a string counts as a comment.
pub fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Every path that the file's `use` declarations name, one for each leaf of a tree in braces.
pub fn imports(text: &str) -> Vec<Import> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let start = code(line).trim_start();
        let visible = ["pub(crate) use ", "pub(super) use ", "pub use ", "use "];
        let Some(tree) = visible.iter().find_map(|prefix| start.strip_prefix(prefix)) else { continue };
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            let Some((_, more)) = lines.next() else { break };
            tree.push_str(code(more));
        }
        let tree = tree.split(';').next().unwrap_or_default();
        let mut paths = Vec::new();
        expand(tree, &[], &mut paths);
        found.extend(paths.into_iter().map(|path| Import { line: number + 1, path }));
    }
    found
}

/// Appends the leaves of `tree`, each behind the segments of `prefix`.
fn expand(tree: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) {
    let (head, rest) = tree.split_once('{').map_or((tree, None), |(head, rest)| (head, Some(rest)));
    let mut path = prefix.to_vec();
    let segments = head.split("::").map(|part| part.split(" as ").next().unwrap_or(part).trim());
    path.extend(segments.filter(|part| !part.is_empty()).map(str::to_owned));
    let Some(rest) = rest else {
        paths.push(path);
        return;
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let mut depth = 0;
    let parts = inner.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).for_each(|part| expand(part, &path, paths));
}

/// The module path of a file below `src/`, without `mod`.
fn module_path(file: &str) -> Vec<String> {
    let inner = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Groups of files of one top-level module that import one another, directly or by a chain. The root of a
/// module does not count: it declares and re-exports what its files define.
pub fn file_cycles(files: &[(String, String)]) -> Vec<Vec<String>> {
    let modules: BTreeMap<Vec<String>, &str> =
        files.iter().map(|(file, _)| (module_path(file), file.as_str())).collect();
    let is_root = |module: &[String]| modules.keys().any(|m| m.len() > module.len() && m.starts_with(module));
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, text) in files {
        let own = module_path(file);
        if is_root(&own) {
            continue;
        }
        let reached = edges.entry(file).or_default();
        for import in imports(text) {
            let Some(target) = target(&own, &import.path, &modules) else { continue };
            if target != own && target.first() == own.first() && !is_root(&target) {
                reached.insert(modules[&target]);
            }
        }
    }
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|file| (*file, reachable(file, &edges))).collect();
    let mut cycles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, reached) in &reach {
        let group = reached.iter().filter(|other| reach[**other].contains(file));
        let group: Vec<String> = group.map(|other| (*other).to_owned()).collect();
        if group.len() > 1 {
            cycles.insert(group);
        }
    }
    cycles.into_iter().collect()
}

/// The module whose file an imported path leads into.
fn target(own: &[String], path: &[String], modules: &BTreeMap<Vec<String>, &str>) -> Option<Vec<String>> {
    let mut base = own.to_vec();
    let mut rest = path;
    let local = rest.first().is_some_and(|first| ["crate", "super", "self"].contains(&first.as_str()));
    if !local {
        return None;
    }
    while let Some(first) = rest.first() {
        match first.as_str() {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    (1..=base.len()).rev().map(|len| base[..len].to_vec()).find(|module| modules.contains_key(module))
}

/// All files that `file` imports, directly or by a chain, including `file` itself if it is part of a cycle.
fn reachable<'a>(file: &str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut todo: Vec<&str> = edges[file].iter().copied().collect();
    while let Some(next) = todo.pop() {
        if found.insert(next) {
            todo.extend(edges.get(next).into_iter().flatten());
        }
    }
    found
}
