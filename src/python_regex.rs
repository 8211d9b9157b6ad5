//! Regular expressions as Python's `re` reads them, translated for the `fancy-regex` crate. Syntax that the
//! two read differently is translated, or refused by name.
//!
//! Names of modules are one line of ASCII characters, for which most of the differences do not matter. In any
//! other text they do: `\w` of Python has no combining marks, `\s` has the separators U+001C to U+001F, and
//! `$` matches before a final line feed.

use std::fmt::Write;

/// Characters that Python's `\w` matches in text: letters, numbers of all kinds, and `_`.
const WORD: &str = "\\p{L}\\p{N}_";
/// Characters that Python's `\s` matches in text.
const SPACE: &str = "\\s\\x1C-\\x1F";

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct PythonRegex {
    source: String,
    regex: fancy_regex::Regex,
}

impl PartialEq for PythonRegex {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

/// The reason for which a pattern cannot be used or matched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PatternError(pub(crate) String);

impl PythonRegex {
    /// Compiles a pattern for use as in `re.match`.
    ///
    /// # Errors
    /// Python would not compile it, or it uses syntax that cannot be translated.
    pub(crate) fn new(pattern: &str) -> Result<Self, PatternError> {
        Self::before(pattern, "")
    }

    /// Compiles a pattern for use as in `re.match`. `end`, in the syntax of `fancy-regex`, has to match the
    /// text after the match of the pattern.
    ///
    /// # Errors
    /// The same as those of [`Self::new`].
    pub(crate) fn before(pattern: &str, end: &str) -> Result<Self, PatternError> {
        let translated = Translator::translate(pattern, Subject::Name)?;
        Self::compile(pattern, &format!("\\A(?:{translated}){end}"))
    }

    /// Compiles a pattern for use as in `re.search` and `re.findall` on any text, with flags of Python: `i`
    /// for `IGNORECASE`, `m` for `MULTILINE`.
    ///
    /// # Errors
    /// The same as those of [`Self::new`].
    pub(crate) fn in_text(pattern: &str, flags: &str) -> Result<Self, PatternError> {
        let translated = Translator::translate(pattern, Subject::Text { multi_line: flags.contains('m') })?;
        let flags = if flags.is_empty() { String::new() } else { format!("(?{flags})") };
        Self::compile(pattern, &format!("{flags}{translated}"))
    }

    /// Compiles a shell pattern for use as in `fnmatch.fnmatchcase`: it has to match the whole text.
    ///
    /// # Errors
    /// A range in brackets is not valid.
    pub(crate) fn shell(pattern: &str) -> Result<Self, PatternError> {
        let chars: Vec<char> = pattern.chars().collect();
        let mut out = String::from("(?s)\\A");
        let mut at = 0;
        while let Some(c) = chars.get(at) {
            at += 1;
            match c {
                '*' => out.push_str(".*"),
                '?' => out.push('.'),
                '[' => match bracket(&chars[at..]) {
                    Some(members) => {
                        at += members.len() + 1;
                        shell_class(members, &mut out);
                    }
                    None => literal('[', &mut out),
                },
                c => literal(*c, &mut out),
            }
        }
        Self::compile(pattern, &format!("{out}\\z"))
    }

    fn compile(source: &str, translated: &str) -> Result<Self, PatternError> {
        let regex = fancy_regex::Regex::new(translated).map_err(|error| PatternError(error.to_string()))?;
        Ok(Self { source: source.to_owned(), regex })
    }

    /// Whether a match starts at the start of the text; for [`Self::in_text`], whether there is one anywhere.
    ///
    /// # Errors
    /// The pattern needs too many steps.
    pub(crate) fn matches(&self, text: &str) -> Result<bool, PatternError> {
        self.regex
            .is_match(text)
            .map_err(|error| PatternError(format!("`{}` on `{text}`: {error}", self.source)))
    }

    /// Number of matches that `re.findall` finds. An empty match may follow another match directly.
    ///
    /// # Errors
    /// The pattern needs too many steps.
    pub(crate) fn count(&self, text: &str) -> Result<usize, PatternError> {
        let (mut count, mut at) = (0, 0);
        while at <= text.len() {
            let found = self.regex.find_from_pos(text, at);
            let found = found.map_err(|error| PatternError(format!("`{}`: {error}", self.source)))?;
            let Some(found) = found else { break };
            count += 1;
            let next = text[found.end()..].chars().next();
            let step = if found.end() > found.start() { 0 } else { next.map_or(1, char::len_utf8) };
            at = found.end() + step;
        }
        Ok(count)
    }

