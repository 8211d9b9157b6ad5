//! Jinja2's filters on text.

use minijinja::{Error, State, Value};

use super::args::{Args, given, integer, integer_or, is_true, string};
use super::numbers::escape;
use super::objects::{Kind, error, float, is_space, iterate, pairs, type_error, undefined_error};
use super::repr::to_str;
use super::strings::{capitalize, lines, pad, replaced, strip};

/// Runs one filter.
pub(super) fn filter(state: &State, name: &str, args: &Args) -> Result<Value, Error> {
    let single = || -> Result<String, Error> {
        let [value] = args.bind(1, ["s"])?;
        to_str(&value.unwrap_or_default())
    };
    let text = match name {
        "upper" => single()?.to_uppercase(),
        "lower" => single()?.to_lowercase(),
        "capitalize" => capitalize(&single()?),
        "title" => title(&single()?),
        "wordcount" => return Ok(Value::from(word_count(&single()?))),
        "trim" => {
            let [value, characters] = args.bind(1, ["value", "chars"])?;
            strip(&to_str(&value.unwrap_or_default())?, "strip", given(characters).as_ref())?
        }
        "center" => {
            let [value, width] = args.bind(1, ["value", "width"])?;
            pad(&to_str(&value.unwrap_or_default())?, name, integer_or(width, 80)?, " ")?
        }
        "replace" => {
            let [value, old, new, count] = args.bind(3, ["s", "old", "new", "count"])?;
            let count = usize::try_from(integer_or(given(count), -1)?).unwrap_or(usize::MAX);
            let text = to_str(&value.unwrap_or_default())?;
            let (old, new) = (to_str(&old.unwrap_or_default())?, to_str(&new.unwrap_or_default())?);
            replaced(state, &text, &old, &new, count)?
        }
        "indent" => indent(args)?,
        "truncate" => truncate(args)?,
        "wordwrap" => word_wrap(args)?,
        "escape" | "e" | "forceescape" => {
            let [value] = args.bind(1, ["value"])?;
            let value = value.unwrap_or_default();
            let escaped = value.is_safe() && name != "forceescape";
            let text = to_str(&value)?;
            return Ok(Value::from_safe_string(if escaped { text } else { escape(&text) }));
        }
        "safe" => return Ok(Value::from_safe_string(single()?)),
        "striptags" => strip_tags(&single()?),
        "urlencode" => url_encode(args)?,
        "xmlattr" => xml_attributes(args)?,
        _ => file_size(args)?,
    };
    Ok(Value::from(text))
}

/// Words begin after whitespace, hyphens and opening brackets; their first characters are in upper case.
fn title(text: &str) -> String {
    let begins = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let mut after_separator = None;
    for character in text.chars() {
        if after_separator != Some(begins(character)) {
            out.push_str(&with_upper_start(&word));
            word.clear();
            after_separator = Some(begins(character));
        }
        word.push(character);
    }
    out + &with_upper_start(&word)
}

fn with_upper_start(word: &str) -> String {
    let mut characters = word.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &characters.as_str().to_lowercase()
}

fn word_count(text: &str) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count()
}

/// A value that Jinja2 uses as a string without converting it.
fn plain(value: Option<Value>) -> Result<String, Error> {
    let value = value.unwrap_or_default();
    if value.is_undefined() { undefined_error() } else { string(&value) }
}

fn indent(args: &Args) -> Result<String, Error> {
    let [value, width, first, blank] = args.bind(1, ["s", "width", "first", "blank"])?;
    let text = plain(value)? + "\n";
    let indention = match width {
        None => " ".repeat(4),
        Some(width) if Kind::of(&width) == Kind::Str => to_str(&width)?,
        Some(width) => pad("", "ljust", integer(&width)?, " ")?,
    };
    let lines = lines(&text, false);
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            out.push_str(if is_true(blank.clone()) || !line.is_empty() { &indention } else { "" });
        }
        out.push_str(line);
    }
    Ok(if is_true(first) { indention + &out } else { out })
}

fn truncate(args: &Args) -> Result<String, Error> {
    let [value, length, killwords, end, leeway] =
        args.bind(1, ["s", "length", "killwords", "end", "leeway"])?;
    let length = integer_or(length, 255)?;
    let end = end.map_or(Ok("...".to_owned()), |end| string(&end))?;
    let leeway = integer_or(given(leeway), 5)?;
    let kept = length - end.chars().count() as i128;
    if kept < 0 || leeway < 0 {
        return Err(error(format!("expected length >= {}, got {length}", end.chars().count())));
    }
    let value = value.unwrap_or_default();
    if super::objects::length(&value).is_some_and(|count| count as i128 <= length + leeway) {
        return to_str(&value);
    }
    let text = string(&value)?;
    let cut: String = text.chars().take(kept as usize).collect();
    if is_true(killwords) {
        return Ok(cut + &end);
    }
    Ok(cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before).to_owned() + &end)
}

