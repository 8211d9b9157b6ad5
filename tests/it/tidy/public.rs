//! Which public items of the library somebody outside it names.

use std::collections::BTreeSet;

use super::imports::code;

/// A public item: where it is defined and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub file: String,
    pub line: usize,
    pub kind: &'static str,
    pub name: String,
}

const KINDS: [&str; 6] = ["fn", "struct", "enum", "trait", "const", "type"];

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

/// Words of public signatures, fields, variants and trait methods: a type that stands there must be public itself.
pub fn exposed_words(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let start = code(line).trim_start();
        if !(start.starts_with("pub ") || start.starts_with("impl")) || start.starts_with("pub use") {
            continue;
        }
        let own = public_items("", line).pop().map(|item| item.name);
        // A body in braces belongs to the signature where it is a type's: its fields and variants are public with it.
        let is_type = ["pub enum", "pub trait", "pub struct"].iter().any(|head| start.starts_with(head));
        let mut depth = 0_i32;
        let mut line = Some(line);
        while let Some(text) = line {
            let text = code(text);
            found.extend(words(text).into_iter().filter(|word| Some(word) != own.as_ref()));
            depth += text.matches('{').count() as i32 - text.matches('}').count() as i32;
            let done = if is_type {
                depth <= 0
            } else {
                text.contains(['{', ';']) || text.trim_end().ends_with(',')
            };
            // Parameters on lines of their own end with a comma too.
            let open = text.matches('(').count() > text.matches(')').count();
            if done && !open {
                break;
            }
            line = lines.next();
            if !is_type && line.is_some_and(|next| code(next).trim_start().starts_with(')')) {
                found.extend(line.map(words).unwrap_or_default());
                break;
            }
        }
    }
    found
}
