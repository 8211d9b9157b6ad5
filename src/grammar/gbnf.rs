//! Grammars in GBNF, the notation of llama.cpp and XGrammar (`root ::= "a" [0-9]+`), rewritten for Lark.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::CharIndices;

use super::GrammarError;

/// Rewrites a grammar in GBNF in the Lark syntax of `llguidance`. The rule `root` becomes `start`.
///
/// # Errors
/// The text is no grammar in GBNF; the error names the line.
pub fn gbnf_to_lark(text: &str) -> Result<String, GrammarError> {
    let tokens = tokens(text)?;
    let mut names = Names::default();
    let mut lark = String::new();
    let starts = |i: usize| matches!(tokens.get(i + 1), Some((_, Token::Defines)));
    for (i, (line, token)) in tokens.iter().enumerate() {
        match token {
            Token::Name(name) if starts(i) => _ = write!(lark, "\n{}:", names.rule(name)),
            Token::Name(name) => _ = write!(lark, " {}", names.rule(name)),
            Token::Defines if i > 0 && matches!(tokens[i - 1].1, Token::Name(_)) => {}
            Token::Defines => return Err(fault(*line, "expected the name of a rule before ::=")),
            _ if lark.is_empty() => return Err(fault(*line, "expected a rule, such as root ::= \"a\"")),
            Token::Text(text) => _ = write!(lark, " {text}"),
            // A repetition belongs to what stands before it.
            Token::Repetition(text) => lark.push_str(text),
        }
    }
    if !names.0.contains_key("root") {
        return Err(GrammarError::invalid("expected a rule with the name root"));
    }
    Ok(lark)
}

/// A part of a grammar, in the notation of Lark where that differs.
enum Token {
    Name(String),
    Defines,
    /// A text, a set of characters, a bracket or a bar.
    Text(String),
    Repetition(String),
}

/// The names of rules in Lark, which are in lower case and have no hyphen.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn rule(&mut self, name: &str) -> String {
        let number = self.0.len();
        let plain: String =
            name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
        // The number keeps names apart that differ only by case or hyphens.
        let new = || if name == "root" { "start".to_owned() } else { format!("r{number}_{plain}") };
        self.0.entry(name.to_owned()).or_insert_with(new).clone()
    }
}

fn fault(line: usize, text: &str) -> GrammarError {
    GrammarError::Invalid(format!("line {line}: {text}"))
}

/// The parts of a grammar, with their lines.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, GrammarError> {
    let mut chars = text.char_indices().peekable();
    let mut found = Vec::new();
    while let Some(&(at, c)) = chars.peek() {
        let line = text[..at].matches('\n').count() + 1;
        let token = match c {
            c if c.is_whitespace() => {
                chars.next();
                continue;
            }
            '#' => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
                continue;
            }
            '"' => Token::Text(string(&mut chars).ok_or_else(|| fault(line, "a text without its end"))?),
            '[' => Token::Text(set(&mut chars).ok_or_else(|| fault(line, "a set without its end"))?),
            '{' => {
                let rest = taken(&mut chars, |c| c != '}');
                let closed =
                    chars.next().is_some() && rest[1..].chars().all(|c| c.is_ascii_digit() || c == ',');
                if !closed {
                    return Err(fault(line, "expected a repetition such as {1,3}"));
                }
                Token::Repetition(rest + "}")
            }
            '*' | '+' | '?' => Token::Repetition(taken_one(&mut chars)),
            '(' | ')' | '|' => Token::Text(taken_one(&mut chars)),
            '.' => {
                chars.next();
                Token::Text("/(?s:.)/".to_owned())
            }
            ':' if text[at..].starts_with("::=") => {
                chars.nth(2);
                Token::Defines
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                Token::Name(taken(&mut chars, |c| c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            }
            other => return Err(fault(line, &format!("unexpected {other:?}"))),
        };
        found.push((line, token));
    }
    Ok(found)
}

fn taken_one(chars: &mut Peekable<CharIndices<'_>>) -> String {
    chars.next().map(|(_, c)| c).into_iter().collect()
}

fn taken(chars: &mut Peekable<CharIndices<'_>>, part: impl Fn(char) -> bool) -> String {
    std::iter::from_fn(|| chars.next_if(|(_, c)| part(*c))).map(|(_, c)| c).collect()
}

/// A text in quotes, as JSON.
fn string(chars: &mut Peekable<CharIndices<'_>>) -> Option<String> {
    chars.next();
    let mut text = String::new();
    loop {
        match chars.next()?.1 {
            '"' => return serde_json::to_string(&text).ok(),
            '\\' => text.push(escaped(chars)?),
            c => text.push(c),
        }
    }
}

/// A set of characters, as a regular expression of Lark.
fn set(chars: &mut Peekable<CharIndices<'_>>) -> Option<String> {
    chars.next();
    let mut set = String::from("/[");
    set.extend(chars.next_if(|(_, c)| *c == '^').map(|(_, c)| c));
    loop {
        match chars.next()?.1 {
            ']' => return Some(set + "]/"),
            '-' => set.push('-'),
            '\\' => _ = write!(set, "\\u{{{:x}}}", u32::from(escaped(chars)?)),
            c if c.is_alphanumeric() => set.push(c),
            c => _ = write!(set, "\\u{{{:x}}}", u32::from(c)),
        }
    }
}

/// The character of an escape, after its backslash.
fn escaped(chars: &mut Peekable<CharIndices<'_>>) -> Option<char> {
    let hex = |chars: &mut Peekable<CharIndices<'_>>, digits: usize| {
        let text: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
        char::from_u32(u32::from_str_radix(&text, 16).ok()?)
    };
    match chars.next()?.1 {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'x' => hex(chars, 2),
        'u' => hex(chars, 4),
        'U' => hex(chars, 8),
        c => Some(c),
    }
}
