//! Runs the lines of batches as requests to the server's own routes, without HTTP.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::access_log::AccessRecord;
use super::endpoint_requests;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{self, Admission};
use super::ignored_header::shown_names;
use super::json::parse_object;
use super::state::ServerState;
use super::system::random_u64;
use crate::batch::{Line, RunLine, RunOutcome, Runner};
use crate::generation::Refusal;

/// The runner of the server's batches; `None` if the server keeps none.
pub(super) fn runner(state: &Arc<ServerState>) -> Option<Arc<Runner>> {
    let settings = state.settings.batches.as_ref()?;
    let run_line = line_runner(state, 1);
    Some(Runner::new(Arc::clone(&settings.store), run_line, settings.max_lines, settings.clock))
}

/// Runs lines as requests to the server's routes. `parsing` is the number of bodies that are parsed at once;
/// live requests have permits of their own for this and do not wait for lines.
pub(crate) fn line_runner(state: &Arc<ServerState>, parsing: usize) -> RunLine {
    let (state, parsing) = (Arc::clone(state), Arc::new(Semaphore::new(parsing)));
    Arc::new(move |line| {
        let (state, parsing) = (Arc::clone(&state), Arc::clone(&parsing));
        Box::pin(async move { run(&state, &parsing, line).await })
    })
}

async fn run(state: &Arc<ServerState>, parsing: &Arc<Semaphore>, line: Line) -> RunOutcome {
    let request_id = Some(line.request_id.clone());
    // An offline run shows its progress instead.
    let is_logged = line.offline.is_none();
    let record = AccessRecord::of_line(line.endpoint.as_str(), request_id, is_logged);
    match answer(state, parsing, line, Arc::clone(&record)).await {
        Ok((body, ignored)) => {
            record.responded(200);
            RunOutcome::Answered { status: 200, body, ignored }
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
            RunOutcome::Answered { status, body: error.to_json(), ignored: Vec::new() }
        }
    }
}

/// Returns the JSON of the reply, and the names of the request's fields that had no effect.
async fn answer(
    state: &Arc<ServerState>,
    parsing: &Arc<Semaphore>,
    line: Line,
    record: Arc<AccessRecord>,
) -> Result<(String, Vec<String>), ApiError> {
    let received_at = Instant::now();
    let body = parse(parsing, line.body).await?;
    if body.get("stream").and_then(serde_json::Value::as_bool) == Some(true) {
        return Err(ApiError::unsupported("stream", "expected false in a batch, got true"));
    }
    let offline = line.offline;
    if offline.is_some() && body.get("return_cost").and_then(serde_json::Value::as_bool) == Some(true) {
        let text = "expected false in an offline run, whose output has no measured times, got true";
        return Err(ApiError::unsupported("return_cost", text));
    }
    let seed = offline.map_or_else(random_u64, |line| Ok(line.seed))?;
    let (valid, kind) = endpoint_requests::read(line.endpoint, Fields::new(body), &state.limits, seed)?;
    let valid = valid.of(state.keys.caller_named(&line.owner));
    let paths = kind.prompt_paths();
    let refuse = |reject| generate::refusal_error(state, Refusal::Rejected(reject), paths.of(None));
    let engine = state.generator.engine();
    // Nothing else runs beside an offline run, so its lines are ordinary requests.
    let permit = if offline.is_some() { engine.enter(1) } else { engine.enter_batch() };
    let permit = permit.map_err(refuse)?;
    let fixed_id = offline.map(|line| line.id);
    let admission = Admission { permit, received_at, timeout: None, fixed_id };
    let generation = generate::start(state, admission, valid, kind, record).await?;
    let ignored = shown_names(generation.ignored());
    Ok((generation.complete().await?, ignored))
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
