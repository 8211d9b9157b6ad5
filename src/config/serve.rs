//! Settings of `octant serve`, grouped by subject.
//!
//! Every field has the name of its flag, of its `OCTANT_*` variable and of its key in the file of `--config`.
//! To add a setting, add a field here. Rules about two settings at once are in `rules.rs`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Args, ValueEnum};

use super::Size;
use super::api_keys::{self, ApiKey};
use super::origins::{host_name, origin};
use super::parsers::{at_least_1, at_least_1_second, number, seconds};
use crate::cost::Hardware;
use crate::device::KvDtype;
use crate::machine;
use crate::model::Precision;
use crate::scheduler::Policy;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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
    /// Limits of the queue.
    #[command(flatten, next_help_heading = "Admission")]
    pub(crate) admission: AdmissionArgs,
    /// Devices and their ranks.
    #[command(flatten, next_help_heading = "Device")]
    pub(crate) device: DeviceArgs,
    /// Timeouts and shutdown.
    #[command(flatten, next_help_heading = "Timeouts and shutdown")]
    pub(crate) timeouts: TimeoutArgs,
    /// Simulated GPUs and recordings.
    #[command(flatten, next_help_heading = "Simulation and recording")]
    pub(crate) simulation: SimulationArgs,
}

/// The model and its number formats.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Hugging Face directory with config.json, *.safetensors and tokenizer.json
    #[arg(long, env = "OCTANT_MODEL", value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Model names that clients may use, separated by commas, with or without a provider in front, as in
    /// openai/NAME [default: the name of the directory]
    #[arg(long, env = "OCTANT_SERVED_MODEL_NAME", value_name = "NAMES", value_delimiter = ',')]
    pub(crate) served_model_name: Option<Vec<String>>,
    /// Maximum tokens of a sequence, prompt and answer together [default: the model's own limit]
    #[arg(long, env = "OCTANT_MAX_MODEL_LEN", value_name = "TOKENS", value_parser = at_least_1)]
    pub(crate) max_model_len: Option<usize>,
    /// Number format of linear layers: FP8 (E4M3 weights and inputs), or the format of the checkpoint
    #[arg(long, env = "OCTANT_QUANTIZATION", value_name = "SCHEME", default_value = "fp8")]
    pub(crate) quantization: Precision,
    /// Element type of the KV cache [default: fp8; bf16 with --quantization none]
    #[arg(long, env = "OCTANT_KV_CACHE_DTYPE", value_name = "TYPE")]
    pub(crate) kv_cache_dtype: Option<KvDtype>,
}

/// Addresses, access and replies.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArgs {
    /// Address to listen on
    #[arg(long, env = "OCTANT_HOST", value_name = "ADDRESS", default_value_t = LOCALHOST)]
    pub(crate) host: IpAddr,
    /// TCP port to listen on; 0 picks a free port
    #[arg(long, env = "OCTANT_PORT", value_name = "PORT", default_value_t = 8000)]
    pub(crate) port: u16,
    /// Extra port for health probes, served by its own thread even under load; 0 picks a free port [default:
    /// none; --port always answers probes]
    #[arg(long, env = "OCTANT_HEALTH_PORT", value_name = "PORT")]
    pub(crate) health_port: Option<u16>,
    /// Port of /admin/drain, which begins the shutdown. Requests to it need no key [default: none]
    #[arg(long, env = "OCTANT_ADMIN_PORT", value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// Address of --admin-port
    #[arg(long, env = "OCTANT_ADMIN_HOST", value_name = "ADDRESS", default_value_t = LOCALHOST)]
    pub(crate) admin_host: IpAddr,
    /// Key that clients must send as `Authorization: Bearer KEY` or `x-api-key: KEY` [default: none, every
    /// client has access; see allowed-hosts and allowed-origins]
    #[arg(long, env = "OCTANT_API_KEY", value_name = "KEY", hide_env_values = true)]
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
        action = ArgAction::Set
    )]
    pub(crate) require_auth_for_metrics: bool,
    /// Host names under which clients without an API key may use the server, separated by commas; *.NAME for
    /// all names below NAME, * for all names [default: none but localhost and IP addresses]
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
        value_parser = origin
    )]
    pub(crate) allowed_origins: Vec<String>,
    /// Reject requests with unknown fields. If false, the response lists them in its x-ignored-fields header
    #[arg(
        long,
        env = "OCTANT_REJECT_UNKNOWN_FIELDS",
        value_name = "BOOL",
        default_value_t = false,
        action = ArgAction::Set
    )]
    pub(crate) reject_unknown_fields: bool,
    /// Tokens per stream event after the first. Higher values use less CPU on server and client. Requests
    /// with `stop` strings always get one token per event
    #[arg(
        long,
        env = "OCTANT_STREAM_INTERVAL",
        value_name = "TOKENS",
        default_value_t = 1,
        value_parser = at_least_1
    )]
    pub(crate) stream_interval: usize,
}

