//! Methods of Python's `str`.

use minijinja::{Error, State, Value};

use super::args::{Args, given, integer, integer_or, is_true, string};
use super::compare::get;
use super::limits::{charge, repeated};
use super::objects::{Kind, Sequence, SequenceKind, error, is_space, iterate, size, text, type_error};
use super::repr::{is_printable, to_str};

/// The methods. `encode`, `maketrans` and `translate` are not supported.
pub(super) const METHODS: [&str; 44] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Calls a method of a string.
pub(super) fn call(state: &State, object: &Value, name: &str, args: &Args) -> Result<Value, Error> {
    let text = text(object).unwrap_or_default();
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [characters] = args.unnamed(0)?;
            strip(text, name, given(characters).as_ref()).map(Value::from)
        }
        "split" | "rsplit" => split(state, text, name == "rsplit", args),
        "splitlines" => {
            let [keep] = args.bind(0, ["keepends"])?;
            Ok(lines(text, is_true(keep)).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => partition(text, name == "rpartition", args),
        "startswith" | "endswith" => affix(text, name == "endswith", args),
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args),
        "join" => join(state, text, args),
        "replace" => replace(state, text, args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.unnamed(1)?;
            let affix = string(&affix.unwrap_or_default())?;
            let rest =
                if name == "removeprefix" { text.strip_prefix(&affix) } else { text.strip_suffix(&affix) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.unnamed(1)?;
            let fill = fill.map_or(Ok(" ".to_owned()), |fill| string(&fill))?;
            pad(text, name, integer(&width.unwrap_or_default())?, &fill).map(Value::from)
        }
        "zfill" => {
            let [width] = args.unnamed(1)?;
            let signed = text.starts_with(['+', '-']);
            let (sign, digits) = text.split_at(usize::from(signed));
            let width = integer(&width.unwrap_or_default())? - i128::from(signed);
            Ok(Value::from(sign.to_owned() + &pad(digits, "rjust", width, "0")?))
        }
        "expandtabs" => {
            let [size] = args.bind(0, ["tabsize"])?;
            expand_tabs(text, integer_or(size, 8)?).map(Value::from)
        }
        _ => {
            args.none()?;
            Ok(changed_case(text, name).map_or_else(|| Value::from(is_class(text, name)), Value::from))
        }
    }
}

fn changed_case(text: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.to_lowercase().replace('ß', "ss"),
        "capitalize" => capitalize(text),
        "title" => title(text),
        "swapcase" => text
            .chars()
            .map(|c| if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() })
            .collect::<Vec<String>>()
            .concat(),
        _ => return None,
    })
}

/// The first character in upper case, all others in lower case.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(title_case).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

/// A character in title case. Digraphs and ligatures have a separate title case.
fn title_case(character: char) -> String {
    match character {
        'Ǆ'..='ǆ' => "ǅ".to_owned(),
        'Ǉ'..='ǉ' => "ǈ".to_owned(),
        'Ǌ'..='ǌ' => "ǋ".to_owned(),
        'Ǳ'..='ǳ' => "ǲ".to_owned(),
        'ß' | '\u{fb00}'..='\u{fb06}' => {
            let upper: String = character.to_uppercase().collect();
            let (first, rest) = upper.split_at(1);
            first.to_owned() + &rest.to_lowercase()
        }
        _ => character.to_uppercase().collect(),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for character in text.chars() {
        if in_word {
            out.extend(character.to_lowercase())
        } else {
            out.push_str(&title_case(character))
        }
        in_word = is_cased(character);
    }
    out
}

fn is_cased(character: char) -> bool {
    character.is_uppercase() || character.is_lowercase()
}

fn is_class(text: &str, name: &str) -> bool {
    let all = |class: fn(char) -> bool| !text.is_empty() && text.chars().all(class);
    match name {
        "isspace" => all(is_space),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(char::is_numeric),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let starts = text.starts_with(|c: char| c == '_' || c.is_alphabetic());
            starts && text.chars().all(|c| c == '_' || c.is_alphanumeric())
        }
        "islower" => is_lower(text),
        "isupper" => is_upper(text),
        _ => is_title(text),
    }
}

