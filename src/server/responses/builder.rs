//! Builds a response from the deltas of an answer: its output items, and the events of a stream.
//!
//! A text and each call are an item of their own, in the order in which the model wrote them. Only the last
//! item is open; it is closed when the next one begins or the answer ends.

use super::reply::{
    IncompleteDetails, NumberedEvent, OutputItem, OutputText, RequestEcho, ResponseError, ResponseEvent,
    ResponseReply,
};
use crate::generation::{AnswerPart, Delta, FinishReason, Scored, Usage};
use crate::server::error::ApiError;
use crate::server::reply::{ChatLogprobs, ChatToken};
use crate::tools::ToolCallDelta;

/// Builds one response.
pub(crate) struct ResponseBuilder {
    /// The response without its output.
    reply: ResponseReply,
    items: Vec<OutputItem>,
    /// Whether the last item is open.
    open: bool,
    /// Log-probabilities of tokens whose text the parser of tool calls holds back.
    held: Vec<ChatToken>,
    finish: Option<FinishReason>,
    /// Number of the next event.
    next_event: u64,
    /// Whether nothing in the response depends on the time or on other requests.
    reproducible: bool,
}

/// Where events are written; `None` if the reply is whole.
pub(crate) type Events<'a> = Option<&'a mut Vec<u8>>;

impl ResponseBuilder {
    /// A `reproducible` response says neither when it ended nor how much of its prompt was cached.
    pub(crate) fn new(
        id: String,
        created_at: u64,
        model: String,
        request: RequestEcho,
        reproducible: bool,
    ) -> Self {
        let reply = ResponseReply {
            id,
            object: "response",
            created_at,
            completed_at: None,
            status: "in_progress",
            error: None,
            incomplete_details: None,
            model,
            output: Vec::new(),
            usage: None,
            request,
        };
        let (items, held) = (Vec::new(), Vec::new());
        Self { reply, items, open: false, held, finish: None, next_event: 0, reproducible }
    }

    /// The response's id.
    pub(crate) fn id(&self) -> &str {
        &self.reply.id
    }

