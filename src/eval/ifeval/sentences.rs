//! The number of sentences of an English text, by the Punkt algorithm (Kiss and Strunk, 2006) as NLTK runs
//! it. The reference uses parameters that were learnt from a corpus of newspapers; here lists of words stand
//! for some of them ([`super::english`]). `scripts/compare_ifeval.py` counts how often the numbers differ.

use super::english::{ABBREVIATIONS, AFTER_NUMBER, COMMON, NEVER_NAMES, STARTERS};
use super::python_text::is_space;

/// Marks that may end a sentence.
const ENDS: [char; 3] = ['.', '?', '!'];

/// Number of sentences.
pub(super) fn count(text: &str) -> usize {
    let chars: Vec<char> = text.chars().collect();
    let mut slices = Vec::new();
    let mut start = 0;
    for end in ends(&chars) {
        if has_break(&end.context) {
            slices.push((start, end.at + 1));
            start = end.next;
        }
    }
    let trailing = chars.iter().rev().take_while(|c| is_space(**c)).count();
    slices.push((start, (chars.len() - trailing).max(start)));
    realigned(&chars, &slices)
}

/// A mark that may end a sentence.
struct End {
    /// Index of the mark.
    at: usize,
    /// Index at which the next sentence would begin.
    next: usize,
    /// The word with the mark, and what follows it.
    context: Vec<char>,
}

/// All marks that may end a sentence. Of several in one word the last counts.
fn ends(chars: &[char]) -> Vec<End> {
    let mut found: Vec<End> = Vec::new();
    let mut pending: Option<End> = None;
    let mut word = (0, 0);
    for at in 0..chars.len() {
        let Some((next, context_end)) = after(chars, at) else { continue };
        let before = &chars[word.1..at];
        // As in the reference, a space that is the first character does not count.
        let space = before.iter().rposition(|c| c.is_ascii_whitespace() || *c == '\u{B}').unwrap_or(0);
        let start = if space > 0 { word.1 + space + 1 } else { word.0 };
        if let Some(end) = pending.take().filter(|_| word.1 <= start) {
            found.push(end);
        }
        word = (start, at);
        pending = Some(End { at, next, context: chars[start..context_end].to_vec() });
    }
    found.extend(pending);
    found
}

/// If a mark at this index may end a sentence: where the next one begins, and the end of the context.
fn after(chars: &[char], at: usize) -> Option<(usize, usize)> {
    if !ENDS.contains(&chars[at]) {
        return None;
    }
    let next = *chars.get(at + 1)?;
    if is_punctuation(next) {
        return Some((at + 1, at + 2));
    }
    let spaces = chars[at + 1..].iter().take_while(|c| is_space(**c)).count();
    let start = at + 1 + spaces;
    let word = chars[start..].iter().take_while(|c| !is_space(**c)).count();
    (spaces > 0 && word > 0).then_some((start, start + word))
}

/// Marks that end a word.
fn is_punctuation(c: char) -> bool {
    matches!(c, ')' | '"' | ';' | '}' | ']' | '*' | ':' | '@' | '\'' | '(' | '{' | '[' | '?' | '!')
}

/// Moves closing quotes and brackets at the start of a sentence to the one before, and counts the sentences
/// that are not empty.
fn realigned(chars: &[char], slices: &[(usize, usize)]) -> usize {
    let (mut count, mut moved) = (0, 0);
    for (index, (start, end)) in slices.iter().enumerate() {
        let start = start + moved;
        moved = 0;
        let closing = slices.get(index + 1).and_then(|(from, to)| closing(&chars[*from..*to]));
        moved += closing.unwrap_or(0);
        count += usize::from(closing.is_some() || start < *end);
    }
    count
}

/// Length of the closing quotes and brackets at the start of a text, with the spaces after them.
fn closing(text: &[char]) -> Option<usize> {
    let marks = text.iter().take_while(|c| matches!(c, '"' | '\'' | ')' | ']' | '}')).count();
    let rest = &text[marks..];
    let spaces = rest.iter().take_while(|c| is_space(**c)).count();
    let ends = spaces > 0 || rest.is_empty() || rest.starts_with(&['-', '-']);
    (marks > 0 && ends).then_some(marks + spaces)
}

/// A word of a context.
struct Token {
    text: String,
    abbreviation: bool,
    ends: bool,
}

/// Whether a sentence ends within a context, before its last word.
fn has_break(context: &[char]) -> bool {
    let mut tokens: Vec<Token> = context
        .split(|c| {
            matches!(
                *c,
                '\n' | '\r' | '\u{B}' | '\u{C}' | '\u{1C}'..='\u{1E}' | '\u{85}' | '\u{2028}' | '\u{2029}'
            )
        })
        .flat_map(words)
        .map(first_pass)
        .collect();
    for index in 1..tokens.len() {
        let (before, after) = tokens.split_at_mut(index);
        if let (Some(token), Some(next)) = (before.last_mut(), after.first()) {
            second_pass(token, next);
        }
    }
    tokens.iter().rev().skip(1).any(|token| token.ends)
}

