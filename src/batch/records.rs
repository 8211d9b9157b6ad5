//! The records of files and batches, as they are kept on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The use of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// The lines of a batch.
    Batch,
    /// The results of a batch.
    BatchOutput,
}

impl Purpose {
    /// All purposes.
    pub(crate) const ALL: [Self; 2] = [Self::Batch, Self::BatchOutput];
    /// The purpose of files that clients upload.
    pub(crate) const UPLOADED: Self = Self::Batch;

    /// The purpose's name in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

/// A file whose content is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// The file's id: `file-` and hexadecimal digits.
    pub id: String,
    /// The name of the API key that the file belongs to; empty for clients without a named key.
    pub owner: String,
    /// The name that the client gave.
    pub filename: String,
    /// The file's use.
    pub purpose: Purpose,
    /// Size in bytes.
    pub bytes: u64,
    /// Number of lines.
    pub lines: u64,
    /// Unix time of the creation, in seconds.
    pub created_at: u64,
    /// Orders all records by creation.
    pub order: u64,
}

/// The route that a batch's lines are requests to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    /// Chat completions.
    #[serde(rename = "/v1/chat/completions")]
    Chat,
    /// Text completions.
    #[serde(rename = "/v1/completions")]
    Completions,
    /// OpenAI's Responses API.
    #[serde(rename = "/v1/responses")]
    Responses,
    /// Scores of a reward model.
    #[serde(rename = "/v1/reward")]
    Reward,
}

impl Endpoint {
    /// All endpoints.
    pub(crate) const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Responses, Self::Reward];

    /// The route's path.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Reward => "/v1/reward",
        }
    }
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The input file is still to be checked.
    Validating,
    /// The input file is invalid: no line was run.
    Failed,
    /// Lines are run.
    InProgress,
    /// All lines have results, which become files.
    Finalizing,
    /// The results are files.
    Completed,
    /// The completion window ended before all lines had run.
    Expired,
    /// The batch is to be cancelled.
    Cancelling,
    /// The batch was cancelled before all lines had run.
    Cancelled,
}

impl Status {
    /// The status's name in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the batch has ended: its record does not change any more.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// A fault of a batch's input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LineError {
    /// A code for programs.
    pub code: String,
    /// The fault.
    pub message: String,
    /// The line, counted from 1; `None` for a fault of the whole file.
    pub line: Option<u64>,
    /// The line's field.
    pub param: Option<String>,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BatchRecord {
    /// The batch's id: `batch_` and hexadecimal digits.
    pub id: String,
    /// The name of the API key that the batch belongs to; empty for clients without a named key.
    pub owner: String,
    /// The route of its lines.
    pub endpoint: Endpoint,
    /// The file of its lines.
    pub input_file_id: String,
    /// Lines of that file, empty ones included. `total` counts the requests.
    pub lines: u64,
    /// The client's own labels.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How far the batch is.
    pub status: Status,
    /// Faults of the input file.
    pub errors: Vec<LineError>,
    /// The file of the results of successful lines; it is a file once the batch has ended.
    pub output_file_id: String,
    /// The same for failed lines and lines that were not run.
    pub error_file_id: String,
    /// Whether the output file exists.
    pub has_output: bool,
    /// Whether the error file exists.
    pub has_errors: bool,
    /// Unix time of the creation, in seconds.
    pub created_at: u64,
    /// Unix time at which the completion window ends.
    pub expires_at: u64,
    /// Unix time at which each further status began.
    pub since: BTreeMap<String, u64>,
    /// Requests in the input file; 0 before it is checked.
    pub total: u64,
    /// Requests with a successful result.
    pub completed: u64,
    /// Requests that failed or were not run.
    pub failed: u64,
    /// Orders all records by creation.
    pub order: u64,
    /// Starts of the server in a row that ended without a shutdown and without a new result.
    pub stalled_starts: u32,
    /// Results at the last start of the server.
    pub results_at_start: u64,
}

impl BatchRecord {
    /// Sets the status and the time at which it began.
    pub(super) fn enter(&mut self, status: Status, now: u64) {
        self.status = status;
        self.since.insert(status.as_str().to_owned(), now);
    }

    /// Unix time at which the batch ended; `None` if it has not.
    pub(super) fn ended_at(&self) -> Option<u64> {
        if self.status.is_final() { self.entered(self.status) } else { None }
    }

    /// Unix time at which the batch entered this status.
    pub(crate) fn entered(&self, status: Status) -> Option<u64> {
        self.since.get(status.as_str()).copied()
    }
}