    /// Writes the events that precede the answer.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        let mut events = Some(out);
        emit(&mut events, &mut self.next_event, ResponseEvent::Created { response: &self.reply });
        emit(&mut events, &mut self.next_event, ResponseEvent::InProgress { response: &self.reply });
    }

    /// Adds a delta.
    pub(crate) fn push(&mut self, mut delta: Delta, mut events: Events<'_>) {
        self.held.extend(tokens(std::mem::take(&mut delta.scored)));
        for part in delta.take_parts() {
            match part {
                AnswerPart::Text(text) => self.text(&text, &mut events),
                AnswerPart::Call(call) => self.call(call, &mut events),
            }
        }
        self.finish = delta.finish.or(self.finish);
    }

    /// Ends the answer. Returns the JSON of the whole response.
    pub(crate) fn end(&mut self, usage: Usage, now: u64, mut events: Events<'_>) -> String {
        // An answer without text is an empty message.
        if self.items.is_empty() {
            self.text("", &mut events);
        }
        let cut = self.finish == Some(FinishReason::Length);
        self.close(if cut { "incomplete" } else { "completed" }, &mut events);
        self.finished(usage, if cut { "incomplete" } else { "completed" });
        if cut {
            self.reply.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        } else {
            self.reply.completed_at = Some(if self.reproducible { 0 } else { now });
        }
        let response = &self.reply;
        let event =
            if cut { ResponseEvent::Incomplete { response } } else { ResponseEvent::Completed { response } };
        emit(&mut events, &mut self.next_event, event);
        serde_json::to_string(response).expect("text and finite numbers can be written as JSON")
    }

    /// Writes the last event of an answer that failed.
    pub(crate) fn failed(&mut self, error: &ApiError, usage: Usage, out: &mut Vec<u8>) {
        if let (true, Some(OutputItem::Message { status, .. } | OutputItem::FunctionCall { status, .. })) =
            (self.open, self.items.last_mut())
        {
            *status = "incomplete";
        }
        self.finished(usage, "failed");
        self.reply.error = Some(ResponseError { code: "server_error", message: error.message() });
        let event = ResponseEvent::Failed { response: &self.reply };
        emit(&mut Some(out), &mut self.next_event, event);
    }

    fn finished(&mut self, usage: Usage, status: &'static str) {
        self.reply.status = status;
        let cached_tokens = if self.reproducible { 0 } else { usage.cached_tokens };
        let usage = Usage { cached_tokens, ..usage };
        self.reply.usage = Some(usage.into());
        self.reply.output = std::mem::take(&mut self.items);
    }

    /// Adds text to the open message, or begins one.
    fn text(&mut self, new: &str, events: &mut Events<'_>) {
        let is_open = self.open && matches!(self.items.last(), Some(OutputItem::Message { .. }));
        if !is_open {
            self.open_message(events);
        }
        let scored = std::mem::take(&mut self.held);
        let output_index = self.items.len() - 1;
        let Some(OutputItem::Message { id, content, .. }) = self.items.last_mut() else { return };
        let Some(part) = content.last_mut() else { return };
        if !new.is_empty() {
            let delta = ResponseEvent::TextDelta {
                item_id: id,
                output_index,
                content_index: 0,
                delta: new,
                logprobs: &scored,
            };
            emit(events, &mut self.next_event, delta);
        }
        part.text.push_str(new);
        part.logprobs.extend(scored);
    }

    fn open_message(&mut self, events: &mut Events<'_>) {
        self.close("completed", events);
        let output_index = self.items.len();
        let id = format!("msg_{}_{output_index}", self.random());
        let mut item =
            OutputItem::Message { id, status: "in_progress", role: "assistant", content: Vec::new() };
        emit(events, &mut self.next_event, ResponseEvent::ItemAdded { output_index, item: &item });
        if let OutputItem::Message { id, content, .. } = &mut item {
            let part = OutputText { kind: "output_text", ..OutputText::default() };
            let added = ResponseEvent::PartAdded { item_id: id, output_index, content_index: 0, part: &part };
            emit(events, &mut self.next_event, added);
            content.push(part);
        }
        self.items.push(item);
        self.open = true;
    }

    /// Adds a part of a call to the open one, or begins one if the part has a name.
    fn call(&mut self, part: ToolCallDelta, events: &mut Events<'_>) {
        // Log-probabilities are those of text alone.
        self.held.clear();
        if let Some(name) = part.name {
            self.close("completed", events);
            let output_index = self.items.len();
            let (id, call_id) = (
                format!("fc_{}_{output_index}", self.random()),
                format!("call_{}_{}", self.random(), part.call),
            );
            let status = "in_progress";
            let item = OutputItem::FunctionCall { id, status, call_id, name, arguments: String::new() };
            emit(events, &mut self.next_event, ResponseEvent::ItemAdded { output_index, item: &item });
            self.items.push(item);
            self.open = true;
        }
        let output_index = self.items.len().saturating_sub(1);
        let Some(OutputItem::FunctionCall { id, arguments, .. }) = self.items.last_mut() else { return };
        if !part.arguments.is_empty() {
            let delta = ResponseEvent::ArgumentsDelta { item_id: id, output_index, delta: &part.arguments };
            emit(events, &mut self.next_event, delta);
            arguments.push_str(&part.arguments);
        }
    }

    /// Closes the open item, if there is one.
    fn close(&mut self, end: &'static str, events: &mut Events<'_>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let (output_index, content_index) = (self.items.len() - 1, 0);
        let (next, Some(item)) = (&mut self.next_event, self.items.last_mut()) else { return };
        match item {
            OutputItem::Message { id, status, content, .. } => {
                *status = end;
                for part in content.iter() {
                    let OutputText { text, logprobs, .. } = part;
                    let item_id = id.as_str();
                    let done =
                        ResponseEvent::TextDone { item_id, output_index, content_index, text, logprobs };
                    emit(events, next, done);
                    emit(
                        events,
                        next,
                        ResponseEvent::PartDone { item_id, output_index, content_index, part },
                    );
                }
            }
            OutputItem::FunctionCall { id, status, name, arguments, .. } => {
                *status = end;
                let done = ResponseEvent::ArgumentsDone { item_id: id, output_index, name, arguments };
                emit(events, next, done);
            }
        }
        emit(events, next, ResponseEvent::ItemDone { output_index, item });
    }

    /// The random part of the response's id.
    fn random(&self) -> &str {
        let random = self.reply.id.rsplit('_').next().unwrap_or_default();
        random.get(..24).unwrap_or(random)
    }
}

fn tokens(scored: Vec<Scored>) -> Vec<ChatToken> {
    ChatLogprobs::from(scored).content
}

/// Writes an event with the next number.
fn emit(events: &mut Events<'_>, next: &mut u64, event: ResponseEvent<'_>) {
    let Some(out) = events else { return };
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.name().as_bytes());
    out.extend_from_slice(b"\ndata: ");
    let numbered = NumberedEvent { event, sequence_number: *next };
    serde_json::to_writer(&mut **out, &numbered).expect("text and finite numbers can be written as JSON");
    out.extend_from_slice(b"\n\n");
    *next += 1;
}
