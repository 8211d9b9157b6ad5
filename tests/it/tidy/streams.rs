//! Only the module `stdio` names the standard streams: a write elsewhere could wait for a reader, or panic.

use super::imports::code;
use super::{check, sources};

const STREAMS: [&str; 8] =
    ["print!(", "println!(", "eprint!(", "eprintln!(", "stdout()", "stderr()", "Stdout", "Stderr"];

/// Lines outside the module `stdio` that name a standard stream of this process.
fn streams(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("src/stdio/") {
        return Vec::new();
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let names = |line: &str| {
        STREAMS
            .into_iter()
            .find(|name| line.match_indices(name).any(|(at, _)| !line[..at].ends_with(is_word)))
    };
    let lines = text.lines().enumerate();
    let found = lines.filter_map(|(number, line)| Some((number + 1, names(code(line))?)));
    found.map(|(number, name)| format!("{path}:{number}: names `{name}`")).collect()
}

#[test]
fn only_one_module_writes_to_the_standard_streams() {
    check(&sources(), streams);
    for bad in
        ["    eprintln!(\"x\");", "print!(\"x\")", "let out = std::io::stdout();", "io::stderr().flush()"]
    {
        assert!(!streams("src/engine/mod.rs", bad).is_empty(), "{bad}");
        assert!(streams("src/stdio/log.rs", bad).is_empty(), "{bad}");
    }
    for good in ["print_line!(\"x\")?;", "command.stderr(Stdio::piped())", "// println!(\"x\")"] {
        assert!(streams("src/engine/mod.rs", good).is_empty(), "{good}");
    }
}
