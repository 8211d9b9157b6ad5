//! JSON types of replies with scores. Fields are written in the order in which they stand here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::server::reply::{CostWire, Message, PromptDetails};

/// A list of scores, with entries of type `D`.
#[derive(Debug, serde::Serialize, JsonSchema)]
#[schemars(rename = "ScoreListOf{D}")]
pub(crate) struct ScoreList<'a, D> {
    /// The reply's id.
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    /// Unix time in seconds.
    pub(crate) created: u64,
    /// The model's name as the client gave it.
    pub(crate) model: &'a str,
    /// Names of the values, in their order. Replies of `/v1/reward` alone have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attributes: Option<&'a [String]>,
    /// One entry for each conversation.
    pub(crate) data: Vec<D>,
    pub(crate) usage: ScoreUsage,
    /// Cost of the request, if it asked for it with `return_cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) octant: Option<CostWire>,
}

/// Token counts of scores.
#[derive(Debug, Clone, Copy, serde::Serialize, JsonSchema)]
pub(crate) struct ScoreUsage {
    /// Tokens of all conversations that were scored.
    pub(crate) prompt_tokens: usize,
    /// 0, since a score is no token.
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
}

/// The score of a conversation, in replies of `/v1/reward`.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct RewardEntry<'a> {
    pub(crate) object: &'static str,
    /// Index of the conversation or answer in the request.
    pub(crate) index: usize,
    /// Weighted sum of the values.
    pub(crate) score: f32,
    pub(crate) values: NamedValues<'a>,
    /// The scores of all answers in the conversation, if `every_turn` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) turns: Option<Vec<TurnReward<'a>>>,
}

/// The score of a conversation up to one of its answers.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct TurnReward<'a> {
    /// Index of the answer among the conversation's messages.
    pub(crate) index: usize,
    /// Weighted sum of the values.
    pub(crate) score: f32,
    pub(crate) values: NamedValues<'a>,
}

/// The values of the reward head by name, in the order of the names.
#[derive(Debug)]
pub(crate) struct NamedValues<'a> {
    pub(crate) names: &'a [String],
    pub(crate) values: &'a [f32],
}

impl JsonSchema for NamedValues<'_> {
    fn schema_name() -> Cow<'static, str> {
        "RewardValues".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "Values of the reward head by name, in the order of its rows.",
            "additionalProperties": { "type": "number" },
        })
    }
}

impl Serialize for NamedValues<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (name, value) in self.names.iter().zip(self.values) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// An entry of a reply of `/pooling`.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct PoolingEntry {
    pub(crate) index: usize,
    pub(crate) object: &'static str,
    /// The score, after the attributes if `return_attributes` asks for them.
    pub(crate) data: Vec<f32>,
}

/// An entry of a reply of `/classify`.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ClassifyEntry {
    pub(crate) index: usize,
    /// Null: the values are no classes.
    pub(crate) label: Option<&'static str>,
    /// The score, after the attributes if `return_attributes` asks for them. The values are raw and not
    /// probabilities.
    pub(crate) probs: Vec<f32>,
    /// Length of `probs`.
    pub(crate) num_classes: usize,
}

/// Reply of `POST /get_reward`, as OpenRLHF reads it.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct GetRewardReply<'a> {
    /// The score of each query.
    pub(crate) rewards: Vec<f32>,
    /// The same as `rewards`.
    pub(crate) scores: Vec<f32>,
    pub(crate) extra_logs: ColumnsByName<'a>,
    /// Cost of the request, if it asked for it with `return_cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) octant: Option<CostWire>,
}

/// The values of each query by their names.
#[derive(Debug)]
pub(crate) struct ColumnsByName<'a> {
    pub(crate) names: &'a [String],
    /// The values of each query.
    pub(crate) rows: &'a [Vec<f32>],
}

impl JsonSchema for ColumnsByName<'_> {
    fn schema_name() -> Cow<'static, str> {
        "RewardColumns".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "For each value of the reward head, by name, an array with an entry for each query.",
            "additionalProperties": { "type": "array", "items": { "type": "number" } },
        })
    }
}

impl Serialize for ColumnsByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (index, name) in self.names.iter().enumerate() {
            let column: Vec<f32> = self.rows.iter().filter_map(|row| row.get(index).copied()).collect();
            map.serialize_entry(name, &column)?;
        }
        map.end()
    }
}

/// The choice of a chat completion of a reward model, in the form of NVIDIA's hosted API.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ScoreChoice {
    pub(crate) index: usize,
    /// The content has the values: `helpfulness:1.6171875,correctness:1.6484375,…`.
    pub(crate) message: Message,
    pub(crate) logprobs: ScoreLogprobs,
    pub(crate) finish_reason: &'static str,
}

/// The values of a [`ScoreChoice`], whether or not `logprobs` asks for them.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ScoreLogprobs {
    pub(crate) content: Vec<ScoreToken>,
}

/// A value in the place of a token's log-probability.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ScoreToken {
    /// Name of the value.
    pub(crate) token: String,
    /// The value.
    pub(crate) logprob: f32,
    /// Always null.
    pub(crate) bytes: Option<Vec<u8>>,
    /// Always empty.
    pub(crate) top_logprobs: Vec<f32>,
}
