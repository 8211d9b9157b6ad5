//! The routes of files: upload, list, content, deletion.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Extensions, HeaderMap, HeaderValue, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{StreamExt, try_unfold};
use multer::{Constraints, Field, Multipart, SizeLimit};

use super::api_keys::Caller;
use super::batch_reply::{DeletedReply, FileReply, List};
use super::error::ApiError;
use super::ignored_header::ignored_header;
use super::settings::{BatchSettings, MAX_UPLOADS};
use super::state::ServerState;
use crate::batch::{FileRecord, MAX_FILE_BYTES, NewFile, PageQuery, Purpose, StoreError, Upload};

type Shared = State<Arc<ServerState>>;
type PathId = Result<Path<String>, PathRejection>;
pub(super) type QueryPairs = Result<Query<HashMap<String, String>>, QueryRejection>;

/// Bytes per second that an upload must have on average.
const MIN_RATE: u64 = 64 << 10;
/// Bytes that are written or read at a time.
const PIECE: usize = 256 << 10;
/// The most bytes of a form beside its file.
const MAX_FORM: u64 = 1 << 20;
/// The most bytes of a text field, and the most characters of a file's name that are kept.
const MAX_TEXT: usize = 1024;
/// The most files of a page.
pub(super) const MAX_PAGE: usize = 10_000;

/// The settings of files and batches.
///
/// # Errors
/// 400 if the server keeps none.
pub(super) fn settings(state: &ServerState) -> Result<&BatchSettings, ApiError> {
    let text = "this server keeps no files and batches; its operator can start it with --data-dir DIR";
    state.settings.batches.as_ref().ok_or_else(|| ApiError::unsupported("data-dir", text))
}

/// The owner of what a request makes: the tenant of its named API key.
pub(super) fn owner(extensions: &Extensions) -> String {
    extensions.get::<Caller>().map(|caller| caller.tenant.name.to_string()).unwrap_or_default()
}

/// The id in a path. An id that is not UTF-8 names nothing.
pub(super) fn path_id(id: PathId) -> String {
    id.map_or_else(|_| "\u{FFFD}".to_owned(), |Path(id)| id)
}

/// Runs work with the store on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    no_object: impl FnOnce() -> String,
) -> Result<T, ApiError> {
    let failed = || ApiError::Internal("the server cannot read or write its files now".to_owned());
    let done = tokio::task::spawn_blocking(work).await.map_err(|_panicked| failed())?;
    done.map_err(|error| match error {
        StoreError::NotFound => ApiError::NoObject(no_object()),
        StoreError::Full { .. } => ApiError::StorageFull(error.to_string()),
        StoreError::InUse(_) | StoreError::Ended(_) => ApiError::Conflict(error.to_string()),
        StoreError::Io(error) => {
            tracing::error!(%error, "files and batches");
            failed()
        }
    })
}

pub(super) fn no_file(id: &str) -> String {
    format!("No such File object: {id}")
}

/// Reads the fields of a page from a query. `usual` and `most` are limits of its length.
///
/// # Errors
/// 400 for an invalid field.
pub(super) fn page(
    query: &HashMap<String, String>,
    usual: usize,
    most: usize,
) -> Result<PageQuery, ApiError> {
    let limit = match query.get("limit") {
        None => usual,
        Some(text) => text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(|| {
            ApiError::invalid("limit", format!("expected an integer from 1 to {most}, got \"{text}\""))
        })?,
    };
    let ascending = match query.get("order").map(String::as_str) {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(other) => {
            return Err(ApiError::invalid("order", format!("expected asc or desc, got \"{other}\"")));
        }
    };
    Ok(PageQuery { limit, after: query.get("after").cloned(), ascending })
}

pub(super) fn pairs(query: QueryPairs) -> Result<HashMap<String, String>, ApiError> {
    let malformed = |_| ApiError::Malformed("The query of the URL is malformed.".to_owned());
    query.map(|Query(pairs)| pairs).map_err(malformed)
}

