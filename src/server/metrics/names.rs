//! Every metric there is: its name, kind, labels and help. vLLM's names come first, in its spelling, since dashboards,
//! autoscalers and gateways read them; what vLLM has no word for begins with `octant_`.
//!
//! All have the labels `model_name` and `engine` besides those given here. A metric that is not in this table cannot be
//! made, and a test asks the server for each.

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What is now.
    Gauge,
    /// What has been in all.
    Counter,
    /// How often a value was at most so much.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// As exposed in the text format.
    pub name: &'static str,
    /// What it stands for.
    pub kind: Kind,
    /// Its own labels.
    pub labels: &'static [&'static str],
    /// One line for people.
    pub help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Name {
    Name { name, kind: Kind::Gauge, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Name {
    Name { name, kind: Kind::Counter, labels, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Name {
    Name { name, kind: Kind::Histogram, labels: &[], help }
}

/// All of them.
pub const NAMES: &[Name] = &[
    gauge("vllm:num_requests_running", &[], "Sequences that run"),
    gauge("vllm:num_requests_waiting", &[], "Sequences that wait"),
    gauge(
        "vllm:num_requests_waiting_by_reason",
        &["reason"],
        "Sequences that wait, by reason: all wait for room",
    ),
    gauge("vllm:kv_cache_usage_perc", &[], "Share of the KV blocks that sequences hold, 0 to 1"),
    gauge("vllm:cpu_cache_usage_perc", &[], "There is no cache on the host: always 0"),
    gauge("vllm:num_requests_swapped", &[], "Nothing is ever swapped: always 0"),
    gauge(
        "vllm:lora_requests_info",
        &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        "There are no adapters; the value is the Unix time in seconds",
    ),
    gauge(
        "vllm:cache_config_info",
        &["block_size", "num_gpu_blocks", "enable_prefix_caching"],
        "The KV cache's configuration, as labels; the value is always 1",
    ),
    counter("vllm:prompt_tokens_total", &[], "Prompt tokens of requests answered"),
    counter("vllm:generation_tokens_total", &[], "Tokens generated"),
    counter("vllm:prompt_tokens_cached_total", &[], "Tokens found in the prefix cache rather than computed"),
    counter("vllm:prompt_tokens_recomputed_total", &[], "Tokens fed again after preemptions"),
    counter("vllm:num_preemptions_total", &[], "Sequences that had to give up their blocks"),
    counter("vllm:prefix_cache_queries_total", &[], "Tokens looked up in the prefix cache"),
    counter("vllm:prefix_cache_hits_total", &[], "Tokens found in the prefix cache"),
    counter(
        "vllm:request_success_total",
        &["finished_reason"],
        "Choices that ended, by reason; aborted, late and failed ones among them",
    ),
    histogram("vllm:time_to_first_token_seconds", "From the validated request to the first token"),
    histogram("vllm:inter_token_latency_seconds", "Between two tokens of a choice"),
    histogram("vllm:request_time_per_output_token_seconds", "A choice's mean time between two tokens"),
    histogram("vllm:e2e_request_latency_seconds", "From the validated request to the end"),
    histogram(
        "vllm:request_queue_time_seconds",
        "From a choice's submission to its first step, or to its end where it had none",
    ),
    histogram("vllm:request_inference_time_seconds", "From a choice's first step to its last token"),
    histogram("vllm:request_prefill_time_seconds", "From a choice's first step to its first token"),
    histogram("vllm:request_decode_time_seconds", "From a choice's first token to its last"),
    histogram("vllm:request_prompt_tokens", "Prompt tokens of a choice"),
    histogram("vllm:request_generation_tokens", "Tokens generated for a choice"),
    histogram("vllm:request_max_num_generation_tokens", "Tokens generated for a request's longest choice"),
    histogram("vllm:request_params_n", "Choices per prompt asked for"),
    histogram("vllm:request_params_max_tokens", "Tokens that a choice may have"),
    histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a choice that were not cached"),
    histogram("vllm:iteration_tokens_total", "Tokens fed by a step; a histogram in spite of its name"),
    counter(
        "http_requests_total",
        &["handler", "method", "status"],
        "HTTP responses begun, by route, method and class of status",
    ),
    Name {
        name: "http_request_duration_seconds",
        kind: Kind::Histogram,
        labels: &["handler", "method"],
        help: "From a request's head to the response's",
    },
    gauge("process_start_time_seconds", &[], "When the server started, in Unix time"),
    gauge("process_resident_memory_bytes", &[], "Memory of this process that is in RAM"),
    counter("process_cpu_seconds_total", &[], "Time of processors that this process has used"),
    gauge(
        "octant_kv_blocks",
        &["state"],
        "KV blocks by state: free, used by sequences, cached, reserved for running sequences; the sum is constant",
    ),
    gauge("octant_requests_reading", &[], "Requests whose body is on its way"),
    counter("octant_steps_total", &[], "Steps planned"),
    histogram("octant_step_seconds", "Time of the device for a step"),
    histogram("octant_step_host_seconds", "From a step's results to the next launch"),
    histogram(
        "octant_step_device_idle_seconds",
        "For how long a launch found the device without a step although there was work",
    ),
    histogram(
        "octant_step_prediction_ratio",
        "A step's time over what was expected of it, by a cost model or, where there is none, by the steps before it",
    ),
    counter("octant_prefill_seconds_total", &[], "Time of the device for prompts and recomputation"),
    counter("octant_decode_seconds_total", &[], "Time of the device for generation"),
    counter("octant_kv_block_seconds_total", &[], "KV blocks in use, times seconds"),
    gauge("octant_startup_seconds", &["phase"], "What each phase of starting has taken so far"),
    counter("octant_admissions_total", &["decision"], "Requests taken or refused, by what decided it"),
    counter(
        "octant_http_errors_total",
        &["code"],
        "HTTP responses that are errors, by the error's code; an error within a stream is none",
    ),
    counter("octant_key_requests_total", &["key"], "Choices that ended, by key"),
    counter("octant_key_queue_seconds_total", &["key"], "Time in the queue, by key"),
    counter("octant_key_prefill_seconds_total", &["key"], "Share of octant_prefill_seconds_total, by key"),
    counter("octant_key_decode_seconds_total", &["key"], "Share of octant_decode_seconds_total, by key"),
    counter("octant_key_kv_block_seconds_total", &["key"], "Share of octant_kv_block_seconds_total, by key"),
    counter(
        "octant_key_tokens_total",
        &["key", "kind"],
        "Tokens by key: of prompts, generated, cached, computed, recomputed",
    ),
];

/// Names of old that dashboards still ask for, and what they are called now.
pub const ALIASES: [(&str, &str); 5] = [
    ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
    ("vllm:time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
    ("vllm:gpu_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    ("vllm:max_num_generation_tokens", "vllm:request_max_num_generation_tokens"),
];

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static Name> {
    NAMES.iter().find(|known| known.name == name)
}
