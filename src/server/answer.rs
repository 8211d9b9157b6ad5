//! What chat and text completions have in common: begin the generation before any header goes out, then answer whole
//! or in events. The two differ in the objects they write, which is what [`Kind`] decides.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::ServerState;
use super::error::ApiError;
use super::metrics::{AdmittedRequest, Tracker};
use super::reply::{
    ChatChoice, ChatChunkChoice, ChatDelta, CostWire, Message, Reply, TextChoice, TextLogprobs, UsageWire,
};
use super::sse;
use super::validate::ValidRequest;
use crate::engine::QueuePermit;
use crate::generation::{Delta, Failure, FinishReason, Generation, Refusal, Scored};

/// What the engine has to say of the cost of an aborted request comes with the next step, if any does.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Which objects an answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `chat.completion` and `chat.completion.chunk`.
    Chat,
    /// `text_completion`, whole and in chunks.
    Text,
}

/// What all parts of one answer say alike.
#[derive(Debug, Clone)]
pub struct Envelope {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    /// Whether scores were asked for.
    logprobs: bool,
    /// Whether chunks have a usage.
    include_usage: bool,
    /// Whether the answer ends with its cost.
    include_cost: bool,
    /// What every chunk begins with, up to its choices.
    chunk_head: String,
}

/// An admitted request on its way to a client.
pub struct Answer {
    /// What generates.
    pub generation: Generation,
    /// What its parts say alike.
    pub envelope: Envelope,
    /// What is measured of it, until it ends.
    tracker: Option<Tracker>,
    /// Tells the cause of a failure.
    pub state: Arc<ServerState>,
}

/// Answers a valid request: admission is decided before this returns, so that a refusal has its own status even where
/// the answer would be a stream.
///
/// # Errors
/// Whatever the request is refused or fails with.
pub async fn answer(
    state: Arc<ServerState>,
    mut place: QueuePermit,
    valid: ValidRequest,
    kind: Kind,
    request_id: String,
) -> Result<Response<Body>, ApiError> {
    let ignored = header_list(valid.ignored());
    let ValidRequest { model, ask, timeout: within, stream, include_usage, include_cost, logprobs, .. } =
        valid;
    if let Some(time) = within {
        place.due_within(time);
    }
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let id = format!("{prefix}-{:016x}{:016x}", random()?, random()?);
    let (key, payer) = state.metrics.key_counters(&state.keys.payer(&ask.tenant));
    place.bill_to(payer);
    let admitted = AdmittedRequest { id: id.clone(), request_id, key, arrived: Instant::now() };
    let envelope = Envelope { logprobs, include_usage, include_cost, ..Envelope::new(kind, id, model) };
    let generation = state.generator.start(place, ask).await.map_err(|refusal| {
        state.metrics.refused(&refusal);
        refused(&state, refusal, kind)
    })?;
    let tracker = Some(state.metrics.track(admitted, &generation));
    let answer = Answer { generation, envelope, tracker, state };
    let mut response = if stream { sse::respond(answer) } else { answer.whole().await? };
    if let Some(names) = ignored {
        response.headers_mut().insert("x-ignored-fields", names);
    }
    Ok(response)
}

