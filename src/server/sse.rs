//! An answer as server-sent events: `data: {json}`, an empty line, and at the end `data: [DONE]`.
//!
//! The connection pulls events one by one. A client that reads slowly stops the pull and nobody else: the engine
//! never waits, and what it has produced meanwhile waits as tokens, at most `max_tokens` of them. A client that has
//! gone has its connection dropped, with it the answer, and with that its requests are aborted.
//!
//! A failure after the headers is an event with an `error`, and then the connection ends without `[DONE]` and without
//! the mark of a complete body, so that no client can take it for success.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use tokio::time::{Instant, Sleep};

use super::answer::Answer;
use super::error::ApiError;
use crate::generation::Delta;

/// Between the error event and the break of the connection, so that the event is out by then.
const FLUSH: Duration = Duration::from_millis(50);

/// Bytes that go out at once at most, where a client is behind.
const MOST: usize = 16 << 10;

/// A response whose body is the answer's events.
pub fn respond(answer: Answer) -> Response<Body> {
    let begun = vec![false; answer.generation.choices()];
    let quiet = answer.state.settings.http.keep_alive;
    let alarm = Box::pin(tokio::time::sleep(quiet));
    let events = Events { answer, begun, stage: Stage::Running, quiet, alarm, last: Instant::now() };
    let body = Body::from_stream(stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((event, events))
    }));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

enum Stage {
    Running,
    Failed,
    Ended,
}

struct Events {
    answer: Answer,
    /// Which choices have had their first token.
    begun: Vec<bool>,
    stage: Stage,
    /// After this long without an event a comment goes out, so that nothing between us and the client hangs up.
    quiet: Duration,
    /// Rings at the earliest when it has been quiet for so long: it is not set anew for every event.
    alarm: Pin<Box<Sleep>>,
    /// When the last events went out.
    last: Instant,
}

impl Events {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.stage {
            Stage::Running => {
                let events = self.run().await;
                self.last = Instant::now();
                Some(Ok(events))
            }
            Stage::Failed => {
                tokio::time::sleep(FLUSH).await;
                self.stage = Stage::Ended;
                Some(Err(io::Error::other("the answer failed after its headers")))
            }
            Stage::Ended => None,
        }
    }

    /// All events that are due, once there is one; those of several tokens if the client is behind.
    async fn run(&mut self) -> Bytes {
        let mut out = Vec::with_capacity(512);
        loop {
            // The waits hold nothing: a token that comes just when the alarm rings is there on the next call.
            tokio::select! {
                biased;
                step = self.answer.next() => self.take(step, &mut out),
                () = &mut self.alarm => {
                    let due = self.last + self.quiet;
                    if Instant::now() >= due {
                        self.alarm.as_mut().reset(Instant::now() + self.quiet);
                        return Bytes::from_static(b": keep-alive\n\n");
                    }
                    self.alarm.as_mut().reset(due);
                }
            }
            while matches!(self.stage, Stage::Running)
                && out.len() < MOST
                && let Some(step) = self.answer.next().now_or_never()
            {
                self.take(step, &mut out);
            }
            // Tokens whose text is not certain yet make no event.
            if !out.is_empty() {
                return Bytes::from(out);
            }
        }
    }

    /// Writes the events of what came.
    fn take(&mut self, step: Option<Result<Delta, ApiError>>, out: &mut Vec<u8>) {
        match step {
            Some(Ok(delta)) => {
                let begun = &mut self.begun[delta.index];
                self.answer.envelope.write(delta, begun, out);
            }
            Some(Err(error)) => {
                write_event(&error.to_json(), out);
                self.stage = Stage::Failed;
            }
            None => {
                let (usage, cost) = (self.answer.generation.usage(), self.answer.generation.cost());
                if let Some(chunk) = self.answer.envelope.last_chunk(usage.into(), cost.into()) {
                    write_event(&chunk, out);
                }
                write_event("[DONE]", out);
                self.stage = Stage::Ended;
            }
        }
    }
}

fn write_event(data: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}
