//! Builds the JSON of a chat or text completion from generated deltas: one whole reply, or chunks. The caller
//! sends the JSON and frames the chunks of a stream.

use std::mem::take;
use std::sync::Arc;

use serde::Serialize;

use super::reply::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChunkChoice, CostWire, FunctionWire, Message, PromptToken, Reply,
    TextChoice, TextLogprobs, ToolCallWire, UsageWire,
};
use crate::generation::{Cost, Delta, FinishReason, PromptReport, Scored, Usage};
use crate::tools::ToolCallDelta;

/// OpenAI's family of objects that a reply uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyFormat {
    /// `chat.completion` and `chat.completion.chunk`.
    Chat,
    /// `text_completion`, whole and in chunks.
    Text,
}

impl ReplyFormat {
    /// Name of the request's field that holds the prompt, for error messages.
    pub(crate) fn prompt_param(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Text => "prompt",
        }
    }

    fn object(self, chunk: bool) -> &'static str {
        match (self, chunk) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Text, _) => "text_completion",
        }
    }
}

/// Optional parts of a reply.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReplyOptions {
    /// Choices have log-probabilities.
    pub(crate) logprobs: bool,
    /// Chunks have a `usage` field. A whole reply always has one.
    pub(crate) include_usage: bool,
    /// Chunks have the usage of their choice so far.
    pub(crate) continuous_usage: bool,
    /// Log-probabilities name tokens by their ids.
    pub(crate) names_ids: bool,
    /// The reply ends with the request's cost.
    pub(crate) include_cost: bool,
    /// Nothing in the reply depends on the time or on other requests.
    pub(crate) reproducible: bool,
}

/// Builds the JSON of one reply.
#[derive(Debug, Clone)]
pub(crate) struct ReplyBuilder {
    format: ReplyFormat,
    id: String,
    /// Unix time in seconds.
    created: u64,
    model: String,
    options: ReplyOptions,
    /// JSON of a chunk up to the first of its choices, the same in all chunks.
    chunk_head: String,
}

impl ReplyBuilder {
    pub(crate) fn new(
        format: ReplyFormat,
        id: String,
        created: u64,
        model: String,
        options: ReplyOptions,
    ) -> Self {
        let mut builder = Self { format, id, created, model, options, chunk_head: String::new() };
        let empty = builder.reply(true, Vec::<TextChoice>::new(), None, None, None);
        let head = empty.strip_suffix("]}").expect("a reply ends with its empty list of choices");
        builder.chunk_head = head.to_owned();
        builder
    }

    /// The reply's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the chunks for a delta, at most four: the role, if a chat's choice begins; the text with its
    /// log-probabilities; tool calls; and the finish reason. `role_sent` belongs to the delta's choice, is
    /// false at first, and is set when the choice begins.
    pub(crate) fn chunks(
        &self,
        mut delta: Delta,
        role_sent: &mut bool,
    ) -> impl Iterator<Item = Chunk> + use<> {
        let (index, format) = (delta.index, self.format);
        let mut prompt_token_ids = delta.prompt.take().and_then(|prompt| prompt.ids);
        let mut role = None;
        if !*role_sent && (delta.tokens > 0 || delta.finish.is_some()) {
            *role_sent = true;
            role = (format == ReplyFormat::Chat).then(|| {
                let content = Some(String::new());
                let delta = ChatDelta { role: Some("assistant"), content, ..ChatDelta::default() };
                let choice = ChatChunkChoice { index, delta, ..ChatChunkChoice::default() };
                Chunk { choice: ChunkChoice::Chat(choice), prompt_token_ids: prompt_token_ids.take() }
            });
        }
        let (text, scored) = (take(&mut delta.text), self.named(take(&mut delta.scored)));
        let ids = Some(take(&mut delta.ids)).filter(|ids| !ids.is_empty());
        let has_ids = ids.is_some() || prompt_token_ids.is_some();
        let has_content = !text.is_empty() || !scored.is_empty() || has_ids;
        let content = has_content
            .then(|| content_chunk(format, Content { index, text, scored, ids, prompt_token_ids }));
        let calls = self.calls_chunk(index, take(&mut delta.calls));
        let finish = delta.finish.map(|finish| finish_chunk(format, index, finish));
        let plain = [content, calls, finish]
            .map(|choice| choice.map(|choice| Chunk { choice, prompt_token_ids: None }));
        std::iter::once(role).chain(plain).flatten()
    }

