//! Settings of `octant serve` about the scheduler and the queue.

use anyhow::bail;
use clap::{ArgAction, Args};

use super::Size;
use super::parsers::{at_least_0, at_least_1, at_most, boolean, fraction, got, positive, target_itl, tokens};
use crate::engine::TargetItl;
use crate::scheduler::Policy;

/// Sizes of steps and of the KV cache.
#[derive(Debug, Clone, Args)]
pub(crate) struct SchedulingArgs {
    /// Maximum sequences that run at once: those that generate, and those whose prompts are computed. A
    /// conversation to score is one only until its last token is computed
    #[arg(
        long,
        env = "OCTANT_MAX_NUM_SEQS",
        value_name = "N",
        default_value_t = Self::MAX_NUM_SEQS,
        value_parser = at_most(Self::MOST_SEQS, at_least_1),
        aliases = ["max-running-requests", "max-batch-size", "parallel"]
    )]
    pub(crate) max_num_seqs: usize,
    /// Maximum tokens per step. Higher values process prompts faster and make each step longer
    #[arg(
        long,
        env = "OCTANT_MAX_NUM_BATCHED_TOKENS",
        value_name = "TOKENS",
        default_value_t = Self::MAX_NUM_BATCHED_TOKENS,
        value_parser = at_most(Self::MOST_BATCHED_TOKENS, tokens),
        alias = "max-num-tokens"
    )]
    pub(crate) max_num_batched_tokens: usize,
    /// Target for the inter-token latency of running streams: seconds, auto or off. Prompts are split into
    /// chunks of at least 32 tokens so that a step beside running streams is predicted to take no longer. A
    /// shorter target makes the first token of other requests later. With auto, a step is about twice as long
    /// as one without prompts if such steps compute all waiting prompts within a second; else steps are as
    /// short as they can be while prompts are computed at 95 % of the tokens per second that
    /// --max-num-batched-tokens gives. With off, only --max-num-batched-tokens limits a step
    #[arg(
        long,
        env = "OCTANT_TARGET_ITL",
        value_name = "SECONDS|auto|off",
        default_value_t = TargetItl::Auto,
        value_parser = target_itl
    )]
    pub(crate) target_itl: TargetItl,
    /// Memory of each rank for the KV cache, in bytes or with a unit, such as 4GiB or 512MiB [default: enough
    /// for --max-num-seqs full-length requests, at most the memory left. On a CPU, 20 % of the memory that
    /// the machine, control groups and resource limits leave, at least 64 MiB, is kept free]
    #[arg(long, env = "OCTANT_KV_CACHE_MEMORY", value_name = "SIZE", alias = "kv-cache-memory-bytes")]
    pub(crate) kv_cache_memory: Option<Size>,
    /// Share KV blocks between requests whose prompts begin with the same tokens
    #[arg(
        long,
        env = "OCTANT_ENABLE_PREFIX_CACHING",
        value_name = "BOOL",
        default_value_t = Self::PREFIX_CACHING,
        value_parser = boolean,
        action = ArgAction::Set,
        alias = "cache-prompt"
    )]
    pub(crate) enable_prefix_caching: bool,
    /// Steps of waiting after which a request's priority improves by one; 0 disables ageing
    #[arg(
        long,
        env = "OCTANT_AGEING_STEPS",
        value_name = "STEPS",
        default_value_t = Policy::default().ageing_steps,
        value_parser = at_least_0::<u64>
    )]
    pub(crate) ageing_steps: u64,
    /// Maximum preemptions of one request. A preempted request loses its KV blocks and is recomputed. With 0,
    /// a request starts only when all blocks that its max_tokens may need are reserved
    #[arg(
        long,
        env = "OCTANT_MAX_PREEMPTIONS",
        value_name = "N",
        default_value_t = Policy::default().max_preemptions,
        value_parser = at_least_0::<u32>
    )]
    pub(crate) max_preemptions: u32,
    /// Fraction, 0 to 1, of the KV blocks for a request's max_tokens that is reserved when the request
    /// starts, in addition to those of its prompt. With 1, no request is ever preempted
    #[arg(
        long,
        env = "OCTANT_KV_RESERVE",
        value_name = "FRACTION",
        default_value_t = Policy::default().kv_reserve,
        value_parser = fraction
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
        value_parser = at_least_1,
        alias = "max-queued-requests"
    )]
    pub(crate) max_queue_requests: usize,
    /// Maximum prompt tokens of all waiting requests; further requests get status 429
    #[arg(
        long,
        env = "OCTANT_MAX_QUEUE_TOKENS",
        value_name = "TOKENS",
        default_value_t = Self::MAX_QUEUE_TOKENS,
        value_parser = tokens
    )]
    pub(crate) max_queue_tokens: usize,
    /// Maximum predicted time to first token, in seconds. Requests above it get status 429 with a Retry-After
    /// header [default: no limit]
    #[arg(long, env = "OCTANT_MAX_TTFT", value_name = "SECONDS", value_parser = positive)]
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

impl SchedulingArgs {
    /// Default of `--max-num-seqs`.
    pub(crate) const MAX_NUM_SEQS: usize = 32;
    /// Default of `--max-num-batched-tokens`.
    pub(crate) const MAX_NUM_BATCHED_TOKENS: usize = 512;
    /// Limit of `--max-num-seqs`.
    const MOST_SEQS: usize = 1 << 16;
    /// Limit of `--max-num-batched-tokens`.
    const MOST_BATCHED_TOKENS: usize = 1 << 24;
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

    /// Limits that refuse no request, for commands without a server. They limit the requests in flight
    /// instead.
    pub(crate) fn unlimited(queue_full_status: u16) -> Self {
        const NO_LIMIT: usize = usize::MAX / 4;
        // Each field by its name, so that a new limit is decided here too.
        Self { max_queue_requests: NO_LIMIT, max_queue_tokens: NO_LIMIT, max_ttft: None, queue_full_status }
    }
}

fn queue_full_status(text: &str) -> anyhow::Result<u16> {
    match text.trim().parse() {
        Ok(status @ (429 | 503)) => Ok(status),
        _ => bail!("expected 429 or 503, {}", got(text)),
    }
}
