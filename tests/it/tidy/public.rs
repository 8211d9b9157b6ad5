//! Checks that the binary, a bench or a test uses every public item of the library.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::code;
use super::{check, files, sources};

/// A public item: where it is defined and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub file: String,
    pub line: usize,
    pub kind: &'static str,
    pub name: String,
}

/// Public functions that tests alone call, because a test has to see or cause what production only acts on:
/// the device's total time beside the sum of the costs, a template without a model directory, the kernels on
/// the host with a fault, a deadline in virtual time, and updates before they are published.
const FOR_TESTS: [&str; 5] =
    ["device_totals", "from_source", "on_faulty_host", "set_deadline", "unpublished"];

const KINDS: [&str; 6] = ["fn", "struct", "enum", "trait", "const", "type"];

/// Public functions that only the code of the feature `cuda` calls. Private, they would be dead code without
/// it.
const FOR_CUDA: [&str; 2] = ["free_memory", "pci"];

/// The public items of a file. Fields, modules and re-exports do not count.
pub fn public_items(file: &str, text: &str) -> Vec<Item> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some(rest) = code(line).trim_start().strip_prefix("pub ") else { continue };
        let mut words =
            rest.split_whitespace().skip_while(|word| ["async", "unsafe"].contains(word)).peekable();
        // `const fn` is a function.
        let mut kind = words.next().unwrap_or_default();
        if kind == "const" && words.peek() == Some(&"fn") {
            kind = words.next().unwrap_or_default();
        }
        let Some(kind) = KINDS.iter().find(|known| **known == kind) else { continue };
        let name: String = words.next().unwrap_or_default().chars().take_while(is_word).collect();
        found.push(Item { file: file.to_owned(), line: number + 1, kind, name });
    }
    found
}

fn is_word(c: &char) -> bool {
    c.is_alphanumeric() || *c == '_'
}

/// Every word of the code.
pub fn words(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().map(code).collect();
    let code = code.join("\n");
    code.split(|c| !is_word(&c)).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Words of public signatures, fields, variants and trait methods: a type that stands there must be public
/// itself.
pub fn exposed_words(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let start = code(line).trim_start();
        if !(start.starts_with("pub ") || start.starts_with("impl")) || start.starts_with("pub use") {
            continue;
        }
        let own = public_items("", line).pop().map(|item| item.name);
        // A type's body counts too: its fields and variants are public with it. A function's signature ends
        // where its body begins, and a field is one line.
        let is_type = ["pub enum", "pub trait", "pub struct"].iter().any(|head| start.starts_with(head));
        let is_signature = start.starts_with("impl") || start.contains("fn ");
        let mut depth = 0_i32;
        let mut line = Some(line);
        while let Some(text) = line {
            let text = code(text);
            found.extend(words(text).into_iter().filter(|word| Some(word) != own.as_ref()));
            depth += text.matches('{').count() as i32 - text.matches('}').count() as i32;
            let more = is_type && depth > 0 || is_signature && !text.contains(['{', ';']);
            line = if more { lines.next() } else { None };
        }
    }
    found
}

/// Words that decide whether a public item is named.
struct Names {
    /// Words of the binary, the tests and the benches.
    outside: BTreeSet<String>,
    /// Words of public signatures and fields of the library.
    exposed: BTreeSet<String>,
}

impl Names {
    fn new(library: &[(String, String)], outside: &[(String, String)]) -> Self {
        let outside = outside.iter().flat_map(|(_, text)| words(text)).collect();
        let exposed = library.iter().flat_map(|(_, text)| exposed_words(text)).collect();
        Self { outside, exposed }
    }
}

/// Public items that nothing outside the library names, and that no public signature exposes.
fn unnamed_items(path: &str, text: &str, names: &Names) -> Vec<String> {
    let items = public_items(path, text).into_iter().filter(|item| {
        let exposed = !["fn", "const"].contains(&item.kind) && names.exposed.contains(&item.name);
        !names.outside.contains(&item.name)
            && !FOR_CUDA.contains(&item.name.as_str())
            && !exposed
            && path != "src/main.rs"
    });
    let text = |item: Item| {
        format!("{path}:{}: `{}` is public, and only the library names it", item.line, item.name)
    };
    items.map(text).collect()
}

/// Names of public functions and constants that neither the rest of the library, the binary nor a bench
/// mentions.
fn only_for_tests(library: &[(String, String)], outside: &BTreeSet<String>) -> BTreeSet<String> {
    let mut mentions: BTreeMap<String, usize> = BTreeMap::new();
    for (_, text) in library {
        for line in text.lines() {
            for word in words(line) {
                *mentions.entry(word).or_default() += 1;
            }
        }
    }
    let items = library.iter().flat_map(|(path, text)| public_items(path, text));
    let items = items.filter(|item| ["fn", "const"].contains(&item.kind) && item.file != "src/main.rs");
    items.map(|item| item.name).filter(|name| mentions[name] == 1 && !outside.contains(name)).collect()
}

#[test]
fn public_items_are_named_outside_the_library() {
    let sources = sources();
    let outside: Vec<(String, String)> = files(&[".rs"])
        .into_iter()
        .filter(|(path, _)| {
            path == "src/main.rs" || path.starts_with("tests/") || path.starts_with("benches/")
        })
        .collect();
    let names = Names::new(&sources, &outside);
    check(&sources, |path, text| unnamed_items(path, text, &names));
    let library =
        [("src/a.rs".to_owned(), "pub fn lonely() {}\npub fn f(x: Kept) {}\npub struct Kept;".to_owned())];
    let tests = [("tests/t.rs".to_owned(), "f(x);".to_owned())];
    let found = unnamed_items("src/a.rs", &library[0].1, &Names::new(&library, &tests));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn items_for_tests_alone_are_listed() {
    let sources = sources();
    let named_in = |keep: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
        let kept = files(&[".rs"]).into_iter().filter(|(path, _)| keep(path));
        kept.flat_map(|(_, text)| words(&text)).collect()
    };
    let outside = named_in(&|path| path == "src/main.rs" || path.starts_with("benches/"));
    let found = only_for_tests(&sources, &outside);
    let unlisted: Vec<_> = found.difference(&FOR_TESTS.map(str::to_owned).into()).cloned().collect();
    assert!(
        unlisted.is_empty(),
        "public for tests alone; remove it, or list it with its reason: {unlisted:#?}"
    );
    let listed: BTreeSet<String> = FOR_TESTS.map(str::to_owned).into();
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(stale.is_empty(), "listed as public for tests alone, and is not: {stale:?}");
}