    /// The chunk with new parts of tool calls; `None` if there are none.
    fn calls_chunk(&self, index: usize, calls: Vec<ToolCallDelta>) -> Option<ChunkChoice> {
        if calls.is_empty() {
            return None;
        }
        let call = |call: ToolCallDelta| ToolCallWire {
            index: Some(call.call),
            id: call.name.is_some().then(|| self.call_id(index, call.call)),
            kind: call.name.is_some().then_some("function"),
            function: FunctionWire { name: call.name, arguments: call.arguments },
        };
        let tool_calls = calls.into_iter().map(call).collect();
        let delta = ChatDelta { tool_calls, ..ChatDelta::default() };
        Some(ChunkChoice::Chat(ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }))
    }

    /// The id of a tool call. Clients send it back with the result.
    pub(crate) fn call_id(&self, choice: usize, call: usize) -> String {
        let random = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{}{choice:x}_{call:x}", random.get(..24).unwrap_or(random))
    }

    /// The tokens under the names that the request asks for.
    fn named(&self, mut scored: Vec<Scored>) -> Vec<Scored> {
        if self.options.names_ids {
            for token in &mut scored {
                token.token = format!("token_id:{}", token.id);
                token.top.iter_mut().for_each(|other| other.token = format!("token_id:{}", other.id));
            }
        }
        scored
    }

    /// Appends the JSON of a chunk. `usage` is that of its choice so far. Everything except the choice is the
    /// same in every chunk; the part before the choice is built only once.
    pub(crate) fn write_chunk(&self, chunk: &Chunk, usage: Usage, out: &mut Vec<u8>) {
        out.extend_from_slice(self.chunk_head.as_bytes());
        write_json(&chunk.choice, out);
        out.push(b']');
        if let Some(ids) = &chunk.prompt_token_ids {
            out.extend_from_slice(b",\"prompt_token_ids\":");
            write_json(ids, out);
        }
        if self.options.continuous_usage {
            out.extend_from_slice(b",\"usage\":");
            write_json(&UsageWire::from(usage), out);
        } else if self.options.include_usage {
            out.extend_from_slice(b",\"usage\":null");
        }
        out.push(b'}');
    }

    /// Returns the JSON of the last chunk, which has the usage, the cost or both; `None` if neither was
    /// requested.
    pub(crate) fn final_chunk(&self, usage: Usage, cost: Cost) -> Option<String> {
        let usage = self.options.include_usage.then_some(Some(usage.into()));
        let cost = self.options.include_cost.then_some(cost.into());
        let any = usage.is_some() || cost.is_some();
        any.then(|| self.reply(true, Vec::<TextChoice>::new(), None, usage, cost))
    }

    /// Returns the JSON of a whole reply of `n` choices for each prompt.
    pub(crate) fn complete(
        &self,
        mut choices: Vec<CompleteChoice>,
        n: usize,
        usage: Usage,
        cost: Cost,
    ) -> String {
        let cached_tokens = if self.options.reproducible { 0 } else { usage.cached_tokens };
        let usage = Some(Some(Usage { cached_tokens, ..usage }.into()));
        let cost = self.options.include_cost.then_some(cost.into());
        let with_logprobs = self.options.logprobs;
        match self.format {
            ReplyFormat::Chat => {
                let prompt = choices.first_mut().and_then(|choice| choice.prompt.take());
                let chat = choices.into_iter().enumerate().map(|(index, choice)| ChatChoice {
                    index,
                    finish_reason: choice.finish_reason(),
                    message: self.message(index, choice.text, choice.calls),
                    logprobs: with_logprobs.then(|| self.named(choice.scored).into()),
                    token_ids: choice.ids,
                });
                self.reply(false, chat.collect(), prompt, usage, cost)
            }
            ReplyFormat::Text => {
                // The first choice of each prompt has the prompt's scores.
                let scores: Vec<_> =
                    choices.iter().step_by(n.max(1)).map(CompleteChoice::prompt_logprobs).collect();
                let text = choices.into_iter().enumerate().map(|(index, choice)| TextChoice {
                    index,
                    finish_reason: Some(choice.finish_reason()),
                    text: choice.text,
                    logprobs: with_logprobs.then(|| TextLogprobs::from(self.named(choice.scored))),
                    prompt_logprobs_sum: scores[index / n.max(1)].as_deref().map(logprobs_sum),
                    prompt_logprobs: scores[index / n.max(1)].clone(),
                    prompt_token_ids: choice.prompt.and_then(|prompt| prompt.ids),
                    token_ids: choice.ids,
                });
                self.reply(false, text.collect(), None, usage, cost)
            }
        }
    }

    fn message(&self, choice: usize, text: String, calls: Vec<ToolCallDelta>) -> Message {
        let call = |call: ToolCallDelta| ToolCallWire {
            index: None,
            id: Some(self.call_id(choice, call.call)),
            kind: Some("function"),
            function: FunctionWire { name: call.name, arguments: call.arguments },
        };
        let content = (!text.is_empty() || calls.is_empty()).then_some(text);
        let tool_calls = calls.into_iter().map(call).collect();
        Message { role: "assistant", content, refusal: None, tool_calls }
    }

    fn reply<C: Serialize>(
        &self,
        chunk: bool,
        choices: Vec<C>,
        prompt: Option<Box<PromptReport>>,
        usage: Option<Option<UsageWire>>,
        octant: Option<CostWire>,
    ) -> String {
        let (id, model, created) = (&self.id, &self.model, self.created);
        let object = self.format.object(chunk);
        let prompt_logprobs = prompt.as_ref().and_then(|prompt| prompt_logprobs(prompt));
        let prompt_token_ids = prompt.and_then(|prompt| prompt.ids);
        let reply = Reply {
            id,
            object,
            created,
            model,
            choices,
            prompt_logprobs_sum: prompt_logprobs.as_deref().map(logprobs_sum),
            prompt_logprobs,
            prompt_token_ids,
            usage,
            octant,
        };
        serde_json::to_string(&reply).expect("text and finite numbers can be written as JSON")
    }
}

