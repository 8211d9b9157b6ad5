//! Data sets for trainers: one JSONL file per format, with exactly the columns that its loader reads.
//!
//! | format | file | read by |
//! |---|---|---|
//! | `trl-sft` | `trl_sft.jsonl` | TRL `SFTTrainer`, conversational |
//! | `trl-preference` | `trl_preference.jsonl` | TRL `DPOTrainer`, explicit prompt |
//! | `trl-preference-implicit` | `trl_preference_implicit.jsonl` | TRL `RewardTrainer`, implicit prompt |
//! | `trl-kto` | `trl_kto.jsonl` | TRL `KTOTrainer`, unpaired preference |
//! | `nemo-aligner-sft` | `nemo_aligner_sft.jsonl` | NeMo-Aligner `GPTSFTChatDataset` |
//! | `nemo-aligner-steerlm` | `nemo_aligner_steerlm.jsonl` | NeMo-Aligner SteerLM |
//! | `nemo-aligner-dpo` | `nemo_aligner_dpo.jsonl` | NeMo-Aligner DPO and RPO |
//! | `nemo-rl-preference` | `nemo_rl_preference.jsonl` | NeMo-RL `PreferenceDataset` |
//! | `nemo-rl-binary-preference` | `nemo_rl_binary_preference.jsonl` | NeMo-RL `BinaryPreferenceDataset` |
//!
//! The columns follow the documentation of TRL ("Dataset formats and types", November 2026), NeMo-Aligner's
//! user guide (SFT, SteerLM, DPO and RPO; af2b3bd9) and NeMo-RL's guides (7ea279ab). A row that a format
//! cannot express is left out, with the reason; the others are written.

mod file;
mod nemo_aligner;
mod nemo_rl;
mod trl;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use file::write_whole;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A conversation for supervised fine-tuning.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dialogue {
    /// Its id in the records.
    pub id: String,
    /// The turns, the last by the assistant.
    pub turns: Vec<Turn>,
    /// Attribute values of the assistant's turns, in order. Turns without values have an empty list; missing
    /// lists are empty ones.
    pub ratings: Vec<Vec<Rating>>,
}

/// One attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// The attribute, for example `helpfulness`.
    pub name: String,
    /// The reward head's value.
    pub value: f64,
}

/// A prompt with a better and a worse response.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preference {
    /// Its id in the records.
    pub id: String,
    /// The turns before the response, the last by the user.
    pub prompt: Vec<Turn>,
    /// The better response.
    pub chosen: String,
    /// The worse response.
    pub rejected: String,
    /// Score of the better response.
    pub chosen_score: Option<f64>,
    /// Score of the worse response.
    pub rejected_score: Option<f64>,
}

impl Preference {
    /// Both scores, where they rank the responses like the pair does. They may not if ground truth decided.
    fn agreeing_scores(&self) -> Option<Scores> {
        let scores = Scores { chosen: self.chosen_score?, rejected: self.rejected_score? };
        let finite = scores.chosen.is_finite() && scores.rejected.is_finite();
        (finite && scores.chosen > scores.rejected).then_some(scores)
    }
}

/// Scores of a pair.
struct Scores {
    chosen: f64,
    rejected: f64,
}

/// A trainer's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// TRL, conversations.
    TrlSft,
    /// TRL, pairs with the prompt in a column of its own.
    TrlPreference,
    /// TRL, pairs of whole conversations with the margin.
    TrlPreferenceImplicit,
    /// TRL, responses marked as desirable or not.
    TrlKto,
    /// NeMo-Aligner, conversations.
    NemoAlignerSft,
    /// NeMo-Aligner, conversations with attribute labels.
    NemoAlignerSteerlm,
    /// NeMo-Aligner, pairs with rewards.
    NemoAlignerDpo,
    /// NeMo-RL, ranked completions.
    NemoRlPreference,
    /// NeMo-RL, pairs of strings.
    NemoRlBinaryPreference,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 9] = [
        Self::TrlSft,
        Self::TrlPreference,
        Self::TrlPreferenceImplicit,
        Self::TrlKto,
        Self::NemoAlignerSft,
        Self::NemoAlignerSteerlm,
        Self::NemoAlignerDpo,
        Self::NemoRlPreference,
        Self::NemoRlBinaryPreference,
    ];

    /// Name of the file.
    pub fn file(self) -> &'static str {
        match self {
            Self::TrlSft => "trl_sft.jsonl",
            Self::TrlPreference => "trl_preference.jsonl",
            Self::TrlPreferenceImplicit => "trl_preference_implicit.jsonl",
            Self::TrlKto => "trl_kto.jsonl",
            Self::NemoAlignerSft => "nemo_aligner_sft.jsonl",
            Self::NemoAlignerSteerlm => "nemo_aligner_steerlm.jsonl",
            Self::NemoAlignerDpo => "nemo_aligner_dpo.jsonl",
            Self::NemoRlPreference => "nemo_rl_preference.jsonl",
            Self::NemoRlBinaryPreference => "nemo_rl_binary_preference.jsonl",
        }
    }

    /// The trainer that reads the file, for people.
    pub fn trainer(self) -> &'static str {
        match self {
            Self::TrlSft => "TRL SFTTrainer",
            Self::TrlPreference => "TRL DPOTrainer (explicit prompt)",
            Self::TrlPreferenceImplicit => "TRL RewardTrainer (implicit prompt, margin)",
            Self::TrlKto => "TRL KTOTrainer",
            Self::NemoAlignerSft => "NeMo-Aligner SFT (chat)",
            Self::NemoAlignerSteerlm => "NeMo-Aligner SteerLM",
            Self::NemoAlignerDpo => "NeMo-Aligner DPO and RPO",
            Self::NemoRlPreference => "NeMo-RL PreferenceDataset",
            Self::NemoRlBinaryPreference => "NeMo-RL BinaryPreferenceDataset",
        }
    }

    /// The rows of the format, in the order of the data.
    fn rows<'a>(self, data: &'a DataSet<'_>) -> Box<dyn Iterator<Item = Row> + 'a> {
        match self {
            Self::TrlSft => dialogues(data, trl::sft),
            Self::TrlPreference => preferences(data, trl::preference),
            Self::TrlPreferenceImplicit => preferences(data, trl::preference_implicit),
            Self::TrlKto => preferences(data, trl::kto),
            Self::NemoAlignerSft => dialogues(data, nemo_aligner::sft),
            Self::NemoAlignerSteerlm => dialogues(data, nemo_aligner::steerlm),
            Self::NemoAlignerDpo => preferences(data, nemo_aligner::dpo),
            Self::NemoRlPreference => preferences(data, nemo_rl::preference),
            Self::NemoRlBinaryPreference => preferences(data, nemo_rl::binary_preference),
        }
    }
}

