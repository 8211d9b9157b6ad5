//! The 25 rules and their arguments.

use serde_json::{Map, Value};

use super::kwargs::Kwargs;
use super::language::LANGUAGES;
use super::python_text::strip;
use super::threshold::Threshold;
use crate::eval::error::EvalError;
use crate::eval::rows::{Row, describe};
use crate::python_regex::PythonRegex;

/// A rule with its arguments.
#[derive(Debug)]
pub(super) struct Rule {
    /// Name, such as `punctuation:no_comma`.
    pub(super) id: &'static str,
    pub(super) check: Check,
}

/// The condition on an answer.
#[derive(Debug)]
pub(super) enum Check {
    Existence(Vec<PythonRegex>),
    Frequency { keyword: PythonRegex, threshold: Threshold },
    ForbiddenWords(Vec<PythonRegex>),
    LetterFrequency { letter: char, threshold: Threshold },
    ResponseLanguage(&'static str),
    NumberSentences(Threshold),
    NumberParagraphs(u64),
    NumberWords(Threshold),
    NthParagraphFirstWord { paragraphs: u64, nth: u64, first_word: String },
    NumberPlaceholders(u64),
    Postscript(PythonRegex),
    NumberBulletLists(u64),
    ConstrainedResponse,
    NumberHighlightedSections(u64),
    MultipleSections { splitter: PythonRegex, sections: u64 },
    JsonFormat,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    EndChecker(String),
    CapitalWordFrequency(Threshold),
    EnglishCapital,
    EnglishLowercase,
    NoComma,
    Quotation,
}

/// The rules' names and the names of their arguments.
const RULES: [(&str, &[&str]); 25] = [
    ("keywords:existence", &["keywords"]),
    ("keywords:frequency", &["keyword", "frequency", "relation"]),
    ("keywords:forbidden_words", &["forbidden_words"]),
    ("keywords:letter_frequency", &["letter", "let_frequency", "let_relation"]),
    ("language:response_language", &["language"]),
    ("length_constraints:number_sentences", &["num_sentences", "relation"]),
    ("length_constraints:number_paragraphs", &["num_paragraphs"]),
    ("length_constraints:number_words", &["num_words", "relation"]),
    ("length_constraints:nth_paragraph_first_word", &["num_paragraphs", "nth_paragraph", "first_word"]),
    ("detectable_content:number_placeholders", &["num_placeholders"]),
    ("detectable_content:postscript", &["postscript_marker"]),
    ("detectable_format:number_bullet_lists", &["num_bullets"]),
    ("detectable_format:constrained_response", &[]),
    ("detectable_format:number_highlighted_sections", &["num_highlights"]),
    ("detectable_format:multiple_sections", &["section_spliter", "num_sections"]),
    ("detectable_format:json_format", &[]),
    ("detectable_format:title", &[]),
    ("combination:two_responses", &[]),
    ("combination:repeat_prompt", &["prompt_to_repeat"]),
    ("startend:end_checker", &["end_phrase"]),
    ("change_case:capital_word_frequency", &["capital_frequency", "capital_relation"]),
    ("change_case:english_capital", &[]),
    ("change_case:english_lowercase", &[]),
    ("punctuation:no_comma", &[]),
    ("startend:quotation", &[]),
];

impl Rule {
    /// Reads the rule of this name. `notes` gets a sentence where the reference takes a random value.
    pub(super) fn read(
        row: &Row,
        key: &str,
        id: &str,
        map: &Map<String, Value>,
        notes: &mut Vec<String>,
    ) -> Result<Self, EvalError> {
        let Some(&(id, names)) = RULES.iter().find(|(known, _)| *known == id) else {
            let known = RULES.map(|(name, _)| name).join(", ");
            return Err(row.error(format!("key {key}, rule `{id}`: expected one of the 25 rules: {known}")));
        };
        let kwargs = Kwargs::new(row, key, id, map, names)?;
        let check = check(id, &kwargs, notes)?;
        for name in names.iter().filter(|name| map.get(**name).and_then(Value::as_f64) == Some(0.0)) {
            notes.push(format!("key {key}, rule `{id}`: {name} is 0; lm-eval takes a random number instead"));
        }
        Ok(Self { id, check })
    }
}

fn check(id: &str, kwargs: &Kwargs<'_>, notes: &mut Vec<String>) -> Result<Check, EvalError> {
    Ok(match id {
        "keywords:existence" => Check::Existence(regexes(kwargs, "keywords", "")?),
        "keywords:frequency" => Check::Frequency {
            keyword: kwargs.regex("keyword", strip(kwargs.text("keyword")?), "i")?,
            threshold: kwargs.threshold("frequency", "relation")?,
        },
        "keywords:forbidden_words" => Check::ForbiddenWords(regexes(kwargs, "forbidden_words", "\\b")?),
        "keywords:letter_frequency" => Check::LetterFrequency {
            letter: letter(kwargs, notes)?,
            threshold: kwargs.threshold("let_frequency", "let_relation")?,
        },
        "language:response_language" => Check::ResponseLanguage(language(kwargs)?),
        "length_constraints:number_sentences" => {
            Check::NumberSentences(kwargs.threshold("num_sentences", "relation")?)
        }
        "length_constraints:number_paragraphs" => Check::NumberParagraphs(kwargs.number("num_paragraphs")?),
        "length_constraints:number_words" => Check::NumberWords(kwargs.threshold("num_words", "relation")?),
        "length_constraints:nth_paragraph_first_word" => nth_paragraph(kwargs)?,
        "detectable_content:number_placeholders" => {
            Check::NumberPlaceholders(kwargs.number("num_placeholders")?)
        }
        "detectable_content:postscript" => Check::Postscript(postscript(kwargs)?),
        "detectable_format:number_bullet_lists" => Check::NumberBulletLists(kwargs.number("num_bullets")?),
        "detectable_format:constrained_response" => Check::ConstrainedResponse,
        "detectable_format:number_highlighted_sections" => {
            Check::NumberHighlightedSections(kwargs.number("num_highlights")?)
        }
        "detectable_format:multiple_sections" => sections(kwargs)?,
        "detectable_format:json_format" => Check::JsonFormat,
        "detectable_format:title" => Check::Title,
        "combination:two_responses" => Check::TwoResponses,
        "combination:repeat_prompt" => {
            Check::RepeatPrompt(strip(kwargs.text("prompt_to_repeat")?).to_lowercase())
        }
        "startend:end_checker" => Check::EndChecker(strip(kwargs.text("end_phrase")?).to_lowercase()),
        "change_case:capital_word_frequency" => {
            Check::CapitalWordFrequency(kwargs.threshold("capital_frequency", "capital_relation")?)
        }
        "change_case:english_capital" => Check::EnglishCapital,
        "change_case:english_lowercase" => Check::EnglishLowercase,
        "punctuation:no_comma" => Check::NoComma,
        _ => Check::Quotation,
    })
}

/// Expressions of an array, with `edge` before and after each.
fn regexes(kwargs: &Kwargs<'_>, name: &str, edge: &str) -> Result<Vec<PythonRegex>, EvalError> {
    let texts = kwargs.texts(name)?.into_iter();
    texts.map(|text| kwargs.regex(name, &format!("{edge}{text}{edge}"), "i")).collect()
}

/// The character to count. The reference takes a random letter for a character that is no letter; here the
/// character itself counts.
fn letter(kwargs: &Kwargs<'_>, notes: &mut Vec<String>) -> Result<char, EvalError> {
    let text = kwargs.text("letter")?;
    let mut chars = text.chars().flat_map(char::to_lowercase);
    let (Some(letter), None) = (chars.next(), chars.next()) else {
        return Err(kwargs.error(&format!("letter: expected one character, got `{text}`")));
    };
    if !letter.is_ascii_lowercase() {
        let (key, rule) = (kwargs.key, kwargs.rule);
        notes.push(format!(
            "key {key}, rule `{rule}`: the character `{letter}` is counted; lm-eval takes a random letter"
        ));
    }
    Ok(letter)
}

fn language(kwargs: &Kwargs<'_>) -> Result<&'static str, EvalError> {
    let code = kwargs.text("language")?;
    let known = LANGUAGES.into_iter().find(|known| *known == code);
    known.ok_or_else(|| {
        kwargs.error(&format!("language: expected one of {}, got `{code}`", LANGUAGES.join(", ")))
    })
}

fn nth_paragraph(kwargs: &Kwargs<'_>) -> Result<Check, EvalError> {
    let (paragraphs, nth) = (kwargs.number("num_paragraphs")?, kwargs.number("nth_paragraph")?);
    if nth == 0 || nth > paragraphs {
        let expected = format!("nth_paragraph: expected 1 to num_paragraphs ({paragraphs}), got {nth}");
        return Err(kwargs.error(&expected));
    }
    let first_word = kwargs.text("first_word")?.to_lowercase();
    Ok(Check::NthParagraphFirstWord { paragraphs, nth, first_word })
}

/// The expression of a postscript, for a text in small letters.
fn postscript(kwargs: &Kwargs<'_>) -> Result<PythonRegex, EvalError> {
    let marker = strip(kwargs.text("postscript_marker")?);
    let pattern = match marker {
        "P.P.S" => r"\s*p\.\s?p\.\s?s.*$".to_owned(),
        "P.S." => r"\s*p\.\s?s\..*$".to_owned(),
        other => format!(r"\s*{}.*$", other.to_lowercase()),
    };
    kwargs.regex("postscript_marker", &pattern, "m")
}

fn sections(kwargs: &Kwargs<'_>) -> Result<Check, EvalError> {
    let splitter = strip(kwargs.text("section_spliter")?);
    let splitter = kwargs.regex("section_spliter", &format!(r"\s?{splitter}\s?\d+\s?"), "")?;
    Ok(Check::MultipleSections { splitter, sections: kwargs.number("num_sections")? })
}

/// The arguments of a rule as an object; a rule without arguments may have null.
pub(super) fn arguments<'a>(
    row: &Row,
    value: &'a Value,
    empty: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>, EvalError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(empty),
        other => Err(row.error(format!("kwargs: expected an object for each rule, got {}", describe(other)))),
    }
}
