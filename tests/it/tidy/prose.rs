//! How comments are written: at most 110 columns, a subject at the beginning of documentation, plain words.

use super::{check, files};

/// Columns of a line, as rustfmt has them.
pub const MAX_COLUMNS: usize = 110;

/// Beginnings of documentation that leave out its subject.
const FRAGMENTS: [&str; 8] = ["Of", "As", "At", "What", "Whoever", "Who", "Whom", "Whose"];

/// Words that leave open which client, thread or value is meant.
const RIDDLES: [&str; 8] =
    ["nobody", "whoever", "whomever", "whom", "somebody", "so many", "so long as", "in vain"];

/// Lines that are too long. A row of a Markdown table has no way to be shorter.
pub fn wide(path: &str, text: &str) -> Vec<String> {
    let table = |line: &str| path.ends_with(".md") && line.starts_with('|');
    let long =
        text.lines().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS && !table(line));
    long.map(|(number, line)| {
        let columns = line.chars().count();
        format!("{path}:{}: {columns} columns, at most {MAX_COLUMNS}", number + 1)
    })
    .collect()
}

/// Blocks of documentation whose first word is not the beginning of a sentence about the item.
pub fn fragments(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let is_doc = |line: &str| line.starts_with("///") || line.starts_with("//!");
        if is_doc(line) && !is_doc(before) {
            let first: String = line[3..].trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
            if FRAGMENTS.contains(&first.as_str()) {
                found.push(format!("{path}:{}: documentation that begins with `{first}`", number + 1));
            }
        }
        before = line;
    }
    found
}

/// Comments with words that leave open who is meant.
pub fn riddles(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((_, comment)) = line.split_once("//") else { continue };
        let comment = comment.to_lowercase();
        let words: Vec<&str> = comment.split(|c: char| !c.is_alphanumeric()).collect();
        let spaced = format!(" {} ", words.join(" "));
        for riddle in RIDDLES.iter().filter(|riddle| spaced.contains(&format!(" {riddle} "))) {
            found.push(format!("{path}:{}: `{riddle}` leaves open who or what is meant", number + 1));
        }
    }
    found
}

#[test]
fn lines_fit_the_columns() {
    check(&files(&[".rs", ".py", ".cu", ".cuh", ".cpp", ".h", ".md", ".js", ".css", ".html"]), wide);
    assert!(!wide("a.md", &"x".repeat(MAX_COLUMNS + 1)).is_empty());
    assert!(wide("a.md", &format!("|{}", "x".repeat(MAX_COLUMNS))).is_empty());
}

#[test]
fn documentation_names_its_subject() {
    check(&files(&[".rs"]), fragments);
    assert!(!fragments("a.rs", "/// Of all prompts.").is_empty());
    assert!(fragments("a.rs", "/// Tokens of all prompts.\n/// At least one.").is_empty());
}

#[test]
fn comments_say_who_is_meant() {
    check(&files(&[".rs", ".cu", ".cuh", ".cpp", ".h"]), riddles);
    assert!(!riddles("a.rs", &["let x = 1; // no", "body waits"].concat()).is_empty());
    assert!(riddles("a.rs", "let nobody = 1; // no client waits").is_empty());
}
