//! Writes replies with scores, in the form of each route.

use std::sync::Arc;

use serde::Serialize;

use super::reply::{
    ClassifyEntry, ColumnsByName, GetRewardReply, NamedValues, PoolingEntry, RewardEntry, ScoreChoice,
    ScoreList, ScoreLogprobs, ScoreToken, ScoreUsage, TurnReward,
};
use super::scoring::{Scoring, score};
use crate::generation::{Cost, Delta, Usage};
use crate::server::reply::{Message, PromptDetails, Reply};

/// The route whose form a reply with scores has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScoreForm {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/reward`; the scores of all answers of a conversation are part of the reply or not.
    Reward { every_turn: bool },
    /// `/pooling`, with or without the attributes.
    Pooling { attributes: bool },
    /// `/classify`, with or without the attributes.
    Classify { attributes: bool },
    /// `/get_reward`.
    GetReward,
}

impl ScoreForm {
    /// The beginning of a reply's id.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Reward { .. } | Self::GetReward => "reward-",
            Self::Pooling { .. } => "pool-",
            Self::Classify { .. } => "classify-",
        }
    }
}

/// A conversation or text of a request for scores.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Path of its field.
    pub(crate) path: String,
    /// Indices of the messages that are scored as ends of the conversation, in ascending order; the last one
    /// ends all of it. Each is a prompt of its own. A text has one.
    pub(crate) ends: Vec<usize>,
}

/// What a reply with scores needs to know of its request.
#[derive(Debug, Clone)]
pub(crate) struct ScorePlan {
    pub(crate) form: ScoreForm,
    pub(crate) scoring: Arc<Scoring>,
    /// The weight of each value; none in the form that has no score.
    pub(crate) weights: Vec<f64>,
    /// The subjects, in the order of their prompts.
    pub(crate) subjects: Vec<Subject>,
}

impl ScorePlan {
    /// The path of each prompt's field.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.subjects.iter().flat_map(|subject| subject.ends.iter().map(|_| subject.path.as_str()))
    }
}

/// Writes one reply.
pub(crate) struct ScoreWriter {
    pub(crate) plan: ScorePlan,
    pub(crate) id: String,
    /// Unix time in seconds.
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Whether the reply has the request's cost.
    pub(crate) include_cost: bool,
    /// Whether the reply leaves out how much of the prompts was cached.
    pub(crate) reproducible: bool,
    /// The reported values of each prompt.
    pub(crate) values: Vec<Vec<f32>>,
}

impl ScoreWriter {
    /// Collects the values of a prompt.
    pub(crate) fn collect(&mut self, delta: &Delta) {
        let Some(head) = &delta.reward else { return };
        if self.values.len() <= delta.index {
            self.values.resize_with(delta.index + 1, Vec::new);
        }
        self.values[delta.index] = self.plan.scoring.reported(head);
    }

    /// The JSON of the reply.
    pub(crate) fn whole(&self, usage: Usage, cost: Cost) -> String {
        let Self { plan, .. } = self;
        let cached_tokens = if self.reproducible { 0 } else { usage.cached_tokens };
        let usage = Usage { cached_tokens, ..usage };
        match plan.form {
            ScoreForm::Chat => self.chat(usage, cost),
            ScoreForm::Reward { every_turn } => {
                let entries = self.entries(every_turn);
                self.list(entries, Some(plan.scoring.names()), usage, cost)
            }
            ScoreForm::Pooling { attributes } => {
                let entry = |(index, values): (usize, &Vec<f32>)| PoolingEntry {
                    index,
                    object: "pooling",
                    data: self.row(values, attributes),
                };
                let entries = self.values.iter().enumerate().map(entry).collect::<Vec<_>>();
                self.list(entries, None, usage, cost)
            }
            ScoreForm::Classify { attributes } => {
                let entry = |(index, values): (usize, &Vec<f32>)| {
                    let probs = self.row(values, attributes);
                    ClassifyEntry { index, label: None, num_classes: probs.len(), probs }
                };
                let entries = self.values.iter().enumerate().map(entry).collect::<Vec<_>>();
                self.list(entries, None, usage, cost)
            }
            ScoreForm::GetReward => {
                let rewards: Vec<f32> = self.values.iter().map(|values| self.score(values)).collect();
                json(&GetRewardReply {
                    scores: rewards.clone(),
                    rewards,
                    extra_logs: ColumnsByName { names: plan.scoring.names(), rows: &self.values },
                    octant: self.include_cost.then_some(cost.into()),
                })
            }
        }
    }

    fn score(&self, values: &[f32]) -> f32 {
        score(values, &self.plan.weights)
    }

    /// The score, after the attributes if they are asked for: trainers read the last number.
    fn row(&self, values: &[f32], attributes: bool) -> Vec<f32> {
        let shown = if attributes { values } else { &[] };
        shown.iter().copied().chain([self.score(values)]).collect()
    }

    /// The entries of `/v1/reward`.
    fn entries(&self, every_turn: bool) -> Vec<RewardEntry<'_>> {
        let names = self.plan.scoring.names();
        let mut prompts = self.values.iter();
        let entry = |(index, subject): (usize, &Subject)| {
            let turns: Vec<TurnReward<'_>> = (subject.ends.iter().zip(prompts.by_ref()))
                .map(|(end, values)| TurnReward {
                    index: *end,
                    score: self.score(values),
                    values: NamedValues { names, values },
                })
                .collect();
            let last = turns.last()?;
            let values = NamedValues { names, values: last.values.values };
            let (score, turns) = (last.score, every_turn.then_some(turns));
            Some(RewardEntry { object: "reward", index, score, values, turns })
        };
        self.plan.subjects.iter().enumerate().filter_map(entry).collect()
    }

    fn list<D: Serialize>(
        &self,
        data: Vec<D>,
        attributes: Option<&[String]>,
        usage: Usage,
        cost: Cost,
    ) -> String {
        json(&ScoreList {
            id: &self.id,
            object: "list",
            created: self.created,
            model: &self.model,
            attributes,
            data,
            usage: ScoreUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: 0,
                total_tokens: usage.prompt_tokens,
                prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
            },
            octant: self.include_cost.then_some(cost.into()),
        })
    }

    /// The form of NVIDIA's hosted API: values in the text and in the place of log-probabilities. Clients
    /// take a reply without the latter for that of a model that generates.
    fn chat(&self, usage: Usage, cost: Cost) -> String {
        let values = self.values.first().map(Vec::as_slice).unwrap_or_default();
        let named = || self.plan.scoring.names().iter().zip(values);
        let text: Vec<String> = named().map(|(name, value)| format!("{name}:{value:?}")).collect();
        let token = |(name, value): (&String, &f32)| ScoreToken {
            token: name.clone(),
            logprob: *value,
            bytes: None,
            top_logprobs: Vec::new(),
        };
        let choice = ScoreChoice {
            index: 0,
            message: Message {
                role: "assistant",
                content: Some(text.join(",")),
                refusal: None,
                tool_calls: Vec::new(),
            },
            logprobs: ScoreLogprobs { content: named().map(token).collect() },
            finish_reason: "length",
        };
        json(&Reply {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: vec![choice],
            prompt_logprobs: None,
            prompt_logprobs_sum: None,
            prompt_token_ids: None,
            // The hosted API counts one token, and clients add up what they are told.
            usage: Some(Some(Usage { completion_tokens: 1, ..usage }.into())),
            octant: self.include_cost.then_some(cost.into()),
        })
    }
}

fn json(reply: &impl Serialize) -> String {
    serde_json::to_string(reply).expect("strings and numbers can be written as JSON")
}