    /// Number of groups that capture.
    pub(crate) fn groups(&self) -> usize {
        self.regex.captures_len().saturating_sub(1)
    }
}

/// The members of a shell pattern's brackets, without the closing one; `None` if there is none. A bracket
/// right after the opening one or its `!` is a member.
fn bracket(rest: &[char]) -> Option<&[char]> {
    let first = usize::from(rest.first() == Some(&'!'));
    let first = first + usize::from(rest.get(first) == Some(&']'));
    let end = first + rest.get(first..)?.iter().position(|c| *c == ']')?;
    Some(&rest[..end])
}

fn shell_class(members: &[char], out: &mut String) {
    out.push('[');
    let (members, negated) = match members.split_first() {
        Some(('!', rest)) => (rest, true),
        _ => (members, false),
    };
    if negated {
        out.push('^');
    }
    for (at, c) in members.iter().enumerate() {
        let within = at > 0 && at + 1 < members.len();
        if *c == '-' && within { out.push('-') } else { literal(*c, out) }
    }
    out.push(']');
}

/// Appends a character that stands for itself, within brackets too.
fn literal(c: char, out: &mut String) {
    if c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii() {
        out.push(c);
    } else {
        // Writing to a string does not fail.
        let _ = write!(out, "\\x{{{:x}}}", u32::from(c));
    }
}

/// A member of a character class, or an escape: one character, or a set such as `\d`.
enum Member {
    Char(char),
    Set(char),
}

/// The kind of text that a pattern is matched with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// One line of ASCII characters.
    Name,
    /// Any text. `multi_line`: whether `$` matches before every line feed.
    Text { multi_line: bool },
}

struct Translator<'a> {
    chars: &'a [char],
    subject: Subject,
    at: usize,
    /// End of the flags and comments at the start.
    flags_end: usize,
    /// Whether spaces and comments behind `#` are left out.
    verbose: bool,
    out: String,
}