/// Python's `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// Python's `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for character in text.chars() {
        if (character.is_uppercase() && in_word) || (character.is_lowercase() && !in_word) {
            return false;
        }
        in_word = is_cased(character);
        any |= in_word;
    }
    any
}

/// First characters of the decimal digits outside ASCII, in the Basic Multilingual Plane.
const ZEROS: [u32; 37] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50,
    0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
];

fn is_decimal(character: char) -> bool {
    let code = u32::from(character);
    ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&code)) || (0x1d7ce..0x1d800).contains(&code)
}

fn is_digit(character: char) -> bool {
    let code = u32::from(character);
    is_decimal(character)
        || matches!(code, 0xb2 | 0xb3 | 0xb9 | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089 | 0x2460..=0x2468)
}

/// Python's `strip`, `lstrip` or `rstrip`, of whitespace or of the given characters.
pub(super) fn strip(text: &str, name: &str, characters: Option<&Value>) -> Result<String, Error> {
    let set: Option<Vec<char>> = match characters {
        Some(characters) => Some(string(characters)?.chars().collect()),
        None => None,
    };
    let is_cut = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(is_cut) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(is_cut) }.to_owned())
}

fn split(state: &State, text: &str, from_end: bool, args: &Args) -> Result<Value, Error> {
    let [separator, most] = args.bind(0, ["sep", "maxsplit"])?;
    let most = usize::try_from(integer_or(most, -1)?).unwrap_or(usize::MAX);
    let pieces: Vec<&str> = match given(separator) {
        None => words(text, from_end, most),
        Some(separator) => {
            let separator = string(&separator)?;
            if separator.is_empty() {
                return Err(error("ValueError: empty separator"));
            }
            if from_end {
                let mut pieces: Vec<&str> = text.rsplitn(most.saturating_add(1), &separator).collect();
                pieces.reverse();
                pieces
            } else {
                text.splitn(most.saturating_add(1), &separator).collect()
            }
        }
    };
    charge(state, pieces.len() as u64 * 32)?;
    Ok(pieces.into_iter().map(Value::from).collect())
}

/// Splits at runs of whitespace; the last piece keeps what is left when `most` splits are made.
fn words(text: &str, from_end: bool, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = if from_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() {
        let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at.filter(|_| pieces.len() < most) else {
            pieces.push(rest);
            break;
        };
        if from_end {
            let word = &rest[at..];
            pieces.push(word.trim_start_matches(is_space));
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            pieces.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if from_end {
        pieces.reverse();
    }
    pieces
}

/// Python's `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((i, character)) = characters.next() {
        let ends = matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}')
            || matches!(character, '\u{2028}' | '\u{2029}');
        if !ends {
            continue;
        }
        let mut next = i + character.len_utf8();
        if character == '\r' && characters.next_if(|&(_, c)| c == '\n').is_some() {
            next += 1;
        }
        lines.push(text[start..if keep_ends { next } else { i }].to_owned());
        start = next;
    }
    if start < text.len() {
        lines.push(text[start..].to_owned());
    }
    lines
}

