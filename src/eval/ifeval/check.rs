//! Whether an answer follows a rule, as the reference decides it (lm-eval 0.4.13, task `ifeval` version 4).

use regex::Regex;

use super::language::LanguageDetector;
use super::python_json::is_json;
use super::python_text::{is_lower, is_space, is_upper, split, strip};
use super::rule::{Check, Rule};
use super::sentences;
use super::words::CapitalWords;
use crate::python_regex::{PatternError, PythonRegex};

/// Answers of which a constrained response has to contain one.
const CONSTRAINED: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];
/// Marks that begin a block of code, in the order in which they are removed.
const FENCES: [&str; 4] = ["```json", "```Json", "```JSON", "```"];
/// Mark between two responses.
const BETWEEN_RESPONSES: &str = "******";

/// Patterns and detectors that the checks share.
#[derive(Debug)]
pub(super) struct Checker {
    word: Regex,
    placeholder: Regex,
    bullet: Regex,
    dash: Regex,
    highlight: Regex,
    double_highlight: Regex,
    divider: Regex,
    title: Regex,
    capital_words: CapitalWords,
    languages: LanguageDetector,
}

impl Checker {
    /// Compiles the patterns.
    ///
    /// # Panics
    /// Not with these patterns.
    pub(super) fn new() -> Self {
        let compile = |pattern: &str| {
            // `\s` and `\w` as Python has them.
            let pattern = pattern.replace(r"\s", r"[\s\x1C-\x1F]").replace(r"\w", r"[\p{L}\p{N}_]");
            Regex::new(&pattern).expect("the pattern is valid")
        };
        Self {
            word: compile(r"\w+"),
            placeholder: compile(r"\[.*?\]"),
            bullet: compile(r"(?m)^\s*\*[^*].*$"),
            dash: compile(r"(?m)^\s*-.*$"),
            highlight: compile(r"\*[^\n*]*\*"),
            double_highlight: compile(r"\*\*[^\n*]*\*\*"),
            divider: compile(r"\s?\*\*\*\s?"),
            title: compile(r"<<[^\n]+>>"),
            capital_words: CapitalWords::new(),
            languages: LanguageDetector::default(),
        }
    }

    /// Whether an answer follows a rule. A blank answer follows none.
    ///
    /// # Errors
    /// A keyword's expression needs too many steps.
    pub(super) fn follows(&self, rule: &Rule, text: &str) -> Result<bool, PatternError> {
        if strip(text).is_empty() {
            return Ok(false);
        }
        Ok(match &rule.check {
            Check::Existence(keywords) => all_found(keywords, text)?,
            Check::Frequency { keyword, threshold } => threshold.allows(keyword.count(text)?),
            Check::ForbiddenWords(words) => none_found(words, text)?,
            Check::LetterFrequency { letter, threshold } => {
                threshold.allows(text.to_lowercase().chars().filter(|c| c == letter).count())
            }
            Check::ResponseLanguage(language) => {
                self.languages.detect(text).is_none_or(|found| found == *language)
            }
            Check::NumberSentences(threshold) => threshold.allows(sentences::count(text)),
            Check::NumberParagraphs(number) => self.paragraphs(text) == Some(*number),
            Check::NumberWords(threshold) => threshold.allows(self.word.find_iter(text).count()),
            Check::NthParagraphFirstWord { paragraphs, nth, first_word } => {
                nth_paragraph(text, *paragraphs, *nth, first_word)
            }
            Check::NumberPlaceholders(number) => at_least(self.placeholder.find_iter(text).count(), *number),
            Check::Postscript(pattern) => pattern.matches(&text.to_lowercase())?,
            Check::NumberBulletLists(number) => {
                let bullets = self.bullet.find_iter(text).count() + self.dash.find_iter(text).count();
                bullets as u64 == *number
            }
            Check::ConstrainedResponse => CONSTRAINED.iter().any(|answer| strip(text).contains(answer)),
            Check::NumberHighlightedSections(number) => at_least(self.highlights(text), *number),
            Check::MultipleSections { splitter, sections } => {
                // Python's `re.split` also returns what the groups of the expression have matched.
                at_least(splitter.count(text)? * (1 + splitter.groups()), *sections)
            }
            Check::JsonFormat => is_json(without_fences(text)),
            Check::Title => self.has_title(text),
            Check::TwoResponses => has_two_responses(text),
            Check::RepeatPrompt(prompt) => strip(text).to_lowercase().starts_with(prompt),
            Check::EndChecker(phrase) => {
                strip(text).trim_matches('"').to_lowercase().ends_with(phrase.as_str())
            }
            Check::CapitalWordFrequency(threshold) => threshold.allows(self.capital_words.count(text)),
            Check::EnglishCapital => is_upper(text) && self.is_english(text),
            Check::EnglishLowercase => is_lower(text) && self.is_english(text),
            Check::NoComma => !text.contains(','),
            Check::Quotation => {
                let text = strip(text);
                text.chars().nth(1).is_some() && text.starts_with('"') && text.ends_with('"')
            }
        })
    }