/// Wraps paragraphs of words that are separated by single spaces and have no hyphens. Python's rules for
/// other text are not implemented.
fn word_wrap(args: &Args) -> Result<String, Error> {
    let [value, width, break_long, joint, _] =
        args.bind(1, ["s", "width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let text = plain(value)?;
    let width = usize::try_from(integer_or(width, 79)?).unwrap_or(0).max(1);
    let joint = given(joint).map_or(Ok("\n".to_owned()), |joint| string(&joint))?;
    let breaks = break_long.is_none_or(|value| value.is_true());
    let unusual = text.contains(['-', '\t', '\u{2014}']) || text.contains("  ");
    let mut out: Vec<String> = Vec::new();
    for line in lines(&text, false) {
        let mut current = String::new();
        let mut wrapped = Vec::new();
        for word in line.split(' ') {
            let length = word.chars().count();
            if unusual || line.starts_with(' ') || line.ends_with(' ') || (length > width && breaks) {
                return Err(error("wordwrap: long words, hyphens and runs of spaces are not supported"));
            }
            if !current.is_empty() && current.chars().count() + 1 + length > width {
                wrapped.push(std::mem::take(&mut current));
            }
            current.push_str(if current.is_empty() { "" } else { " " });
            current.push_str(word);
        }
        wrapped.push(current);
        out.push(wrapped.join(&joint));
    }
    Ok(out.join(&joint))
}

fn strip_tags(text: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, tag)) = rest.split_once('<') {
        let end = match tag.strip_prefix("!--") {
            Some(comment) => comment.split_once("-->"),
            None => tag.split_once('>'),
        };
        let Some((_, after)) = end else { break };
        kept.push_str(before);
        rest = after;
    }
    kept.push_str(rest);
    let text = kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'"), ("&#34;", "\""), ("&quot;", "\""), ("&amp;", "&")];
    entities.iter().fold(text, |text, (entity, character)| text.replace(entity, character))
}

fn quoted(text: &str, in_query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn url_encode(args: &Args) -> Result<String, Error> {
    let [value] = args.bind(1, ["value"])?;
    let value = value.unwrap_or_default();
    let items = match Kind::of(&value) {
        Kind::Dict => pairs(&value),
        Kind::Str | Kind::None | Kind::Bool | Kind::Int | Kind::Float => {
            return Ok(quoted(&to_str(&value)?, false));
        }
        _ => {
            let mut items = Vec::new();
            for item in iterate(&value)? {
                let [key, value] = &iterate(&item)?[..] else { return type_error("urlencode: not a pair") };
                items.push((key.clone(), value.clone()));
            }
            items
        }
    };
    let mut parts = Vec::new();
    for (key, value) in &items {
        parts.push(format!("{}={}", quoted(&to_str(key)?, true), quoted(&to_str(value)?, true)));
    }
    Ok(parts.join("&"))
}

fn xml_attributes(args: &Args) -> Result<String, Error> {
    let [value, space] = args.bind(1, ["d", "autospace"])?;
    let value = value.unwrap_or_default();
    if Kind::of(&value) != Kind::Dict {
        return type_error(format!("'{}' object has no attribute 'items'", Kind::of(&value).name()));
    }
    let mut parts = Vec::new();
    for (key, value) in pairs(&value) {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let key = string(&key)?;
        if key.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return Err(error(format!("Invalid character in attribute name: {key:?}")));
        }
        parts.push(format!("{}=\"{}\"", escape(&key), escape(&to_str(&value)?)));
    }
    let text = parts.join(" ");
    let spaced = space.is_none_or(|space| space.is_true()) && !text.is_empty();
    Ok(if spaced { format!(" {text}") } else { text })
}

fn file_size(args: &Args) -> Result<String, Error> {
    let [value, binary] = args.bind(1, ["value", "binary"])?;
    let value = value.unwrap_or_default();
    let binary = is_true(binary);
    let bytes = match float(&value) {
        Some(bytes) => bytes,
        None => string(&value)?.trim().parse().map_err(|_| error("could not convert string to float"))?,
    };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let units = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let fits = |i: &usize| bytes < base.powi(*i as i32 + 2);
    let i = (0..units.len()).find(fits).unwrap_or(units.len() - 1);
    let unit = if binary { format!("{}iB", units[i].to_uppercase()) } else { format!("{}B", units[i]) };
    Ok(format!("{:.1} {unit}", base * bytes / base.powi(i as i32 + 2)))
}