pub(super) async fn list_files(
    State(state): Shared,
    query: QueryPairs,
    request: Request,
) -> Result<Json<List<FileReply>>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let (query, owner) = (pairs(query)?, owner(request.extensions()));
    let purpose = query.get("purpose").map(|text| {
        Purpose::ALL.into_iter().find(|purpose| purpose.as_str() == text).ok_or_else(|| {
            let [batch, output] = Purpose::ALL.map(Purpose::as_str);
            ApiError::invalid("purpose", format!("expected {batch} or {output}, got \"{text}\""))
        })
    });
    let purpose = purpose.transpose()?;
    let page = page(&query, MAX_PAGE, MAX_PAGE)?;
    let after = page.after.clone().unwrap_or_default();
    let listed = blocking(move || store.files(&owner, purpose, &page), || no_file(&after));
    let (files, has_more) = listed.await?;
    Ok(Json(List::new(files.into_iter().map(FileReply::from).collect(), has_more)))
}

pub(super) async fn file(
    State(state): Shared,
    id: PathId,
    request: Request,
) -> Result<Json<FileReply>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let (id, owner) = (path_id(id), owner(request.extensions()));
    let found = blocking(
        {
            let id = id.clone();
            move || store.file(&owner, &id)
        },
        || no_file(&id),
    );
    Ok(Json(found.await?.into()))
}

pub(super) async fn delete(
    State(state): Shared,
    id: PathId,
    request: Request,
) -> Result<Json<DeletedReply>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let (id, owner) = (path_id(id), owner(request.extensions()));
    blocking(
        {
            let id = id.clone();
            move || store.delete_file(&owner, &id)
        },
        || no_file(&id),
    )
    .await?;
    Ok(Json(DeletedReply::new(id)))
}

pub(super) async fn content(
    State(state): Shared,
    id: PathId,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let store = Arc::clone(&settings(&state)?.store);
    let (id, owner) = (path_id(id), owner(request.extensions()));
    let opened = blocking(
        {
            let id = id.clone();
            move || store.content(&owner, &id)
        },
        || no_file(&id),
    );
    let (record, file) = opened.await?;
    let pieces = try_unfold((file, record.bytes), |(file, left)| async move {
        tokio::task::spawn_blocking(move || read_piece(file, left)).await.map_err(std::io::Error::other)?
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(record.bytes));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' };
    let name: String = record.filename.chars().map(safe).collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Reads the next piece of the `left` bytes.
fn read_piece(mut file: File, left: u64) -> std::io::Result<Option<(Bytes, (File, u64))>> {
    let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    if wanted == 0 {
        return Ok(None);
    }
    let mut piece = vec![0; wanted];
    file.read_exact(&mut piece)?;
    Ok(Some((piece.into(), (file, left - wanted as u64))))
}

pub(super) async fn upload(
    State(state): Shared,
    request: Request,
) -> Result<(HeaderMap, Json<FileReply>), ApiError> {
    settings(&state)?;
    let boundary = boundary(request.headers())?;
    let owner = owner(request.extensions());
    let received = Arc::new(AtomicU64::new(0));
    let mut permit = state.upload_permits.acquire();
    let deadline = state.settings.http.body.deadline;
    let counter = Arc::clone(&received);
    let stream = request.into_body().into_data_stream().inspect(move |piece| {
        let bytes = piece.as_ref().map_or(0, Bytes::len);
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    });
    // Fields that are not read must not go on for ever.
    let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(MAX_FILE_BYTES + MAX_FORM));
    let (record, ignored) = tokio::select! {
        received = receive(&state, owner, Multipart::with_constraints(stream, boundary, limits)) => received?,
        () = too_slow(&received, deadline) => return Err(ApiError::TooSlow(deadline.as_secs())),
        () = permit.evicted() => return Err(ApiError::TooManyBodies(MAX_UPLOADS)),
        () = state.abort.cancelled() => return Err(ApiError::Draining),
    };
    Ok((ignored_header(&ignored), Json(record.into())))
}

fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    multer::parse_boundary(kind).map_err(|_| {
        ApiError::MediaType("Expected a body of type multipart/form-data with a boundary.".to_owned())
    })
}

