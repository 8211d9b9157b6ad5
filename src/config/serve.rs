//! Settings of `octant serve`, grouped by subject. Those of devices are in `devices.rs`.
//!
//! Every field has the name of its flag, of its `OCTANT_*` variable and of its key in the file of `--config`.
//! To add a setting, add a field here. Rules about two settings at once are in `rules.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Args};

use super::api_keys::{self, ApiKey};
use super::devices::{DeviceArgs, SimulationArgs};
use super::host::LOOPBACK;
use super::origins::{host_name, origin};
use super::parsers::{
    RewardWeight, at_least_1, at_least_1_second, boolean, model, port, reward_weight, seconds, tokens,
    tool_format, trimmed_name, trimmed_secret,
};
use super::scheduling::{AdmissionArgs, SchedulingArgs};
use super::speculation::SpeculationArgs;
use super::{Host, Size};
use crate::device::KvDtype;
use crate::model::{HeadDtype, Precision};
use crate::tools::ToolFormat;

/// All settings of `octant serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// TOML file of settings. Keys are flag names without the leading dashes
    #[arg(long, env = "OCTANT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The model and its number formats.
    #[command(flatten, next_help_heading = "Model")]
    pub(crate) model: ModelArgs,
    /// Addresses, access and replies.
    #[command(flatten, next_help_heading = "Network")]
    pub(crate) network: NetworkArgs,
    /// Sizes of steps and of the KV cache.
    #[command(flatten, next_help_heading = "Scheduling")]
    pub(crate) scheduling: SchedulingArgs,
    /// Speculative decoding.
    #[command(flatten, next_help_heading = "Scheduling")]
    pub(crate) speculation: SpeculationArgs,
    /// Limits of the queue.
    #[command(flatten, next_help_heading = "Admission")]
    pub(crate) admission: AdmissionArgs,
    /// Files and batches.
    #[command(flatten, next_help_heading = "Batches")]
    pub(crate) batches: BatchArgs,
    /// Devices and their ranks.
    #[command(flatten, next_help_heading = "Device")]
    pub(crate) device: DeviceArgs,
    /// Timeouts and shutdown.
    #[command(flatten, next_help_heading = "Timeouts and shutdown")]
    pub(crate) timeouts: TimeoutArgs,
    /// Simulated GPUs and recordings.
    #[command(flatten, next_help_heading = "Simulation and recording")]
    pub(crate) simulation: SimulationArgs,
    /// Notes for the operator about flags and variables that were not used.
    #[arg(skip)]
    pub(crate) notes: Vec<String>,
}

/// The model and its number formats.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Hugging Face directory with config.json, *.safetensors and tokenizer.json, or a model's name
    /// ORG/NAME[@REVISION], which is downloaded from the Hugging Face hub as far as its cache lacks it. A
    /// directory of this name is preferred. The variables HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and
    /// HF_HUB_OFFLINE have their usual meaning
    #[arg(
        long,
        env = "OCTANT_MODEL",
        value_name = "DIR|NAME",
        value_parser = model(),
        aliases = ["model-path", "model-id"]
    )]
    pub(crate) model: PathBuf,
    /// Model names that clients may use, separated by commas or spaces, with or without a provider in front,
    /// as in openai/NAME [default: ORG/NAME, or the name of the directory]
    #[arg(
        long,
        env = "OCTANT_SERVED_MODEL_NAME",
        value_name = "NAMES",
        value_delimiter = ',',
        num_args = 1..,
        value_parser = trimmed_name,
        aliases = ["served-model-names", "alias"]
    )]
    pub(crate) served_model_name: Option<Vec<String>>,
    /// Maximum tokens of a sequence, prompt and answer together; 4K is 4096, 4k is 4000 [default: the model's
    /// own limit]
    #[arg(
        long,
        env = "OCTANT_MAX_MODEL_LEN",
        value_name = "TOKENS",
        value_parser = tokens,
        aliases = ["context-length", "max-total-tokens", "max-seq-len"]
    )]
    pub(crate) max_model_len: Option<usize>,
    /// Number format of linear layers: FP8 (E4M3 weights and inputs), or the format of the checkpoint
    #[arg(
        long,
        env = "OCTANT_QUANTIZATION",
        value_name = "SCHEME",
        default_value = "fp8",
        ignore_case = true,
        alias = "quantize"
    )]
    pub(crate) quantization: Precision,
    /// Element type of an LM head that the checkpoint stores as floats; one that is stored as FP8 stays FP8.
    /// With fp8, the head of a model that shares it with the embedding is stored a second time [default:
    /// bf16]
    #[arg(long, env = "OCTANT_LM_HEAD_DTYPE", value_name = "TYPE", ignore_case = true)]
    pub(crate) lm_head_dtype: Option<HeadDtype>,
    /// Element type of the KV cache [default: fp8; bf16 with --quantization none]
    #[arg(long, env = "OCTANT_KV_CACHE_DTYPE", value_name = "TYPE", ignore_case = true)]
    pub(crate) kv_cache_dtype: Option<KvDtype>,
    /// Weights of a reward model's values in its score, as NAME=WEIGHT separated by commas; values without
    /// one do not count, and requests can have weights of their own [default: NVIDIA's for the five
    /// attributes of HelpSteer2, 1 for a head of one value; other heads have none]
    #[arg(
        long,
        env = "OCTANT_REWARD_WEIGHTS",
        value_name = "WEIGHTS",
        value_delimiter = ',',
        value_parser = reward_weight,
        allow_hyphen_values = true
    )]
    pub(crate) reward_weights: Vec<RewardWeight>,
}

