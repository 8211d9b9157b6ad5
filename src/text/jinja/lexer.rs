//! Tokens of a template, as Jinja2 reads them with `trim_blocks` and `lstrip_blocks`: line ends, whitespace
//! control, raw blocks, comments, and the literals of Python.

use std::iter;

use super::SyntaxError;
use crate::text::python::is_space;

/// Kind and value of a token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Text outside of tags, with whitespace control applied.
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Text(String),
    /// Digits of a decimal number.
    Integer(String),
    Float(f64),
    Operator(&'static str),
}

/// One token and the line on which it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
}

/// Operators, the longer ones first.
const OPERATORS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Splits the source of a template into tokens.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, SyntaxError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starts: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    /// Position in bytes.
    at: usize,
    line: usize,
    /// Whether the text that follows is at the start of a line: after a line end, or first in the template.
    line_starts: bool,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let text = &self.source[self.at..self.at + bytes];
        self.line += text.matches('\n').count();
        self.at += bytes;
        text
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, message: message.into() })
    }

    /// Reads text up to the next tag or comment, and then the whole tag or comment.
    fn root(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let begins = |i: &usize| ["{%", "{{", "{#"].iter().any(|tag| rest[*i..].starts_with(tag));
        let Some(start) = rest.match_indices('{').map(|(i, _)| i).find(begins) else {
            let text = self.advance(rest.len()).to_owned();
            self.push_data(text);
            return Ok(());
        };
        let tag = &rest[start..start + 2];
        let sign = rest[start + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        self.data(start, sign, tag != "{{");
        self.advance(2 + usize::from(sign.is_some()));
        match tag {
            "{#" => self.comment(),
            "{{" => {
                self.push(Kind::VariableBegin);
                self.tag(Kind::VariableEnd)
            }
            _ => match raw_begin(self.rest()) {
                Some(length) => {
                    self.line_starts = self.advance(length).ends_with('\n');
                    self.raw()
                }
                None => {
                    self.push(Kind::BlockBegin);
                    self.tag(Kind::BlockEnd)
                }
            },
        }
    }

    /// Reads the `length` bytes of text before a tag. `sign` is the tag's whitespace control. `strips_line`
    /// removes whitespace between the start of the tag's line and the tag.
    fn data(&mut self, length: usize, sign: Option<char>, strips_line: bool) {
        let text = &self.rest()[..length];
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if strips_line => {
                let line = text.rfind('\n').map_or(0, |i| i + 1);
                let blank = text[line..].chars().all(is_space);
                if blank && (line > 0 || self.line_starts) { &text[..line] } else { text }
            }
            _ => text,
        };
        self.push_data(kept.to_owned());
        self.advance(length);
    }

    fn push_data(&mut self, text: String) {
        if !text.is_empty() {
            self.push(Kind::Data(text));
        }
    }

    /// Reads a comment after its opening.
    fn comment(&mut self) -> Result<(), SyntaxError> {
        let Some(end) = self.rest().find("#}") else { return self.unclosed("Missing end of comment tag") };
        let comment = &self.rest()[..end];
        self.advance(end + 2);
        self.after_tag(comment.ends_with('-'), !comment.ends_with('+'));
        Ok(())
    }

    /// Reads the rest of a raw block after its opening tag, closing tag included.
    fn raw(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        for (start, _) in rest.match_indices("{%") {
            let tag = &rest[start + 2..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let name = tag[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(after) = name.strip_prefix("endraw").map(|after| after.trim_start_matches(is_space))
            else {
                continue;
            };
            let close = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            let Some(after) = after[usize::from(close.is_some())..].strip_prefix("%}") else { continue };
            self.data(start, sign, true);
            self.advance(rest.len() - after.len() - start);
            self.after_tag(close == Some('-'), close.is_none());
            return Ok(());
        }
        self.unclosed("Missing end of raw directive")
    }

    /// Refuses a comment or raw block without its end. Jinja2 accepts one if the template ends right there.
    fn unclosed(&self, message: &str) -> Result<(), SyntaxError> {
        if self.rest().is_empty() { Ok(()) } else { self.error(message) }
    }

    /// Skips whitespace after a tag: all of it if `all`, else one line end if `newline`.
    fn after_tag(&mut self, all: bool, newline: bool) {
        let rest = self.rest();
        let length = match (all, newline) {
            (true, _) => rest.len() - rest.trim_start_matches(is_space).len(),
            (_, true) => usize::from(rest.starts_with('\n')),
            _ => 0,
        };
        self.line_starts = self.advance(length).ends_with('\n');
    }

    /// Reads the tokens of a tag after its opening, up to and including its end.
    fn tag(&mut self, end: Kind) -> Result<(), SyntaxError> {
        let close = if end == Kind::BlockEnd { "%}" } else { "}}" };
        let mut open: Vec<&str> = Vec::new();
        loop {
            let blank = self.rest().len() - self.rest().trim_start_matches(is_space).len();
            self.advance(blank);
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return self.error("unexpected end of template") };
            let sign = usize::from(first == '-' || (first == '+' && end == Kind::BlockEnd));
            if open.is_empty() && rest[sign..].starts_with(close) {
                self.push(end.clone());
                self.advance(sign + 2);
                self.after_tag(first == '-', end == Kind::BlockEnd && sign == 0);
                return Ok(());
            }
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphanumeric() {
                let length = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.push(Kind::Name(rest[..length].to_owned()));
                self.advance(length);
            } else if matches!(first, '\'' | '"') {
                self.text(first)?;
            } else {
                let Some(&operator) = OPERATORS.iter().find(|&&operator| rest.starts_with(operator)) else {
                    return self.error(format!("unexpected char {first:?}"));
                };
                match operator {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" => match open.pop() {
                        Some(expected) if expected == operator => {}
                        Some(expected) => {
                            return self.error(format!("unexpected '{operator}', expected '{expected}'"));
                        }
                        None => return self.error(format!("unexpected '{operator}'")),
                    },
                    _ => {}
                }
                self.push(Kind::Operator(operator));
                self.advance(operator.len());
            }
        }
    }

    /// Reads a number. The number after a dot (`x.1.2`) has no fraction.
    fn number(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => 2,
            Some("0o") => 8,
            Some("0x") => 16,
            _ => 10,
        };
        if radix != 10 {
            let length = 2 + digits(&rest[2..], |c| c.is_digit(radix));
            let parsed = u128::from_str_radix(&rest[2..length].replace('_', ""), radix);
            let Ok(number) = parsed else { return self.error("invalid integer") };
            self.push(Kind::Integer(number.to_string()));
            self.advance(length);
            return Ok(());
        }
        let decimal = |text: &str| digits(text, |c| c.is_ascii_digit());
        let integer = decimal(rest);
        let mut length = integer;
        if !self.source[..self.at].ends_with('.') {
            if let Some(fraction) = rest[length..].strip_prefix('.').filter(|text| decimal(text) > 0) {
                length += 1 + decimal(fraction);
            }
            if rest[length..].starts_with(['e', 'E']) {
                let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
                let exponent = decimal(&rest[length + 1 + sign..]);
                length += if exponent > 0 { 1 + sign + exponent } else { 0 };
            }
        }
        let text = rest[..length].replace('_', "");
        let kind = if length == integer {
            let digits = text.trim_start_matches('0');
            if digits.len() < text.len() && !digits.is_empty() {
                return self.error("leading zeros in decimal integer literals are not permitted");
            }
            Kind::Integer(if digits.is_empty() { "0".to_owned() } else { digits.to_owned() })
        } else {
            Kind::Float(text.parse().unwrap_or(f64::NAN))
        };
        self.push(kind);
        self.advance(length);
        Ok(())
    }

    /// Reads a string literal.
    fn text(&mut self, quote: char) -> Result<(), SyntaxError> {
        let rest = &self.rest()[1..];
        let mut escaped = false;
        let end = rest.char_indices().find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return self.error(format!("unexpected char {quote:?}")) };
        match unescape(&rest[..end]) {
            Ok(text) => self.push(Kind::Text(text)),
            Err(message) => return self.error(message),
        }
        self.advance(end + 2);
        Ok(())
    }
}