impl Translator<'_> {
    fn translate(pattern: &str, subject: Subject) -> Result<String, PatternError> {
        let (chars, out): (Vec<char>, _) = (pattern.chars().collect(), String::new());
        let mut translator = Translator { chars: &chars, subject, at: 0, flags_end: 0, verbose: false, out };
        translator.pattern()?;
        Ok(translator.out)
    }

    /// Appends a set such as `\d`, outside or within brackets.
    fn set(&mut self, set: char, within: bool) -> Result<(), PatternError> {
        let members = match set.to_ascii_lowercase() {
            'w' if self.subject != Subject::Name => WORD,
            's' if self.subject != Subject::Name => SPACE,
            _ => {
                self.out.extend(['\\', set]);
                return Ok(());
            }
        };
        match (set.is_ascii_uppercase(), within) {
            (false, true) => self.out.push_str(members),
            (false, false) => self.out.push_str(&format!("[{members}]")),
            (true, _) => self.out.push_str(&format!("[^{members}]")),
        }
        Ok(())
    }

    /// The edge of a word in text, or `\\B`, by the characters that Python's `\\w` matches.
    fn edge(&mut self, is_edge: bool) {
        let (before, after) = (format!("(?<=[{WORD}])"), format!("(?=[{WORD}])"));
        let (not_before, not_after) = (format!("(?<![{WORD}])"), format!("(?![{WORD}])"));
        let (first, second) = if is_edge { (not_after, after) } else { (after, not_after) };
        let _ = write!(self.out, "(?:{before}{first}|{not_before}{second})");
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn take(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, c)| self.chars.get(self.at + i) == Some(&c));
        self.at += if found { text.chars().count() } else { 0 };
        found
    }

    /// The characters up to `end`, which is consumed.
    fn until(&mut self, end: char) -> Result<String, PatternError> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some(c) if c == end => return Ok(text),
                Some(c) => text.push(c),
                None => return Err(PatternError(format!("`{end}` is missing"))),
            }
        }
    }

    fn pattern(&mut self) -> Result<(), PatternError> {
        while let Some(c) = self.next() {
            match c {
                ' ' | '\t' | '\n' | '\r' | '\x0B' | '\x0C' if self.verbose => self.skipped(self.at - 1),
                '#' if self.verbose => while self.next().is_some_and(|c| c != '\n') {},
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '{' => self.repetition(),
                // Python's `$` matches before a final line feed too.
                '$' if self.subject == (Subject::Text { multi_line: false }) => {
                    self.out.push_str("(?=\\n?\\z)");
                }
                ')' | '|' | '.' | '*' | '+' | '?' | '^' | '$' => self.out.push(c),
                c => literal(c, &mut self.out),
            }
        }
        Ok(())
    }

    /// An escape outside brackets.
    fn escape(&mut self) -> Result<(), PatternError> {
        match self.peek() {
            Some(c @ ('b' | 'B')) if self.subject != Subject::Name => {
                self.at += 1;
                self.edge(c == 'b');
            }
            Some(c @ ('A' | 'b' | 'B')) => {
                self.at += 1;
                self.out.extend(['\\', c]);
            }
            Some('Z') => {
                self.at += 1;
                self.out.push_str("\\z");
            }
            Some('1'..='9') => {
                self.refuse_reference()?;
                let digits: String =
                    self.chars[self.at..].iter().take(3).take_while(|c| c.is_ascii_digit()).collect();
                if digits.len() == 3 {
                    return Err(PatternError(format!("the escape `\\{digits}` is not supported")));
                }
                self.at += digits.len();
                let _ = write!(self.out, "(?:\\{digits})");
            }
            _ => match self.member_escape()? {
                Member::Char(c) => literal(c, &mut self.out),
                Member::Set(c) => self.set(c, false)?,
            },
        }
        Ok(())
    }

    /// An escape that may stand within brackets too.
    fn member_escape(&mut self) -> Result<Member, PatternError> {
        let Some(c) = self.next() else { return Err(PatternError("ends with `\\`".to_owned())) };
        let char = match c {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => return Ok(Member::Set(c)),
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'f' => '\x0C',
            'v' => '\x0B',
            'a' => '\x07',
            'x' => self.code_point(2)?,
            'u' => self.code_point(4)?,
            'U' => self.code_point(8)?,
            c if c.is_ascii_alphanumeric() => {
                return Err(PatternError(format!("the escape `\\{c}` is not supported")));
            }
            c => c,
        };
        Ok(Member::Char(char))
    }

    fn code_point(&mut self, digits: usize) -> Result<char, PatternError> {
        let end = (self.at + digits).min(self.chars.len());
        let text: String = self.chars[self.at..end].iter().collect();
        self.at = end;
        let hex = text.len() == digits && text.chars().all(|c| c.is_ascii_hexdigit());
        let char = hex.then(|| u32::from_str_radix(&text, 16).ok().and_then(char::from_u32)).flatten();
        char.ok_or_else(|| {
            PatternError(format!("expected {digits} hexadecimal digits of a character, got `{text}`"))
        })
    }

    /// Refuses references to groups in any text: without regard to case, `fancy-regex` compares them exactly.
    fn refuse_reference(&self) -> Result<(), PatternError> {
        let is_name = self.subject == Subject::Name;
        is_name.then_some(()).ok_or_else(|| PatternError("references to groups are not supported".to_owned()))
    }

    /// A class in brackets. Python knows no classes within classes and no operations on them.
    fn class(&mut self) -> Result<(), PatternError> {
        self.out.push('[');
        if self.take("^") {
            self.out.push('^');
        }
        let first = self.at;
        loop {
            if self.at > first && self.take("]") {
                self.out.push(']');
                return Ok(());
            }
            let low = match self.class_member()? {
                Member::Set(c) if self.is_range() => {
                    return Err(PatternError(format!("the range begins with `\\{c}`")));
                }
                Member::Set(c) => {
                    self.set(c, true)?;
                    continue;
                }
                Member::Char(low) => low,
            };
            literal(low, &mut self.out);
            let range = self.is_range();
            if range {
                self.at += 1;
                match self.class_member()? {
                    Member::Char(high) => {
                        self.out.push('-');
                        literal(high, &mut self.out);
                    }
                    Member::Set(c) => return Err(PatternError(format!("the range ends with `\\{c}`"))),
                }
            }
        }
    }

    /// Whether the member of a class that was just read begins a range.
    fn is_range(&self) -> bool {
        self.peek() == Some('-') && !matches!(self.chars.get(self.at + 1), None | Some(']'))
    }

    fn class_member(&mut self) -> Result<Member, PatternError> {
        match self.next() {
            None => Err(PatternError("`]` is missing".to_owned())),
            Some('\\') if self.take("b") => Ok(Member::Char('\x08')),
            Some('\\') => self.member_escape(),
            Some(c) => Ok(Member::Char(c)),
        }
    }

    fn group(&mut self) -> Result<(), PatternError> {
        if !self.take("?") {
            self.out.push('(');
            return Ok(());
        }
        for same in [":", "=", "!", "<=", "<!", ">"] {
            if self.take(same) {
                let _ = write!(self.out, "(?{same}");
                return Ok(());
            }
        }
        if self.take("#") {
            let start = self.at - 3;
            self.until(')')?;
            self.skipped(start);
        } else if self.take("P<") {
            let name = name(self.until('>')?)?;
            let _ = write!(self.out, "(?P<{name}>");
        } else if self.take("P=") {
            self.refuse_reference()?;
            let name = name(self.until(')')?)?;
            let _ = write!(self.out, "(?P={name})");
        } else {
            self.flags()?;
        }
        Ok(())
    }

    /// Moves `flags_end` to the current position, if the text that was just read begins there, at `start`.
    fn skipped(&mut self, start: usize) {
        if self.flags_end == start {
            self.flags_end = self.at;
        }
    }

    /// Flags for the whole pattern or for a group. The flags `a`, `m` and `u` do not matter for the name of a
    /// module; in other texts `a` and `m` are refused.
    fn flags(&mut self) -> Result<(), PatternError> {
        let start = self.at - 2;
        let on = self.letters();
        let off = self.take("-").then(|| self.letters());
        let letters = if self.subject == Subject::Name { "aimsux" } else { "isux" };
        let known = on.chars().all(|c| letters.contains(c)) && !(on.contains('a') && on.contains('u'));
        let off_known =
            off.as_ref().is_none_or(|off| !off.is_empty() && off.chars().all(|c| "ims".contains(c)));
        let kept = |flags: &str| flags.chars().filter(|c| matches!(c, 'i' | 's')).collect::<String>();
        let (verbose, kept_on) = (on.contains('x'), kept(&on));
        let kept_off = kept(off.as_deref().unwrap_or_default());
        match self.next() {
            Some(')') if known && start == self.flags_end && !on.is_empty() && off.is_none() => {
                if !kept_on.is_empty() {
                    let _ = write!(self.out, "(?{kept_on})");
                }
                self.verbose |= verbose;
                self.skipped(start);
                Ok(())
            }
            Some(':') if known && off_known && !verbose => {
                let minus = if kept_off.is_empty() { "" } else { "-" };
                let _ = write!(self.out, "(?{kept_on}{minus}{kept_off}:");
                Ok(())
            }
            _ => {
                let group: String = self.chars[start..self.at].iter().collect();
                Err(PatternError(format!("the group `{group}` is not supported")))
            }
        }
    }

    fn letters(&mut self) -> String {
        let mut letters = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_alphabetic) {
            self.at += 1;
            letters.push(c);
        }
        letters
    }

    /// A number of repetitions, or a brace that stands for itself because no number follows.
    fn repetition(&mut self) {
        let rest = &self.chars[self.at..];
        let inner = rest.iter().position(|c| *c == '}').map(|end| rest[..end].iter().collect::<String>());
        let bounds = inner.as_deref().filter(|inner| !inner.is_empty()).and_then(|inner| {
            let (low, high) = inner.split_once(',').map_or((inner, None), |(low, high)| (low, Some(high)));
            let numbers = [low, high.unwrap_or_default()];
            let digits = numbers.iter().all(|text| text.chars().all(|c| c.is_ascii_digit()));
            let low = if low.is_empty() { "0" } else { low };
            digits.then(|| high.map_or(format!("{{{low}}}"), |high| format!("{{{low},{high}}}")))
        });
        match (bounds, inner) {
            (Some(bounds), Some(inner)) => {
                self.at += inner.chars().count() + 1;
                self.out.push_str(&bounds);
            }
            _ => literal('{', &mut self.out),
        }
    }
}

/// Checks the name of a group.
fn name(text: String) -> Result<String, PatternError> {
    let sound = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().next().is_some_and(|c| !c.is_ascii_digit());
    if sound { Ok(text) } else { Err(PatternError(format!("the group name `{text}` is not supported"))) }
}
