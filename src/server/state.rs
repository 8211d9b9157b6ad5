//! State shared by all request handlers of a server.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::api_keys::ApiKeys;
use super::byte_budget::ByteBudget;
use super::cors::AllowedOrigins;
use super::evicting_permits::EvictingPermits;
use super::host::AllowedHosts;
use super::metrics::Metrics;
use super::reward::templated_text::turn_markers;
use super::settings::{MAX_PARSING, MAX_TOKENIZE_REQUESTS, MAX_UPLOADS, Settings};
use super::status::{ServerStatus, ShutdownPhase};
use super::system::unix_time;
use super::validate::{Limits, TEMPLATE_FIELDS};
use crate::generation::{ChatMessage, ChatTemplate, Generator, RenderOptions, Role};
use crate::tools::{ToolFormat, ToolSupport};

/// State shared by all request handlers.
pub struct ServerState {
    pub(crate) generator: Generator,
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) keys: ApiKeys,
    /// Origins whose web pages may use the server.
    pub(super) origins: Arc<AllowedOrigins>,
    /// Host names that requests may use while there is no API key.
    pub(super) hosts: AllowedHosts,
    /// Unix time in seconds at which this state was made; the models' `created`.
    pub(crate) started: u64,
    /// Permits for parsing a large body.
    pub(crate) parsing: Arc<Semaphore>,
    /// Permits for `/tokenize` and `/detokenize` requests, which take no place in the engine's queue.
    pub(crate) tokenize_permits: Semaphore,
    /// Held while a `/tokenize` or `/detokenize` request uses the tokenizer.
    pub(crate) tokenize_turn: Mutex<()>,
    /// Status for health checks.
    pub(crate) status: Arc<ServerStatus>,
    /// Permits for reading a request body.
    pub(crate) body_permits: EvictingPermits,
    /// Permits for receiving a file.
    pub(crate) upload_permits: EvictingPermits,
    /// Bytes of the request bodies that are read or parsed.
    pub(crate) body_bytes: Arc<ByteBudget>,
    /// Number of requests whose response is not complete.
    pub(super) open_requests: watch::Sender<usize>,
    /// Cancelled when the shutdown aborts the requests that still run.
    pub(crate) abort: CancellationToken,
}

/// How a model with this chat template calls tools. `format` is the operator's.
fn tool_support(template: &ChatTemplate, format: Option<ToolFormat>) -> ToolSupport {
    let (source, in_template) = (template.tool_source(), template.shows_tools());
    let found = if in_template {
        ToolFormat::of_template(source)
    } else {
        Some(ToolFormat::for_plain_template(source))
    };
    ToolSupport { format: format.or(found), in_template, calls_in_template: template.shows_calls() }
}

/// Whether a conversation may begin with a message of the system.
fn takes_system(template: &ChatTemplate) -> bool {
    let messages = [Role::System, Role::User, Role::Assistant].map(|role| ChatMessage::new(role, "Hello"));
    let options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
    template.render(&messages, &options).is_ok()
}

impl ServerState {
    /// Makes the state and sets `status` to started.
    ///
    /// # Panics
    /// If `settings` names no model.
    pub fn new(generator: Generator, settings: Settings, status: Arc<ServerStatus>) -> Arc<Self> {
        assert!(!settings.models.is_empty(), "a server serves at least one model");
        let limits = Limits {
            models: settings.models.clone(),
            model_paths: settings.model_paths.clone(),
            vocab_size: generator.vocab_size(),
            eos_ids: settings.eos_ids.clone(),
            tools: generator.template().map(|template| tool_support(template, settings.tool_format)),
            defaults: settings.defaults.clone(),
            template_fields: TEMPLATE_FIELDS
                .into_iter()
                .filter(|name| generator.template_reads(name))
                .collect(),
            scoring: settings.scoring.clone().map(Arc::new),
            takes_system: generator.template().is_some_and(takes_system),
            own_markers: turn_markers()
                .filter(|marker| generator.tokenizer().token_id(marker).is_some())
                .collect(),
            reject_unknown_fields: settings.reject_unknown_fields,
            keys_have_priorities: !settings.named_keys.is_empty(),
        };
        status.started(generator.engine().heartbeat());
        let metrics = Metrics::new(&settings.models[0], generator.engine());
        let max_reading = settings.http.max_reading;
        let body_bytes = ByteBudget::new(settings.http.body.max_total_bytes);
        let keys = ApiKeys::new(settings.api_key.as_deref(), &settings.named_keys);
        keys.usage_labels().iter().for_each(|label| metrics.register_key(label));
        Arc::new(Self {
            keys,
            origins: Arc::new(AllowedOrigins::new(&settings.allowed_origins)),
            hosts: AllowedHosts::new(&settings.allowed_hosts),
            generator,
            settings,
            limits,
            metrics,
            started: unix_time(),
            parsing: Arc::new(Semaphore::new(MAX_PARSING)),
            tokenize_permits: Semaphore::new(MAX_TOKENIZE_REQUESTS),
            tokenize_turn: Mutex::default(),
            status,
            body_permits: EvictingPermits::new(max_reading),
            upload_permits: EvictingPermits::new(MAX_UPLOADS),
            body_bytes,
            open_requests: watch::Sender::new(0),
            abort: CancellationToken::new(),
        })
    }

    /// Length of the longest sequence, prompt and completion together, in tokens.
    pub(crate) fn max_model_len(&self) -> usize {
        self.generator.engine().config().max_model_len
    }

    /// Returns true once the shutdown has begun. During its grace period requests are still accepted.
    pub(crate) fn shutting_down(&self) -> bool {
        self.status.phase() >= ShutdownPhase::Grace
    }

    /// Returns true once the shutdown refuses new requests.
    pub(crate) fn refuses_requests(&self) -> bool {
        self.status.phase() >= ShutdownPhase::Refusing
    }

    /// Returns true if the engine has failed or was stopped. A request may then succeed on another server.
    pub(crate) fn engine_is_gone(&self) -> bool {
        self.status.phase() >= ShutdownPhase::Aborting || self.engine_failed()
    }

    /// Returns true if the engine has failed. It does not recover.
    pub(crate) fn engine_failed(&self) -> bool {
        self.generator.engine().heartbeat().failed()
    }
}
