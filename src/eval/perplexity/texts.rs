//! Texts to score.

use std::path::Path;

use regex::Regex;

use crate::eval::error::{EvalError, Place};
use crate::eval::rows;

/// A text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) place: Place,
    /// The text that the model scores.
    pub(super) scored: String,
    pub(super) words: usize,
    pub(super) bytes: usize,
}

/// Reads a file: JSON Lines with `text` if its name ends in `.jsonl`, else one text. A row may have
/// `original` too, whose words and bytes then count instead of those of `text`, as in lm-eval's WikiText.
pub(super) fn read(path: &Path) -> Result<Vec<Text>, EvalError> {
    let spaces = Regex::new(r"[\s\x1C-\x1F]+").expect("the pattern is valid");
    let text = |place: Place, scored: &str, original: &str| Text {
        place,
        scored: scored.to_owned(),
        // As Python's `re.split`, which counts the empty texts before and after spaces at the ends.
        words: spaces.split(original).count(),
        bytes: original.len(),
    };
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        let scored = rows::read_text(path)?;
        let file = path.display().to_string();
        if scored.is_empty() {
            return Err(EvalError::File { file, message: "expected a text, got an empty file".to_owned() });
        }
        return Ok(vec![text(Place { file, line: 1 }, &scored, &scored)]);
    }
    let rows = rows::read(path)?;
    let texts = rows.iter().map(|row| {
        let scored = row.string("text")?;
        let original = row.optional_string("original")?.unwrap_or(scored);
        if scored.is_empty() || original.is_empty() {
            return Err(row.error("text, original: expected a text, got an empty one"));
        }
        Ok(text(row.place.clone(), scored, original))
    });
    texts.collect()
}
