//! The command line, the environment and a file as one validated configuration.
//!
//! Every setting of `octant serve` is one field of [`ServeArgs`]: a flag, an `OCTANT_*` variable and a key of the TOML
//! file, all of the same name. A flag goes before the environment, that before the file, that before the default.
//! [`Config`] is what they mean; only `main` and the commands read it.

mod admission;
mod cli;
mod host;
mod offline;
mod place;
mod plan;
mod serving;
mod simulate;
mod simulation;
mod size;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use place::{communicator, deterministic, gpus, ranks};

pub use admission::{Admission, ApiKey};
pub use cli::{BenchCommand, BenchLoadArgs, BenchRankArgs, BenchReduceArgs, Cli, Command, DrainArgs};
pub use host::BenchHostArgs;
pub use offline::{ImportNemoArgs, QuantizeArgs, ScaleScheme};
pub use plan::PlanArgs;
pub use serving::{ArrivalName, BenchServingArgs, EndpointName, RateRange};
pub use simulate::Simulation;
pub use simulation::{MeanAndCv, PolicyArgs, SimulateArgs};
pub use size::Size;

/// What was typed: every setting may be absent.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServeArgs {
    /// Hugging Face directory: config.json, *.safetensors, tokenizer.json. Required.
    #[arg(long, env = "OCTANT_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// TOML file of these settings, by the flags' names without the dashes in front.
    #[arg(long, env = "OCTANT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1, this machine only]
    #[arg(long, env = "OCTANT_HOST", value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// TCP port to listen on; 0 takes a free one [default: 8000]
    #[arg(long, env = "OCTANT_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// A further port for probes alone, answered by a thread of its own whatever the server is busy with; 0 takes a
    /// free one [default: none, probes come to --port]
    #[arg(long, env = "OCTANT_HEALTH_PORT", value_name = "PORT")]
    pub health_port: Option<u16>,
    /// Port of /admin/drain, by which a supervisor begins the shutdown; needs no key [default: none]
    #[arg(long, env = "OCTANT_ADMIN_PORT", value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// Address of --admin-port [default: 127.0.0.1, this machine only]
    #[arg(long, env = "OCTANT_ADMIN_HOST", value_name = "ADDRESS")]
    pub admin_host: Option<IpAddr>,
    /// Names that clients call the model by, separated by commas [default: the directory's name]
    #[arg(long, env = "OCTANT_SERVED_MODEL_NAME", value_name = "NAMES", value_delimiter = ',')]
    pub served_model_name: Option<Vec<String>>,
    /// Tokens of the longest sequence, prompt and answer together [default: the model's own limit]
    #[arg(long, env = "OCTANT_MAX_MODEL_LEN", value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Sequences that run at once [default: 32]
    #[arg(long, env = "OCTANT_MAX_NUM_SEQS", value_name = "N")]
    pub max_num_seqs: Option<usize>,
    /// Tokens per step: the larger, the faster prompts are taken in and the longer a step [default: 512]
    #[arg(long, env = "OCTANT_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<usize>,
    /// Requests that may wait; more are refused with 429 [default: 1024]
    #[arg(long, env = "OCTANT_MAX_QUEUE_REQUESTS", value_name = "N")]
    pub max_queue_requests: Option<usize>,
    /// Prompt tokens that may wait; more are refused with 429 [default: 1048576]
    #[arg(long, env = "OCTANT_MAX_QUEUE_TOKENS", value_name = "TOKENS")]
    pub max_queue_tokens: Option<usize>,
    /// Predicted seconds to a first token above which a request is refused with 429, and told when to try again
    /// [default: none]
    #[arg(long, env = "OCTANT_MAX_TTFT", value_name = "SECONDS")]
    pub max_ttft: Option<f64>,
    /// Steps of waiting that lift a request by one priority; 0 is never [default: 1000]
    #[arg(long, env = "OCTANT_AGEING_STEPS", value_name = "STEPS")]
    pub ageing_steps: Option<u64>,
    /// Times that a running request may be made to give up its KV blocks and be computed again; with 0, all that its
    /// max_tokens may need is reserved before it starts [default: 3]
    #[arg(long, env = "OCTANT_MAX_PREEMPTIONS", value_name = "N")]
    pub max_preemptions: Option<u32>,
    /// Share of the KV blocks that a request's max_tokens may need, beside its prompt's, that is reserved when it starts;
    /// with 1 nothing is ever preempted [default: 0]
    #[arg(long, env = "OCTANT_KV_RESERVE", value_name = "FRACTION")]
    pub kv_reserve: Option<f32>,
    /// Tokens that a client is told at a time, after the first. More save the server, and its clients, processor time,
    /// most of it the system's. Requests with `stop` strings are told each token [default: 1]
    #[arg(long, env = "OCTANT_STREAM_INTERVAL", value_name = "TOKENS")]
    pub stream_interval: Option<usize>,
    /// Storage of keys and values [default: fp8, or bf16 without quantisation]
    #[arg(long, env = "OCTANT_KV_CACHE_DTYPE", value_name = "TYPE")]
    pub kv_cache_dtype: Option<KvCacheDtype>,
    /// Linear layers in FP8 (E4M3 weights and inputs), or as the checkpoint stores them [default: fp8]
    #[arg(long, env = "OCTANT_QUANTIZATION", value_name = "SCHEME")]
    pub quantization: Option<Quantization>,
    /// Where to run [default: cpu]
    #[arg(long, env = "OCTANT_DEVICE", value_name = "DEVICE")]
    pub device: Option<DeviceName>,
    /// Ranks that share the model: 1, 2, 4 or 8, each with its part of every layer [default: 1; 8 when simulating]
    #[arg(long, env = "OCTANT_TENSOR_PARALLEL_SIZE", value_name = "N")]
    pub tensor_parallel_size: Option<usize>,
    /// GPUs of the ranks by their numbers, separated by commas; several ranks may share one [default: the first ones]
    #[arg(long, env = "OCTANT_GPUS", value_name = "NUMBERS", value_delimiter = ',')]
    pub gpus: Option<Vec<usize>>,
    /// How GPUs add up: through one another's memory, in the order of ranks, or by NCCL, which is not deterministic
    /// [default: p2p]
    #[arg(long, env = "OCTANT_COMMUNICATOR", value_name = "WAY")]
    pub communicator: Option<CommunicatorName>,
    /// Threads of the CPU device, divided between ranks [default: all cores]
    #[arg(long, env = "OCTANT_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Memory for keys and values, in bytes or as 4GiB, 512MiB
    /// [default: enough for --max-num-seqs full-length requests, at most 80 % of what is available]
    #[arg(long, env = "OCTANT_KV_CACHE_MEMORY", value_name = "SIZE")]
    pub kv_cache_memory: Option<Size>,
    /// Share the KV blocks of equal prompt beginnings [default: true]
    #[arg(long, env = "OCTANT_ENABLE_PREFIX_CACHING", value_name = "BOOL")]
    pub enable_prefix_caching: Option<bool>,
    /// Whether a request's tokens never depend on what else runs. If not, products of many rows are done by cuBLASLt
    /// where that is measured to be faster; on CUDA only [default: true]
    #[arg(long, env = "OCTANT_DETERMINISTIC", value_name = "BOOL")]
    pub deterministic: Option<bool>,
    /// Key that clients must send as `Authorization: Bearer KEY` [default: none, everyone is let in]
    #[arg(long, env = "OCTANT_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// TOML file of several keys, each a table [[keys]] with name, key, and if wanted weight (of its share where all wait)
    /// and priority (added to that of its requests, which is not below 0 then): the server is shared fairly between keys, instead of between `user` fields
    /// [default: none]
    #[arg(long, env = "OCTANT_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// Refuse requests with fields that this server does not know, rather than name them in the response's
    /// x-ignored-fields [default: false]
    #[arg(long, env = "OCTANT_REJECT_UNKNOWN_FIELDS", value_name = "BOOL")]
    pub reject_unknown_fields: Option<bool>,
    /// Status of refusals for want of room or time - a full queue, a wait or deadline that cannot be met, too many at
    /// /tokenize: 429, or 503 for balancers that only retry elsewhere on that [default: 429]
    #[arg(long, env = "OCTANT_QUEUE_FULL_STATUS", value_name = "STATUS")]
    pub queue_full_status: Option<u16>,
    /// Seconds without the end of a step, with requests waiting for it, beyond what a step is expected to take, after
    /// which /health/live says 503 [default: 60]
    #[arg(long, env = "OCTANT_STALL_TIMEOUT", value_name = "SECONDS")]
    pub stall_timeout: Option<u64>,
    /// Seconds that a step may take before the device is given up and the process exits [default: 600]
    #[arg(long, env = "OCTANT_STEP_TIMEOUT", value_name = "SECONDS")]
    pub step_timeout: Option<u64>,
    /// Seconds after which a client that takes nothing of its answer is cut off and its request aborted [default: 60]
    #[arg(long, env = "OCTANT_WRITE_TIMEOUT", value_name = "SECONDS")]
    pub write_timeout: Option<u64>,
    /// On SIGTERM, seconds during which requests are still taken while /health/ready says 503 [default: 5]
    #[arg(long, env = "OCTANT_DRAIN_GRACE", value_name = "SECONDS")]
    pub drain_grace: Option<u64>,
    /// After that, seconds for running requests to end before they are cut off [default: 300]
    #[arg(long, env = "OCTANT_DRAIN_TIMEOUT", value_name = "SECONDS")]
    pub drain_timeout: Option<u64>,
    /// GPUs to simulate: h100-80gb, or a .toml file as in models/ [default: h100-80gb]
    #[arg(long, env = "OCTANT_GPU", value_name = "NAME")]
    pub gpu: Option<String>,
    /// Directory of the config.json of the model to simulate [default: that of --model, which has the tokenizer]
    #[arg(long, env = "OCTANT_SIMULATE_CONFIG", value_name = "DIR")]
    pub simulate_config: Option<PathBuf>,
    /// How long simulated steps take: 1 as long as on the GPUs, 0 as short as this machine can [default: 1]
    #[arg(long, env = "OCTANT_SIMULATE_PACE", value_name = "FACTOR")]
    pub simulate_pace: Option<f64>,
    /// Tokens of a simulated answer, on average [default: 256]
    #[arg(long, env = "OCTANT_SIMULATE_ANSWER_TOKENS", value_name = "MEAN")]
    pub simulate_answer_tokens: Option<f64>,
    /// File to write all that the scheduler does to, for `octant simulate --replay`. It holds prompts and answers
    #[arg(long, env = "OCTANT_RECORD", value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// E4M3.
    Fp8,
    /// BF16.
    Bf16,
}

