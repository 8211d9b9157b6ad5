//! The report of a run: one HTML file without assets from elsewhere, which follows the reader's choice of a
//! dark or light page. Text of models and recipes is escaped.
//!
//! Everything the report says is in [`Report`]; it has no clock, so the same records give the same bytes.

mod histogram;
mod html;
mod page;
mod table;

use std::io;
use std::path::Path;

pub use histogram::Histogram;
pub use page::page;
pub use table::score_table;

/// The content of a report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The recipe's name.
    pub title: String,
    /// Lines below the title, for example the recipe's path and the models of the roles.
    pub subtitle: Vec<String>,
    /// The stages, in the order in which they ran.
    pub stages: Vec<StageReport>,
    /// The scores, the one that decides first.
    pub scores: Vec<ScoreReport>,
    /// Items to read: kept, rejected and short ones.
    pub samples: Vec<Sample>,
    /// The files that were written for trainers.
    pub exports: Vec<ExportReport>,
    /// Plain sentences about what a reader should know.
    pub notes: Vec<String>,
}

/// Counts of one stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StageReport {
    /// Its name in the recipe.
    pub name: String,
    /// Items that the recipe asks for, where it states a number.
    pub wanted: Option<u64>,
    /// Items it started from.
    pub taken: u64,
    /// Items it made or kept.
    pub made: u64,
    /// Items it rejected, by reason, the most frequent first.
    pub rejects: Vec<RejectCount>,
    /// Requests it sent.
    pub requests: u64,
    /// Prompt tokens of the answers' usage.
    pub prompt_tokens: u64,
    /// Completion tokens of the answers' usage.
    pub completion_tokens: u64,
    /// Time it ran, over all starts.
    pub seconds: f64,
}

/// Items rejected for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RejectCount {
    /// The reason, in words.
    pub reason: String,
    /// Number of items.
    pub count: u64,
}

/// All values of one score.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScoreReport {
    /// Name of the scalar or of the attribute.
    pub name: String,
    /// The values, before anything was dropped.
    pub values: Vec<f64>,
    /// The recipe's threshold, if this score decides.
    pub threshold: Option<f64>,
}

/// The fate of an item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// It was kept.
    #[default]
    Kept,
    /// It was rejected.
    Rejected,
    /// A list that is shorter than asked for, whose items were used.
    Short,
}

/// An item to read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Where it comes from, for example the stage.
    pub heading: String,
    /// Its id, which its JSONL file has too.
    pub id: String,
    /// The part of the report that it stands in.
    pub fate: Fate,
    /// Score, margin or detail of the rejection.
    pub remark: String,
    /// Its texts, in order.
    pub texts: Vec<LabelledText>,
}

/// A text with what it is: a role, `chosen`, `rejected` or a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelledText {
    /// The kind of the text, such as a role.
    pub label: String,
    /// The text.
    pub text: String,
}

/// A file for a trainer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// The file's name.
    pub file: String,
    /// The trainer and its data set class.
    pub trainer: String,
    /// Rows of the file.
    pub rows: u64,
    /// Items that the format cannot express.
    pub left_out: u64,
    /// The reason of the first of these.
    pub why: String,
}

impl StageReport {
    /// The number of items that the recipe asks for and the stage did not make.
    pub fn missing(&self) -> u64 {
        self.wanted.map_or(0, |wanted| wanted.saturating_sub(self.made))
    }
}

/// Writes the report, through a temporary file, so that a reader never sees half of it.
///
/// # Errors
/// The file cannot be written.
pub fn write_report(report: &Report, path: &Path) -> io::Result<()> {
    super::export::write_whole(path, &page(report))
}
