//! The routes of batches: creation, list, cancellation.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde_json::Value;

use super::batch_reply::{BatchReply, List};
use super::body;
use super::error::ApiError;
use super::fields::{Fields, missing};
use super::files::{QueryPairs, blocking, no_file, owner, page, pairs, path_id, settings};
use super::ignored_header::ignored_header;
use super::state::ServerState;
use super::types::BatchWire;
use super::unsupported;
use crate::batch::{Endpoint, NewBatch, Purpose, Runner};

type Shared = State<Arc<ServerState>>;
type PathId = Result<Path<String>, PathRejection>;
/// The runner; `None` if the server keeps no batches.
pub(super) type RunnerExtension = Extension<Option<Arc<Runner>>>;

/// Batches of a page, if the client does not say how many, and at most.
pub(super) const PAGE: (usize, usize) = (20, 100);

fn no_batch(id: &str) -> String {
    format!("No batch found with id '{id}'.")
}

pub(super) async fn create(
    State(state): Shared,
    Extension(runner): RunnerExtension,
    request: Request,
) -> Result<(HeaderMap, Json<BatchReply>), ApiError> {
    let settings = settings(&state)?;
    let owner = owner(request.extensions());
    let body = body::parse(body::read(request, &state).await?, &state).await?;
    let (new, ignored) = read(Fields::new(body), owner, state.limits.reject_unknown_fields)?;
    let (store, now, input) = (Arc::clone(&settings.store), (settings.clock)(), new.input_file_id.clone());
    let created = blocking(
        move || {
            let purpose = store.file(&new.owner, &new.input_file_id)?.purpose;
            if purpose == Purpose::Batch { store.create_batch(new, now).map(Some) } else { Ok(None) }
        },
        || no_file(&input),
    );
    let batch = created.await?.ok_or_else(|| {
        ApiError::invalid("input_file_id", "expected a file of the purpose batch, got batch_output")
    })?;
    if let Some(runner) = runner {
        runner.start(batch.id.clone());
    }
    Ok((ignored_header(&ignored), Json(batch.into())))
}

/// Reads the body of a creation. Also returns the paths of its unknown fields.
fn read(
    mut fields: Fields,
    owner: String,
    reject_unknown: bool,
) -> Result<(NewBatch, Vec<String>), ApiError> {
    let wire = BatchWire::read(&mut fields)?;
    let endpoint =
        wire.endpoint.and_then(|path| Endpoint::ALL.into_iter().find(|known| known.as_str() == path));
    let endpoint = endpoint.ok_or_else(|| missing("endpoint", "a route"))?;
    let ignored = unsupported::ignored(fields)?;
    if let (true, Some(name)) = (reject_unknown, ignored.first()) {
        return Err(ApiError::unsupported(name, "this field is unknown or has no effect here"));
    }
    // Every value is a string, which the table has checked.
    let label = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
    let metadata = wire.metadata.map(|labels| labels.into_iter().filter_map(label).collect());
    let input_file_id = wire.input_file_id.unwrap_or_default();
    Ok((NewBatch { owner, endpoint, input_file_id, metadata }, ignored))
}

pub(super) async fn list_batches(
    State(state): Shared,
    query: QueryPairs,
    request: Request,
) -> Result<Json<List<BatchReply>>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let owner = owner(request.extensions());
    let page = page(&pairs(query)?, PAGE.0, PAGE.1)?;
    let after = page.after.clone().unwrap_or_default();
    let (batches, has_more) = blocking(move || store.batches(&owner, &page), || no_batch(&after)).await?;
    Ok(Json(List::new(batches.into_iter().map(BatchReply::from).collect(), has_more)))
}

pub(super) async fn batch(
    State(state): Shared,
    id: PathId,
    request: Request,
) -> Result<Json<BatchReply>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let (id, owner) = (path_id(id), owner(request.extensions()));
    let found = blocking(
        {
            let id = id.clone();
            move || store.batch(&owner, &id)
        },
        || no_batch(&id),
    );
    Ok(Json(found.await?.into()))
}

pub(super) async fn cancel(
    State(state): Shared,
    Extension(runner): RunnerExtension,
    id: PathId,
    request: Request,
) -> Result<Json<BatchReply>, ApiError> {
    let settings = settings(&state)?;
    let (store, now) = (Arc::clone(&settings.store), (settings.clock)());
    let (id, owner) = (path_id(id), owner(request.extensions()));
    let marked = blocking(
        {
            let id = id.clone();
            move || store.cancel(&owner, &id, now)
        },
        || no_batch(&id),
    );
    let batch = marked.await?;
    if let Some(runner) = runner {
        runner.cancel(&id);
    }
    Ok(Json(batch.into()))
}