/// What becomes of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// E4M3 weights and inputs.
    Fp8,
    /// As stored.
    None,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// GPUs that are not there.
    Simulate,
}

impl DeviceName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Simulate => "simulate",
        }
    }
}

/// How GPUs add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommunicatorName {
    /// Through one another's memory.
    P2p,
    /// NVIDIA's library.
    Nccl,
}

/// A setting that cannot be meant.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct ConfigError {
    /// The flag, or the file.
    pub setting: String,
    /// Expected versus got.
    pub message: String,
}

impl ConfigError {
    fn new(setting: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self { setting: setting.to_string(), message: message.to_string() }
    }
}

/// What is meant: nothing left open but what depends on the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The model's directory.
    pub model: PathBuf,
    /// Where to listen.
    pub address: SocketAddr,
    /// Where else to answer probes.
    pub health_address: Option<SocketAddr>,
    /// Where to take the operator's orders.
    pub admin_address: Option<SocketAddr>,
    /// Names of the model; at least one.
    pub served_names: Vec<String>,
    /// `None`: the model's own.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens per step.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait.
    pub max_queue_requests: usize,
    /// Prompt tokens that may wait.
    pub max_queue_tokens: usize,
    /// Whether linear layers are quantised.
    pub quantization: Quantization,
    /// Element type of the KV cache.
    pub kv_cache_dtype: KvCacheDtype,
    /// Bytes of the KV cache; `None` sizes it by what is available.
    pub kv_cache_memory: Option<u64>,
    /// Whether equal prefixes share KV blocks.
    pub prefix_caching: bool,
    /// Where to run.
    pub device: DeviceName,
    /// Ranks that share the model.
    pub ranks: usize,
    /// A GPU for each rank, on CUDA.
    pub gpus: Vec<usize>,
    /// How they add up.
    pub communicator: CommunicatorName,
    /// Where to record.
    pub record: Option<PathBuf>,
    /// With [`DeviceName::Simulate`] alone.
    pub simulation: Option<Simulation>,
    /// Threads of the CPU device.
    pub threads: usize,
    /// Whether a row has the same bits in any company.
    pub deterministic: bool,
    /// The clients' key.
    pub api_key: Option<String>,
    /// Who waits for whom, and who is refused.
    pub admission: Admission,
    /// Tokens that a stream is told at a time.
    pub stream_interval: usize,
    /// Whether a field that nobody knows is an error.
    pub reject_unknown_fields: bool,
    /// Status of a refusal because the queue is full: 429 or 503.
    pub queue_full_status: u16,
    /// With work pending and no step ended for this long beyond what one is expected to take, the server calls
    /// itself dead.
    pub stall_timeout: Duration,
    /// What a step may take.
    pub step_timeout: Duration,
    /// A client that takes nothing for this long is cut off.
    pub write_timeout: Duration,
    /// From the first signal to the first refusal.
    pub drain_grace: Duration,
    /// From the first refusal until running requests are cut off.
    pub drain_timeout: Duration,
}

