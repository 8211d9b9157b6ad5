//! How comments are written: at most 110 columns, a subject at the beginning of documentation, plain words.

/// Columns of a line, as rustfmt has them.
pub const MAX_COLUMNS: usize = 110;

/// Beginnings of documentation that leave out its subject.
const FRAGMENTS: [&str; 9] = ["Of", "As", "At", "What", "Whoever", "Who", "Whether", "Whom", "Whose"];

/// Words that make a reader look for whom or what is meant.
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
