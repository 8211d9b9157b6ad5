//! Builds the JSON of a chat or text completion from generated deltas: one whole reply, or chunks. The caller
//! sends the JSON and frames the chunks of a stream.

use std::mem::take;

use serde::Serialize;

use super::reply::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChunkChoice, CostWire, FunctionWire, Message, Reply, TextChoice,
    TextLogprobs, ToolCallWire, UsageWire,
};
use crate::generation::{Cost, Delta, FinishReason, Scored, Usage};
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
    /// The reply ends with the request's cost.
    pub(crate) include_cost: bool,
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
        let empty = builder.reply(true, Vec::<TextChoice>::new(), None, None);
        let head = empty.strip_suffix("]}").expect("a reply ends with its empty list of choices");
        builder.chunk_head = head.to_owned();
        builder
    }

    /// The reply's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the chunks for a delta, at most four: the role, if a chat's choice begins; the text with its
    /// log-probabilities; tool calls; and the finish reason. `role_sent` belongs to the delta's choice, is false
    /// at first, and is set when the choice begins.
    pub(crate) fn chunks(
        &self,
        mut delta: Delta,
        role_sent: &mut bool,
    ) -> impl Iterator<Item = ChunkChoice> + use<> {
        let (index, format) = (delta.index, self.format);
        let mut role = None;
        if !*role_sent && (delta.tokens > 0 || delta.finish.is_some()) {
            *role_sent = true;
            role = (format == ReplyFormat::Chat).then(|| {
                let content = Some(String::new());
                let delta = ChatDelta { role: Some("assistant"), content, ..ChatDelta::default() };
                ChunkChoice::Chat(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })
            });
        }
        let (text, scored) = (take(&mut delta.text), take(&mut delta.scored));
        let has_content = !text.is_empty() || !scored.is_empty();
        let content = has_content.then(|| content_chunk(format, index, text, scored));
        let calls = take(&mut delta.calls);
        let calls = (!calls.is_empty()).then(|| {
            let call = |call: ToolCallDelta| ToolCallWire {
                index: Some(call.call),
                id: call.name.is_some().then(|| self.call_id(index, call.call)),
                kind: call.name.is_some().then_some("function"),
                function: FunctionWire { name: call.name, arguments: call.arguments },
            };
            let tool_calls = calls.into_iter().map(call).collect();
            let delta = ChatDelta { tool_calls, ..ChatDelta::default() };
            ChunkChoice::Chat(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })
        });
        let finish = delta.finish.map(|finish| finish_chunk(format, index, finish));
        [role, content, calls, finish].into_iter().flatten()
    }

    /// The id of a tool call. Clients send it back with the result.
    pub(crate) fn call_id(&self, choice: usize, call: usize) -> String {
        let random = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{}{choice:x}_{call:x}", random.get(..24).unwrap_or(random))
    }

    /// Appends the JSON of a chunk. Everything except the choice is the same in every chunk; the part before
    /// the choice is built only once.
    pub(crate) fn write_chunk(&self, choice: &ChunkChoice, out: &mut Vec<u8>) {
        out.extend_from_slice(self.chunk_head.as_bytes());
        serde_json::to_writer(&mut *out, choice).expect("text and finite numbers can be written as JSON");
        let end: &[u8] = if self.options.include_usage { b"],\"usage\":null}" } else { b"]}" };
        out.extend_from_slice(end);
    }

    /// Returns the JSON of the last chunk, which has the usage, the cost or both; `None` if neither was
    /// requested.
    pub(crate) fn final_chunk(&self, usage: Usage, cost: Cost) -> Option<String> {
        let usage = self.options.include_usage.then_some(Some(usage.into()));
        let cost = self.options.include_cost.then_some(cost.into());
        let any = usage.is_some() || cost.is_some();
        any.then(|| self.reply(true, Vec::<TextChoice>::new(), usage, cost))
    }

    /// Returns the JSON of a whole reply.
    pub(crate) fn complete(&self, choices: Vec<CompleteChoice>, usage: Usage, cost: Cost) -> String {
        let (usage, cost) = (Some(Some(usage.into())), self.options.include_cost.then_some(cost.into()));
        let with_logprobs = self.options.logprobs;
        let choices = choices.into_iter().enumerate();
        match self.format {
            ReplyFormat::Chat => {
                let chat = choices.map(|(index, choice)| ChatChoice {
                    index,
                    finish_reason: choice.finish_reason(),
                    message: self.message(index, choice.text, choice.calls),
                    logprobs: with_logprobs.then(|| choice.scored.into()),
                });
                self.reply(false, chat.collect(), usage, cost)
            }
            ReplyFormat::Text => {
                let text = choices.map(|(index, choice)| TextChoice {
                    index,
                    finish_reason: Some(choice.finish_reason()),
                    text: choice.text,
                    logprobs: with_logprobs.then(|| TextLogprobs::from(choice.scored)),
                });
                self.reply(false, text.collect(), usage, cost)
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
        usage: Option<Option<UsageWire>>,
        octant: Option<CostWire>,
    ) -> String {
        let (id, model, created) = (&self.id, &self.model, self.created);
        let object = self.format.object(chunk);
        let reply = Reply { id, object, created, model, choices, usage, octant };
        serde_json::to_string(&reply).expect("text and finite numbers can be written as JSON")
    }
}

/// A choice of a whole reply, collected from its deltas.
#[derive(Default)]
pub(crate) struct CompleteChoice {
    text: String,
    calls: Vec<ToolCallDelta>,
    scored: Vec<Scored>,
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
        self.finish = delta.finish.or(self.finish);
    }

    fn finish_reason(&self) -> &'static str {
        self.finish.map_or("stop", FinishReason::as_str)
    }
}

fn content_chunk(format: ReplyFormat, index: usize, text: String, scored: Vec<Scored>) -> ChunkChoice {
    let has_scores = !scored.is_empty();
    match format {
        ReplyFormat::Chat => {
            let delta = ChatDelta { content: Some(text), ..ChatDelta::default() };
            let logprobs = has_scores.then(|| scored.into());
            ChunkChoice::Chat(ChatChunkChoice { index, delta, logprobs, finish_reason: None })
        }
        ReplyFormat::Text => {
            let logprobs = has_scores.then(|| scored.into());
            ChunkChoice::Text(TextChoice { index, text, logprobs, finish_reason: None })
        }
    }
}

fn finish_chunk(format: ReplyFormat, index: usize, finish: FinishReason) -> ChunkChoice {
    let finish_reason = Some(finish.as_str());
    match format {
        ReplyFormat::Chat => {
            let delta = ChatDelta::default();
            ChunkChoice::Chat(ChatChunkChoice { index, delta, logprobs: None, finish_reason })
        }
        ReplyFormat::Text => {
            ChunkChoice::Text(TextChoice { index, text: String::new(), logprobs: None, finish_reason })
        }
    }
}