impl ServeArgs {
    /// What the arguments mean, with the file they name.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Self::default(),
        };
        self.or(file).meaning()
    }

    /// These settings, and the file's where there is none.
    fn or(self, file: Self) -> Self {
        Self {
            model: self.model.or(file.model),
            config: self.config,
            host: self.host.or(file.host),
            port: self.port.or(file.port),
            health_port: self.health_port.or(file.health_port),
            admin_port: self.admin_port.or(file.admin_port),
            admin_host: self.admin_host.or(file.admin_host),
            served_model_name: self.served_model_name.or(file.served_model_name),
            max_model_len: self.max_model_len.or(file.max_model_len),
            max_num_seqs: self.max_num_seqs.or(file.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens.or(file.max_num_batched_tokens),
            max_queue_requests: self.max_queue_requests.or(file.max_queue_requests),
            max_queue_tokens: self.max_queue_tokens.or(file.max_queue_tokens),
            kv_cache_dtype: self.kv_cache_dtype.or(file.kv_cache_dtype),
            quantization: self.quantization.or(file.quantization),
            device: self.device.or(file.device),
            tensor_parallel_size: self.tensor_parallel_size.or(file.tensor_parallel_size),
            gpus: self.gpus.or(file.gpus),
            communicator: self.communicator.or(file.communicator),
            threads: self.threads.or(file.threads),
            kv_cache_memory: self.kv_cache_memory.or(file.kv_cache_memory),
            enable_prefix_caching: self.enable_prefix_caching.or(file.enable_prefix_caching),
            deterministic: self.deterministic.or(file.deterministic),
            api_key: self.api_key.or(file.api_key),
            api_keys: self.api_keys.or(file.api_keys),
            max_ttft: self.max_ttft.or(file.max_ttft),
            ageing_steps: self.ageing_steps.or(file.ageing_steps),
            max_preemptions: self.max_preemptions.or(file.max_preemptions),
            kv_reserve: self.kv_reserve.or(file.kv_reserve),
            stream_interval: self.stream_interval.or(file.stream_interval),
            reject_unknown_fields: self.reject_unknown_fields.or(file.reject_unknown_fields),
            queue_full_status: self.queue_full_status.or(file.queue_full_status),
            stall_timeout: self.stall_timeout.or(file.stall_timeout),
            step_timeout: self.step_timeout.or(file.step_timeout),
            write_timeout: self.write_timeout.or(file.write_timeout),
            drain_grace: self.drain_grace.or(file.drain_grace),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            record: self.record.or(file.record),
            gpu: self.gpu.or(file.gpu),
            simulate_config: self.simulate_config.or(file.simulate_config),
            simulate_pace: self.simulate_pace.or(file.simulate_pace),
            simulate_answer_tokens: self.simulate_answer_tokens.or(file.simulate_answer_tokens),
        }
    }

    fn meaning(self) -> Result<Config, ConfigError> {
        let device = self.device.unwrap_or(DeviceName::Cpu);
        let simulation = simulate::simulation(&self, device)?;
        let admission = admission::admission(&self)?;
        let model = self.model.ok_or_else(|| ConfigError::new("--model", "missing; expected a directory"))?;
        let quantization = self.quantization.unwrap_or(Quantization::Fp8);
        let kv_default =
            if quantization == Quantization::Fp8 { KvCacheDtype::Fp8 } else { KvCacheDtype::Bf16 };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let deterministic = deterministic(self.deterministic, device)?;
        let usual_ranks = if device == DeviceName::Simulate { 8 } else { 1 };
        let ranks = ranks(self.tensor_parallel_size.unwrap_or(usual_ranks))?;
        let host = self.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Ok(Config {
            address: SocketAddr::new(host, self.port.unwrap_or(8000)),
            health_address: self.health_port.map(|port| SocketAddr::new(host, port)),
            admin_address: admin_address(self.admin_host, self.admin_port)?,
            served_names: served_names(self.served_model_name, &model)?,
            max_model_len: self.max_model_len.map(|n| positive("--max-model-len", n)).transpose()?,
            max_num_seqs: positive("--max-num-seqs", self.max_num_seqs.unwrap_or(32))?,
            max_num_batched_tokens: positive(
                "--max-num-batched-tokens",
                self.max_num_batched_tokens.unwrap_or(512),
            )?,
            max_queue_requests: positive("--max-queue-requests", self.max_queue_requests.unwrap_or(1024))?,
            max_queue_tokens: positive("--max-queue-tokens", self.max_queue_tokens.unwrap_or(1 << 20))?,
            quantization,
            kv_cache_dtype: self.kv_cache_dtype.unwrap_or(kv_default),
            kv_cache_memory: self.kv_cache_memory.map(|size| size.0),
            prefix_caching: self.enable_prefix_caching.unwrap_or(true),
            device,
            deterministic,
            gpus: gpus(self.gpus, device, ranks)?,
            communicator: communicator(self.communicator, device, deterministic)?,
            record: self.record,
            simulation,
            admission,
            stream_interval: positive("--stream-interval", self.stream_interval.unwrap_or(1))?,
            ranks,
            threads: positive("--threads", self.threads.unwrap_or(cores))?,
            api_key: self.api_key.map(api_key).transpose()?,
            reject_unknown_fields: self.reject_unknown_fields.unwrap_or(false),
            queue_full_status: queue_full_status(self.queue_full_status.unwrap_or(429))?,
            stall_timeout: seconds("--stall-timeout", self.stall_timeout.unwrap_or(60))?,
            step_timeout: seconds("--step-timeout", self.step_timeout.unwrap_or(600))?,
            write_timeout: seconds("--write-timeout", self.write_timeout.unwrap_or(60))?,
            drain_grace: Duration::from_secs(self.drain_grace.unwrap_or(5)),
            drain_timeout: Duration::from_secs(self.drain_timeout.unwrap_or(300)),
            model,
        })
    }
}

