//! An answer as server-sent events: `data: {json}`, an empty line, and at the end `data: [DONE]`.
//!
//! The connection pulls events one by one. A client that reads slowly stops the pull and nobody else: the engine
//! never waits, and what it has produced meanwhile waits as tokens, at most `max_tokens` of them. A client that has
//! gone has its connection dropped, with it the answer, and with that its requests are aborted.
//!
//! A failure after the headers is an event with an `error`, and then the connection ends without `[DONE]` and without
//! the mark of a complete body, so that no client can take it for success.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::stream;

use super::answer::Answer;

/// Between the error event and the break of the connection, so that the event is out by then.
const FLUSH: Duration = Duration::from_millis(50);

/// A response whose body is the answer's events.
pub fn respond(answer: Answer) -> Response<Body> {
    let begun = vec![false; answer.generation.choices()];
    let quiet = answer.state.settings.http.keep_alive;
    let events = Events { answer, begun, ready: VecDeque::new(), stage: Stage::Running, quiet };
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
    /// Events that are due.
    ready: VecDeque<Bytes>,
    stage: Stage,
    /// After this long without an event a comment goes out, so that nothing between us and the client hangs up.
    quiet: Duration,
}

impl Events {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.stage {
                Stage::Running => {
                    // The wait holds nothing: a token that comes just then is there on the next call.
                    let Ok(step) = tokio::time::timeout(self.quiet, self.answer.generation.next()).await
                    else {
                        return Some(Ok(Bytes::from_static(b": keep-alive\n\n")));
                    };
                    match step {
                        Some(Ok(delta)) => {
                            self.answer.tracker.delta(&delta);
                            let begun = &mut self.begun[delta.index];
                            let chunks = self.answer.envelope.chunks(delta, begun);
                            self.ready.extend(chunks.iter().map(|json| event(json)));
                        }
                        Some(Err(failure)) => {
                            let error = self.answer.failed(failure);
                            self.ready.push_back(event(&error.to_json()));
                            self.stage = Stage::Failed;
                        }
                        None => {
                            let usage = self.answer.generation.usage().into();
                            let usage = self.answer.envelope.usage_chunk(usage);
                            self.ready.extend(usage.map(|json| event(&json)));
                            self.ready.push_back(event("[DONE]"));
                            self.stage = Stage::Ended;
                        }
                    }
                }
                Stage::Failed => {
                    tokio::time::sleep(FLUSH).await;
                    self.stage = Stage::Ended;
                    return Some(Err(io::Error::other("the answer failed after its headers")));
                }
                Stage::Ended => return None,
            }
        }
    }
}

fn event(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}
