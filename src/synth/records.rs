//! The lines of the JSONL files of every stage.
//!
//! Each record has an `id`, which no other record of its kind has, and the id of its `parent`. An id begins
//! with its parent's id, so it spells the whole lineage: `t3.1` is the second subtopic of topic `t3`,
//! `t3.1.q0` a prompt about it, `t3.1.q0.r2` a refinement of the prompt, `t3.1.q0.r2.a0.1` the second
//! response of the first responder, and `t3.1.q0.r2.d` a dialogue that begins with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::endpoint::Refusal;
use super::export::Turn;
use super::pairs::DecidedBy;

/// A stage, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
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
    /// The name in files and messages.
    pub(super) fn name(self) -> &'static str {
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
    pub(super) fn stem(self) -> String {
        format!("{:02}-{}", self as usize + 1, self.name())
    }
}

/// A subject of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Topic {
    /// Its id.
    pub(super) id: String,
    /// Id of the topic that it is part of.
    pub(super) parent: Option<String>,
    /// Its words.
    pub(super) topic: String,
}

/// A keyword of mathematics or coding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Keyword {
    /// Its id.
    pub(super) id: String,
    /// The kind of the prompts that it is for.
    pub(super) kind: PromptKind,
    /// Its words.
    pub(super) keyword: String,
}

/// The kind of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PromptKind {
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
pub(super) struct Prompt {
    /// Its id.
    pub(super) id: String,
    /// Id of the topic, keyword, document or prompt that it comes from.
    pub(super) parent: String,
    /// Its kind.
    pub(super) kind: PromptKind,
    /// The text.
    pub(super) prompt: String,
    /// Id of the document that the prompt is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) document: Option<String>,
    /// The right answer, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<String>,
}

/// A conversation with a simulated user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DialogueRecord {
    /// Its id.
    pub(super) id: String,
    /// Id of the prompt that it begins with.
    pub(super) parent: String,
    /// The user's personality.
    pub(super) personality: String,
    /// The model of the assistant's turns.
    pub(super) model: String,
    /// The turns, the last by the assistant.
    pub(super) messages: Vec<Turn>,
}

/// A response to a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Response {
    /// Its id.
    pub(super) id: String,
    /// Id of the prompt.
    pub(super) parent: String,
    /// The model that wrote it.
    pub(super) model: String,
    /// The turns before the response.
    pub(super) prompt: Vec<Turn>,
    /// The text.
    pub(super) response: String,
    /// The reason why the response ended, as the server gives it.
    pub(super) finish_reason: Option<String>,
    /// The answer checker's verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) correct: Option<bool>,
}

/// The score of a dialogue or a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reward {
    /// Id of the dialogue or the response.
    pub(super) id: String,
    /// Weighted sum of the values of the last turn; in a dialogue, the mean over the assistant's turns.
    #[serde(deserialize_with = "exact")]
    pub(super) score: f64,
    /// Attribute values of each assistant turn that was rated, the last turn last.
    #[serde(deserialize_with = "exact_turns")]
    pub(super) turns: Vec<BTreeMap<String, f64>>,
}

/// A conversation that reaches the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Id of the dialogue or the response.
    pub(super) id: String,
    /// Id of the prompt.
    pub(super) parent: String,
    /// Its score, if there is a judge.
    pub(super) score: Option<f64>,
    /// The turns, the last by the assistant.
    pub(super) messages: Vec<Turn>,
    /// Attribute values of each assistant turn, empty for turns that were not rated.
    pub(super) turns: Vec<BTreeMap<String, f64>>,
}

/// A preference pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// Its id: the prompt's id with `.p` at its end.
    pub(super) id: String,
    /// Id of the prompt.
    pub(super) parent: String,
    /// The turns before the response.
    pub(super) prompt: Vec<Turn>,
    /// Id of the better response.
    pub(super) chosen_id: String,
    /// Id of the worse response.
    pub(super) rejected_id: String,
    /// The better response.
    pub(super) chosen: String,
    /// The worse response.
    pub(super) rejected: String,
    /// Score of the better response.
    pub(super) chosen_score: Option<f64>,
    /// Score of the worse response.
    pub(super) rejected_score: Option<f64>,
    /// The first score less the second.
    pub(super) margin: Option<f64>,
    /// The reason of the choice.
    pub(super) decided_by: DecidedBy,
}

/// Something that a stage did not keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reject {
    /// Id of what was rejected, or of what the request was about.
    pub(super) id: String,
    /// The kind of the reason, the same words for all of a kind.
    pub(super) reason: String,
    /// More about this one: the server's message, the id of the repeated prompt, the shared n-gram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    /// The model's text, or the text that was dropped, unchanged. Where a reply ends a
    /// dialogue, or a server refuses a request: JSON with `messages`, the turns before it, and `reply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) raw: Option<String>,
}

impl Reject {
    /// The reject of a request that the server refused, with its turns and the reply.
    pub(super) fn refused(id: &str, refusal: Refusal) -> Self {
        let Refusal { message, messages, reply } = refusal;
        let (id, reason) = (id.to_owned(), "refused by the server".to_owned());
        Self { id, reason, detail: Some(message), raw: Some(with_turns(&messages, &reply)) }
    }
}

/// The parts of a raw text that is a conversation and the reply that ended it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ended {
    /// The turns before the reply.
    pub(super) messages: Vec<Turn>,
    /// The reply.
    pub(super) reply: String,
}

/// The raw text of a reject that is a conversation and the reply that ended it.
pub(super) fn with_turns(messages: &[Turn], reply: &str) -> String {
    json!({ "messages": messages, "reply": reply }).to_string()
}

/// A list with fewer items than were asked for. Its items are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ShortList {
    /// Id of what the list is about.
    pub(super) id: String,
    /// Items that were asked for.
    pub(super) wanted: u64,
    /// Different items that it has.
    pub(super) made: u64,
    /// The model's text, unchanged.
    pub(super) raw: String,
}

/// Reads a number to the value that was written. serde_json reads some numbers of many digits to a neighbour,
/// and a resumed run must write the same bytes.
fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    number(&<Box<RawValue>>::deserialize(deserializer)?)
}

fn exact_turns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BTreeMap<String, f64>>, D::Error> {
    let turns: Vec<BTreeMap<String, Box<RawValue>>> = Vec::deserialize(deserializer)?;
    let values = |turn: BTreeMap<String, Box<RawValue>>| {
        turn.into_iter().map(|(name, text)| Ok((name, number(&text)?))).collect()
    };
    turns.into_iter().map(values).collect()
}

fn number<E: serde::de::Error>(text: &RawValue) -> Result<f64, E> {
    text.get().parse().map_err(|_| E::custom(format!("expected a number; got {}", text.get())))
}
