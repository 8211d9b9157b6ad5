//! Errors of the HTTP API: one enum, one table of statuses, one JSON object.
//!
//! The JSON object always has all four keys. The server writes every text itself: error texts of libraries
//! and of the operating system do not reach a client. A status that client libraries retry (429, 5xx) means
//! that a retry can succeed. A failure that a retry would repeat carries `x-should-retry: false`.

use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::admission::retry_after;
use crate::generation::Refusal;
use crate::request::Reject;

/// `Retry-After` in seconds where no wait is predicted.
const RETRY_AFTER_S: u64 = 1;

/// Every error that the API returns.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The request head or body cannot be parsed, or the body is not a JSON object.
    #[error("{0}")]
    Malformed(String),
    /// A field has a value that is not allowed.
    #[error("{param}: {message}")]
    Invalid {
        /// Path of the JSON field, such as `messages[0].content`.
        param: String,
        /// The expected and the received value.
        message: String,
    },
    /// A field is known and not supported.
    #[error("{param}: {message}")]
    Unsupported {
        /// Path of the JSON field.
        param: String,
        /// The part that is not supported.
        message: String,
    },
    /// Prompt and completion do not fit the context. Client libraries match this text.
    #[error(
        "This model's maximum context length is {limit} tokens. However, you requested {} tokens \
         ({prompt} in the messages, {completion} in the completion). Please reduce the length of the \
         messages or completion.",
        prompt.saturating_add(*completion as usize)
    )]
    ContextLength {
        /// Path of the field with the prompt, such as `messages` or `prompt`.
        param: String,
        /// Context length of the model, in tokens.
        limit: usize,
        /// Length of the prompt, in tokens.
        prompt: usize,
        /// `max_tokens` of the request.
        completion: u32,
    },
    /// The prompt has more bytes than the longest possible tokens could encode; it was not tokenized.
    #[error(
        "This model's maximum context length is {limit} tokens. However, the text of `{param}` has {bytes} \
         bytes, more than {limit} tokens can encode. Please reduce the length of the messages or completion."
    )]
    ContextBytes {
        /// Path of the field with the prompt, such as `messages` or `prompt`.
        param: String,
        /// Context length of the model, in tokens.
        limit: usize,
        /// Length of the prompt's text, in bytes.
        bytes: usize,
    },
    /// The API key is missing or wrong.
    #[error("Incorrect API key provided.")]
    BadKey,
    /// The server has no API key, and the request's host is no IP address, `localhost` or allowed name.
    #[error(
        "Without an API key, this server is used under an IP address, localhost or a name in \
         --allowed-hosts; the request's Host is {0}."
    )]
    HostNotAllowed(String),
    /// A web page of another origin sent the request.
    #[error("Web pages of the origin {0} may not use this server; --allowed-origins lists those that may.")]
    OriginNotAllowed(String),
    /// The model is not served here.
    #[error("The model `{0}` does not exist.")]
    ModelNotFound(String),
    /// The caller has no such file or batch.
    #[error("{0}")]
    NoObject(String),
    /// The state of a file or batch does not allow the request.
    #[error("{0}")]
    Conflict(String),
    /// The server's directory of files has no room.
    #[error("The server has no room for this: {0}.")]
    StorageFull(String),
    /// No route has this path.
    #[error("Unknown request URL: {0}")]
    NoRoute(String),
    /// The route exists and does not allow the method.
    #[error("Method not allowed for this URL: {0}")]
    NoMethod(String),
    /// The body did not arrive in time. Holds the time limit in seconds.
    #[error("The request body did not arrive within {0} s.")]
    TooSlow(u64),
    /// The body is too large. Holds the limit in bytes.
    #[error("The request body is larger than {0} bytes.")]
    TooLarge(usize),
    /// The encoding or media type of the body is not supported.
    #[error("{0}")]
    MediaType(String),
    /// The request head is too large. Holds the limit in bytes and the limit of header lines.
    #[error("The request head has more than {0} bytes or more than {1} headers.")]
    HeadersTooLarge(usize, usize),
    /// The queue is full, or the predicted wait in it is too long.
    #[error("{message}")]
    QueueFull {
        /// Which limit is exceeded, and by how much.
        message: String,
        /// Predicted time until the queue has room. `None` if it has not been predicted.
        retry_after: Option<Duration>,
    },
    /// The body was dropped to make room for a newer one. Holds the limit of bodies read at once.
    #[error(
        "The server reads at most {0} request bodies at once. This one was the oldest, \
         and newer ones came in."
    )]
    TooManyBodies(usize),
    /// The bodies that arrive at the same time take too much memory. Holds the limit of all in bytes.
    #[error("The server reads at most {0} bytes of request bodies at once, and other bodies take them.")]
    TooManyBytes(usize),
    /// The deadline that the client set cannot be met now.
    #[error("{message}")]
    DeadlineUnmet {
        /// Predicted time, and time left.
        message: String,
        /// Time after which the deadline can be met. `None` if even an idle server cannot meet it.
        retry_after: Option<Duration>,
    },
    /// The deadline that the client set has passed.
    #[error("The request did not finish before its deadline, set by timeout or x-request-deadline-ms.")]
    DeadlineExceeded,
    /// The model is still being loaded.
    #[error("The server is starting: the model is not loaded yet.")]
    NotReady,
    /// The server drains before it shuts down.
    #[error("The server is shutting down and accepts no new requests.")]
    Draining,
    /// The engine has stopped. No work was done on the request, so another server can take it.
    #[error("The engine is unavailable: {0}")]
    EngineDown(String),
    /// The engine failed or was stopped while it worked on the request. A retry can succeed; it can also fail
    /// the next engine, because this request may be the cause.
    #[error("The engine is unavailable: {0}")]
    EngineFailed(String),
    /// The server failed on this request. A retry would fail again.
    #[error("{0}")]
    Internal(String),
}

