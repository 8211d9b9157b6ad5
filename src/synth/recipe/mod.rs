//! The recipe: a TOML file that says what is made, by which models, and what is kept.
//!
//! A table that is absent leaves its stage out. Unknown keys are errors. The threshold and the weights of the
//! reward's attributes have no default, since no published pipeline states them.

mod check;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checker::Checker;
use super::decontaminate::DecontaminationOptions;
use super::dedup::DedupOptions;
use super::error::SynthError;
use super::export::Format;
use super::pairs::PairOptions;
use super::templates::Templates;

/// A recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the data set, for the report.
    pub name: String,
    /// Seed of all sampling. Each request has its own seed, which derives from this one and from its item.
    #[serde(default)]
    pub seed: u64,
    /// The models.
    pub roles: Roles,
    /// Topics.
    #[serde(default)]
    pub topics: Topics,
    /// Open questions about topics.
    pub open_questions: Option<OpenQuestions>,
    /// Documents to write about topics.
    pub writing: Option<Writing>,
    /// Questions over given texts.
    pub closed_questions: Option<ClosedQuestions>,
    /// Problems of mathematics.
    pub mathematics: Option<Problems>,
    /// Problems of programming.
    pub coding: Option<Problems>,
    /// Prompts of a file.
    pub given: Option<Given>,
    /// More detailed versions of open questions and writing tasks.
    pub refine: Option<Refine>,
    /// Which prompts are used.
    #[serde(default)]
    pub select: Select,
    /// Conversations with a simulated user.
    pub dialogues: Option<Dialogues>,
    /// Several responses to each prompt.
    pub responses: Option<Responses>,
    /// How the judge's attributes become a score, and which scores are kept.
    pub reward: Option<RewardOptions>,
    /// Which pairs are kept.
    #[serde(default)]
    pub pairs: PairOptions,
    /// The checker of known answers.
    pub answers: Option<Checker>,
    /// Files for trainers.
    #[serde(default)]
    pub export: Export,
    /// The texts of the requests.
    #[serde(default)]
    pub templates: Templates,
}

/// The models of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Writes topics, keywords and prompts.
    pub prompt_writer: Option<Role>,
    /// Plays the user of dialogues.
    pub user: Option<Role>,
    /// Write responses; the first one is the assistant of dialogues.
    #[serde(default)]
    pub responders: Vec<Role>,
    /// Scores conversations.
    pub judge: Option<Role>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Base URL of a server, with or without `/v1`. Without it, `model` is a directory or a name on the hub
    /// that a child process serves while it is needed.
    pub endpoint: Option<String>,
    /// The model's name in requests, or what the child process serves.
    pub model: String,
    /// The environment variable that has the API key.
    pub api_key_env: Option<String>,
    /// Most requests at once.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Longest time without a byte of an answer, in seconds.
    #[serde(default = "timeout")]
    pub timeout: u64,
    /// Attempts of one request that fails for a reason other than status 429 or 503.
    #[serde(default = "attempts")]
    pub attempts: u32,
    /// Fields of each request, such as `temperature` and `max_tokens`.
    #[serde(default)]
    pub sampling: Map<String, Value>,
    /// More arguments of the child process, such as `["--device", "cuda", "-tp", "8"]`.
    #[serde(default)]
    pub serve_args: Vec<String>,
    /// For the judge: how it is asked.
    #[serde(default)]
    pub api: JudgeApi,
    /// Tokens that the server writes in a second over all requests, with `concurrency` of them at once. For
    /// the time that a dry run estimates; the judge needs none, since it writes nothing.
    pub tokens_per_second: Option<f64>,
    /// Prompt tokens that the server computes in a second, for the same estimate.
    pub prompt_tokens_per_second: Option<f64>,
}

fn concurrency() -> usize {
    16
}

fn timeout() -> u64 {
    600
}

fn attempts() -> u32 {
    6
}

/// How the judge is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgeApi {
    /// Octant's `POST /v1/reward`.
    #[default]
    Reward,
    /// `POST /v1/chat/completions`, whose content is `helpfulness:1.2,…` or `reward:1.2`.
    Chat,
}

/// Topics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// Topics that a model lists.
    pub generate: usize,
    /// Topics of the recipe.
    pub given: Vec<String>,
    /// Subtopics of each topic. With 0, the topics themselves are used.
    pub subtopics: usize,
}

/// Open questions about topics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenQuestions {
    /// Questions about each topic.
    pub per_topic: usize,
}

/// Documents to write about topics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// Tasks for each topic and each type of document.
    pub per_topic: usize,
    /// Types of documents.
    pub document_types: Vec<String>,
}