/// Decides by the word alone.
fn first_pass(text: String) -> Token {
    let mark = text.chars().count() == 1 && text.starts_with(ENDS);
    let mut token = Token { abbreviation: false, ends: mark, text };
    if !mark && !is_ellipsis(&token.text) && token.text.ends_with('.') && !token.text.ends_with("..") {
        let word = token.text[..token.text.len() - 1].to_lowercase();
        let last = word.rsplit('-').next().unwrap_or(&word);
        token.abbreviation = [word.as_str(), last].iter().any(|word| ABBREVIATIONS.contains(word));
        token.ends = !token.abbreviation;
    }
    token
}

/// Decides by the word after an abbreviation, an ellipsis, an initial or a number.
fn second_pass(token: &mut Token, next: &Token) {
    if !token.text.ends_with('.') {
        return;
    }
    let initial = is_initial(&token.text);
    let word = kind(&next.text, next.ends);
    let is_upper = next.text.chars().next().is_some_and(char::is_uppercase);
    if is_number(&token.text) && AFTER_NUMBER.contains(&word.as_str()) {
        (token.ends, token.abbreviation) = (false, true);
        return;
    }
    if (token.abbreviation || is_ellipsis(&token.text)) && !initial {
        if starts_sentence(next, &word) == Some(true) || (is_upper && STARTERS.contains(&word.as_str())) {
            token.ends = true;
        }
        return;
    }
    if initial || is_number(&token.text) {
        let starts = starts_sentence(next, &word);
        let name = starts.is_none() && initial && is_upper && !is_common(&word);
        if starts == Some(false) || name {
            (token.ends, token.abbreviation) = (false, true);
        }
    }
}

/// Whether the case of a word shows that it begins a sentence, or does not; `None` if it shows neither.
fn starts_sentence(token: &Token, word: &str) -> Option<bool> {
    if matches!(token.text.as_str(), ";" | ":" | "," | "." | "!" | "?") {
        return Some(false);
    }
    let first = token.text.chars().next()?;
    if first.is_uppercase() {
        return NEVER_NAMES.contains(&word).then_some(true);
    }
    first.is_lowercase().then_some(false)
}

/// Whether a list has this word, which mostly stands in small letters.
fn is_common(word: &str) -> bool {
    word != "i" && [&NEVER_NAMES[..], &STARTERS, &COMMON].iter().any(|words| words.contains(&word))
}

/// The word in small letters, without the full stop of its sentence.
fn kind(text: &str, ends: bool) -> String {
    let lower = text.to_lowercase();
    match lower.strip_suffix('.') {
        Some(word) if ends && !word.is_empty() => word.to_owned(),
        _ => lower,
    }
}

fn is_ellipsis(text: &str) -> bool {
    text.len() >= 2 && text.bytes().all(|byte| byte == b'.')
}

/// One letter with a full stop.
fn is_initial(text: &str) -> bool {
    let mut chars = text.chars();
    let letter = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
    letter && chars.next() == Some('.') && chars.next().is_none()
}

/// A number, perhaps with a sign, separators and a full stop.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let text = text.strip_prefix(['.', ',']).unwrap_or(text);
    text.starts_with(|c: char| c.is_numeric())
        && text.chars().all(|c| c.is_numeric() || matches!(c, ',' | '.' | '-'))
}

/// The words and marks of a line.
fn words(line: &[char]) -> Vec<String> {
    let mut words = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let length = if is_space(line[at]) {
            at += 1;
            continue;
        } else if let Some(length) = repeated(line, at) {
            length
        } else if begins_word(line[at]) {
            let rest = (at + 1..line.len()).find(|end| ends_word(line, *end));
            rest.unwrap_or(line.len()) - at
        } else {
            1
        };
        words.push(line[at..at + length].iter().collect());
        at += length;
    }
    words
}

fn begins_word(c: char) -> bool {
    !matches!(
        c,
        '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ','
    )
}

/// Length of dashes, or of full stops with or without spaces, that are one word.
fn repeated(line: &[char], at: usize) -> Option<usize> {
    for mark in ['-', '.'] {
        let length = line[at..].iter().take_while(|c| **c == mark).count();
        if length >= 2 {
            return Some(length);
        }
    }
    let is_pair = |pair: usize| {
        line.get(at + 2 * pair) == Some(&'.') && line.get(at + 2 * pair + 1).is_some_and(|c| is_space(*c))
    };
    let pairs = (0..).take_while(|pair| is_pair(*pair)).count();
    (2..=pairs).rev().find(|pairs| line.get(at + 2 * pairs) == Some(&'.')).map(|pairs| 2 * pairs + 1)
}

fn ends_word(line: &[char], at: usize) -> bool {
    let stops = |at: usize| {
        line.get(at).is_none_or(|c| is_space(*c) || is_punctuation(*c)) || repeated(line, at).is_some()
    };
    stops(at) || (line[at] == ',' && stops(at + 1))
}
