//! JSON types of replies: OpenAI's objects for chat and text completions, whole and in chunks. Fields are
//! written in the order in which they stand here.

use std::borrow::Cow;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::generation::{Candidate, Cost, RankedCandidate, Scored, Usage};

/// A whole reply or a chunk of one, with choices of type `C`.
#[derive(Debug, serde::Serialize, JsonSchema)]
#[schemars(rename = "Reply_of_{C}")]
pub(crate) struct Reply<'a, C> {
    /// The reply's id, the same in all its chunks.
    pub(crate) id: &'a str,
    /// OpenAI's name of the type, such as `chat.completion.chunk`.
    pub(crate) object: &'static str,
    /// Unix time in seconds.
    pub(crate) created: u64,
    /// The model's name as the client gave it.
    pub(crate) model: &'a str,
    /// Empty in the chunk that carries the usage.
    pub(crate) choices: Vec<C>,
    /// Candidates of each token of a chat's prompt, from `prompt_logprobs_start` on, if `prompt_logprobs`
    /// asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<Option<PromptToken>>>,
    /// Sum of the log-probabilities of the prompt tokens in `prompt_logprobs`, added in double precision and
    /// rounded once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs_sum: Option<f32>,
    /// Token ids of a chat's prompt, if `return_token_ids` asks for them. A stream has them once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Arc<[u32]>>,
    /// `None` leaves the field out; `Some(None)` is null, as in all chunks before the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<UsageWire>>,
    /// Cost of the request, if it asked for it with `return_cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) octant: Option<CostWire>,
}

/// Cost of all choices of a request together.
#[derive(Debug, Clone, Copy, serde::Serialize, JsonSchema)]
pub(crate) struct CostWire {
    pub(crate) queue_seconds: f64,
    pub(crate) prefill_seconds: f64,
    pub(crate) decode_seconds: f64,
    pub(crate) kv_block_seconds: f64,
    pub(crate) cached_tokens: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) recomputed_tokens: u64,
}

impl From<Cost> for CostWire {
    fn from(cost: Cost) -> Self {
        Self {
            queue_seconds: cost.queue,
            prefill_seconds: cost.prefill,
            decode_seconds: cost.decode,
            kv_block_seconds: cost.kv_block_seconds,
            cached_tokens: cost.cached_tokens,
            computed_tokens: cost.computed_tokens,
            recomputed_tokens: cost.recomputed_tokens,
        }
    }
}

/// Token counts.
#[derive(Debug, Clone, Copy, serde::Serialize, JsonSchema)]
pub(crate) struct UsageWire {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

/// Part of [`UsageWire`].
#[derive(Debug, Clone, Copy, serde::Serialize, JsonSchema)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: usize,
}

/// Part of [`UsageWire`].
#[derive(Debug, Clone, Copy, serde::Serialize, JsonSchema)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: usize,
}

impl From<Usage> for UsageWire {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: CompletionDetails { reasoning_tokens: 0 },
        }
    }
}

/// A choice of a whole chat completion.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: Message,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: &'static str,
    /// Token ids of the answer, if `return_token_ids` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    /// Null if the message has tool calls alone.
    pub(crate) content: Option<String>,
    pub(crate) refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallWire>,
}

/// A tool call, whole or in a chunk.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ToolCallWire {
    /// Index of the call in the message, in chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    /// Id of the call, in its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionWire,
}

/// Part of [`ToolCallWire`].
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct FunctionWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// JSON of the arguments, or a piece of it.
    pub(crate) arguments: String,
}

/// A choice of a chunk, of either kind.
#[derive(Debug, serde::Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ChunkChoice {
    /// A choice of a `chat.completion.chunk`.
    Chat(ChatChunkChoice),
    /// A choice of a `text_completion`.
    Text(TextChoice),
}

/// A choice of a chat chunk.
#[derive(Debug, Default, serde::Serialize, JsonSchema)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: ChatDelta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    /// Token ids of the delta, if `return_token_ids` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// Text that a chunk adds to the message. Clients concatenate the strings of all deltas, so only the first
/// has the role.
#[derive(Debug, Default, serde::Serialize, JsonSchema)]
pub(crate) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallWire>,
}

/// Log-probabilities of a chat's tokens.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatToken>,
    pub(crate) refusal: Option<&'static str>,
}

/// Log-probability of a token, with the most probable alternatives.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
pub(crate) struct ChatToken {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) top_logprobs: Vec<TopToken>,
}