impl Answer {
    /// As [`Generation::next`], measured.
    ///
    /// # Errors
    /// What the client is told of a failure.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        match self.generation.next().await? {
            Ok(delta) => {
                self.tracker.iter_mut().for_each(|tracker| tracker.delta(&delta));
                Some(Ok(delta))
            }
            Err(failure) => Some(Err(self.failed(failure))),
        }
    }

    /// Waits for all choices. Dropped where the client leaves, which aborts them.
    async fn whole(mut self) -> Result<Response<Body>, ApiError> {
        let mut choices: Vec<Whole> = (0..self.generation.choices()).map(|_| Whole::default()).collect();
        while let Some(step) = self.next().await {
            let delta = step?;
            let whole = &mut choices[delta.index];
            whole.text.push_str(&delta.text);
            whole.scored.extend(delta.scored);
            whole.finish = delta.finish.or(whole.finish);
        }
        let cost = self.generation.cost();
        let body = self.envelope.whole(choices, self.generation.usage().into(), cost.into());
        let mut response = Response::new(Body::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// What a failure means to the client: another server may do better only if this one is gone.
    fn failed(&mut self, failure: Failure) -> ApiError {
        self.tracker.iter_mut().for_each(|tracker| tracker.failed(&failure, self.generation.costs()));
        let Failure::Engine(reason) = failure else { return ApiError::DeadlineExceeded };
        if self.state.engine_is_gone() {
            ApiError::EngineFailed(reason)
        } else {
            tracing::error!(id = self.envelope.id, reason, "a request failed");
            ApiError::Internal(reason)
        }
    }
}

impl Drop for Answer {
    /// What it has cost is known at last when the engine has heard of its end, which nobody but the log waits for.
    fn drop(&mut self) {
        let Some(mut tracker) = self.tracker.take() else { return };
        tracker.end(self.generation.costs());
        let left = self.generation.leave();
        // Without a runtime the server ends, and the log has what is known.
        if let (false, Ok(runtime)) = (left.is_empty(), Handle::try_current()) {
            runtime.spawn(timeout(LAST_WORD, async move {
                for (index, choice) in left {
                    if let Some(cost) = choice.cost().await {
                        tracker.cost(index, cost);
                    }
                }
            }));
        }
    }
}

/// A choice, complete.
#[derive(Default)]
struct Whole {
    text: String,
    scored: Vec<Scored>,
    finish: Option<FinishReason>,
}

impl Envelope {
    fn new(kind: Kind, id: String, model: String) -> Self {
        let created = unix_time();
        let head = Self {
            kind,
            id,
            created,
            model,
            logprobs: false,
            include_usage: false,
            include_cost: false,
            chunk_head: String::new(),
        };
        let empty = head.reply(true, Vec::<TextChoice>::new(), None, None);
        let chunk_head =
            empty.strip_suffix("]}").expect("an object that ends with its empty list").to_owned();
        Self { chunk_head, ..head }
    }

    /// The events that a delta makes, added to what is to be sent: the role with the first token of a choice, what was
    /// generated, and the finish on its own. `begun` is the choice's.
    pub fn write(&self, delta: Delta, begun: &mut bool, out: &mut Vec<u8>) {
        let (index, finish) = (delta.index, delta.finish);
        if !*begun && (delta.tokens > 0 || finish.is_some()) {
            *begun = true;
            if self.kind == Kind::Chat {
                let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
                self.write_chat(index, delta, Vec::new(), None, out);
            }
        }
        if !delta.text.is_empty() || !delta.scored.is_empty() {
            match self.kind {
                Kind::Chat => {
                    let text = ChatDelta { role: None, content: Some(delta.text) };
                    self.write_chat(index, text, delta.scored, None, out);
                }
                Kind::Text => self.write_text(index, delta.text, delta.scored, None, out),
            }
        }
        if finish.is_some() {
            match self.kind {
                Kind::Chat => self.write_chat(index, ChatDelta::default(), Vec::new(), finish, out),
                Kind::Text => self.write_text(index, String::new(), Vec::new(), finish, out),
            }
        }
    }

    /// The chunk that only says the usage, or the cost, if either was asked for.
    pub fn last_chunk(&self, usage: UsageWire, cost: CostWire) -> Option<String> {
        let usage = self.include_usage.then_some(Some(usage));
        let cost = self.include_cost.then_some(cost);
        let any = usage.is_some() || cost.is_some();
        any.then(|| self.reply(true, Vec::<TextChoice>::new(), usage, cost))
    }

    fn write_chat(
        &self,
        index: usize,
        delta: ChatDelta,
        scored: Vec<Scored>,
        finish: Option<FinishReason>,
        out: &mut Vec<u8>,
    ) {
        let logprobs = (!scored.is_empty()).then(|| scored.into());
        let finish_reason = finish.map(FinishReason::as_str);
        self.write_chunk(&ChatChunkChoice { index, delta, logprobs, finish_reason }, out);
    }

    fn write_text(
        &self,
        index: usize,
        text: String,
        scored: Vec<Scored>,
        finish: Option<FinishReason>,
        out: &mut Vec<u8>,
    ) {
        let logprobs = (!scored.is_empty()).then(|| scored.into());
        let finish_reason = finish.map(FinishReason::as_str);
        self.write_chunk(&TextChoice { index, text, logprobs, finish_reason }, out);
    }

    /// One chunk as an event. All but its choice is the same in all, and written once.
    fn write_chunk<C: Serialize>(&self, choice: &C, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(self.chunk_head.as_bytes());
        serde_json::to_writer(&mut *out, choice).expect("text and finite numbers can be written as JSON");
        let end: &[u8] = if self.include_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        out.extend_from_slice(end);
    }

    fn whole(&self, choices: Vec<Whole>, usage: UsageWire, cost: CostWire) -> String {
        let (usage, cost) = (Some(Some(usage)), self.include_cost.then_some(cost));
        let finish = |whole: &Whole| whole.finish.map_or("stop", FinishReason::as_str);
        let choices = choices.into_iter().enumerate();
        match self.kind {
            Kind::Chat => {
                let chat = choices.map(|(index, whole)| ChatChoice {
                    index,
                    finish_reason: finish(&whole),
                    message: Message { role: "assistant", content: whole.text, refusal: None },
                    logprobs: self.logprobs.then(|| whole.scored.into()),
                });
                self.reply(false, chat.collect(), usage, cost)
            }
            Kind::Text => {
                let text = choices.map(|(index, whole)| TextChoice {
                    index,
                    finish_reason: Some(finish(&whole)),
                    text: whole.text,
                    logprobs: self.logprobs.then(|| TextLogprobs::from(whole.scored)),
                });
                self.reply(false, text.collect(), usage, cost)
            }
        }
    }

    fn reply<C: Serialize>(
        &self,
        chunk: bool,
        choices: Vec<C>,
        usage: Option<Option<UsageWire>>,
        octant: Option<CostWire>,
    ) -> String {
        let object = match (self.kind, chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Text, _) => "text_completion",
        };
        let (id, model, created) = (&self.id, &self.model, self.created);
        let reply = Reply { id, object, created, model, choices, usage, octant };
        serde_json::to_string(&reply).expect("text and finite numbers can be written as JSON")
    }
}

