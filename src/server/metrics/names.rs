//! Table of all metrics: name, kind, labels and help text. Names that vLLM has come first, in vLLM's
//! spelling, because dashboards, autoscalers and gateways read them. Metrics that vLLM does not have begin
//! with `octant_`.
//!
//! Every metric also has the labels `model_name` and `engine`. A metric that is not in this table cannot be
//! created, and a test checks that the server exposes each one.

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A current value.
    Gauge,
    /// A total since the server started.
    Counter,
    /// Counts of observed values by bucket, and their sum.
    Histogram,
}

/// Description of one metric.
#[derive(Debug, Clone, Copy)]
pub struct MetricInfo {
    /// Name in the text format.
    pub name: &'static str,
    /// Type of the metric.
    pub kind: MetricKind,
    /// Labels in addition to `model_name` and `engine`.
    pub labels: &'static [&'static str],
    /// Help text: one line, without quotes.
    pub help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricInfo {
    MetricInfo { name, kind: MetricKind::Gauge, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricInfo {
    MetricInfo { name, kind: MetricKind::Counter, labels, help }
}

const fn histogram(name: &'static str, help: &'static str) -> MetricInfo {
    MetricInfo { name, kind: MetricKind::Histogram, labels: &[], help }
}

/// All metrics.
pub const NAMES: &[MetricInfo] = &[
    gauge("vllm:num_requests_running", &[], "Sequences that are running"),
    gauge("vllm:num_requests_waiting", &[], "Sequences that are waiting in the queue"),
    gauge(
        "vllm:num_requests_waiting_by_reason",
        &["reason"],
        "Sequences that are waiting, by reason; all of them wait for capacity",
    ),
    gauge("vllm:kv_cache_usage_perc", &[], "Share of the KV blocks that sequences hold, from 0 to 1"),
    gauge("vllm:cpu_cache_usage_perc", &[], "Always 0: Octant has no KV cache in host memory"),
    gauge("vllm:num_requests_swapped", &[], "Always 0: Octant does not swap sequences to host memory"),
    gauge(
        "vllm:lora_requests_info",
        &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        "Unix time in seconds; the labels are empty because Octant has no LoRA adapters",
    ),
    gauge(
        "vllm:cache_config_info",
        &["block_size", "num_gpu_blocks", "enable_prefix_caching"],
        "Configuration of the KV cache, as labels; the value is always 1",
    ),
    gauge("octant_batch_requests", &["state"], "Sequences of batches that are running or waiting"),
    counter("octant_batch_lines_total", &["result"], "Lines of batches that ended, completed or failed"),
    counter("vllm:prompt_tokens_total", &[], "Prompt tokens of choices whose answer has begun"),
    counter("vllm:generation_tokens_total", &[], "Generated tokens"),
    counter("vllm:prompt_tokens_cached_total", &[], "Tokens found in the prefix cache and not computed"),
    counter("vllm:prompt_tokens_recomputed_total", &[], "Tokens computed again after preemptions"),
    counter("vllm:num_preemptions_total", &[], "Preemptions of sequences for want of KV blocks"),
    counter("vllm:prefix_cache_queries_total", &[], "Tokens looked up in the prefix cache"),
    counter("vllm:prefix_cache_hits_total", &[], "Tokens found in the prefix cache"),
    counter("vllm:spec_decode_num_drafts_total", &[], "Rows of steps that fed drafts (speculative decoding)"),
    counter("vllm:spec_decode_num_draft_tokens_total", &[], "Drafts fed"),
    counter("vllm:spec_decode_num_accepted_tokens_total", &[], "Drafts accepted"),
    counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        &["position"],
        "Drafts accepted, by their place among the drafts of a row, counted from 0",
    ),
    counter(
        "vllm:request_success_total",
        &["finished_reason"],
        "Choices that ended, by reason; includes aborted and failed ones and those that \
         missed their deadline",
    ),
    histogram(
        "vllm:time_to_first_token_seconds",
        "Time from the validated request to the first token of a choice",
    ),
    histogram("vllm:inter_token_latency_seconds", "Time between two tokens of a choice"),
    histogram("vllm:request_time_per_output_token_seconds", "Mean time between two tokens of a choice"),
    histogram("vllm:e2e_request_latency_seconds", "Time from the validated request to the end of a choice"),
    histogram(
        "vllm:request_queue_time_seconds",
        "Time from the submission of a choice to its first step, or to its end if it had no step",
    ),
    histogram(
        "vllm:request_inference_time_seconds",
        "Time from the first step of a choice to its last token",
    ),
    histogram("vllm:request_prefill_time_seconds", "Time from the first step of a choice to its first token"),
    histogram("vllm:request_decode_time_seconds", "Time from the first token of a choice to its last token"),
    histogram("vllm:request_prompt_tokens", "Prompt tokens of a choice"),
    histogram("vllm:request_generation_tokens", "Generated tokens of a choice"),
    histogram("vllm:request_max_num_generation_tokens", "Generated tokens of a request's longest choice"),
    histogram("vllm:request_params_n", "Choices per prompt that a request asks for"),
    histogram("vllm:request_params_max_tokens", "Most tokens that a choice may generate"),
    histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a choice that were not cached"),
    histogram(
        "vllm:iteration_tokens_total",
        "Tokens fed to the model in one step; a histogram, despite its name",
    ),
    counter(
        "http_requests_total",
        &["handler", "method", "status"],
        "HTTP responses, by route, method and class of status, counted when their head is sent",
    ),
    MetricInfo {
        name: "http_request_duration_seconds",
        kind: MetricKind::Histogram,
        labels: &["handler", "method"],
        help: "Time from the head of a request to the head of its response",
    },
    gauge("process_start_time_seconds", &[], "Unix time in seconds at which the server started"),
    gauge("process_resident_memory_bytes", &[], "Resident memory of this process"),
    counter("process_cpu_seconds_total", &[], "User and system CPU time of this process"),
    gauge(
        "octant_kv_blocks",
        &["state"],
        "KV blocks by state: free, used by sequences, cached, reserved for running sequences; the sum \
         is constant",
    ),
    gauge("octant_requests_reading", &[], "Requests whose body is being read"),
    counter("octant_steps_total", &[], "Planned steps"),
    histogram("octant_step_seconds", "Device time of a step"),
    histogram("octant_step_host_seconds", "Time from the results of a step to the next launch"),
    histogram(
        "octant_step_device_idle_seconds",
        "Time before a launch in which the device was idle although requests were pending",
    ),
    histogram(
        "octant_step_prediction_ratio",
        "Time of a step divided by its predicted time, from the cost model or, without one, from \
         earlier steps",
    ),
    counter(
        "octant_grammar_late_steps_total",
        &[],
        "Steps for which the device waited because the mask of a constrained answer was late",
    ),
    counter(
        "octant_grammar_wait_seconds_total",
        &[],
        "Time for which the device waited for masks of constrained answers",
    ),
    counter("octant_prefill_seconds_total", &[], "Device time for prompts and recomputation"),
    counter("octant_decode_seconds_total", &[], "Device time for generation"),
    counter(
        "octant_kv_block_seconds_total",
        &[],
        "Number of KV blocks held, integrated over time in seconds",
    ),
    gauge("octant_startup_seconds", &["phase"], "Time that each phase of the start has taken so far"),
    counter("octant_admissions_total", &["decision"], "Admitted and refused requests, by decision"),
    counter(
        "octant_http_errors_total",
        &["code"],
        "HTTP error responses, by error code; errors within a stream are not counted",
    ),
    counter(
        "octant_log_lines_dropped_total",
        &[],
        "Lines of the log that were dropped or could not be written, because it was not read in time or its \
         disk is full",
    ),
    counter("octant_key_requests_total", &["key"], "Choices that ended, by key"),
    counter("octant_key_queue_seconds_total", &["key"], "Time in the queue, by key"),
    counter("octant_key_prefill_seconds_total", &["key"], "Share of octant_prefill_seconds_total, by key"),
    counter("octant_key_decode_seconds_total", &["key"], "Share of octant_decode_seconds_total, by key"),
    counter("octant_key_kv_block_seconds_total", &["key"], "Share of octant_kv_block_seconds_total, by key"),
    counter(
        "octant_key_tokens_total",
        &["key", "kind"],
        "Tokens by key and kind: prompt, generated, cached, computed, recomputed",
    ),
];

/// Old names that dashboards still use, each with its current name.
pub const ALIASES: [(&str, &str); 5] = [
    ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
    ("vllm:time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
    ("vllm:gpu_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    ("vllm:max_num_generation_tokens", "vllm:request_max_num_generation_tokens"),
];

/// The entry of the metric `name`.
pub(super) fn find(name: &str) -> Option<&'static MetricInfo> {
    NAMES.iter().find(|known| known.name == name)
}