/// Status, type, code and retry advice of an error: one row of the table in [`ApiError::row`].
struct ErrorRow {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// `x-should-retry`, set where client libraries would derive the wrong decision from the status.
    should_retry: Option<bool>,
}

impl ApiError {
    /// A field whose value is not allowed.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    /// A field that is known and not supported.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), message: message.into() }
    }

    /// The table of statuses.
    fn row(&self) -> ErrorRow {
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
            Self::HostNotAllowed(_) => (StatusCode::FORBIDDEN, REQUEST, Some("host_not_allowed"), None),
            Self::OriginNotAllowed(_) => (StatusCode::FORBIDDEN, REQUEST, Some("origin_not_allowed"), None),
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, Some("model_not_found"), None),
            Self::NoObject(_) => (StatusCode::NOT_FOUND, REQUEST, None, None),
            // Client libraries retry a 409, and the state would be the same.
            Self::Conflict(_) => (StatusCode::CONFLICT, REQUEST, None, Some(false)),
            Self::StorageFull(_) => {
                (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, Some("insufficient_storage"), None)
            }
            Self::NoRoute(_) => (StatusCode::NOT_FOUND, REQUEST, None, None),
            Self::NoMethod(_) => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, None, None),
            // Client libraries retry a 408, and the next upload would be as slow.
            Self::TooSlow(_) => {
                (StatusCode::REQUEST_TIMEOUT, "timeout", Some("deadline_exceeded"), Some(false))
            }
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, None, None),
            Self::MediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, None, None),
            Self::HeadersTooLarge(..) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, REQUEST, None, None),
            Self::QueueFull { .. } | Self::TooManyBodies(_) | Self::TooManyBytes(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), None)
            }
            Self::DeadlineUnmet { retry_after, .. } => {
                let hopeless = retry_after.is_none().then_some(false);
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("deadline_unmet"), hopeless)
            }
            // The deadline has passed, so a retry cannot meet it.
            Self::DeadlineExceeded => {
                (StatusCode::GATEWAY_TIMEOUT, "timeout", Some("deadline_exceeded"), Some(false))
            }
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_ready"), None),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("draining"), None),
            Self::EngineDown(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("engine_unavailable"), None)
            }
            // Not 503: proxies send a 503 to another server, which is only safe if no work was done.
            Self::EngineFailed(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("engine_unavailable"), None)
            }
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, Some(false)),
        };
        ErrorRow { status, kind, code, should_retry }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// Path of the JSON field that caused the error.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } | Self::ContextBytes { param, .. } => Some(param),
            Self::ModelNotFound(_) => Some("model"),
            _ => None,
        }
    }

    /// The error code for programs.
    pub fn code(&self) -> Option<&'static str> {
        self.row().code
    }

    /// Every value that [`label`](Self::label) returns.
    pub const LABELS: [&str; 15] = [
        "invalid_request",
        "invalid_value",
        "context_length_exceeded",
        "invalid_api_key",
        "host_not_allowed",
        "origin_not_allowed",
        "model_not_found",
        "deadline_exceeded",
        "queue_full",
        "deadline_unmet",
        "not_ready",
        "draining",
        "engine_unavailable",
        "insufficient_storage",
        "internal",
    ];

    /// The code for metrics and logs. Unlike [`code`](Self::code), every error has one.
    pub fn label(&self) -> &'static str {
        let row = self.row();
        let without = if row.status.is_server_error() { "internal" } else { "invalid_request" };
        row.code.unwrap_or(without)
    }

    /// Value of the response's `x-should-retry`; `None` leaves the header out.
    pub(super) fn should_retry(&self) -> Option<bool> {
        self.row().should_retry
    }

    /// Value of the `Retry-After` header, in seconds.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after, .. } => {
                Some(retry_after.map_or(RETRY_AFTER_S, |time| time.as_secs()))
            }
            Self::DeadlineUnmet { retry_after, .. } => retry_after.map(|time| time.as_secs()),
            Self::TooManyBodies(_)
            | Self::TooManyBytes(_)
            | Self::NotReady
            | Self::Draining
            | Self::EngineDown(_)
            | Self::EngineFailed(_) => Some(RETRY_AFTER_S),
            _ => None,
        }
    }

    /// The text for people.
    pub(crate) fn message(&self) -> String {
        truncated(self.to_string())
    }

    /// `{"error": {...}}`: the body of a response, or the data of a stream event.
    pub fn to_json(&self) -> String {
        let row = self.row();
        let error = ErrorObject {
            message: self.message(),
            kind: row.kind,
            param: self.param().map(|param| truncated(param.to_owned())),
            code: row.code,
        };
        serde_json::to_string(&ErrorBody { error }).expect("strings can be written as JSON")
    }

    /// Sets the retry time of a `QueueFull` error that has none.
    pub(crate) fn or_retry_after(self, time: Duration) -> Self {
        match self {
            Self::QueueFull { message, retry_after: None } => {
                Self::QueueFull { message, retry_after: Some(time) }
            }
            other => other,
        }
    }

    /// Converts a refusal by the engine. `param` is the JSON field that holds the prompt.
    pub(crate) fn from_reject(reject: Reject, param: &str) -> Self {
        match reject {
            Reject::Invalid { field, message } => Self::invalid(field, message),
            Reject::TooLong { prompt, max_tokens, limit } => {
                Self::ContextLength { param: param.to_owned(), limit, prompt, completion: max_tokens }
            }
            Reject::QueueFull { .. } | Reject::QueueTokensFull { .. } => {
                Self::QueueFull { message: reject.to_string(), retry_after: None }
            }
            Reject::Busy { predicted, limit } => {
                let retry_after = Some(whole_seconds(predicted.saturating_sub(limit)));
                Self::QueueFull { message: reject.to_string(), retry_after }
            }
            Reject::DeadlineUnmet { predicted, left, ever } => {
                let retry_after = ever.then(|| whole_seconds(predicted.saturating_sub(left)));
                Self::DeadlineUnmet { message: reject.to_string(), retry_after }
            }
            Reject::Draining => Self::Draining,
            Reject::EngineDown(reason) => Self::EngineDown(reason),
        }
    }

    /// Returns the error for a refusal. `param` is the field that holds the prompt. `retry_after` is used if
    /// the queue is full and no time was predicted.
    pub(crate) fn from_refusal(refusal: Refusal, param: &str, retry_after: Duration) -> Self {
        match refusal {
            Refusal::TooLong { prompt, completion, limit } => {
                Self::ContextLength { param: param.to_owned(), limit, prompt, completion }
            }
            Refusal::TooManyBytes { bytes, limit } => {
                Self::ContextBytes { param: param.to_owned(), limit, bytes }
            }
            Refusal::OfPrompt { refusal, .. } => Self::from_refusal(*refusal, param, retry_after),
            Refusal::Rejected(reject) => Self::from_reject(reject, param).or_retry_after(retry_after),
            Refusal::MinTokens { .. } => Self::invalid("min_tokens", refusal.to_string()),
            Refusal::PromptLogprobsStart { .. } => {
                Self::invalid("prompt_logprobs_start", refusal.to_string())
            }
            Refusal::Internal(_) => Self::Internal(refusal.to_string()),
            Refusal::NoTemplate | Refusal::Text(_) | Refusal::EmptyPrompt | Refusal::Grammar(_) => {
                Self::invalid(param, refusal.to_string())
            }
        }
    }
}

/// Rounds a wait up to whole seconds, at least 1 and at most the longest `Retry-After`.
fn whole_seconds(wait: Duration) -> Duration {
    retry_after(wait.as_secs_f64())
}

/// Cuts a text after 1,000 bytes: it may quote the client, and must not grow with what the client sent.
fn truncated(mut text: String) -> String {
    const LIMIT: usize = 1000;
    if text.len() > LIMIT {
        text.truncate(text.floor_char_boundary(LIMIT));
        text.push('…');
    }
    text
}

/// The body of every error.
#[derive(Serialize, JsonSchema)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

/// An error in the form of OpenAI's API.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
struct ErrorObject {
    /// Text for people. It names the field, and the expected and the received value.
    message: String,
    /// Kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Path of the field that caused the error.
    param: Option<String>,
    /// Code for programs.
    code: Option<&'static str>,
}