fn partition(text: &str, from_end: bool, args: &Args) -> Result<Value, Error> {
    let [separator] = args.unnamed(1)?;
    let separator = string(&separator.unwrap_or_default())?;
    if separator.is_empty() {
        return Err(error("ValueError: empty separator"));
    }
    let found = if from_end { text.rsplit_once(&separator) } else { text.split_once(&separator) };
    let parts = match found {
        Some((before, after)) => [before, &separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Sequence::value(SequenceKind::Tuple, parts.map(Value::from).to_vec()))
}

/// The part of a string between two positions in characters, and its first position; `None` if it ends before
/// it begins.
fn range(text: &str, start: Option<Value>, end: Option<Value>) -> Result<Option<(&str, usize)>, Error> {
    let (start, end) = (given(start), given(end));
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let length = text.chars().count() as i128;
    let bound = |value, default| -> Result<i128, Error> {
        let bound = integer_or(value, default)?;
        Ok((if bound < 0 { bound + length } else { bound }).max(0))
    };
    let (start, end) = (bound(start, 0)?, bound(end, length)?.min(length));
    let byte = |at: i128| text.char_indices().nth(at as usize).map_or(text.len(), |(i, _)| i);
    Ok((start <= end).then(|| (&text[byte(start)..byte(end)], start as usize)))
}

fn affix(text: &str, at_end: bool, args: &Args) -> Result<Value, Error> {
    let [affix, start, end] = args.unnamed(1)?;
    let affix = affix.unwrap_or_default();
    let affixes = match Kind::of(&affix) {
        Kind::Str => vec![affix],
        kind if kind.is_tuple() => iterate(&affix)?,
        kind => {
            let name = &args.function;
            return type_error(format!(
                "{name} first arg must be str or a tuple of str, not {}",
                kind.name()
            ));
        }
    };
    let part = range(text, start, end)?.map(|(part, _)| part);
    for affix in &affixes {
        let affix = string(affix)?;
        let found = |part: &str| if at_end { part.ends_with(&affix) } else { part.starts_with(&affix) };
        if part.is_some_and(found) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(text: &str, name: &str, args: &Args) -> Result<Value, Error> {
    let [needle, start, end] = args.unnamed(1)?;
    let needle = string(&needle.unwrap_or_default())?;
    let part = range(text, start, end)?;
    if name == "count" {
        return Ok(Value::from(part.map_or(0, |(part, _)| part.matches(&needle).count())));
    }
    let found = part.and_then(|(part, first)| {
        let at = if name.starts_with('r') { part.rfind(&needle) } else { part.find(&needle) };
        at.map(|at| first + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("index") => Err(error("ValueError: substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn join(state: &State, separator: &str, args: &Args) -> Result<Value, Error> {
    let [items] = args.unnamed(1)?;
    let mut parts = Vec::new();
    for (i, item) in iterate(&items.unwrap_or_default())?.iter().enumerate() {
        if Kind::of(item) != Kind::Str {
            let kind = Kind::of(item).name();
            return type_error(format!("sequence item {i}: expected str instance, {kind} found"));
        }
        charge(state, size(item) + separator.len() as u64)?;
        parts.push(to_str(item)?);
    }
    Ok(Value::from(parts.join(separator)))
}

fn replace(state: &State, text: &str, args: &Args) -> Result<Value, Error> {
    let [old, new, count] = args.unnamed(2)?;
    let (old, new) = (string(&old.unwrap_or_default())?, string(&new.unwrap_or_default())?);
    let count = usize::try_from(integer_or(count, -1)?).unwrap_or(usize::MAX);
    replaced(state, text, &old, &new, count).map(Value::from)
}

/// Python's `str.replace`.
pub(super) fn replaced(
    state: &State,
    text: &str,
    old: &str,
    new: &str,
    count: usize,
) -> Result<String, Error> {
    let found = text.matches(old).take(count).count();
    charge(state, (text.len() + found * new.len()) as u64)?;
    Ok(text.replacen(old, new, count))
}

/// Python's `center`, `ljust` or `rjust`.
pub(super) fn pad(text: &str, name: &str, width: i128, fill: &str) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return type_error("The fill character must be exactly one character long");
    }
    let missing = width - text.chars().count() as i128;
    let Ok(missing) = usize::try_from(missing) else { return Ok(text.to_owned()) };
    // An odd number of fill characters has one more on the left if the width is odd, else on the right.
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width as usize & 1),
    };
    Ok(repeated(fill, left)? + text + &repeated(fill, missing - left)?)
}

fn expand_tabs(text: &str, size: i128) -> Result<String, Error> {
    let mut out = String::new();
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.push_str(&repeated(" ", usize::try_from(spaces).unwrap_or(usize::MAX))?);
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(character);
                column = 0;
            }
            _ => {
                out.push(character);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// The value of a name for `str.format_map` and `%`.
pub(super) fn named(map: &Value, name: &str) -> Result<Value, Error> {
    get(map, &Value::from(name))?.ok_or_else(|| error(format!("KeyError: {name:?}")))
}
