//! What a client is told when it is not given what it asked for: one enum, one table of statuses, one JSON object.
//!
//! The object always has all four keys. The texts are our own; nothing of a library's or the system's error text
//! reaches a client. Statuses that clients retry (429, 5xx) are kept for what a retry may cure, and a deterministic
//! failure says `x-should-retry: false`.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use crate::engine::forecast::retry_after;
use crate::generation::Refusal;
use crate::request::Reject;

/// Seconds after which a client may try again where nothing is predicted.
const RETRY_AFTER_S: u64 = 1;

/// Every way in which a request ends without an answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON, or not JSON of the outer shape expected.
    #[error("{0}")]
    Malformed(String),
    /// A field has a value outside what it may have.
    #[error("{param}: {message}")]
    Invalid {
        /// The wire name of the field, as a path: `messages[0].content`.
        param: String,
        /// Expected versus got.
        message: String,
    },
    /// A field that we know and whose meaning we cannot honour.
    #[error("{param}: {message}")]
    Unsupported {
        /// The wire name of the field.
        param: String,
        /// What is not supported.
        message: String,
    },
    /// Prompt and completion do not fit the context. Clients match this text.
    #[error(
        "This model's maximum context length is {limit} tokens. However, you requested {} tokens ({prompt} in the \
         messages, {completion} in the completion). Please reduce the length of the messages or completion.",
        prompt.saturating_add(*completion as usize)
    )]
    ContextLength {
        /// `messages` or `prompt`.
        param: &'static str,
        /// Tokens that fit.
        limit: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        completion: u32,
    },
    /// So much text that it cannot fit the context, whatever its tokens.
    #[error(
        "This model's maximum context length is {limit} tokens. However, your {param} have {bytes} bytes, more than \
         so many tokens can hold. Please reduce the length of the messages or completion."
    )]
    ContextBytes {
        /// `messages` or `prompt`.
        param: &'static str,
        /// Tokens that fit.
        limit: usize,
        /// Of the prompt's text.
        bytes: usize,
    },
    /// No key, or a wrong one.
    #[error("Incorrect API key provided.")]
    BadKey,
    /// Not a model that we serve.
    #[error("The model `{0}` does not exist.")]
    ModelNotFound(String),
    /// No such path.
    #[error("Unknown request URL: {0}")]
    NoRoute(String),
    /// The path exists, the method does not.
    #[error("Not allowed method for this URL: {0}")]
    NoMethod(String),
    /// The body took too long to arrive.
    #[error("The request body did not arrive within {0} s.")]
    TooSlow(u64),
    /// The body is too large.
    #[error("The request body is larger than {0} bytes.")]
    TooLarge(usize),
    /// An encoding or type of body that we do not read.
    #[error("{0}")]
    MediaType(String),
    /// The head of the request is too large.
    #[error("The request headers are larger than {0} bytes or more than {1}.")]
    HeadersTooLarge(usize, usize),
    /// The bounded queue is full, or the wait in it too long.
    #[error("{message}")]
    QueueFull {
        /// Which bound, and by how much.
        message: String,
        /// When there may be room; `None` until somebody has worked it out.
        retry_after: Option<Duration>,
    },
    /// Too many bodies are on their way.
    #[error("The server reads {0} request bodies at once, and this one had been on its way for the longest.")]
    TooManyBodies(usize),
    /// The deadline that the client set cannot be met now.
    #[error("{message}")]
    DeadlineUnmet {
        /// What is predicted.
        message: String,
        /// When it may be met; `None` if no server of this kind can ever meet it.
        retry_after: Option<Duration>,
    },
    /// The deadline that the client set has passed.
    #[error("The request's deadline has passed: its timeout, or x-request-deadline-ms.")]
    DeadlineExceeded,
    /// The model is being loaded.
    #[error("The server is starting: the model is not loaded yet.")]
    NotReady,
    /// The server drains.
    #[error("The server is shutting down and takes no new requests.")]
    Draining,
    /// The engine has stopped, and nothing was done.
    #[error("The engine is unavailable: {0}")]
    EngineDown(String),
    /// The engine has stopped, or was told to, while it worked on the request: another try may do better, but who makes
    /// it should know that this one may be the reason.
    #[error("The engine is unavailable: {0}")]
    EngineFailed(String),
    /// The request failed through no fault of its own, and would again.
    #[error("{0}")]
    Internal(String),
}

/// One row of the table: everything about an error but its text and field.
struct Row {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// `x-should-retry`, where the status alone would tell a client's library the wrong thing.
    should_retry: Option<bool>,
}

