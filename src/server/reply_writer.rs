//! Writes the reply of a generation in the form of its protocol: whole, or as server-sent events.

use std::borrow::Cow;

use super::anthropic::builder::{MessageBuilder, PING};
use super::error::ApiError;
use super::reply_builder::{CompleteChoice, ReplyBuilder, ReplyFormat, ReplyOptions};
use super::responses::builder::ResponseBuilder;
use super::responses::reply::RequestEcho;
use super::reward::writer::{ScorePlan, ScoreWriter};
use super::system::unix_time;
use crate::generation::{Cost, Delta, Usage};

/// The kind of a reply, with what it repeats of the request.
#[derive(Debug)]
pub(crate) enum ReplyKind {
    /// A chat or text completion.
    Completion(ReplyFormat),
    /// A response of OpenAI's Responses API.
    Response(Box<RequestEcho>),
    /// A message of Anthropic's Messages API, with at most this number of tokens.
    Message(u32),
    /// Scores of a reward model.
    Score(Box<ScorePlan>),
}

/// Paths of the request's fields that hold the prompts, for error messages.
pub(crate) struct PromptPaths {
    /// The path of each prompt, or one path for all of them.
    paths: Vec<Cow<'static, str>>,
}

impl PromptPaths {
    /// The path of a prompt, or of the first one.
    pub(crate) fn of(&self, index: Option<usize>) -> &str {
        let path = index.and_then(|index| self.paths.get(index)).or(self.paths.first());
        path.map_or("", |path| path)
    }
}

impl ReplyKind {
    /// The beginning of a reply's id.
    pub(crate) fn id_prefix(&self) -> &'static str {
        match self {
            Self::Completion(ReplyFormat::Chat) => "chatcmpl-",
            Self::Completion(ReplyFormat::Text) => "cmpl-",
            Self::Response(_) => "resp_",
            Self::Message(_) => "msg_",
            Self::Score(plan) => plan.form.id_prefix(),
        }
    }

    /// Paths of the request's fields that hold the prompts.
    pub(crate) fn prompt_paths(&self) -> PromptPaths {
        let one = match self {
            Self::Completion(format) => format.prompt_param(),
            Self::Response(_) => "input",
            Self::Message(_) => "messages",
            Self::Score(plan) => {
                return PromptPaths { paths: plan.paths().map(|path| path.to_owned().into()).collect() };
            }
        };
        PromptPaths { paths: vec![one.into()] }
    }
}

/// Writes one reply.
pub(crate) enum ReplyWriter {
    Completion(CompletionWriter),
    Response(Box<ResponseBuilder>),
    Message(Box<MessageBuilder>),
    Score(Box<ScoreWriter>),
}

/// Writes a chat or text completion.
pub(crate) struct CompletionWriter {
    builder: ReplyBuilder,
    /// For each choice, whether a chunk with its role has been written, and the number of its tokens so far.
    written: Vec<(bool, usize)>,
    /// The choices of a whole reply.
    choices: Vec<CompleteChoice>,
}

impl ReplyWriter {
    /// `options` are those of a chat or text completion.
    pub(crate) fn new(kind: ReplyKind, id: String, model: String, options: ReplyOptions) -> Self {
        let created = if options.reproducible { 0 } else { unix_time() };
        match kind {
            ReplyKind::Completion(format) => {
                let builder = ReplyBuilder::new(format, id, created, model, options);
                Self::Completion(CompletionWriter { builder, written: Vec::new(), choices: Vec::new() })
            }
            ReplyKind::Response(echo) => {
                Self::Response(Box::new(ResponseBuilder::new(id, created, model, *echo)))
            }
            ReplyKind::Message(most) => Self::Message(Box::new(MessageBuilder::new(id, model, most))),
            ReplyKind::Score(plan) => Self::Score(Box::new(ScoreWriter {
                plan: *plan,
                id,
                created,
                model,
                include_cost: options.include_cost,
                reproducible: options.reproducible,
                values: Vec::new(),
            })),
        }
    }