/// Addresses, access and replies.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArgs {
    /// Address or name to listen on: 0.0.0.0 is every IPv4 interface, `::` also every IPv6 one. A name stands
    /// for all its addresses
    #[arg(long, env = "OCTANT_HOST", value_name = "HOST", default_value_t = LOOPBACK, alias = "hostname")]
    pub(crate) host: Host,
    /// TCP port to listen on; 0 picks a free port
    #[arg(long, env = "OCTANT_PORT", value_name = "PORT", default_value_t = 8000, value_parser = port)]
    pub(crate) port: u16,
    /// Extra port for health probes, served by its own thread even under load; 0 picks a free port [default:
    /// none; --port always answers probes]
    #[arg(long, env = "OCTANT_HEALTH_PORT", value_name = "PORT", value_parser = port)]
    pub(crate) health_port: Option<u16>,
    /// Port of /admin/drain, which begins the shutdown. Requests to it need no key [default: none]
    #[arg(long, env = "OCTANT_ADMIN_PORT", value_name = "PORT", value_parser = port)]
    pub(crate) admin_port: Option<u16>,
    /// Address or name of --admin-port
    #[arg(long, env = "OCTANT_ADMIN_HOST", value_name = "HOST", default_value_t = LOOPBACK)]
    pub(crate) admin_host: Host,
    /// Key that clients must send as `Authorization: Bearer KEY` or `x-api-key: KEY` [default: none, every
    /// client has access; see allowed-hosts and allowed-origins]
    #[arg(
        long,
        env = "OCTANT_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        value_parser = trimmed_secret
    )]
    pub(crate) api_key: Option<String>,
    /// TOML file of several keys, each a table [[keys]] with name, key, and optionally weight (share relative
    /// to other keys, 1 to 1000) and priority (added to the priority of its requests, whose own priority must
    /// then be at least 0). The server then divides its capacity fairly between keys instead of between
    /// `user` fields [default: none]
    #[arg(
        long,
        env = "OCTANT_API_KEYS",
        value_name = "FILE",
        value_parser = PathBufValueParser::new().try_map(|path| api_keys::read(&path))
    )]
    pub(crate) api_keys: Option<Arc<[ApiKey]>>,
    /// Require the API key for /metrics. If false, /metrics leaves out the usage of keys and users without it
    #[arg(
        long,
        env = "OCTANT_REQUIRE_AUTH_FOR_METRICS",
        value_name = "BOOL",
        default_value_t = false,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub(crate) require_auth_for_metrics: bool,
    /// Host names under which clients without an API key may use the server, separated by commas; *.NAME for
    /// all names below NAME, * for all names [default: localhost, IP addresses and the name in --host]
    #[arg(
        long,
        env = "OCTANT_ALLOWED_HOSTS",
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = host_name
    )]
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins whose web pages may use the server (CORS), such as https://chat.example, separated by commas;
    /// * for all origins [default: none]
    #[arg(
        long,
        env = "OCTANT_ALLOWED_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ',',
        value_parser = origin,
        alias = "cors-allow-origin"
    )]
    pub(crate) allowed_origins: Vec<String>,
    /// Reject requests with unknown fields. If false, the response lists them in its x-ignored-fields header
    #[arg(
        long,
        env = "OCTANT_REJECT_UNKNOWN_FIELDS",
        value_name = "BOOL",
        default_value_t = false,
        value_parser = boolean,
        action = ArgAction::Set
    )]
    pub(crate) reject_unknown_fields: bool,
    /// Format of tool calls in answers. Found in the chat template if not set
    #[arg(long, env = "OCTANT_TOOL_CALL_PARSER", value_name = "FORMAT", value_parser = tool_format)]
    pub(crate) tool_call_parser: Option<ToolFormat>,
    /// Tokens per stream event after the first. Higher values use less CPU on server and client. Requests
    /// with `stop` strings always get one token per event. With --speculate, the tokens of a step count as
    /// one
    #[arg(
        long,
        env = "OCTANT_STREAM_INTERVAL",
        value_name = "TOKENS",
        default_value_t = 1,
        value_parser = at_least_1
    )]
    pub(crate) stream_interval: usize,
}