/// Sizes of steps and of the KV cache.
#[derive(Debug, Clone, Args)]
pub(crate) struct SchedulingArgs {
    /// Maximum sequences that run at once
    #[arg(
        long,
        env = "OCTANT_MAX_NUM_SEQS",
        value_name = "N",
        default_value_t = Self::MAX_NUM_SEQS,
        value_parser = at_least_1
    )]
    pub(crate) max_num_seqs: usize,
    /// Maximum tokens per step. Higher values process prompts faster and make each step longer
    #[arg(
        long,
        env = "OCTANT_MAX_NUM_BATCHED_TOKENS",
        value_name = "TOKENS",
        default_value_t = Self::MAX_NUM_BATCHED_TOKENS,
        value_parser = at_least_1
    )]
    pub(crate) max_num_batched_tokens: usize,
    /// Memory of each rank for the KV cache, in bytes or with a unit, such as 4GiB or 512MiB [default: enough
    /// for --max-num-seqs full-length requests, at most the memory left: 80 % of what is available on a CPU]
    #[arg(long, env = "OCTANT_KV_CACHE_MEMORY", value_name = "SIZE")]
    pub(crate) kv_cache_memory: Option<Size>,
    /// Share KV blocks between requests whose prompts begin with the same tokens
    #[arg(
        long,
        env = "OCTANT_ENABLE_PREFIX_CACHING",
        value_name = "BOOL",
        default_value_t = Self::PREFIX_CACHING,
        action = ArgAction::Set
    )]
    pub(crate) enable_prefix_caching: bool,
    /// Steps of waiting after which a request's priority improves by one; 0 disables ageing
    #[arg(
        long,
        env = "OCTANT_AGEING_STEPS",
        value_name = "STEPS",
        default_value_t = Policy::default().ageing_steps
    )]
    pub(crate) ageing_steps: u64,
    /// Maximum preemptions of one request. A preempted request loses its KV blocks and is recomputed. With 0,
    /// a request starts only when all blocks that its max_tokens may need are reserved
    #[arg(
        long,
        env = "OCTANT_MAX_PREEMPTIONS",
        value_name = "N",
        default_value_t = Policy::default().max_preemptions
    )]
    pub(crate) max_preemptions: u32,
    /// Fraction, 0 to 1, of the KV blocks for a request's max_tokens that is reserved when the request
    /// starts, in addition to those of its prompt. With 1, no request is ever preempted
    #[arg(
        long,
        env = "OCTANT_KV_RESERVE",
        value_name = "FRACTION",
        default_value_t = Policy::default().kv_reserve
    )]
    pub(crate) kv_reserve: f32,
}

/// Limits of the queue.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdmissionArgs {
    /// Maximum waiting requests; further requests get status 429
    #[arg(
        long,
        env = "OCTANT_MAX_QUEUE_REQUESTS",
        value_name = "N",
        default_value_t = Self::MAX_QUEUE_REQUESTS,
        value_parser = at_least_1
    )]
    pub(crate) max_queue_requests: usize,
    /// Maximum prompt tokens of all waiting requests; further requests get status 429
    #[arg(
        long,
        env = "OCTANT_MAX_QUEUE_TOKENS",
        value_name = "TOKENS",
        default_value_t = Self::MAX_QUEUE_TOKENS,
        value_parser = at_least_1
    )]
    pub(crate) max_queue_tokens: usize,
    /// Maximum predicted time to first token, in seconds. Requests above it get status 429 with a Retry-After
    /// header [default: no limit]
    #[arg(long, env = "OCTANT_MAX_TTFT", value_name = "SECONDS")]
    pub(crate) max_ttft: Option<f64>,
    /// Status of requests refused for lack of capacity or time: the queue is full, the predicted wait or the
    /// deadline cannot be met, or too many /tokenize requests are open. 429, or 503 for load balancers that
    /// only retry on 503
    #[arg(
        long,
        env = "OCTANT_QUEUE_FULL_STATUS",
        value_name = "STATUS",
        default_value_t = 429,
        value_parser = queue_full_status
    )]
    pub(crate) queue_full_status: u16,
}