/// The length of `raw %}` after the opening of a tag, with its whitespace control; `None` if the tag is
/// another one.
fn raw_begin(rest: &str) -> Option<usize> {
    let after = rest.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let after = match after.strip_prefix("-%}") {
        Some(after) => after.trim_start_matches(is_space),
        None => after.strip_prefix("%}")?,
    };
    Some(rest.len() - after.len())
}

/// The length of a run of digits with single underscores between them.
fn digits(text: &str, is_digit: impl Fn(char) -> bool) -> usize {
    let mut length = 0;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let joins = character == '_' && characters.peek().is_some_and(|&next| is_digit(next));
        if !is_digit(character) && !joins {
            break;
        }
        length += 1;
    }
    length
}

/// Python's decoding of escapes in a string literal. Unknown escapes stay as they are.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let code = if character != '\\' {
            u32::from(character)
        } else {
            match rest.next() {
                None => return Err("\\ at end of string".to_owned()),
                Some('\n') => continue,
                Some('n') => 10,
                Some('r') => 13,
                Some('t') => 9,
                Some('a') => 7,
                Some('b') => 8,
                Some('f') => 12,
                Some('v') => 11,
                Some(c @ ('\\' | '\'' | '"')) => u32::from(c),
                Some(c @ ('x' | 'u' | 'U')) => {
                    let length = match c {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let hex: String = rest.by_ref().take(length).collect();
                    let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == length);
                    code.ok_or_else(|| format!("truncated \\{c} escape"))?
                }
                Some(c @ '0'..='7') => {
                    let more = iter::from_fn(|| rest.next_if(|c| c.is_digit(8))).take(2);
                    let octal: String = iter::once(c).chain(more).collect();
                    u32::from_str_radix(&octal, 8).unwrap_or_default()
                }
                Some('N') => return Err("names of characters (\\N) are not supported".to_owned()),
                Some(other) => {
                    out.extend(['\\', other]);
                    continue;
                }
            }
        };
        // Python accepts surrogates here and fails when the prompt is encoded.
        match char::from_u32(code) {
            Some(character) => out.push(character),
            None => return Err("illegal Unicode character".to_owned()),
        }
    }
    Ok(out)
}