/// Files and batches.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchArgs {
    /// Directory that keeps the files and batches of /v1/files and /v1/batches [default: none; these routes
    /// are refused]
    #[arg(long, env = "OCTANT_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Maximum size of --data-dir, in bytes or with a unit. Batches reserve room for their results
    #[arg(long, env = "OCTANT_DATA_DIR_MAX_BYTES", value_name = "SIZE", default_value = "10GiB")]
    pub(crate) data_dir_max_bytes: Size,
    /// Maximum lines of batches in the scheduler at once. They run behind all other requests [default:
    /// --max-num-seqs]
    #[arg(long, env = "OCTANT_MAX_BATCH_LINES", value_name = "N", value_parser = at_least_1)]
    pub(crate) max_batch_lines: Option<usize>,
}

/// Timeouts and shutdown.
#[derive(Debug, Clone, Args)]
pub(crate) struct TimeoutArgs {
    /// Seconds beyond the expected length of a step after which /health/live answers 503, if requests wait
    /// and no step ends
    #[arg(
        long,
        env = "OCTANT_STALL_TIMEOUT",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = at_least_1_second
    )]
    pub(crate) stall_timeout: Duration,
    /// Maximum seconds of a step. After that the process exits with an error
    #[arg(
        long,
        env = "OCTANT_STEP_TIMEOUT",
        value_name = "SECONDS",
        default_value = "600",
        value_parser = at_least_1_second
    )]
    pub(crate) step_timeout: Duration,
    /// Seconds after which a client that reads nothing of its answer is disconnected and its request aborted
    #[arg(
        long,
        env = "OCTANT_WRITE_TIMEOUT",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = at_least_1_second
    )]
    pub(crate) write_timeout: Duration,
    /// Seconds after SIGTERM during which the server still accepts requests while /health/ready answers 503.
    /// Ctrl-C skips them
    #[arg(
        long,
        env = "OCTANT_DRAIN_GRACE",
        value_name = "SECONDS",
        default_value = "5",
        value_parser = seconds
    )]
    pub(crate) drain_grace: Duration,
    /// Seconds after --drain-grace during which running requests may finish. Then they are cut off
    #[arg(
        long,
        env = "OCTANT_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value = "300",
        value_parser = seconds
    )]
    pub(crate) drain_timeout: Duration,
    /// Shut down when standard input ends, as after SIGTERM. A program that starts the server with a pipe
    /// there leaves no server behind, even if it is killed
    #[arg(
        long,
        env = "OCTANT_STOP_WITH_STDIN",
        value_name = "BOOL",
        default_value_t = false,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub(crate) stop_with_stdin: bool,
}

impl ModelArgs {
    /// Names of the model, at least one; the first is its own.
    pub(crate) fn served_names(&self) -> Vec<String> {
        self.served_model_name.clone().unwrap_or_else(|| {
            let path = std::fs::canonicalize(&self.model).unwrap_or_else(|_| self.model.clone());
            vec![path.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())]
        })
    }

    /// Paths of the model's directory, as given and in full. Clients made for vLLM use them as its name.
    pub(crate) fn paths(&self) -> Vec<String> {
        let full = std::fs::canonicalize(&self.model).ok();
        let text = |path: &PathBuf| path.to_string_lossy().trim_end_matches('/').to_owned();
        [Some(&self.model), full.as_ref()].into_iter().flatten().map(text).collect()
    }

    /// Element type of an LM head that is stored as floats.
    pub(crate) fn head_dtype(&self) -> HeadDtype {
        self.lm_head_dtype.unwrap_or(HeadDtype::beside(self.quantization))
    }

    /// Element type of the KV cache.
    pub(crate) fn kv_dtype(&self) -> KvDtype {
        let default = match self.quantization {
            Precision::Fp8 => KvDtype::Fp8,
            Precision::None => KvDtype::Bf16,
        };
        self.kv_cache_dtype.unwrap_or(default)
    }
}

impl NetworkArgs {
    /// Host names under which clients without an API key may use the server: the allowed ones and the name
    /// that the server listens on.
    pub(crate) fn allowed_hosts(&self) -> Vec<String> {
        let own = match &self.host {
            Host::Name(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
            Host::Address(_) => None,
        };
        self.allowed_hosts.iter().cloned().chain(own).collect()
    }
}
