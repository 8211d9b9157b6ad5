//! Runs the lines of batches as requests to the server's own routes, without HTTP.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::access_log::AccessRecord;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{self, Admission};
use super::json::parse_object;
use super::reply_builder::ReplyFormat;
use super::reply_writer::ReplyKind;
use super::state::ServerState;
use super::system::random_u64;
use super::validate;
use crate::batch::{Endpoint, Line, RunLine, RunOutcome, Runner};
use crate::generation::Refusal;

/// The runner of the server's batches; `None` if the server keeps none.
pub(super) fn runner(state: &Arc<ServerState>) -> Option<Arc<Runner>> {
    let settings = state.settings.batches.as_ref()?;
    let state = Arc::clone(state);
    // Apart from the permits of live bodies, which do not wait for lines.
    let parsing = Arc::new(Semaphore::new(1));
    let run_line: RunLine = Arc::new(move |line| {
        let (state, parsing) = (Arc::clone(&state), Arc::clone(&parsing));
        Box::pin(async move { run(&state, &parsing, line).await })
    });
    Some(Runner::new(Arc::clone(&settings.store), run_line, settings.max_lines, settings.clock))
}

async fn run(state: &Arc<ServerState>, parsing: &Arc<Semaphore>, line: Line) -> RunOutcome {
    let request_id = Some(line.request_id.clone());
    let record = AccessRecord::new("POST", line.endpoint.as_str(), request_id);
    match answer(state, parsing, line, Arc::clone(&record)).await {
        Ok(body) => {
            record.responded(200);
            RunOutcome::Answered { status: 200, body }
        }
        // The line has not failed: it is run after the next start.
        Err(
            ApiError::NotReady | ApiError::Draining | ApiError::EngineDown(_) | ApiError::EngineFailed(_),
        ) => RunOutcome::Parked,
        Err(error) => {
            let status = error.status().as_u16();
            record.responded(status);
            record.failed(error.label(), error.param());
            state.metrics.error(error.label());
            RunOutcome::Answered { status, body: error.to_json() }
        }
    }
}

async fn answer(
    state: &Arc<ServerState>,
    parsing: &Arc<Semaphore>,
    line: Line,
    record: Arc<AccessRecord>,
) -> Result<String, ApiError> {
    let received_at = Instant::now();
    let kind = ReplyKind::Completion(match line.endpoint {
        Endpoint::Chat => ReplyFormat::Chat,
        Endpoint::Completions => ReplyFormat::Text,
    });
    let body = parse(parsing, line.body).await?;
    if body.get("stream").and_then(serde_json::Value::as_bool) == Some(true) {
        return Err(ApiError::unsupported("stream", "expected false in a batch, got true"));
    }
    let (fields, seed) = (Fields::new(body), random_u64()?);
    let valid = match line.endpoint {
        Endpoint::Chat => validate::chat(fields, &state.limits, seed),
        Endpoint::Completions => validate::completion(fields, &state.limits, seed),
    }?;
    let valid = valid.of(state.keys.caller_named(&line.owner));
    let param = kind.prompt_param();
    let refuse = |reject| generate::refusal_error(state, Refusal::Rejected(reject), param);
    let permit = state.generator.engine().enter_batch().map_err(refuse)?;
    let admission = Admission { permit, received_at, timeout: None };
    generate::start(state, admission, valid, kind, record).await?.complete().await
}

/// Parses a body on a blocking thread.
async fn parse(
    parsing: &Arc<Semaphore>,
    body: String,
) -> Result<serde_json::Map<String, serde_json::Value>, ApiError> {
    let internal = || ApiError::Internal("the server failed to read the request body".to_owned());
    let permit = Arc::clone(parsing).acquire_owned().await.map_err(|_closed| internal())?;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        parse_object(body.as_bytes())
    });
    work.await.map_err(|_panicked| internal())?
}
