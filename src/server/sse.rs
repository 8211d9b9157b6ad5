//! A reply as server-sent events, which `reply_writer` writes: for chat and text completions `data: {json}`
//! and an empty line for each chunk, and `data: [DONE]` at the end.
//!
//! The connection asks for one piece of the body after another. If a client reads slowly, the connection
//! stops asking. The engine does not wait for the client: the request's tokens are buffered, at most
//! `max_tokens` per choice. If a client disconnects, the connection drops the body and with it the
//! generation, which aborts the request.
//!
//! A failure after the headers is sent as an event with an `error` object. The connection then ends without
//! `[DONE]` and without the last chunk of the HTTP body, so that no client takes it for a complete reply. A
//! response of the Responses API ends with an event of its own instead, which no client can mistake.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::generate::TrackedGeneration;
use crate::generation::Delta;

/// Time between the error event and the end of the connection, in which the event is sent.
const ERROR_FLUSH: Duration = Duration::from_millis(50);

/// Bytes after which no further events are added to a piece of the body, if the client is behind.
const MAX_PIECE: usize = 16 << 10;

/// Returns a response whose body is the generation's events. After `keep_alive` without an event the server
/// sends a comment, so that no proxy between server and client closes the connection as idle.
pub(crate) fn respond(generation: TrackedGeneration, keep_alive: Duration) -> Response<Body> {
    let events = EventStream {
        generation,
        stage: StreamStage::Beginning,
        keep_alive,
        timer: Box::pin(tokio::time::sleep(keep_alive)),
        last_sent: Instant::now(),
    };
    let body = Body::from_stream(stream::unfold(events, |mut events| async {
        let piece = events.next_piece().await?;
        Some((piece, events))
    }));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

enum StreamStage {
    Beginning,
    Running,
    Failed,
    Ended,
}

struct EventStream {
    generation: TrackedGeneration,
    stage: StreamStage,
    keep_alive: Duration,
    /// Fires at or before `last_sent + keep_alive`. To reset the timer for every event would cost more.
    timer: Pin<Box<Sleep>>,
    last_sent: Instant,
}

impl EventStream {
    async fn next_piece(&mut self) -> Option<io::Result<Bytes>> {
        match self.stage {
            StreamStage::Beginning => {
                self.stage = StreamStage::Running;
                let mut events = Vec::new();
                self.generation.write_begin(&mut events);
                if events.is_empty() {
                    events = self.next_events().await.into();
                }
                self.last_sent = Instant::now();
                Some(Ok(Bytes::from(events)))
            }
            StreamStage::Running => {
                let events = self.next_events().await;
                self.last_sent = Instant::now();
                Some(Ok(events))
            }
            StreamStage::Failed => {
                tokio::time::sleep(ERROR_FLUSH).await;
                self.stage = StreamStage::Ended;
                Some(Err(io::Error::other("the generation failed after the response's headers")))
            }
            StreamStage::Ended => None,
        }
    }

    /// Waits for an event and returns it together with all other events that are ready. Several are ready if
    /// the client is behind.
    async fn next_events(&mut self) -> Bytes {
        let mut out = Vec::with_capacity(512);
        loop {
            // `next` is cancel-safe: a delta that arrives as the timer fires is returned by the next call.
            tokio::select! {
                biased;
                step = self.generation.next() => self.write_step(step, &mut out),
                () = &mut self.timer => {
                    let due = self.last_sent + self.keep_alive;
                    if Instant::now() >= due {
                        self.timer.as_mut().reset(Instant::now() + self.keep_alive);
                        return Bytes::from_static(self.generation.keep_alive());
                    }
                    self.timer.as_mut().reset(due);
                }
            }
            while matches!(self.stage, StreamStage::Running)
                && out.len() < MAX_PIECE
                && let Some(step) = self.generation.next().now_or_never()
            {
                self.write_step(step, &mut out);
            }
            // A delta without text makes no event: its token ends within a character or may begin a stop
            // string.
            if !out.is_empty() {
                return Bytes::from(out);
            }
        }
    }

    /// Writes the events for `step`, a result of [`TrackedGeneration::next`].
    fn write_step(&mut self, step: Option<Result<Delta, ApiError>>, out: &mut Vec<u8>) {
        match step {
            Some(Ok(delta)) => self.generation.write_delta(delta, out),
            Some(Err(error)) => {
                let ended = self.generation.write_failure(&error, out);
                self.stage = if ended { StreamStage::Ended } else { StreamStage::Failed };
            }
            None => {
                self.generation.write_end(out);
                self.stage = StreamStage::Ended;
            }
        }
    }
}
