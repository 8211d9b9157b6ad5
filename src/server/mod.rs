//! HTTP: the only place that knows axum and OpenAI's JSON.
//!
//! A request passes `listen` (the connection), [`door`] (head, key, drain), [`routes`], [`body`] (bytes to JSON),
//! [`types`] (JSON to a wire struct), [`validate`] (to what is meant), and [`answer`], which generates and writes
//! [`reply`]s, whole or through [`sse`]. Whatever ends badly on the way is an [`error::ApiError`].

pub mod answer;
pub mod body;
pub mod drain;
pub mod error;
pub mod evicting_permits;
pub mod fields;
pub mod guard;
pub mod health;
pub mod listen;
pub mod malformed;
pub mod management;
pub mod metrics;
pub mod middleware;
pub mod reply;
pub mod routes;
pub mod sse;
pub mod status;
pub mod tokens;
pub mod types;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Semaphore, watch};

use crate::generation::Generator;
use body::BodyLimits;
pub use drain::{DrainTimes, Ended, Signals, unless_told_to_end};
use evicting_permits::EvictingPermits;
pub use listen::{bind, serve, signals, while_starting};
pub use management::{ManagementPorts, ManagementThread};
use metrics::Metrics;
use middleware::{Caller, Keys};
use status::Phase;
pub use status::{ServerStatus, Stage};
use validate::{Defaults, Limits};

/// What the operator decides about the front end.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The names that the model answers to, the first being its own; at least one.
    pub models: Vec<String>,
    /// The key that clients must show; `None` lets everyone in.
    pub api_key: Option<String>,
    /// Further keys, and whose they are.
    pub named_keys: Vec<(String, Caller)>,
    /// What holds where a client says nothing.
    pub defaults: Defaults,
    /// The ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// Whether a field that nobody knows is an error; else it is named in a header of the response.
    pub reject_unknown_fields: bool,
    /// Status of a refusal because the queue is full.
    pub queue_full_status: StatusCode,
    /// Limits of HTTP.
    pub http: HttpLimits,
}

impl Settings {
    /// The least there is to say; all else has a default.
    pub fn new(model: impl Into<String>, eos_ids: Vec<u32>) -> Self {
        Self {
            models: vec![model.into()],
            api_key: None,
            named_keys: Vec::new(),
            defaults: Defaults::default(),
            eos_ids,
            reject_unknown_fields: false,
            queue_full_status: StatusCode::TOO_MANY_REQUESTS,
            http: HttpLimits::default(),
        }
    }
}

/// A limit on everything that a client decides.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpLimits {
    /// Connections at once; more wait in the system's queue.
    pub max_connections: usize,
    /// For the head of a request, from its first byte, and for the first byte of a new connection.
    pub head_timeout: Duration,
    /// Between two requests of a connection. Longer than a load balancer's, which is 60 s at most of them: whoever
    /// hangs up first must be the one who does not send.
    pub idle_timeout: Duration,
    /// A client that takes no byte for this long is cut off.
    pub write_stall: Duration,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// Headers of a request.
    pub max_headers: usize,
    /// The body.
    pub body: BodyLimits,
    /// Bodies that are read at once: of more, the one that takes longest is refused.
    pub max_reading: usize,
    /// A stream that is silent for this long gets a comment.
    pub keep_alive: Duration,
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
            body: BodyLimits { max_bytes: 32 << 20, deadline: Duration::from_secs(30) },
            max_reading: 1024,
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// What all handlers share.
pub struct ServerState {
    pub(crate) generator: Generator,
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) keys: Keys,
    /// Unix time.
    pub(crate) started: u64,
    /// Large bodies parsed at once: a parsed body takes many times its size.
    pub(crate) parsing: Arc<Semaphore>,
    /// Requests that only want tokens, or the text of some.
    pub(crate) asides: tokens::Asides,
    /// What health checks read.
    pub(crate) status: Arc<ServerStatus>,
    /// Requests whose body is on its way.
    pub(crate) reading: EvictingPermits,
    /// Requests whose response is not complete.
    open: watch::Sender<usize>,
    /// Whether what still runs is being cut off.
    cut: watch::Sender<bool>,
}

impl ServerState {
    /// From here on `status` says that the server has started.
    ///
    /// # Panics
    /// If `settings` names no model.
    pub fn new(generator: Generator, settings: Settings, status: Arc<ServerStatus>) -> Arc<Self> {
        assert!(!settings.models.is_empty(), "a server serves at least one model");
        let limits = Limits {
            models: settings.models.clone(),
            vocab_size: generator.vocab_size(),
            eos_ids: settings.eos_ids.clone(),
            defaults: settings.defaults.clone(),
            reject_unknown_fields: settings.reject_unknown_fields,
            keys_have_priorities: !settings.named_keys.is_empty(),
        };
        status.started(generator.engine().heartbeat());
        let metrics = Metrics::new(&settings.models[0], generator.engine());
        let max_reading = settings.http.max_reading;
        let keys = Keys::new(settings.api_key.as_deref(), &settings.named_keys);
        keys.payers().iter().for_each(|payer| metrics.register_key(payer));
        Arc::new(Self {
            keys,
            generator,
            settings,
            limits,
            metrics,
            started: answer::unix_time(),
            parsing: Arc::new(Semaphore::new(4)),
            asides: tokens::Asides::default(),
            status,
            reading: EvictingPermits::new(max_reading),
            open: watch::Sender::new(0),
            cut: watch::Sender::new(false),
        })
    }

    /// Tokens of the longest sequence.
    pub fn max_model_len(&self) -> usize {
        self.generator.engine().config().max_model_len
    }

    /// Whether the shutdown has begun.
    pub fn draining(&self) -> bool {
        self.status.phase() >= Phase::Leaving
    }

    /// Whether new requests are refused.
    pub fn refuses(&self) -> bool {
        self.status.phase() >= Phase::Refusing
    }

    /// Resolves when what still runs is being cut off.
    pub(crate) async fn cut_off(&self) {
        let mut cut = self.cut.subscribe();
        // The sender lives as long as the state.
        let _cut = cut.wait_for(|cut| *cut).await;
    }

    /// Whether the engine has failed or was told to end, so that another server may do better.
    pub fn engine_is_gone(&self) -> bool {
        self.status.phase() >= Phase::Stopped || self.engine_failed()
    }

    /// Whether the engine has failed, which it does for good.
    pub fn engine_failed(&self) -> bool {
        self.generator.engine().heartbeat().failed()
    }
}