    /// Whether a text is English, or has no language.
    fn is_english(&self, text: &str) -> bool {
        self.languages.detect(text).is_none_or(|language| language == "en")
    }

    /// Number of paragraphs between dividers; `None` if one in the middle is blank.
    fn paragraphs(&self, text: &str) -> Option<u64> {
        let paragraphs: Vec<&str> = self.divider.split(text).collect();
        let last = paragraphs.len() - 1;
        let mut number = paragraphs.len() as u64;
        for (index, paragraph) in paragraphs.iter().enumerate() {
            if strip(paragraph).is_empty() {
                if index != 0 && index != last {
                    return None;
                }
                number -= 1;
            }
        }
        Some(number)
    }

    fn highlights(&self, text: &str) -> usize {
        let single = self
            .highlight
            .find_iter(text)
            .filter(|found| !strip(found.as_str().trim_matches('*')).is_empty());
        let double = self.double_highlight.find_iter(text).filter(|found| {
            let inner = found.as_str();
            let inner = inner.strip_prefix("**").unwrap_or(inner);
            !strip(inner.strip_suffix("**").unwrap_or(inner)).is_empty()
        });
        single.count() + double.count()
    }

    fn has_title(&self, text: &str) -> bool {
        let mut titles = self.title.find_iter(text);
        titles.any(|title| {
            let inner = title.as_str().trim_start_matches('<').trim_end_matches('>');
            !strip(inner).is_empty()
        })
    }
}

fn at_least(count: usize, number: u64) -> bool {
    count as u64 >= number
}

fn all_found(keywords: &[PythonRegex], text: &str) -> Result<bool, PatternError> {
    for keyword in keywords {
        if !keyword.matches(text)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn none_found(words: &[PythonRegex], text: &str) -> Result<bool, PatternError> {
    for word in words {
        if word.matches(text)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a text has this number of paragraphs, and the nth begins with this word. A blank paragraph does
/// not count, yet has an index, as in the reference.
fn nth_paragraph(text: &str, number: u64, nth: u64, first_word: &str) -> bool {
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let count = paragraphs.iter().filter(|paragraph| !strip(paragraph).is_empty()).count() as u64;
    if nth > count || count != number {
        return false;
    }
    let paragraph = usize::try_from(nth - 1).ok().and_then(|index| paragraphs.get(index));
    let Some(word) = paragraph.and_then(|paragraph| split(paragraph).next()) else { return false };
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    let end = word.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(word.len());
    word[..end].chars().flat_map(char::to_lowercase).eq(first_word.chars())
}

/// The text within a block of code.
fn without_fences(text: &str) -> &str {
    let mut text = text.trim_matches(is_space);
    for fence in FENCES {
        text = text.strip_prefix(fence).unwrap_or(text);
    }
    strip(text.strip_suffix("```").unwrap_or(text))
}

fn has_two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split(BETWEEN_RESPONSES).map(strip).collect();
    let last = parts.len() - 1;
    if parts.iter().enumerate().any(|(index, part)| part.is_empty() && index != 0 && index != last) {
        return false;
    }
    let responses: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
    matches!(responses[..], [first, second] if first != second)
}