fn admin_address(host: Option<IpAddr>, port: Option<u16>) -> Result<Option<SocketAddr>, ConfigError> {
    if host.is_some() && port.is_none() {
        return Err(ConfigError::new("--admin-host", "expected --admin-port with it"));
    }
    Ok(port.map(|port| SocketAddr::new(host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port)))
}

fn read_file(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError::new(path.display(), e))?;
    toml::from_str(&text).map_err(|e| ConfigError::new(path.display(), e.to_string().trim_end()))
}

fn positive<N: Default + PartialEq>(flag: &str, value: N) -> Result<N, ConfigError> {
    if value != N::default() { Ok(value) } else { Err(ConfigError::new(flag, "expected at least 1, got 0")) }
}

fn seconds(flag: &str, value: u64) -> Result<Duration, ConfigError> {
    positive(flag, value).map(Duration::from_secs)
}

fn queue_full_status(status: u16) -> Result<u16, ConfigError> {
    match status {
        429 | 503 => Ok(status),
        _ => Err(ConfigError::new("--queue-full-status", format!("expected 429 or 503, got {status}"))),
    }
}

fn api_key(key: String) -> Result<String, ConfigError> {
    let sound = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    if sound { Ok(key) } else { Err(ConfigError::new("--api-key", "expected visible ASCII characters")) }
}

fn served_names(given: Option<Vec<String>>, model: &Path) -> Result<Vec<String>, ConfigError> {
    let names = given.unwrap_or_else(|| {
        let absolute = std::fs::canonicalize(model).unwrap_or_else(|_| model.to_owned());
        vec![absolute.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())]
    });
    if names.is_empty() || names.iter().any(String::is_empty) {
        return Err(ConfigError::new("--served-model-name", format!("expected names, got {names:?}")));
    }
    Ok(names)
}
