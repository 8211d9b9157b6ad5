//! Settings of the front end: models, API keys, sampling defaults, and limits of HTTP.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::StatusCode;

use super::api_keys::Caller;
use super::reward::scoring::Scoring;
use super::validate::Defaults;
use crate::batch::Store;
use crate::tools::ToolFormat;

/// Maximum number of `/tokenize` and `/detokenize` requests that are served or wait at the same time. Further
/// requests get status 429.
pub(crate) const MAX_TOKENIZE_REQUESTS: usize = 64;
/// Large request bodies parsed at the same time: a parsed body takes many times the memory of its bytes.
pub(crate) const MAX_PARSING: usize = 4;

/// Files that arrive at the same time. One more refuses the file that has been on its way for the longest.
pub(crate) const MAX_UPLOADS: usize = 8;

/// Settings of the front end.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names that requests may give as `model`, the model's own name first. At least one.
    pub models: Vec<String>,
    /// Paths of the model's directory, without a slash at the end, which requests may give as `model` too.
    pub model_paths: Vec<String>,
    /// API key shared by all clients. With `None` and no named keys, every client is let in.
    pub api_key: Option<String>,
    /// Further API keys, each with the tenant and priority of its holder.
    pub named_keys: Vec<(String, Caller)>,
    /// Whether `/metrics` needs a key. If false, usage by key or user is left out of it without a key.
    pub metrics_need_key: bool,
    /// Origins, in lower case, whose web pages may use the server; `*` for all.
    pub allowed_origins: Vec<String>,
    /// Host names, in lower case, that requests may use while there is no API key, in addition to IP
    /// addresses and `localhost`; `*.NAME` for all names below NAME, `*` for all.
    pub allowed_hosts: Vec<String>,
    /// Sampling parameters for requests that leave them out.
    pub defaults: Defaults,
    /// The values and weights of a model with a reward head; `None` if the model generates.
    pub scoring: Option<Scoring>,
    /// Token ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// The format of tool calls; `None` stands for that of the chat template.
    pub tool_format: Option<ToolFormat>,
    /// Unknown fields of a request are errors. If false, a response header lists them.
    pub reject_unknown_fields: bool,
    /// Status of a response that refuses a request because the queue is full. Default: 429.
    pub queue_full_status: StatusCode,
    /// Where files and batches are kept; `None` refuses their routes.
    pub batches: Option<BatchSettings>,
    /// Counter of lost lines of the log, for the metrics.
    pub dropped_log_lines: Arc<AtomicU64>,
    /// Limits of HTTP.
    pub http: HttpLimits,
}

impl Settings {
    /// Returns the default settings for one model.
    pub fn new(model: impl Into<String>, eos_ids: Vec<u32>) -> Self {
        Self {
            models: vec![model.into()],
            model_paths: Vec::new(),
            api_key: None,
            named_keys: Vec::new(),
            metrics_need_key: false,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            defaults: Defaults::default(),
            scoring: None,
            eos_ids,
            tool_format: None,
            reject_unknown_fields: false,
            queue_full_status: StatusCode::TOO_MANY_REQUESTS,
            batches: None,
            dropped_log_lines: Arc::default(),
            http: HttpLimits::default(),
        }
    }
}

/// Settings of files and batches.
#[derive(Debug, Clone)]
pub struct BatchSettings {
    /// Keeps them.
    pub store: Arc<Store>,
    /// Lines of batches that run at the same time.
    pub max_lines: usize,
    /// Returns the Unix time in seconds.
    pub clock: fn() -> u64,
}

/// Limits on what a client may send, and on how long it may take.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpLimits {
    /// Open connections. Further clients wait in the listening socket's backlog.
    pub max_connections: usize,
    /// Time for the head of a request, from its first byte, and for the first byte of a new connection.
    pub head_timeout: Duration,
    /// Time between two requests of a connection. It must be longer than the load balancer's (60 s by default
    /// for most): a request that the balancer sends while the server closes the connection would be lost.
    pub idle_timeout: Duration,
    /// A client that accepts no byte for this time is disconnected.
    pub write_stall: Duration,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// Headers of a request.
    pub max_headers: usize,
    /// Limits of a request's body.
    pub body: BodyLimits,
    /// Request bodies read at the same time. One more refuses the body that has been on its way for the
    /// longest.
    pub max_reading: usize,
    /// A stream that sends nothing for this time sends a comment.
    pub keep_alive: Duration,
}

/// Limits of a request's body.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyLimits {
    /// Size in bytes.
    pub max_bytes: usize,
    /// Size of all bodies that are read or parsed at the same time, in bytes.
    pub max_total_bytes: usize,
    /// Time from the end of the head to the end of the body.
    pub deadline: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            max_head_bytes: 16 << 10,
            max_headers: 64,
            body: BodyLimits {
                max_bytes: 32 << 20,
                max_total_bytes: 512 << 20,
                deadline: Duration::from_secs(30),
            },
            max_reading: 1024,
            keep_alive: Duration::from_secs(15),
        }
    }
}
