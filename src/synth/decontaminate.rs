//! Decontamination: texts that share a run of words with a test set are found, together with the run and
//! where it stands.
//!
//! Words are normalised as for deduplication. A test text shorter than an n-gram is one n-gram as a whole,
//! unless it has fewer words than `min_words`: then it matches too much and is left out, which the summary
//! says.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::words::{count, ngrams, normalize};

/// Settings of decontamination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecontaminationOptions {
    /// Files of test sets: `.jsonl` and `.ndjson` with one value per line, `.txt`, `.text`, `.md` and files
    /// without an ending with one text per line. Relative paths start at the recipe's folder.
    pub files: Vec<PathBuf>,
    /// Fields of a JSONL row that are compared. Empty: every string of the row, at any depth.
    pub fields: Vec<String>,
    /// Number of words in an n-gram.
    pub ngram_words: usize,
    /// Fewest words of a test text that is compared as a whole because it is shorter than an n-gram.
    pub min_words: usize,
    /// An n-gram that more than this number of test texts share is a template's wording and does not count.
    pub max_test_texts: Option<usize>,
}

impl Default for DecontaminationOptions {
    fn default() -> Self {
        Self { files: Vec::new(), fields: Vec::new(), ngram_words: 13, min_words: 8, max_test_texts: None }
    }
}

/// A test set that cannot be read, or settings that contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum DecontaminationError {
    /// A number of words is out of its range.
    #[error("min_words and ngram_words: expected 1 <= min_words <= ngram_words; got {min} and {ngram}")]
    Words {
        /// The value of `min_words`.
        min: usize,
        /// The value of `ngram_words`.
        ngram: usize,
    },
    /// The file's ending is none that is known.
    #[error("{}: expected .jsonl, .ndjson, .txt, .text or .md; got {ending}", path.display())]
    Ending {
        /// The file.
        path: PathBuf,
        /// Its ending.
        ending: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot read this file of decontaminate.files: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A line is no JSON.
    #[error("{}:{line}: expected a JSON value: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's error.
        error: serde_json::Error,
    },
    /// A row has none of the fields.
    #[error("{}:{line}: expected one of the fields {wanted}; got {got}", path.display())]
    Fields {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The fields of the recipe.
        wanted: String,
        /// The fields of the row.
        got: String,
    },
}

/// The n-gram that a text shares with a test set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contamination {
    /// The shared words, normalised.
    pub ngram: String,
    /// The test set's file, spelled as in the recipe.
    pub file: String,
    /// Line of the first test text that has the n-gram, from 1.
    pub line: usize,
}

/// Counts of one test set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestSetSummary {
    /// The file, spelled as in the recipe.
    pub file: String,
    /// Texts that are compared.
    pub texts: usize,
    /// Texts with too few words to be compared.
    pub too_short: usize,
}

/// Where an n-gram stands.
#[derive(Debug)]
struct Source {
    /// Number of the file.
    file: usize,
    line: usize,
    /// Test texts that have it.
    texts: usize,
    /// Number of the latest of these texts.
    latest: usize,
}

/// The n-grams of all test sets.
#[derive(Debug, Default)]
pub struct TestSets {
    grams: HashMap<Box<str>, Source>,
    /// Lengths of the n-grams, in words.
    lengths: BTreeSet<usize>,
    files: Vec<TestSetSummary>,
    texts: usize,
}

impl TestSets {
    /// Reads the test sets; relative paths start at `folder`.
    ///
    /// # Errors
    /// A setting is out of its range, or a file cannot be read.
    pub fn read(options: &DecontaminationOptions, folder: &Path) -> Result<Self, DecontaminationError> {
        let (min, ngram) = (options.min_words, options.ngram_words);
        if min == 0 || min > ngram {
            return Err(DecontaminationError::Words { min, ngram });
        }
        let mut sets = Self::default();
        for file in &options.files {
            sets.files.push(TestSetSummary { file: file.display().to_string(), ..Default::default() });
            sets.read_file(&folder.join(file), options)?;
        }
        if let Some(most) = options.max_test_texts {
            sets.grams.retain(|_, source| source.texts <= most);
        }
        Ok(sets)
    }

