//! Tests of the project's rules. Each rule is a function that takes a file's path and text and returns its
//! violations. A test shows that the function finds one.

mod golden;
mod imports;
mod page;
mod prose;
mod public;
mod streams;

use std::path::{Path, PathBuf};

use imports::{code, file_cycles, imports};

/// The modules that each module may import, in data-path order.
const BOUNDARIES: [(&str, &[&str]); 31] = [
    ("server", &["batch", "generation", "engine", "request", "grammar", "tools"]),
    ("batch", &[]),
    ("generation", &["engine", "request", "text", "machine", "grammar", "tools"]),
    ("text", &[]),
    ("grammar", &[]),
    ("tools", &["grammar"]),
    ("request", &["grammar"]),
    ("engine", &["request", "scheduler", "grammar"]),
    ("scheduler", &["request", "grammar"]),
    ("runner", &["engine", "scheduler", "model", "comm", "device", "request", "grammar"]),
    ("model", &["comm", "device", "machine", "random", "python_regex"]),
    ("comm", &["device"]),
    ("device", &["machine", "random"]),
    ("cost", &["model", "device"]),
    ("simulator", &["engine", "scheduler", "request", "cost", "plot", "random", "statistics", "grammar"]),
    ("offline", &["model", "device"]),
    ("plot", &["statistics"]),
    ("random", &[]),
    ("statistics", &[]),
    ("python_regex", &[]),
    ("machine", &[]),
    ("http_client", &[]),
    ("eval", &["http_client", "python_regex"]),
    ("stdio", &[]),
    ("hub", &["http_client", "stdio"]),
    ("config", &["scheduler", "engine", "model", "device", "cost", "machine", "stdio", "hub", "tools"]),
    ("synth", &["http_client", "hub", "random", "statistics", "stdio"]),
    (
        "launch",
        &[
            "server",
            "text",
            "engine",
            "scheduler",
            "runner",
            "model",
            "comm",
            "device",
            "cost",
            "simulator",
            "machine",
            "statistics",
            "stdio",
            "config",
        ],
    ),
    (
        "bench",
        &[
            "text",
            "grammar",
            "simulator",
            "request",
            "engine",
            "scheduler",
            "runner",
            "model",
            "comm",
            "device",
            "cost",
            "plot",
            "random",
            "statistics",
            "machine",
            "http_client",
            "stdio",
            "config",
            "launch",
        ],
    ),
    (
        "commands",
        &[
            "bench",
            "server",
            "batch",
            "generation",
            "request",
            "engine",
            "scheduler",
            "runner",
            "model",
            "device",
            "cost",
            "simulator",
            "offline",
            "machine",
            "http_client",
            "eval",
            "stdio",
            "hub",
            "config",
            "launch",
            "synth",
        ],
    ),
    ("main", &["config", "bench", "commands", "stdio"]),
];

/// The folders that may contain unsafe code: those of the CPU device and of the CUDA device.
const UNSAFE_MODULES: [&str; 2] = ["src/device/cpu/", "src/device/cuda/"];

/// The public traits. The number of private traits is not limited.
const PUBLIC_TRAITS: [(&str, &str); 3] = [
    ("src/engine/executor.rs", "Executor"),
    ("src/device/mod.rs", "Device"),
    ("src/comm/mod.rs", "Communicator"),
];

const MAX_LINES: usize = 500;

