//! Marks the turn markers in the source of a chat template, so that its output tells which of them the
//! template wrote.
//!
//! A marked template has a placeholder in place of each turn marker that it writes, and is otherwise the
//! same. A marker that the template only searches for, as in `content.split('<|im_end|>')`, stays as it is:
//! else the template would not find it in message text.

use super::turn_marker_guard::TurnMarkers;

/// Methods and filters whose argument is text to search for. `replace` searches for its first argument only.
const SEARCHES: [&str; 17] = [
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "strip",
    "lstrip",
    "rstrip",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "removeprefix",
    "removesuffix",
    "get",
];

/// Which turn markers of a template are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marking {
    /// Those that the template writes, as far as the source shows it.
    Written,
    /// All, for a template that searches its own output.
    All,
}

/// The source of a template with its turn markers replaced by placeholders. Variables in `names`
/// (`bos_token`, …), which contain turn markers, are replaced by those that [`marked_name`] gives.
pub(super) fn marked_source(source: &str, names: &[&str], markers: &TurnMarkers, marking: Marking) -> String {
    let mut out = String::with_capacity(source.len() + 256);
    let mut rest = source;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        out.push_str(&markers.marked(&rest[..start]));
        let comment = rest[start..].starts_with("{#");
        let length = if comment {
            rest[start..].find("#}").map_or(rest.len() - start, |end| end + 2)
        } else {
            let mut code = Code { names, markers, marking, out: &mut out, brackets: Vec::new(), before: "" };
            code.copy(&rest[start..])
        };
        if comment {
            out.push_str(&rest[start..start + length]);
        }
        rest = &rest[start + length..];
    }
    out + &markers.marked(rest)
}

/// Name of the variable that has the value of a special token with placeholders.
pub(super) fn marked_name(name: &str) -> String {
    format!("octant_marked_{name}")
}

/// The code between `{{` and `}}` or `{%` and `%}` while it is copied.
struct Code<'c> {
    names: &'c [&'c str],
    markers: &'c TurnMarkers,
    marking: Marking,
    out: &'c mut String,
    /// The brackets that are open.
    brackets: Vec<Bracket<'c>>,
    /// The last word or sign.
    before: &'c str,
}

/// An open bracket.
struct Bracket<'c> {
    /// Name of the function that it belongs to.
    function: &'c str,
    /// Number of commas so far.
    argument: usize,
    /// Whether all texts within it are texts to search for.
    searched: bool,
}

impl<'c> Code<'c> {
    /// Copies the code at the start of `source` with its placeholders. Returns its length.
    fn copy(&mut self, source: &'c str) -> usize {
        let end = if source.starts_with("{{") { "}}" } else { "%}" };
        self.out.push_str(&source[..2]);
        let mut at = 2;
        while at < source.len() {
            let rest = &source[at..];
            if self.brackets.is_empty() && rest.starts_with(end) {
                self.out.push_str(end);
                return at + 2;
            }
            let length = token_length(rest);
            let token = &rest[..length];
            if token.starts_with(['\'', '"']) {
                self.text(token, &rest[length..]);
            } else if self.names.contains(&token) && self.before != "." && !self.is_searched(&rest[length..])
            {
                self.out.push_str(&marked_name(token));
            } else {
                self.out.push_str(token);
                self.bracket(token);
            }
            if !token.trim().is_empty() {
                self.before = token;
            }
            at += length;
        }
        source.len()
    }

    /// Copies a text, with its quotes.
    fn text(&mut self, token: &str, behind: &str) {
        if self.is_searched(behind) {
            self.out.push_str(token);
        } else {
            self.out.push_str(&self.markers.marked(token));
        }
    }

    /// Whether a text or variable here is only searched for or compared. `behind` is the code that follows
    /// it.
    fn is_searched(&self, behind: &str) -> bool {
        if self.marking == Marking::All {
            return false;
        }
        let behind = behind.trim_start();
        let word = |word: &str| {
            behind.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
        };
        let compared = ["==", "!="].iter().any(|sign| behind.starts_with(sign)) || word("in") || word("not");
        let in_call = self.brackets.last().is_some_and(|bracket| {
            bracket.searched || bracket.function == "replace" && bracket.argument == 0
        });
        compared || matches!(self.before, "==" | "!=" | "in") || in_call
    }

    /// Keeps track of brackets and commas.
    fn bracket(&mut self, token: &str) {
        match token {
            "(" | "[" | "{" => {
                let within = self.brackets.last().is_some_and(|bracket| bracket.searched);
                let function = if token == "(" { self.before } else { "" };
                // A text in brackets behind a value is a key.
                let value = self.before.ends_with(|c: char| c.is_alphanumeric() || "_)]'\"".contains(c));
                let key = token == "[" && value;
                let searched = within || key || SEARCHES.contains(&function) || self.before == "in";
                self.brackets.push(Bracket { function, argument: 0, searched });
            }
            ")" | "]" | "}" => {
                self.brackets.pop();
            }
            "," => self.brackets.iter_mut().last().into_iter().for_each(|bracket| bracket.argument += 1),
            _ => {}
        }
    }
}

/// Length of the text in quotes, the word, the comparison or the character at the start of some code.
fn token_length(code: &str) -> usize {
    let first = code.chars().next().unwrap_or(' ');
    if first == '\'' || first == '"' {
        let mut escaped = false;
        for (i, character) in code.char_indices().skip(1) {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == first => return i + 1,
                _ => {}
            }
        }
        return code.len();
    }
    if code.starts_with("==") || code.starts_with("!=") {
        return 2;
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if word(first) { code.find(|c: char| !word(c)).unwrap_or(code.len()) } else { first.len_utf8() }
}
