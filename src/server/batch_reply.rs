//! JSON types of replies about files and batches, as OpenAI's clients read them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::batch::{BatchRecord, FileRecord, LineError, Status};

/// An entry of a list.
pub(super) trait HasId {
    fn id(&self) -> &str;
}

/// A page of files or of batches.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub(super) struct List<T> {
    object: &'static str,
    data: Vec<T>,
    /// Id of the first entry.
    first_id: Option<String>,
    /// Id of the last entry. With this id as `after`, the next page follows.
    last_id: Option<String>,
    /// Whether entries follow.
    has_more: bool,
}

impl<T: HasId> List<T> {
    pub(super) fn new(data: Vec<T>, has_more: bool) -> Self {
        let id = |entry: &T| entry.id().to_owned();
        let (first_id, last_id) = (data.first().map(id), data.last().map(id));
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// A file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "File")]
pub(super) struct FileReply {
    /// The file's id.
    id: String,
    object: &'static str,
    /// Size in bytes.
    bytes: u64,
    /// Unix time of the creation, in seconds.
    created_at: u64,
    /// Always null: files do not expire.
    expires_at: (),
    /// The name that the client gave, or a name with the batch's id for a file of results.
    filename: String,
    /// `batch` for a file of requests, `batch_output` for a file of results.
    purpose: &'static str,
    /// Always `processed`.
    status: &'static str,
    /// Always null.
    status_details: (),
}

impl From<FileRecord> for FileReply {
    fn from(file: FileRecord) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: (),
            filename: file.filename,
            purpose: file.purpose.as_str(),
            status: "processed",
            status_details: (),
        }
    }
}

impl HasId for FileReply {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Reply of `DELETE /v1/files/{id}`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeletedFile")]
pub(super) struct DeletedReply {
    /// The id that the file had.
    id: String,
    object: &'static str,
    /// Always true.
    deleted: bool,
}

impl DeletedReply {
    pub(super) fn new(id: String) -> Self {
        Self { id, object: "file", deleted: true }
    }
}

/// A batch. Times are Unix times in seconds, and null if they have not come.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Batch")]
pub(super) struct BatchReply {
    /// The batch's id.
    id: String,
    object: &'static str,
    /// The route that all requests are for.
    endpoint: &'static str,
    /// Faults of the input file; null if there are none.
    errors: Option<BatchErrors>,
    /// Id of the file of requests.
    input_file_id: String,
    /// Always `24h`.
    completion_window: &'static str,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or
    /// `cancelled`.
    status: &'static str,
    /// Id of the file with the results of successful requests. The file exists when the batch has ended, if
    /// there is a result.
    output_file_id: Option<String>,
    /// The same for requests that failed or were not run.
    error_file_id: Option<String>,
    /// Time of the creation.
    created_at: u64,
    /// Time at which the input file was found valid.
    in_progress_at: Option<u64>,
    /// Time after which requests that have not been answered expire.
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: RequestCounts,
    /// The client's own labels.
    metadata: Option<BTreeMap<String, String>>,
}

/// Numbers of a batch's requests.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "BatchRequestCounts")]
struct RequestCounts {
    /// Requests in the input file; 0 before it is checked.
    total: u64,
    /// Requests with a successful result.
    completed: u64,
    /// Requests that failed or were not run.
    failed: u64,
}

/// Faults of a batch's input file.
#[derive(Debug, Serialize, JsonSchema)]
struct BatchErrors {
    object: &'static str,
    /// The first 100 faults.
    data: Vec<BatchError>,
}

/// A fault of a batch's input file.
#[derive(Debug, Serialize, JsonSchema)]
struct BatchError {
    /// Code for programs.
    code: String,
    /// Text for people.
    message: String,
    /// The line, counted from 1; null for a fault of the whole file.
    line: Option<u64>,
    /// The line's field.
    param: Option<String>,
}

impl From<LineError> for BatchError {
    fn from(error: LineError) -> Self {
        let LineError { code, message, line, param } = error;
        Self { code, message, line, param }
    }
}

impl From<BatchRecord> for BatchReply {
    fn from(batch: BatchRecord) -> Self {
        let entered = |status| batch.entered(status);
        let [in_progress_at, finalizing_at, completed_at, failed_at] =
            [Status::InProgress, Status::Finalizing, Status::Completed, Status::Failed].map(entered);
        let [expired_at, cancelling_at, cancelled_at] =
            [Status::Expired, Status::Cancelling, Status::Cancelled].map(entered);
        let (total, completed, failed) = (batch.total, batch.completed, batch.failed);
        let errors: Vec<BatchError> = batch.errors.into_iter().map(BatchError::from).collect();
        Self {
            id: batch.id,
            object: "batch",
            endpoint: batch.endpoint.as_str(),
            errors: (!errors.is_empty()).then_some(BatchErrors { object: "list", data: errors }),
            input_file_id: batch.input_file_id,
            completion_window: "24h",
            status: batch.status.as_str(),
            output_file_id: batch.has_output.then_some(batch.output_file_id),
            error_file_id: batch.has_errors.then_some(batch.error_file_id),
            created_at: batch.created_at,
            in_progress_at,
            expires_at: batch.expires_at,
            finalizing_at,
            completed_at,
            failed_at,
            expired_at,
            cancelling_at,
            cancelled_at,
            request_counts: RequestCounts { total, completed, failed },
            metadata: batch.metadata,
        }
    }
}

impl HasId for BatchReply {
    fn id(&self) -> &str {
        &self.id
    }
}