/// Log-probability of an alternative to a token.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
pub(crate) struct TopToken {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

impl From<Vec<Scored>> for ChatLogprobs {
    fn from(scored: Vec<Scored>) -> Self {
        let top = |c: Candidate| TopToken { token: c.token, logprob: c.logprob, bytes: c.bytes };
        // Every generated token has a log-probability. Only the first token of an echoed prompt has none, and
        // a chat does not echo its prompt.
        let token = |s: Scored| ChatToken {
            token: s.token,
            logprob: s.logprob.unwrap_or_default(),
            bytes: s.bytes,
            top_logprobs: s.top.into_iter().map(top).collect(),
        };
        Self { content: scored.into_iter().map(token).collect(), refusal: None }
    }
}

/// A choice of a text completion, whole or in a chunk.
#[derive(Debug, Default, serde::Serialize, JsonSchema)]
pub(crate) struct TextChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    /// Candidates of each token of the prompt, from `prompt_logprobs_start` on, if `prompt_logprobs` asks for
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<Option<PromptToken>>>,
    /// Sum of the log-probabilities of the prompt tokens in `prompt_logprobs`, added in double precision and
    /// rounded once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs_sum: Option<f32>,
    /// Token ids of the answer or of the chunk, if `return_token_ids` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Token ids of the prompt, if `return_token_ids` asks for them. A stream has them once for each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Arc<[u32]>>,
}

/// Log-probabilities of a text's tokens, as columns. The first token of an echoed prompt has none.
#[derive(Debug, Default, serde::Serialize, JsonSchema)]
pub(crate) struct TextLogprobs {
    pub(crate) text_offset: Vec<usize>,
    pub(crate) token_logprobs: Vec<Option<f32>>,
    pub(crate) tokens: Vec<String>,
    pub(crate) top_logprobs: Vec<Option<TopMap>>,
}

impl From<Vec<Scored>> for TextLogprobs {
    fn from(scored: Vec<Scored>) -> Self {
        let mut columns = Self::default();
        for token in scored {
            columns.text_offset.push(token.text_offset);
            columns.token_logprobs.push(token.logprob);
            columns.top_logprobs.push(token.logprob.map(|logprob| TopMap::new(&token, logprob)));
            columns.tokens.push(token.token);
        }
        columns
    }
}

/// Candidates for a place in the prompt, by token id: the prompt's token first, then the most probable ones.
#[derive(Debug, Clone)]
pub(crate) struct PromptToken(Vec<RankedCandidate>);

impl PromptToken {
    /// The first token of a prompt has no candidates.
    pub(crate) fn new(candidates: &[RankedCandidate]) -> Option<Self> {
        (!candidates.is_empty()).then(|| Self(candidates.to_vec()))
    }

    /// The log-probability of the prompt's token.
    pub(crate) fn logprob(&self) -> f32 {
        self.0.first().map_or(0.0, |own| own.logprob)
    }
}

/// A candidate of [`PromptToken`].
#[derive(serde::Serialize, JsonSchema)]
struct PromptLogprob<'a> {
    logprob: f32,
    /// The token's place among all tokens, 1 for the most probable one.
    rank: u32,
    decoded_token: &'a str,
}

impl JsonSchema for PromptToken {
    fn schema_name() -> Cow<'static, str> {
        "PromptToken".into()
    }

    fn json_schema(schemas: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "Candidates for a place in the prompt by token id: the prompt's token first.",
            "additionalProperties": schemas.subschema_for::<PromptLogprob<'static>>(),
        })
    }
}

impl Serialize for PromptToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for RankedCandidate { id, token, logprob, rank } in &self.0 {
            map.serialize_entry(id, &PromptLogprob { logprob: *logprob, rank: *rank, decoded_token: token })?;
        }
        map.end()
    }
}

/// Log-probabilities by token text: the most probable alternatives in descending order, then the token itself
/// if it is not among them. The token's value equals the one in `token_logprobs` exactly, because evaluation
/// harnesses compare the two to find out whether the token was the greedy one. If several ids have the same
/// text, it stands for the token itself, or else for the most probable of them; the others are named
/// `token_id:65`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopMap(Vec<(String, f32)>);

impl TopMap {
    fn new(token: &Scored, logprob: f32) -> Self {
        let mut map: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        for candidate in token.top.iter().filter(|candidate| candidate.id != token.id) {
            let text = &candidate.token;
            let taken = *text == token.token || map.iter().any(|(known, _)| known == text);
            let name = if taken { format!("token_id:{}", candidate.id) } else { text.clone() };
            map.push((name, candidate.logprob));
        }
        let place = token.top.iter().position(|candidate| candidate.id == token.id).unwrap_or(map.len());
        map.insert(place, (token.token.clone(), logprob));
        Self(map)
    }
}

impl JsonSchema for TopMap {
    fn schema_name() -> Cow<'static, str> {
        "TopMap".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "Log-probabilities by token text.",
            "additionalProperties": { "type": "number" },
        })
    }
}

impl Serialize for TopMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}