/// The data that is exported.
#[derive(Debug, Clone, Copy, Default)]
pub struct DataSet<'a> {
    /// The conversations that were kept.
    pub dialogues: &'a [Dialogue],
    /// The pairs.
    pub preferences: &'a [Preference],
}

/// The reason why a format cannot express an item.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unfit {
    /// The turns do not alternate.
    #[error("turns: expected an optional system turn, then user and assistant in turn; got {0}")]
    Turns(String),
    /// The last turn is the wrong side's.
    #[error("turns: expected the last one by the {expected}; got {got}")]
    Last {
        /// The role that has to come last.
        expected: &'static str,
        /// The roles.
        got: String,
    },
    /// A text has a marker of the template that the format spells out.
    #[error("the text contains `{0}`, which the format's template uses as a marker")]
    Marker(&'static str),
    /// No assistant turn has an attribute that SteerLM knows.
    #[error("no assistant turn has attribute values")]
    NoRatings,
}

/// The rows that one item becomes.
type Rows = Result<Vec<Value>, Unfit>;

/// The rows of an item.
struct Row {
    id: String,
    rows: Rows,
}

fn dialogues<'a>(data: &'a DataSet<'_>, row: fn(&Dialogue) -> Rows) -> Box<dyn Iterator<Item = Row> + 'a> {
    let rows = data.dialogues.iter();
    Box::new(rows.map(move |dialogue| Row {
        id: dialogue.id.clone(),
        rows: alternating(&dialogue.turns, "assistant").and_then(|()| row(dialogue)),
    }))
}

fn preferences<'a>(
    data: &'a DataSet<'_>,
    row: fn(&Preference) -> Rows,
) -> Box<dyn Iterator<Item = Row> + 'a> {
    let rows = data.preferences.iter();
    Box::new(rows.map(move |preference| Row {
        id: preference.id.clone(),
        rows: alternating(&preference.prompt, "user").and_then(|()| row(preference)),
    }))
}

/// Checks that user and assistant alternate after an optional system turn, and which one comes last.
fn alternating(turns: &[Turn], last: &'static str) -> Result<(), Unfit> {
    let roles: Vec<&str> = turns.iter().map(|turn| turn.role.as_str()).collect();
    let got = || if roles.is_empty() { "no turns".to_owned() } else { roles.join(", ") };
    let spoken = roles.strip_prefix(&["system"]).unwrap_or(&roles);
    let in_turn = spoken.iter().zip(["user", "assistant"].iter().cycle()).all(|(role, due)| role == due);
    if !in_turn {
        return Err(Unfit::Turns(got()));
    }
    if spoken.last() == Some(&last) { Ok(()) } else { Err(Unfit::Last { expected: last, got: got() }) }
}

/// The result of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The format.
    pub format: Format,
    /// Rows of the file.
    pub rows: u64,
    /// Items that the format cannot express.
    pub left_out: Vec<LeftOut>,
}

/// An item that a format cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its id in the records.
    pub id: String,
    /// The reason.
    pub reason: Unfit,
}

/// Writes one file per format into a folder, which is created. Each file appears whole or not at all.
///
/// # Errors
/// A file cannot be written.
pub fn write_exports(folder: &Path, formats: &[Format], data: DataSet<'_>) -> io::Result<Vec<Export>> {
    std::fs::create_dir_all(folder)?;
    let mut written = Vec::new();
    for format in formats {
        let mut export = Export { format: *format, rows: 0, left_out: Vec::new() };
        let mut lines = file::WholeFile::create(&folder.join(format.file()))?;
        for Row { id, rows } in format.rows(&data) {
            match rows {
                Ok(rows) => {
                    for row in rows {
                        lines.line(&row)?;
                        export.rows += 1;
                    }
                }
                Err(reason) => export.left_out.push(LeftOut { id, reason }),
            }
        }
        lines.finish()?;
        written.push(export);
    }
    Ok(written)
}