impl ApiError {
    /// A field with a value that it may not have.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    /// A field whose meaning we cannot honour.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), message: message.into() }
    }

    /// The status table.
    fn row(&self) -> Row {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let (status, kind, code, should_retry) = match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, REQUEST, None, None),
            Self::Invalid { .. } => (StatusCode::BAD_REQUEST, REQUEST, Some("invalid_value"), None),
            Self::Unsupported { .. } => (StatusCode::BAD_REQUEST, REQUEST, None, None),
            Self::ContextLength { .. } | Self::ContextBytes { .. } => {
                (StatusCode::BAD_REQUEST, REQUEST, Some("context_length_exceeded"), None)
            }
            Self::BadKey => (StatusCode::UNAUTHORIZED, REQUEST, Some("invalid_api_key"), None),
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, Some("model_not_found"), None),
            Self::NoRoute(_) => (StatusCode::NOT_FOUND, REQUEST, None, None),
            Self::NoMethod(_) => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, None, None),
            // A library would retry a 408, and the client would be as slow again.
            Self::TooSlow(_) => {
                (StatusCode::REQUEST_TIMEOUT, "timeout", Some("deadline_exceeded"), Some(false))
            }
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, None, None),
            Self::MediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, None, None),
            Self::HeadersTooLarge(..) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, REQUEST, None, None),
            Self::QueueFull { .. } | Self::TooManyBodies(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), None)
            }
            Self::DeadlineUnmet { retry_after, .. } => {
                let hopeless = retry_after.is_none().then_some(false);
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("deadline_unmet"), hopeless)
            }
            // Another try would have passed its deadline before it begins.
            Self::DeadlineExceeded => {
                (StatusCode::GATEWAY_TIMEOUT, "timeout", Some("deadline_exceeded"), Some(false))
            }
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_ready"), None),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("draining"), None),
            Self::EngineDown(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("engine_unavailable"), None)
            }
            // No 503, which proxies ask another server for: that is for what was not begun.
            Self::EngineFailed(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("engine_unavailable"), None)
            }
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, Some(false)),
        };
        Row { status, kind, code, should_retry }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// The field at fault.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } | Self::ContextBytes { param, .. } => Some(param),
            Self::ModelNotFound(_) => Some("model"),
            _ => None,
        }
    }

    /// The machine-readable code.
    pub fn code(&self) -> Option<&'static str> {
        self.row().code
    }

    /// Every label there is.
    pub const LABELS: [&str; 12] = [
        "invalid_request",
        "invalid_value",
        "context_length_exceeded",
        "invalid_api_key",
        "model_not_found",
        "deadline_exceeded",
        "queue_full",
        "deadline_unmet",
        "not_ready",
        "draining",
        "engine_unavailable",
        "internal",
    ];

    /// The code for metrics and logs, where every error has one.
    pub fn label(&self) -> &'static str {
        let row = self.row();
        let without = if row.status.is_server_error() { "internal" } else { "invalid_request" };
        row.code.unwrap_or(without)
    }

    /// Value of the response's `x-should-retry`; `None` leaves the header out.
    pub(super) fn should_retry(&self) -> Option<bool> {
        self.row().should_retry
    }

    /// Seconds after which to try again.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after, .. } => {
                Some(retry_after.map_or(RETRY_AFTER_S, |time| time.as_secs()))
            }
            Self::DeadlineUnmet { retry_after, .. } => retry_after.map(|time| time.as_secs()),
            Self::TooManyBodies(_)
            | Self::NotReady
            | Self::Draining
            | Self::EngineDown(_)
            | Self::EngineFailed(_) => Some(RETRY_AFTER_S),
            _ => None,
        }
    }

    /// `{"error": {...}}`, the body of a response or of an event within a stream.
    pub fn to_json(&self) -> String {
        let row = self.row();
        let error = ErrorObject {
            message: bounded(self.to_string()),
            kind: row.kind,
            param: self.param().map(|param| bounded(param.to_owned())),
            code: row.code,
        };
        serde_json::to_string(&Envelope { error }).expect("strings can be written as JSON")
    }

    /// The same, with the time after which to try again where that is still open.
    pub fn or_retry_after(self, time: Duration) -> Self {
        match self {
            Self::QueueFull { message, retry_after: None } => {
                Self::QueueFull { message, retry_after: Some(time) }
            }
            other => other,
        }
    }

    /// What the engine's refusal means to a client. `param` is the field that holds the prompt.
    pub fn from_reject(reject: Reject, param: &'static str) -> Self {
        match reject {
            Reject::Invalid { field, message } => Self::invalid(field, message),
            Reject::TooLong { prompt, max_tokens, limit } => {
                Self::ContextLength { param, limit, prompt, completion: max_tokens }
            }
            Reject::QueueFull { .. } | Reject::QueueTokensFull { .. } => {
                Self::QueueFull { message: reject.to_string(), retry_after: None }
            }
            Reject::Busy { predicted, limit } => {
                let retry_after = Some(after(predicted.saturating_sub(limit)));
                Self::QueueFull { message: reject.to_string(), retry_after }
            }
            Reject::DeadlineUnmet { predicted, left, ever } => {
                let retry_after = ever.then(|| after(predicted.saturating_sub(left)));
                Self::DeadlineUnmet { message: reject.to_string(), retry_after }
            }
            Reject::Draining => Self::Draining,
            Reject::EngineDown(reason) => Self::EngineDown(reason),
        }
    }

    /// Returns the error for a refusal. `param` is the field that holds the prompt. `retry_after` is used if
    /// the queue is full and no time was predicted.
    pub fn from_refusal(refusal: Refusal, param: &'static str, retry_after: Duration) -> Self {
        match refusal {
            Refusal::TooLong { prompt, completion, limit } => {
                Self::ContextLength { param, limit, prompt, completion }
            }
            Refusal::TooManyBytes { bytes, limit } => Self::ContextBytes { param, limit, bytes },
            Refusal::Rejected(reject) => Self::from_reject(reject, param).or_retry_after(retry_after),
            Refusal::MinTokens { .. } => Self::invalid("min_tokens", refusal.to_string()),
            Refusal::Internal(_) => Self::Internal(refusal.to_string()),
            Refusal::NoTemplate | Refusal::Text(_) | Refusal::EmptyPrompt => {
                Self::invalid(param, refusal.to_string())
            }
        }
    }
}

/// Whole seconds, as the header has them.
fn after(wait: Duration) -> Duration {
    retry_after(wait.as_secs_f64())
}

/// A text that quotes a client must not grow with what the client sent.
fn bounded(mut text: String) -> String {
    const LIMIT: usize = 1000;
    if text.len() > LIMIT {
        text.truncate(text.floor_char_boundary(LIMIT));
        text.push('…');
    }
    text
}

#[derive(Serialize)]
struct Envelope {
    error: ErrorObject,
}

#[derive(Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}