/// The fields that every kernel file opens with, in this order. A field continues on lines indented by four
/// spaces.
const KERNEL_HEADER: [&str; 8] = ["OP", "INPUTS", "OUTPUTS", "LAUNCH", "LIMITS", "NUMERICS", "COST", "TWINS"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of these endings below the root, as (relative path, text).
fn files(endings: &[&str]) -> Vec<(String, String)> {
    const SKIPPED: [&str; 8] =
        ["target", "demo", ".git", ".venv", ".cuda", "__pycache__", "data", "node_modules"];
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            if entry.is_dir() && !SKIPPED.contains(&name.as_str()) {
                folders.push(entry);
            } else if endings.iter().any(|ending| name.ends_with(ending)) && entry.is_file() {
                let path = entry.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((path, std::fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no files that end in {endings:?}");
    found.sort();
    found
}

/// Applies a rule to files and reports all violations at once.
fn check(files: &[(String, String)], rule: impl Fn(&str, &str) -> Vec<String>) {
    let found: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The top-level module of a source file.
fn module(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    inner.split(['/', '.']).next().unwrap_or(inner)
}

/// Top-level modules that a file names, with the line: in `use` declarations, and in paths within the code.
fn named_modules(text: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for import in imports(text) {
        if let [root, module, ..] = &import.path[..]
            && ["crate", "octant"].contains(&root.as_str())
        {
            names.push((import.line, module.clone()));
        }
    }
    for (number, line) in text.lines().enumerate() {
        for prefix in ["crate::", "octant::"] {
            for (at, _) in code(line).match_indices(prefix) {
                let rest = &code(line)[at + prefix.len()..];
                names.push((
                    number + 1,
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(),
                ));
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

fn boundaries(path: &str, text: &str) -> Vec<String> {
    let own = module(path);
    let Some((_, allowed)) = BOUNDARIES.iter().find(|(name, _)| *name == own) else {
        return if own == "lib" {
            Vec::new()
        } else {
            vec![format!("{path}: module `{own}` has no boundary")]
        };
    };
    let known = |name: &str| BOUNDARIES.iter().any(|(module, _)| *module == name);
    let mut found = Vec::new();
    for (line, name) in named_modules(text) {
        if known(&name) && name != own && !allowed.contains(&name.as_str()) {
            found.push(format!("{path}:{line}: `{own}` must not import `{name}`"));
        }
    }
    found
}

fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= MAX_LINES { Vec::new() } else { vec![format!("{path}: {lines} lines, at most {MAX_LINES}")] }
}

fn module_header(path: &str, text: &str) -> Vec<String> {
    if text.starts_with("//! ") { Vec::new() } else { vec![format!("{path}: must open with a `//!` header")] }
}

fn unsafe_code(path: &str, text: &str) -> Vec<String> {
    let allowed = UNSAFE_MODULES.iter().any(|module| path.starts_with(module));
    let found = text.lines().enumerate().filter(|(_, line)| {
        let code = line.split("//").next().unwrap_or(line);
        code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
    });
    let found = found.map(|(number, _)| format!("{path}:{}: unsafe code outside its modules", number + 1));
    if allowed { Vec::new() } else { found.collect() }
}

fn globals(path: &str, text: &str) -> Vec<String> {
    let banned = |line: &str| {
        let code = line.split("//").next().unwrap_or(line).trim_start();
        let code = code.strip_prefix("pub ").unwrap_or(code);
        // The allocator has no interface: nothing can read or change it.
        let allocator = path == "src/main.rs" && code.starts_with("static ALLOCATOR: mimalloc::MiMalloc");
        (code.starts_with("static ") && !allocator)
            || ["OnceLock", "LazyLock", "thread_local!", "lazy_static"].iter().any(|word| code.contains(word))
    };
    let found = text.lines().enumerate().filter(|(_, line)| banned(line));
    found.map(|(number, _)| format!("{path}:{}: global state", number + 1)).collect()
}

fn traits(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let rest = ["pub trait ", "pub unsafe trait "].iter().find_map(|prefix| code.strip_prefix(prefix));
        let Some(rest) = rest else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
        if !PUBLIC_TRAITS.contains(&(path, name.as_str())) {
            found.push(format!("{path}:{}: public trait `{name}` is not one of the three", number + 1));
        }
    }
    found
}

/// Tests within the library: `cargo test` would compile all of it a second time.
fn unit_tests(path: &str, text: &str) -> Vec<String> {
    let is_test = |line: &&str| {
        let is_condition = ["#[", "cfg"].iter().any(|start| code(line).contains(start));
        is_condition && public::words(line).contains("test")
    };
    let found = text.lines().enumerate().filter(|(_, line)| is_test(line));
    found.map(|(number, _)| format!("{path}:{}: a test outside tests/", number + 1)).collect()
}

/// Names of the machine that the project was written on. Each is spelled in pieces, so that this file does
/// not match.
fn foreign(path: &str, text: &str) -> Vec<String> {
    let banned =
        [["/wo", "rk/"], ["/ro", "ot/"], ["../sha", "red"], ["pythonho", "sted.org"], ["pypi", ".org"]];
    let banned = banned.map(|parts| parts.concat());
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in banned.iter().filter(|word| line.contains(word.as_str())) {
            found.push(format!("{path}:{}: names `{word}`", number + 1));
        }
    }
    found
}

fn kernel_header(path: &str, text: &str) -> Vec<String> {
    let mut fields = text.lines().filter(|line| !line.starts_with("//     "));
    let mut found = Vec::new();
    for word in KERNEL_HEADER {
        if !fields.next().is_some_and(|line| line.starts_with(&format!("// {word}: "))) {
            found.push(format!("{path}: the header must have a field `// {word}: ...` in its place"));
        }
    }
    found
}

/// Paths in backquotes that look like files of the project and do not exist.
fn named_files(path: &str, text: &str) -> Vec<String> {
    let named = text.split('`').skip(1).step_by(2).filter(|name| {
        let first = name.split('/').next().unwrap_or_default();
        let top = ["src", "tests", "benches", "models", "scripts", "deploy", "kernels"].contains(&first);
        top && name.contains('/') && !name.contains(['*', '{', ' ', '<'])
    });
    let missing = named.filter(|name| !root().join(name).exists());
    missing.map(|name| format!("{path}: names `{name}`, which does not exist")).collect()
}

/// Tests that a table in a module's header names and that do not exist.
fn named_tests(path: &str, text: &str, all: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! |")?.rsplit('|').nth(1));
    let names =
        rows.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
    let missing = names.filter(|name| !all.contains(&format!("fn {name}(")));
    missing.map(|name| format!("{path}: names the test `{name}`, which does not exist")).collect()
}

#[test]
fn modules_import_only_what_their_boundary_allows() {
    check(&sources(), boundaries);
    assert!(!boundaries("src/scheduler/mod.rs", "use crate::device::Device;").is_empty());
    assert!(!boundaries("src/text/stop.rs", "    let x = crate::request::Finish::Length;").is_empty());
    assert!(
        !boundaries(
            "src/scheduler/mod.rs",
            "use crate::{\n    request::Request,\n    device::{self, Device},\n};"
        )
        .is_empty()
    );
    assert!(boundaries("src/scheduler/mod.rs", "use crate::{request::{Finish, Request}};").is_empty());
    assert!(!boundaries("src/new/mod.rs", "").is_empty());
    assert!(boundaries("src/model/mod.rs", "use crate::comm::Local; // not crate::engine").is_empty());
}

#[test]
fn files_of_a_module_do_not_import_one_another_in_circles() {
    let cycles = file_cycles(&sources());
    assert!(cycles.is_empty(), "files that import one another: {cycles:#?}");
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let circle = [
        file("src/a/mod.rs", "mod b;\nmod c;\nmod d;"),
        file("src/a/b.rs", "use super::{\n    c::{C, Other},\n};"),
        file("src/a/c.rs", "use crate::a::d::D;"),
        file("src/a/d.rs", "use super::b;"),
    ];
    assert_eq!(file_cycles(&circle), [["src/a/b.rs", "src/a/c.rs", "src/a/d.rs"]]);
    assert!(file_cycles(&circle[..3]).is_empty());
}

#[test]
fn files_are_short() {
    check(&files(&[".rs", ".py", ".cu", ".cuh", ".js", ".css", ".html"]), length);
    assert!(!length("src/a.rs", &"x\n".repeat(MAX_LINES + 1)).is_empty());
}

#[test]
fn modules_say_what_they_are() {
    check(&files(&[".rs"]), module_header);
    assert!(!module_header("src/a.rs", "use std::fmt;\n").is_empty());
}

#[test]
fn unsafe_code_stays_in_its_modules() {
    check(&sources(), unsafe_code);
    assert!(!unsafe_code("src/engine/mod.rs", "let x = unsafe { *p };").is_empty());
}

#[test]
fn there_is_no_global_state() {
    check(&sources(), globals);
    for bad in ["static X: u8 = 0;", "pub static mut Y: u8 = 0;", "use std::sync::OnceLock;"] {
        assert!(!globals("src/a.rs", bad).is_empty(), "{bad}");
    }
    assert!(globals("src/a.rs", "fn f(x: &'static str) {}").is_empty());
}

#[test]
fn all_tests_are_outside_the_library() {
    check(&sources(), unit_tests);
    for bad in
        ["#[cfg(test)]", "    #[cfg(any(feature = \"cuda\", test))]", "if cfg!( test ) {", "#[tokio::test]"]
    {
        assert!(!unit_tests("src/a.rs", bad).is_empty(), "{bad}");
    }
    assert!(unit_tests("src/a.rs", "#[cfg(feature = \"cuda\")]\nfn test(test: u8) {}").is_empty());
}

#[test]
fn there_are_three_public_traits() {
    check(&sources(), traits);
    assert!(!traits("src/text/mod.rs", "pub trait Helper {").is_empty());
    assert!(!traits("src/device/mod.rs", "    pub trait Other {").is_empty());
    for private in ["trait Backend {", "pub(super) trait Backend {", "pub(crate) trait Backend {"] {
        assert!(traits("src/device/cuda/backend.rs", private).is_empty(), "{private}");
    }
}

#[test]
fn nothing_names_the_place_it_was_written_at() {
    let endings = [".rs", ".py", ".md", ".toml", ".jinja", ".service", "run", "quickstart"];
    check(&files(&endings), foreign);
    assert!(!foreign("a", &["see /wo", "rk/notes"].concat()).is_empty());
}

#[test]
fn kernels_state_their_contract_first() {
    let kernels: Vec<_> =
        files(&[".cu"]).into_iter().filter(|(path, _)| path.starts_with("kernels/")).collect();
    check(&kernels, kernel_header);
    let good: String = KERNEL_HEADER.iter().map(|word| format!("// {word}: x\n")).collect();
    assert!(kernel_header("k.cu", &good).is_empty());
    assert!(kernel_header("k.cu", &good.replace("x\n", "x\n//     y\n")).is_empty());
    assert!(!kernel_header("k.cu", &good.replace("// COST", "// PRICE")).is_empty());
}

#[test]
fn the_map_names_files_that_exist() {
    let documents = files(&["ARCHITECTURE.md", "README.md"]);
    check(&documents, named_files);
    assert!(!named_files("A.md", "see `src/nowhere/mod.rs`").is_empty());
}

#[test]
fn modules_stand_in_data_path_order() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let order: Vec<&str> = BOUNDARIES.iter().map(|(name, _)| *name).filter(|name| *name != "main").collect();
    assert_eq!(declared, order);
}

fn sources() -> Vec<(String, String)> {
    let all = files(&[".rs"]);
    all.into_iter().filter(|(path, _)| PathBuf::from(path).starts_with("src")).collect()
}

#[test]
fn tables_of_rules_name_tests_that_exist() {
    let tests: Vec<(String, String)> =
        files(&[".rs"]).into_iter().filter(|(path, _)| path.starts_with("tests/")).collect();
    let all: String = tests.iter().map(|(_, text)| text.as_str()).collect();
    check(&tests, |path, text| named_tests(path, text, &all));
    assert!(!named_tests("tests/it/x.rs", "//! | a rule | `no_such_test` |", &all).is_empty());
}

/// Files and folders of the server that use no HTTP library, so that batch files and other protocols can use
/// them too. They turn JSON into validated requests, generate, and turn the results into JSON.
const WITHOUT_TRANSPORT: [&str; 18] = [
    "src/batch",
    "src/server/api_keys.rs",
    "src/server/batch_lines.rs",
    "src/server/constraint_names.rs",
    "src/server/error.rs",
    "src/server/evicting_permits.rs",
    "src/server/fields.rs",
    "src/server/generate.rs",
    "src/server/json.rs",
    "src/server/reply.rs",
    "src/server/reply_builder.rs",
    "src/server/settings.rs",
    "src/server/state.rs",
    "src/server/status.rs",
    "src/server/system.rs",
    "src/server/types.rs",
    "src/server/unsupported.rs",
    "src/server/validate",
];

/// Lines that name an HTTP library in a file that must not.
fn transports(path: &str, text: &str) -> Vec<String> {
    if !WITHOUT_TRANSPORT.iter().any(|file| path.starts_with(file)) {
        return Vec::new();
    }
    let names = |line: &str| {
        let code = line.split("//").next().unwrap_or(line);
        ["axum", "hyper", "tower"].into_iter().find(|name| code.contains(&format!("{name}::")))
    };
    let lines = text.lines().enumerate();
    let found = lines.filter_map(|(number, line)| Some((number + 1, names(line)?)));
    found.map(|(number, name)| format!("{path}:{number}: names `{name}`")).collect()
}

#[test]
fn requests_and_replies_know_no_http_library() {
    check(&sources(), transports);
    for file in WITHOUT_TRANSPORT {
        assert!(root().join(file).exists(), "{file} does not exist");
    }
    assert!(!transports("src/server/json.rs", "use axum::body::Body;").is_empty());
    assert!(!transports("src/server/validate/chat.rs", "    hyper::Request::new(())").is_empty());
    assert!(transports("src/server/sse.rs", "use axum::body::Body;").is_empty());
}