/// Questions over given texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedQuestions {
    /// Questions for each document.
    pub per_document: usize,
    /// JSONL file with the documents.
    pub file: PathBuf,
    /// The field that has the text.
    #[serde(default = "text_field")]
    pub field: String,
}

fn text_field() -> String {
    "text".to_owned()
}

/// Problems by keywords.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problems {
    /// Problems for each keyword.
    pub per_keyword: usize,
    /// Keywords of the recipe.
    #[serde(default)]
    pub keywords: Vec<String>,
    /// Keywords that a model lists.
    #[serde(default)]
    pub generate: usize,
    /// The difficulty, in words.
    #[serde(default = "level")]
    pub level: String,
    /// The programming language.
    #[serde(default = "language")]
    pub language: String,
}

fn level() -> String {
    "intermediate".to_owned()
}

fn language() -> String {
    "Python".to_owned()
}

/// Prompts of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// JSONL file.
    pub file: PathBuf,
    /// The field that has the prompt.
    #[serde(default = "prompt_field")]
    pub field: String,
    /// The field that has the right answer.
    pub answer_field: Option<String>,
}

fn prompt_field() -> String {
    "prompt".to_owned()
}

/// More detailed versions of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refine {
    /// Versions of each prompt, which replace it.
    pub per_prompt: usize,
}

/// Which prompts are used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Deduplication; absent, duplicates stay.
    pub dedup: Option<DedupOptions>,
    /// Decontamination; absent, no test set is read.
    pub decontaminate: Option<DecontaminationOptions>,
    /// Most prompts that are used: chosen by the seed, evenly over kinds, and within a kind over topics.
    pub most: Option<usize>,
}

/// Conversations with a simulated user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialogues {
    /// Turns of the user, each with an answer.
    #[serde(default = "turns")]
    pub turns: usize,
    /// Most conversations, of prompts that are chosen as by `select.most`; absent, one for each prompt.
    pub most: Option<usize>,
    /// The user's personalities, which take turns.
    #[serde(default = "personalities")]
    pub personalities: Vec<String>,
    /// Regular expressions of what is cut from the user's turns, such as thanks.
    #[serde(default = "politeness")]
    pub cut: Vec<String>,
    /// Whether a conversation with an answer that reached `max_tokens` is kept.
    #[serde(default)]
    pub keep_unfinished: bool,
}

fn turns() -> usize {
    3
}

fn personalities() -> Vec<String> {
    let texts = [
        "a curious beginner, who uses simple words and asks about what was unclear",
        "an expert in a hurry, who writes short messages and asks for missing details",
        "a careful reader, who doubts one claim of the last answer and asks for reasons or an example",
    ];
    texts.map(str::to_owned).to_vec()
}

fn politeness() -> Vec<String> {
    vec![r"(?i)^(?:thank you|thanks|sure|great|of course|certainly)\b[^.!?\n]*[.!?]+\s*".to_owned()]
}

/// Several responses to each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Responses {
    /// Responses of each responder to each prompt.
    pub per_responder: usize,
    /// Whether the first three turns of dialogues are prompts too.
    #[serde(default)]
    pub two_turn: bool,
    /// Whether a response that reached `max_tokens` is kept.
    #[serde(default)]
    pub keep_unfinished: bool,
}

/// How attributes become a score, and which scores are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardOptions {
    /// Weights of the attributes. The score is the sum of the weighted values.
    pub weights: BTreeMap<String, f64>,
    /// Smallest score of a conversation that is kept.
    pub threshold: f64,
}

/// Files for trainers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The formats.
    pub formats: Vec<Format>,
}

impl Default for Export {
    fn default() -> Self {
        Self { formats: Format::ALL.to_vec() }
    }
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// The file cannot be read, or a key is wrong: the error has its line, expected and got.
    pub fn read(path: &Path) -> Result<Self, SynthError> {
        let text = std::fs::read_to_string(path).map_err(SynthError::file(path))?;
        Self::parse(&text, path)
    }

    /// Parses and checks a recipe; `path` is for errors.
    ///
    /// # Errors
    /// A key is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, SynthError> {
        let recipe: Self = toml::from_str(text).map_err(|error| SynthError::Recipe {
            path: path.to_owned(),
            line: check::line_at(text, error.span().map_or(0, |span| span.start)),
            message: check::described(text, &error),
        })?;
        check::check(&recipe).map_err(|wrong| SynthError::Recipe {
            path: path.to_owned(),
            line: check::line_of(text, &wrong.key),
            message: format!("{}: {}", wrong.key.join("."), wrong.message),
        })?;
        Ok(recipe)
    }
}