/// Resolves when the bytes received are fewer than [`MIN_RATE`] demands after `grace`.
async fn too_slow(received: &AtomicU64, grace: Duration) {
    let began = Instant::now();
    loop {
        let allowed = grace + Duration::from_secs(received.load(Ordering::Relaxed) / MIN_RATE);
        let Some(left) = allowed.checked_sub(began.elapsed()) else { return };
        tokio::time::sleep(left.max(Duration::from_millis(10))).await;
    }
}

/// Receives the form of an upload. Also returns the names of its unknown fields.
async fn receive(
    state: &ServerState,
    owner: String,
    mut form: Multipart<'_>,
) -> Result<(FileRecord, Vec<String>), ApiError> {
    let settings = settings(state)?;
    let (mut purpose, mut arrived, mut ignored) = (None, None, Vec::new());
    while let Some(field) = form.next_field().await.map_err(form_error)? {
        match field.name() {
            Some("purpose") => {
                let text = text(field, "purpose").await?;
                let expected = Purpose::UPLOADED.as_str();
                if text != expected {
                    let text = format!("expected {expected}, got \"{text}\"");
                    return Err(ApiError::invalid("purpose", text));
                }
                purpose = Some(());
            }
            Some("file") if arrived.is_some() => {
                return Err(ApiError::invalid("file", "expected one file, got several"));
            }
            Some("file") => {
                let name: String = field.file_name().unwrap_or("file").chars().take(MAX_TEXT).collect();
                arrived = Some((name, store_field(state, field).await?));
            }
            Some(name) if name.starts_with("expires_after") => {
                return Err(ApiError::unsupported("expires_after", "files do not expire; delete them"));
            }
            name => ignored.push(name.unwrap_or_default().to_owned()),
        }
    }
    if let (true, Some(name)) = (state.limits.reject_unknown_fields, ignored.first()) {
        return Err(ApiError::unsupported(name, "this field is unknown or has no effect here"));
    }
    if purpose.is_none() {
        return Err(ApiError::invalid("purpose", "expected batch, got nothing"));
    }
    let (filename, upload) =
        arrived.ok_or_else(|| ApiError::invalid("file", "expected a file, got nothing"))?;
    let created_at = (settings.clock)();
    let new = NewFile { owner, filename, created_at };
    Ok((blocking(move || upload.finish(new), String::new).await?, ignored))
}

/// Reads a field of the form that is a short text.
async fn text(mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(form_error)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_TEXT {
            return Err(ApiError::invalid(name, format!("expected at most {MAX_TEXT} bytes")));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a field of the form to disk as it arrives.
async fn store_field(state: &ServerState, mut field: Field<'_>) -> Result<Upload, ApiError> {
    let store = Arc::clone(&settings(state)?.store);
    let mut upload = blocking(move || Upload::begin(&store), String::new).await?;
    let mut gathered = BytesMut::new();
    loop {
        let piece = field.chunk().await.map_err(form_error)?;
        let ended = piece.is_none();
        gathered.extend_from_slice(&piece.unwrap_or_default());
        if upload.bytes() + gathered.len() as u64 > MAX_FILE_BYTES {
            return Err(ApiError::TooLarge(MAX_FILE_BYTES as usize));
        }
        if gathered.len() >= PIECE || ended {
            let bytes = gathered.split();
            upload = blocking(move || upload.write(&bytes).map(|()| upload), String::new).await?;
        }
        if ended {
            return Ok(upload);
        }
    }
}

fn form_error(error: multer::Error) -> ApiError {
    if matches!(error, multer::Error::StreamSizeExceeded { .. }) {
        return ApiError::TooLarge(MAX_FILE_BYTES as usize);
    }
    ApiError::Malformed("The request body is not complete multipart/form-data.".to_owned())
}