/// Devices and their ranks.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Device that runs the model
    #[arg(long, env = "OCTANT_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Tensor-parallel ranks: 1, 2, 4 or 8. Each rank holds a part of every layer [default: 1; 8 with
    /// --device simulate]
    #[arg(long, env = "OCTANT_TENSOR_PARALLEL_SIZE", value_name = "N", value_parser = tensor_parallel_size)]
    pub(crate) tensor_parallel_size: Option<usize>,
    /// GPU number of each rank, separated by commas; ranks may share a GPU [default: the first GPUs]
    #[arg(long, env = "OCTANT_GPUS", value_name = "NUMBERS", value_delimiter = ',')]
    pub(crate) gpus: Option<Vec<usize>>,
    /// All-reduce between GPUs: p2p reads the other GPUs' memory and adds in rank order; nccl is not
    /// deterministic
    #[arg(long, env = "OCTANT_COMMUNICATOR", value_name = "NAME", default_value = "p2p")]
    pub(crate) communicator: CommunicatorName,
    /// Threads of the CPU device, divided between its ranks [default: all cores]
    #[arg(long, env = "OCTANT_THREADS", value_name = "N", value_parser = at_least_1)]
    pub(crate) threads: Option<usize>,
    /// Make the tokens of a request independent of the other requests in its batch. With false, on CUDA only,
    /// cuBLASLt computes products of many rows where it measured faster
    #[arg(
        long,
        env = "OCTANT_DETERMINISTIC",
        value_name = "BOOL",
        default_value_t = true,
        action = ArgAction::Set
    )]
    pub(crate) deterministic: bool,
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
    /// Seconds after SIGTERM during which the server still accepts requests while /health/ready answers 503
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
}

/// Simulated GPUs and recordings.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct SimulationArgs {
    /// Simulated GPU: h100-80gb, or a .toml file in the format of models/h100-80gb.toml
    #[arg(long, env = "OCTANT_GPU", value_name = "NAME", default_value = Hardware::H100)]
    pub(crate) gpu: String,
    /// Directory with the config.json of the simulated model; --model provides the tokenizer [default:
    /// --model]
    #[arg(long, env = "OCTANT_SIMULATE_CONFIG", value_name = "DIR")]
    pub(crate) simulate_config: Option<PathBuf>,
    /// Factor on the length of simulated steps: 1 is real time, 0 does not wait
    #[arg(
        long,
        env = "OCTANT_SIMULATE_PACE",
        value_name = "FACTOR",
        default_value = "1",
        value_parser = number(0.0, 1e6)
    )]
    pub(crate) simulate_pace: f64,
    /// Mean length of simulated answers, in tokens
    #[arg(
        long,
        env = "OCTANT_SIMULATE_ANSWER_TOKENS",
        value_name = "MEAN",
        default_value = "256",
        value_parser = number(1.0, 1e9)
    )]
    pub(crate) simulate_answer_tokens: f64,
    /// File for a recording of all scheduler input, for `octant simulate --replay`. It contains prompts and
    /// answers
    #[arg(long, env = "OCTANT_RECORD", value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// This machine's CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// Modelled GPUs: steps take the time that the cost model predicts.
    Simulate,
}

/// The library for all-reduces between GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CommunicatorName {
    /// Octant's kernels, which read the memory of the other GPUs and add in rank order.
    P2p,
    /// NVIDIA's library.
    Nccl,
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
    /// Address of the API.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Address of the extra port for probes.
    pub(crate) fn health_address(&self) -> Option<SocketAddr> {
        self.health_port.map(|port| SocketAddr::new(self.host, port))
    }

    /// Address of the admin port.
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_port.map(|port| SocketAddr::new(self.admin_host, port))
    }
}

impl SchedulingArgs {
    /// Default of `--max-num-seqs`.
    pub(crate) const MAX_NUM_SEQS: usize = 32;
    /// Default of `--max-num-batched-tokens`.
    pub(crate) const MAX_NUM_BATCHED_TOKENS: usize = 512;
    /// Default of `--enable-prefix-caching`.
    pub(crate) const PREFIX_CACHING: bool = true;

    /// The scheduling policy.
    pub(crate) fn policy(&self) -> Policy {
        let Self { ageing_steps, max_preemptions, kv_reserve, .. } = *self;
        Policy { ageing_steps, max_preemptions, kv_reserve }
    }
}

impl AdmissionArgs {
    /// Default of `--max-queue-requests`.
    pub(crate) const MAX_QUEUE_REQUESTS: usize = 1024;
    /// Default of `--max-queue-tokens`.
    pub(crate) const MAX_QUEUE_TOKENS: usize = 1 << 20;
}

impl DeviceArgs {
    /// Tensor-parallel ranks.
    pub(crate) fn ranks(&self) -> usize {
        self.tensor_parallel_size.unwrap_or(if self.device == DeviceName::Simulate { 8 } else { 1 })
    }

    /// GPU number of each rank.
    pub(crate) fn gpus(&self) -> Vec<usize> {
        self.gpus.clone().unwrap_or_else(|| (0..self.ranks()).collect())
    }

    /// Threads of the CPU device, of all ranks together.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(machine::cores)
    }
}

fn tensor_parallel_size(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(size @ (1 | 2 | 4 | 8)) => Ok(size),
        _ => bail!("expected 1, 2, 4 or 8, got {text}"),
    }
}

fn queue_full_status(text: &str) -> anyhow::Result<u16> {
    match text.parse() {
        Ok(status @ (429 | 503)) => Ok(status),
        _ => bail!("expected 429 or 503, got {text}"),
    }
}