    /// The reply's id.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Completion(writer) => writer.builder.id(),
            Self::Response(builder) => builder.id(),
            Self::Message(builder) => builder.id(),
            Self::Score(writer) => &writer.id,
        }
    }

    /// Writes the events that precede the answer.
    pub(crate) fn begin(&mut self, usage: Usage, out: &mut Vec<u8>) {
        match self {
            // The validation refuses streams of scores.
            Self::Completion(_) | Self::Score(_) => {}
            Self::Response(builder) => builder.begin(out),
            Self::Message(builder) => builder.begin(usage, out),
        }
    }

    /// Writes the events of a delta. `prompt` is the usage of its choice before the answer.
    pub(crate) fn delta(&mut self, delta: Delta, prompt: Usage, out: &mut Vec<u8>) {
        match self {
            Self::Completion(writer) => writer.delta(delta, prompt, out),
            Self::Response(builder) => builder.push(delta, Some(out)),
            Self::Message(builder) => builder.push(delta, Some(out)),
            Self::Score(writer) => writer.collect(&delta),
        }
    }

    /// Writes the events at the end of a complete answer.
    pub(crate) fn end(&mut self, usage: Usage, cost: Cost, out: &mut Vec<u8>) {
        match self {
            Self::Completion(writer) => {
                if let Some(chunk) = writer.builder.final_chunk(usage, cost) {
                    write_data(&chunk, out);
                }
                write_data("[DONE]", out);
            }
            Self::Response(builder) => {
                builder.end(usage, unix_time(), Some(out));
            }
            Self::Message(builder) => {
                builder.end(usage, Some(out));
            }
            Self::Score(writer) => write_data(&writer.whole(usage, cost), out),
        }
    }

    /// Writes the last event of an answer that failed. Returns whether the event ends the stream as one of
    /// its protocol. Otherwise the connection must end without the last chunk of the HTTP body.
    pub(crate) fn failed(&mut self, error: &ApiError, usage: Usage, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Completion(_) | Self::Score(_) => {
                write_data(&error.to_json(), out);
                false
            }
            Self::Response(builder) => {
                builder.failed(error, usage, out);
                true
            }
            Self::Message(builder) => {
                builder.failed(error, out);
                false
            }
        }
    }

    /// Collects a delta of a whole reply.
    pub(crate) fn collect(&mut self, delta: Delta) {
        match self {
            Self::Completion(writer) => writer.collect(delta),
            Self::Response(builder) => builder.push(delta, None),
            Self::Message(builder) => builder.push(delta, None),
            Self::Score(writer) => writer.collect(&delta),
        }
    }

    /// The JSON of the whole reply, which has `n` choices for each prompt.
    pub(crate) fn whole(&mut self, n: usize, usage: Usage, cost: Cost) -> String {
        match self {
            Self::Completion(writer) => {
                writer.builder.complete(std::mem::take(&mut writer.choices), n, usage, cost)
            }
            Self::Response(builder) => builder.end(usage, unix_time(), None),
            Self::Message(builder) => builder.end(usage, None),
            Self::Score(writer) => writer.whole(usage, cost),
        }
    }

    /// The bytes that a stream without news gets, so that no proxy closes it as idle.
    pub(crate) fn keep_alive(&self) -> &'static [u8] {
        match self {
            Self::Completion(_) | Self::Response(_) | Self::Score(_) => b": keep-alive\n\n",
            Self::Message(_) => PING,
        }
    }
}

impl CompletionWriter {
    fn delta(&mut self, delta: Delta, prompt: Usage, out: &mut Vec<u8>) {
        let Self { builder, written, .. } = self;
        if written.len() <= delta.index {
            written.resize(delta.index + 1, (false, 0));
        }
        let (role_sent, completion_tokens) = &mut written[delta.index];
        *completion_tokens += delta.tokens as usize;
        let usage = Usage { completion_tokens: *completion_tokens, ..prompt };
        for chunk in builder.chunks(delta, role_sent) {
            out.extend_from_slice(b"data: ");
            builder.write_chunk(&chunk, usage, out);
            out.extend_from_slice(b"\n\n");
        }
    }

    fn collect(&mut self, delta: Delta) {
        if self.choices.len() <= delta.index {
            self.choices.resize_with(delta.index + 1, CompleteChoice::default);
        }
        self.choices[delta.index].push(delta);
    }
}

fn write_data(data: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}
