//! The lines of a batch that run, each in a task of its own.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{Id, JoinError, JoinSet};

use super::records::Endpoint;
use super::results::{LineOutcome, LineResult};

/// A line to run.
pub(crate) struct Line {
    /// The route that it is a request to.
    pub(crate) endpoint: Endpoint,
    /// JSON of the request's body.
    pub(crate) body: String,
    /// The owner of the batch.
    pub(crate) owner: String,
    /// An id for logs, and of the result.
    pub(crate) request_id: String,
    /// Set for a line of an offline run.
    pub(crate) offline: Option<OfflineLine>,
}

/// Bits in place of random numbers for the answer to a line of an offline run, which has the same bytes in
/// each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfflineLine {
    /// Bits of the answer's id.
    pub(crate) id: [u64; 2],
    /// Seed of the sampling if the request has none; below 2^63.
    pub(crate) seed: u64,
}

/// How a line's run ended.
pub(crate) enum RunOutcome {
    /// With this status and this JSON.
    Answered {
        /// An HTTP status.
        status: u16,
        /// JSON of the reply or of the error.
        body: String,
    },
    /// It has no answer, because the server shuts down or its engine has stopped. It is run after the next
    /// start.
    Parked,
}

/// The future of a line's run.
pub(crate) type LineFuture = Pin<Box<dyn Future<Output = RunOutcome> + Send>>;
/// Runs one line.
pub(crate) type RunLine = Arc<dyn Fn(Line) -> LineFuture + Send + Sync>;

/// The lines of a batch that run.
#[derive(Default)]
pub(super) struct RunningLines {
    set: JoinSet<RunOutcome>,
    /// The line of each task.
    ids: HashMap<Id, LineIds>,
}

/// The ids of a line.
pub(super) struct LineIds {
    pub(super) custom_id: String,
    /// Id of the result.
    pub(super) id: String,
}

/// The lines that ended together.
#[derive(Default)]
pub(super) struct EndedLines {
    pub(super) results: Vec<LineResult>,
    /// Whether a line was [`RunOutcome::Parked`].
    pub(super) parked: bool,
}

impl RunningLines {
    /// Whether no line runs.
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Runs a line, which gives its place back when it ends.
    pub(super) fn spawn(&mut self, answer: LineFuture, place: OwnedSemaphorePermit, ids: LineIds) {
        let task = self.set.spawn(async move {
            let _place = place;
            answer.await
        });
        self.ids.insert(task.id(), ids);
    }

    /// Waits until a line ends, and takes all that have ended by then. `None` if no line runs.
    pub(super) async fn next(&mut self) -> Option<EndedLines> {
        let mut next = Some(self.set.join_next_with_id().await?);
        let mut ended = EndedLines::default();
        while let Some(line) = next {
            match self.result(line) {
                Some(result) => ended.results.push(result),
                None => ended.parked = true,
            }
            next = self.set.try_join_next_with_id();
        }
        Some(ended)
    }

    /// The result of a line that has ended; `None` if it was parked.
    fn result(&mut self, ended: Result<(Id, RunOutcome), JoinError>) -> Option<LineResult> {
        let (task, outcome) = match ended {
            Ok((task, outcome)) => (task, outcome),
            // The line's task panicked.
            Err(error) => (error.id(), internal_error()),
        };
        let LineIds { custom_id, id } = self.ids.remove(&task)?;
        let RunOutcome::Answered { status, body } = outcome else { return None };
        let outcome = match RawValue::from_string(body) {
            Ok(body) => LineOutcome::Answered { status, body },
            Err(error) => LineOutcome::NotRun {
                code: "internal",
                message: format!("The reply is not valid JSON: {error}"),
            },
        };
        Some(LineResult { id, custom_id, outcome })
    }
}

fn internal_error() -> RunOutcome {
    let body = serde_json::json!({ "error": {
        "message": "The server failed on this request.", "type": "server_error", "param": null, "code": null,
    } });
    RunOutcome::Answered { status: 500, body: body.to_string() }
}