    /// Counts of the texts that were read, one entry per file.
    pub fn summaries(&self) -> &[TestSetSummary] {
        &self.files
    }

    /// The first n-gram of a text that a test set has too; the longest that starts there.
    pub fn find(&self, text: &str) -> Option<Contamination> {
        let words = normalize(text);
        let mut runs: Vec<_> = self.lengths.iter().rev().map(|length| ngrams(&words, *length)).collect();
        for _ in 0..count(&words) {
            for run in runs.iter_mut().filter_map(Iterator::next) {
                if let Some(source) = self.grams.get(run) {
                    let file = self.files[source.file].file.clone();
                    return Some(Contamination { ngram: run.to_owned(), file, line: source.line });
                }
            }
        }
        None
    }

    fn read_file(
        &mut self,
        path: &Path,
        options: &DecontaminationOptions,
    ) -> Result<(), DecontaminationError> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let is_json = match ending.as_deref() {
            Some("jsonl" | "ndjson") => true,
            None | Some("txt" | "text" | "md") => false,
            Some(other) => {
                let ending = format!(".{other}");
                return Err(DecontaminationError::Ending { path: path.to_owned(), ending });
            }
        };
        let failed = |error| DecontaminationError::Read { path: path.to_owned(), error };
        let lines = BufReader::new(File::open(path).map_err(failed)?).lines();
        for (line, text) in (1..).zip(lines) {
            let text = text.map_err(failed)?;
            if text.trim().is_empty() {
                continue;
            }
            if is_json {
                for text in row_texts(&text, &options.fields, At { path, line })? {
                    self.add(&text, line, options);
                }
            } else {
                self.add(&text, line, options);
            }
        }
        Ok(())
    }

    /// Adds a test text of the file that was opened last.
    fn add(&mut self, text: &str, line: usize, options: &DecontaminationOptions) {
        let Some(file) = self.files.len().checked_sub(1) else { return };
        let words = normalize(text);
        let length = count(&words).min(options.ngram_words);
        if length < options.min_words {
            self.files[file].too_short += 1;
            return;
        }
        self.files[file].texts += 1;
        self.texts += 1;
        self.lengths.insert(length);
        for run in ngrams(&words, length) {
            match self.grams.get_mut(run) {
                Some(source) if source.latest == self.texts => {}
                Some(source) => {
                    source.texts += 1;
                    source.latest = self.texts;
                }
                None => {
                    let source = Source { file, line, texts: 1, latest: self.texts };
                    self.grams.insert(run.into(), source);
                }
            }
        }
    }
}

/// A line of a file, for errors.
#[derive(Clone, Copy)]
struct At<'a> {
    path: &'a Path,
    line: usize,
}

/// The texts of a JSONL row.
fn row_texts(row: &str, fields: &[String], at: At<'_>) -> Result<Vec<String>, DecontaminationError> {
    let path = || at.path.to_owned();
    let row: Value = serde_json::from_str(row.trim_start_matches('\u{feff}'))
        .map_err(|error| DecontaminationError::Json { path: path(), line: at.line, error })?;
    let mut texts = Vec::new();
    if fields.is_empty() {
        collect_strings(&row, &mut texts);
        return Ok(texts);
    }
    let found: Vec<&Value> = fields.iter().filter_map(|field| row.get(field)).collect();
    if found.is_empty() {
        let got = match &row {
            Value::Object(row) => row.keys().cloned().collect::<Vec<_>>().join(", "),
            _ => "a row that is no object".to_owned(),
        };
        let wanted = fields.join(", ");
        return Err(DecontaminationError::Fields { path: path(), line: at.line, wanted, got });
    }
    for value in found {
        collect_strings(value, &mut texts);
    }
    Ok(texts)
}

fn collect_strings(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect_strings(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect_strings(value, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