/// A choice of a chunk, with the token ids of a chat's prompt beside it.
pub(crate) struct Chunk {
    choice: ChunkChoice,
    prompt_token_ids: Option<Arc<[u32]>>,
}

/// The content of a chunk.
struct Content {
    index: usize,
    text: String,
    scored: Vec<Scored>,
    ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Arc<[u32]>>,
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, value).expect("text and finite numbers can be written as JSON");
}

fn prompt_logprobs(prompt: &PromptReport) -> Option<Vec<Option<PromptToken>>> {
    Some(prompt.scores.as_ref()?.iter().map(|candidates| PromptToken::new(candidates)).collect())
}

/// The sum of the log-probabilities of a prompt's tokens.
fn logprobs_sum(tokens: &[Option<PromptToken>]) -> f32 {
    tokens.iter().flatten().map(|token| f64::from(token.logprob())).sum::<f64>() as f32
}

/// A choice of a whole reply, collected from its deltas.
#[derive(Default)]
pub(crate) struct CompleteChoice {
    text: String,
    calls: Vec<ToolCallDelta>,
    scored: Vec<Scored>,
    ids: Option<Vec<u32>>,
    prompt: Option<Box<PromptReport>>,
    finish: Option<FinishReason>,
}

impl CompleteChoice {
    /// Appends a delta of this choice.
    pub(crate) fn push(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        for part in delta.calls {
            match self.calls.get_mut(part.call) {
                Some(call) => call.arguments.push_str(&part.arguments),
                None => self.calls.push(part),
            }
        }
        self.scored.extend(delta.scored);
        if delta.prompt.as_ref().is_some_and(|prompt| prompt.ids.is_some()) {
            self.ids.get_or_insert_default();
        }
        self.ids.iter_mut().for_each(|ids| ids.extend(&delta.ids));
        self.prompt = delta.prompt.or(self.prompt.take());
        self.finish = delta.finish.or(self.finish);
    }

    fn prompt_logprobs(&self) -> Option<Vec<Option<PromptToken>>> {
        prompt_logprobs(self.prompt.as_deref()?)
    }

    fn finish_reason(&self) -> &'static str {
        self.finish.map_or("stop", FinishReason::as_str)
    }
}

fn content_chunk(format: ReplyFormat, content: Content) -> ChunkChoice {
    let Content { index, text, scored, ids: token_ids, prompt_token_ids } = content;
    let has_scores = !scored.is_empty();
    match format {
        ReplyFormat::Chat => {
            let delta = ChatDelta { content: Some(text), ..ChatDelta::default() };
            let logprobs = has_scores.then(|| scored.into());
            ChunkChoice::Chat(ChatChunkChoice { index, delta, logprobs, token_ids, finish_reason: None })
        }
        ReplyFormat::Text => {
            let logprobs = has_scores.then(|| scored.into());
            let choice =
                TextChoice { index, text, logprobs, token_ids, prompt_token_ids, ..TextChoice::default() };
            ChunkChoice::Text(choice)
        }
    }
}

fn finish_chunk(format: ReplyFormat, index: usize, finish: FinishReason) -> ChunkChoice {
    let finish_reason = Some(finish.as_str());
    match format {
        ReplyFormat::Chat => {
            ChunkChoice::Chat(ChatChunkChoice { index, finish_reason, ..ChatChunkChoice::default() })
        }
        ReplyFormat::Text => ChunkChoice::Text(TextChoice { index, finish_reason, ..TextChoice::default() }),
    }
}
