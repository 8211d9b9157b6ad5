//! The lines of the JSONL files of every stage.
//!
//! Each record has an `id`, which no other record of its kind has, and the id of its `parent`. An id begins
//! with its parent's id, so it spells the whole lineage: `t3.1` is the second subtopic of topic `t3`,
//! `t3.1.q0` a prompt about it, `t3.1.q0.r2` a refinement of the prompt, `t3.1.q0.r2.a0.1` the second
//! response of the first responder, and `t3.1.q0.r2.d` a dialogue that begins with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::export::Turn;
use super::pairs::DecidedBy;

/// A stage, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Topics, from general ones.
    Topics,
    /// Subtopics of each topic.
    Subtopics,
    /// Keywords of mathematics and coding.
    Keywords,
    /// Prompts about topics, documents and keywords.
    Prompts,
    /// More detailed versions of prompts.
    Refined,
    /// Prompts without duplicates and without texts of test sets.
    Selected,
    /// Conversations with a simulated user.
    Dialogues,
    /// Several responses to each prompt.
    Responses,
    /// Scores of dialogues and responses.
    Rewards,
    /// Conversations that reach the threshold.
    Filtered,
    /// Preference pairs.
    Pairs,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 11] = [
        Self::Topics,
        Self::Subtopics,
        Self::Keywords,
        Self::Prompts,
        Self::Refined,
        Self::Selected,
        Self::Dialogues,
        Self::Responses,
        Self::Rewards,
        Self::Filtered,
        Self::Pairs,
    ];

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topics => "topics",
            Self::Subtopics => "subtopics",
            Self::Keywords => "keywords",
            Self::Prompts => "prompts",
            Self::Refined => "refined",
            Self::Selected => "selected",
            Self::Dialogues => "dialogues",
            Self::Responses => "responses",
            Self::Rewards => "rewards",
            Self::Filtered => "filtered",
            Self::Pairs => "pairs",
        }
    }

    /// The file's name without its ending: the stage's number from 1, and its name.
    pub fn stem(self) -> String {
        format!("{:02}-{}", self as usize + 1, self.name())
    }
}

/// A subject of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topic {
    /// Its id.
    pub id: String,
    /// Id of the topic that it is part of.
    pub parent: Option<String>,
    /// Its words.
    pub topic: String,
}

/// A keyword of mathematics or coding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keyword {
    /// Its id.
    pub id: String,
    /// The kind of the prompts that it is for.
    pub kind: PromptKind,
    /// Its words.
    pub keyword: String,
}

/// The kind of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// An open question about a topic.
    OpenQuestion,
    /// A task to write a document about a topic.
    Writing,
    /// A question or task over a given text.
    ClosedQuestion,
    /// A problem of mathematics.
    Mathematics,
    /// A problem of programming.
    Coding,
    /// A prompt of a file.
    Given,
}

/// A prompt or a more detailed version of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its id.
    pub id: String,
    /// Id of the topic, keyword, document or prompt that it comes from.
    pub parent: String,
    /// Its kind.
    pub kind: PromptKind,
    /// The text.
    pub prompt: String,
    /// Id of the document that the prompt is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The right answer, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// A conversation with a simulated user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DialogueRecord {
    /// Its id.
    pub id: String,
    /// Id of the prompt that it begins with.
    pub parent: String,
    /// The user's personality.
    pub personality: String,
    /// The model of the assistant's turns.
    pub model: String,
    /// The turns, the last by the assistant.
    pub messages: Vec<Turn>,
}

/// A response to a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Its id.
    pub id: String,
    /// Id of the prompt.
    pub parent: String,
    /// The model that wrote it.
    pub model: String,
    /// The turns before the response.
    pub prompt: Vec<Turn>,
    /// The text.
    pub response: String,
    /// The reason why the response ended, as the server gives it.
    pub finish_reason: Option<String>,
    /// The answer checker's verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
}

/// The score of a dialogue or a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// Id of the dialogue or the response.
    pub id: String,
    /// Weighted sum of the values of the last turn; in a dialogue, the mean over the assistant's turns.
    pub score: f64,
    /// Attribute values of each assistant turn that was rated, the last turn last.
    pub turns: Vec<BTreeMap<String, f64>>,
}

/// A conversation that reaches the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Id of the dialogue or the response.
    pub id: String,
    /// Id of the prompt.
    pub parent: String,
    /// Its score, if there is a judge.
    pub score: Option<f64>,
    /// The turns, the last by the assistant.
    pub messages: Vec<Turn>,
    /// Attribute values of each assistant turn, empty for turns that were not rated.
    pub turns: Vec<BTreeMap<String, f64>>,
}

/// A preference pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Its id: the prompt's id with `.p` at its end.
    pub id: String,
    /// Id of the prompt.
    pub parent: String,
    /// The turns before the response.
    pub prompt: Vec<Turn>,
    /// Id of the better response.
    pub chosen_id: String,
    /// Id of the worse response.
    pub rejected_id: String,
    /// The better response.
    pub chosen: String,
    /// The worse response.
    pub rejected: String,
    /// Score of the better response.
    pub chosen_score: Option<f64>,
    /// Score of the worse response.
    pub rejected_score: Option<f64>,
    /// The first score less the second.
    pub margin: Option<f64>,
    /// What decided.
    pub decided_by: DecidedBy,
}

/// Something that a stage did not keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// Id of what was rejected, or of what the request was about.
    pub id: String,
    /// The kind of the reason, the same words for all of a kind.
    pub reason: String,
    /// More about this one: the server's message, the id of the repeated prompt, the shared n-gram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The model's text, or the text that was dropped, unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
}