/// What a refusal means to a client.
pub fn refused(state: &ServerState, refusal: Refusal, kind: Kind) -> ApiError {
    let param = if kind == Kind::Chat { "messages" } else { "prompt" };
    match refusal {
        Refusal::TooLong { prompt, completion, limit } => {
            ApiError::ContextLength { param, limit, prompt, completion }
        }
        Refusal::TooManyBytes { bytes, limit } => ApiError::ContextBytes { param, limit, bytes },
        Refusal::Rejected(reject) => {
            ApiError::from_reject(reject, param).or_retry_after(state.generator.engine().retry_after())
        }
        Refusal::MinTokens { .. } => ApiError::invalid("min_tokens", refusal.to_string()),
        Refusal::Internal(_) => ApiError::Internal(refusal.to_string()),
        Refusal::NoTemplate | Refusal::Text(_) | Refusal::EmptyPrompt => {
            ApiError::invalid(param, refusal.to_string())
        }
    }
}

/// 64 bits from the operating system.
///
/// # Errors
/// 500 where it has none to give.
pub fn random() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|_| ApiError::Internal("the system has no randomness".to_owned()))
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Names for a header: what a client sent, so of bounded length and harmless characters.
fn header_list(names: &[String]) -> Option<HeaderValue> {
    const MOST: usize = 32;
    let tame = |name: &String| -> String {
        name.chars().take(64).map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).collect()
    };
    let list: Vec<String> = names.iter().take(MOST).map(tame).collect();
    if list.is_empty() { None } else { HeaderValue::from_str(&list.join(",")).ok() }
}
