//! Words in capital letters, as the reference's word tokenizer (NLTK's) delimits words.
//!
//! Only the splits between letters matter here, since a punctuation mark has no case: hyphens and slashes
//! join words, `U.S.` is one word, `DON'T` is two (`DO`, `N'T`), and so is `CANNOT`.

use fancy_regex::Regex;

use super::python_text::{is_upper, split};

/// Characters that are words of their own.
const ALONE: &str = "«»“”‘’„`\";@#$%&?!*[](){}<>\u{2012}\u{2013}\u{2014}\u{2015}";
/// Endings that are words of their own, in these spellings only.
const CLITICS: [&[&str]; 2] =
    [&["'s", "'S", "'m", "'M", "'d", "'D"], &["'ll", "'LL", "'re", "'RE", "'ve", "'VE", "n't", "N'T"]];
/// Words that are split after the first group.
const CONTRACTIONS: &str =
    r"(?i)\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n))\b";

/// Counts words in capital letters.
#[derive(Debug)]
pub(super) struct CapitalWords {
    contractions: Regex,
    wanna: Regex,
    /// An apostrophe before a word that is none of the clitics.
    opening: Regex,
}

impl CapitalWords {
    /// Compiles the patterns.
    ///
    /// # Panics
    /// Not with these patterns.
    pub(super) fn new() -> Self {
        let compile = |pattern: &str| Regex::new(pattern).expect("the pattern is valid");
        Self {
            contractions: compile(CONTRACTIONS),
            wanna: compile(r"(?i)\b(wan)(na)(?=\s)"),
            opening: compile(r"(?i)(?<![\p{L}\p{N}_])'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=[\p{L}\p{N}_])"),
        }
    }

    /// Number of words in capital letters.
    pub(super) fn count(&self, text: &str) -> usize {
        let text = self.opening.replace_all(text, "' ");
        let spaced = separate(&text);
        let mut words = String::new();
        for word in split(&spaced) {
            let (word, first) = cut(word, CLITICS[0]);
            let (word, second) = cut(word, CLITICS[1]);
            for part in [word, second, first].into_iter().filter(|part| !part.is_empty()) {
                words.push_str(part);
                words.push(' ');
            }
        }
        let words = self.contractions.replace_all(&words, " $1$3$5$7$9$11$13 $2$4$6$8$10$12$14 ");
        let words = self.wanna.replace_all(&words, " $1 $2 ");
        split(&words).filter(|word| is_upper(word)).count()
    }
}

/// Puts spaces around punctuation marks that are words of their own.
fn separate(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + text.len() / 4);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        let alone = match c {
            ',' | ':' => next.is_some_and(|next| !next.is_numeric()),
            '.' | '-' | '\'' if next == Some(c) => {
                chars.next();
                true
            }
            c => ALONE.contains(c),
        };
        if alone {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced
}

/// Cuts one of the clitics off a word. A character other than an apostrophe has to stand before it.
fn cut<'a>(word: &'a str, clitics: &[&str]) -> (&'a str, &'a str) {
    for clitic in clitics {
        if let Some(start) = word.strip_suffix(*clitic)
            && !start.is_empty()
            && !start.ends_with('\'')
        {
            return word.split_at(start.len());
        }
    }
    (word, "")
}
