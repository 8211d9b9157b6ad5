//! The answers as they go: OpenAI's objects, for chat and text, whole and in chunks. Field order is the order here.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::generation::{Candidate, Cost, Scored, Usage};

/// A whole answer or a chunk of one; `C` is its kind of choice.
#[derive(Debug, serde::Serialize)]
pub struct Reply<'a, C> {
    /// The same in all chunks of an answer.
    pub id: &'a str,
    /// Says which of the four kinds of reply this is.
    pub object: &'static str,
    /// Unix time in seconds.
    pub created: u64,
    /// As the client named it.
    pub model: &'a str,
    /// Empty in the chunk that carries the usage.
    pub choices: Vec<C>,
    /// Absent where not asked for, null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageWire>>,
    /// What the request has cost, where asked for by `return_cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub octant: Option<CostWire>,
}

/// What all choices of a request have cost together.
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of a cost of the same name")]
pub struct CostWire {
    pub queue_seconds: f64,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
    pub kv_block_seconds: f64,
    pub cached_tokens: u64,
    pub computed_tokens: u64,
    pub recomputed_tokens: u64,
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
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct UsageWire {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

/// Part of [`UsageWire`].
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct PromptDetails {
    pub cached_tokens: usize,
}

/// Part of [`UsageWire`].
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct CompletionDetails {
    pub reasoning_tokens: usize,
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
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct ChatChoice {
    pub index: usize,
    pub message: Message,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct Message {
    pub role: &'static str,
    pub content: String,
    pub refusal: Option<&'static str>,
}

/// A choice of a chat chunk.
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: ChatDelta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds. Clients concatenate strings of all deltas, so the role is said once.
#[derive(Debug, Default, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Scores of a chat's tokens.
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct ChatLogprobs {
    pub content: Vec<ChatToken>,
    pub refusal: Option<&'static str>,
}

/// One token's score with its alternatives.
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct ChatToken {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<TopToken>,
}

/// An alternative.
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct TopToken {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

impl From<Vec<Scored>> for ChatLogprobs {
    fn from(scored: Vec<Scored>) -> Self {
        let top = |c: Candidate| TopToken { token: c.token, logprob: c.logprob, bytes: c.bytes };
        // A generated token always has a score; only an echoed prompt's first has none, and a chat echoes nothing.
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
#[derive(Debug, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct TextChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<TextLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// Scores of a text's tokens, as columns. The first token of an echoed prompt has none.
#[derive(Debug, Default, serde::Serialize)]
#[expect(missing_docs, reason = "each is the field of the wire of the same name")]
pub struct TextLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<Option<TopMap>>,
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

/// Alternatives by their text, most probable first, and the token itself whether it is among them or not. Its score
/// is the very number of `token_logprobs`, since who compares them takes equality for "greedy".
#[derive(Debug, Clone, PartialEq)]
pub struct TopMap(Vec<(String, f32)>);

impl TopMap {
    fn new(token: &Scored, logprob: f32) -> Self {
        let mut map = Self(Vec::with_capacity(token.top.len() + 1));
        for candidate in &token.top {
            map.put(&candidate.token, candidate.logprob);
        }
        map.put(&token.token, logprob);
        map
    }

    /// Two ids can have one text; the more probable counts.
    fn put(&mut self, token: &str, logprob: f32) {
        match self.0.iter_mut().find(|(known, _)| known == token) {
            Some((_, known)) => *known = known.max(logprob),
            None => self.0.push((token.to_owned(), logprob)),
        }
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
