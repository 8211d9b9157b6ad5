//! Measurement of one request from admission to end: latencies and lengths of each choice, and its tokens and
//! cost for the access log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{Histogram, IntCounterVec};

use super::factory::MetricFactory;
use crate::generation::{Cost, Delta, Failure, Generation};
use crate::server::access_log::{AccessRecord, GenerationRecord};

/// Buckets in seconds for the time to first token; the same as vLLM's.
const TTFT_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Buckets in seconds for the time between tokens: vLLM's, and more below 10 ms, because steps of a fast
/// device take less than that.
const INTER_TOKEN_BUCKETS: [f64; 25] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Buckets in seconds for whole requests and their phases; the same as vLLM's.
const REQUEST_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Buckets for the number of choices per prompt.
const N_BUCKETS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// Metrics of choices and of whole requests.
pub(super) struct RequestMetrics {
    finished: IntCounterVec,
    ttft: Histogram,
    inter_token: Histogram,
    per_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt: Histogram,
    generation: Histogram,
    longest_choice: Histogram,
    n: Histogram,
    max_tokens: Histogram,
    computed: Histogram,
}

impl RequestMetrics {
    pub(super) fn new(make: &MetricFactory<'_>, max_model_len: usize) -> Self {
        let tokens = token_buckets(max_model_len);
        let finished = make.counters("vllm:request_success_total");
        for reason in ["stop", "length", "abort", "deadline", "error"] {
            finished.with_label_values(&[reason]);
        }
        Self {
            finished,
            ttft: make.histogram("vllm:time_to_first_token_seconds", &TTFT_BUCKETS),
            inter_token: make.histogram("vllm:inter_token_latency_seconds", &INTER_TOKEN_BUCKETS),
            per_token: make.histogram("vllm:request_time_per_output_token_seconds", &INTER_TOKEN_BUCKETS),
            e2e: make.histogram("vllm:e2e_request_latency_seconds", &REQUEST_BUCKETS),
            queue: make.histogram("vllm:request_queue_time_seconds", &REQUEST_BUCKETS),
            inference: make.histogram("vllm:request_inference_time_seconds", &REQUEST_BUCKETS),
            prefill: make.histogram("vllm:request_prefill_time_seconds", &REQUEST_BUCKETS),
            decode: make.histogram("vllm:request_decode_time_seconds", &REQUEST_BUCKETS),
            prompt: make.histogram("vllm:request_prompt_tokens", &tokens),
            generation: make.histogram("vllm:request_generation_tokens", &tokens),
            longest_choice: make.histogram("vllm:request_max_num_generation_tokens", &tokens),
            n: make.histogram("vllm:request_params_n", &N_BUCKETS),
            max_tokens: make.histogram("vllm:request_params_max_tokens", &tokens),
            computed: make.histogram("vllm:request_prefill_kv_computed_tokens", &tokens),
        }
    }
}

/// Buckets for numbers of tokens: 1, 2 and 5 in each decade, up to `most`.
fn token_buckets(most: usize) -> Vec<f64> {
    let decades = (0..12).map(|power| 10_usize.pow(power));
    let all = decades.flat_map(|decade| [decade, 2 * decade, 5 * decade]);
    all.take_while(|&bucket| bucket <= most.max(1)).map(|bucket| bucket as f64).collect()
}

/// Identity of an admitted request, for the log and for latencies.
pub(crate) struct AdmittedRequest {
    /// `id` of the answer, such as `chatcmpl-…`.
    pub(crate) id: String,
    /// Record of the HTTP request for the access log.
    pub(crate) record: Arc<AccessRecord>,
    /// Label of the API key or user whose counters are charged.
    pub(crate) key: String,
    /// Whether it is a line of a batch, which waits behind live requests: the latencies of the latter do not
    /// count it.
    pub(crate) batch: bool,
    /// Time at which the body had been read and validated.
    pub(crate) arrived: Instant,
}

/// Measures one request. A choice that has not finished when the tracker is dropped counts as aborted.
pub(crate) struct Tracker {
    metrics: Arc<RequestMetrics>,
    admitted: AdmittedRequest,
    submitted: Instant,
    choices: Vec<ChoiceProgress>,
    /// Time at which the answer ended. Costs of aborted choices may arrive later.
    ended: Option<Instant>,
}

/// Progress of one choice.
struct ChoiceProgress {
    /// Prompt tokens.
    prompt: usize,
    /// Generated tokens so far.
    tokens: u32,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    cost: Cost,
    /// Value of the label `finished_reason`, once the choice has ended.
    ended: Option<&'static str>,
    /// Whether its time in the queue has been observed.
    queue_observed: bool,
}

impl Tracker {
    pub(super) fn new(
        metrics: Arc<RequestMetrics>,
        admitted: AdmittedRequest,
        generation: &Generation,
    ) -> Self {
        if !admitted.batch {
            metrics.n.observe(generation.n() as f64);
            metrics.max_tokens.observe(f64::from(generation.max_tokens()));
        }
        let choice = |prompt| ChoiceProgress {
            prompt,
            tokens: 0,
            first_token: None,
            last_token: None,
            cost: Cost::default(),
            ended: None,
            queue_observed: false,
        };
        let choices = generation.prompt_lengths().map(choice).collect();
        Self { metrics, admitted, submitted: generation.submitted(), choices, ended: None }
    }

    /// Counts the tokens of a delta and, if it is the choice's last, the end of the choice.
    pub(crate) fn delta(&mut self, delta: &Delta) {
        let choice = &mut self.choices[delta.index];
        // The time at which the token was made, not the time at which the stream reads it: pauses of a slow
        // reader or of the stream interval are not latencies of the server.
        let now = delta.made.unwrap_or_else(Instant::now);
        choice.cost = delta.cost;
        if delta.tokens > 0 {
            choice.first_token.get_or_insert(now);
            match choice.last_token.replace(now) {
                _ if self.admitted.batch => {}
                None => {
                    let arrived = self.admitted.arrived;
                    self.metrics.ttft.observe(now.saturating_duration_since(arrived).as_secs_f64());
                }
                Some(last) => {
                    self.metrics.inter_token.observe(now.saturating_duration_since(last).as_secs_f64());
                }
            }
            choice.tokens += delta.tokens;
        }
        if delta.reward.is_some() {
            // A score ends the prefill, as a first token does.
            (choice.first_token, choice.last_token) = (Some(now), Some(now));
        }
        if let Some(finish) = delta.finish {
            self.finish(delta.index, finish.as_str());
        }
    }

    /// Ends the request; choices that have not finished count as aborted. `costs` are the costs of the
    /// choices so far, by index.
    pub(crate) fn end(&mut self, costs: &[Cost]) {
        self.set_costs(costs);
        self.finish_all("abort");
        self.ended = Some(Instant::now());
    }

    /// Sets the final cost of an aborted choice.
    pub(crate) fn cost(&mut self, index: usize, cost: Cost) {
        self.choices[index].cost = cost;
    }

    /// Counts all unfinished choices as failed, either by the engine or because the client's deadline passed.
    /// `costs` are the costs of the choices so far, by index.
    pub(crate) fn failed(&mut self, failure: &Failure, costs: &[Cost]) {
        self.set_costs(costs);
        self.finish_all(match failure {
            Failure::Engine(_) => "error",
            // The request is at fault, and not the server.
            Failure::TooComplex(_) => "abort",
            Failure::Late => "deadline",
        });
    }

    fn set_costs(&mut self, costs: &[Cost]) {
        self.choices.iter_mut().zip(costs).for_each(|(choice, cost)| choice.cost = *cost);
    }

    fn finish_all(&mut self, reason: &'static str) {
        for index in 0..self.choices.len() {
            self.finish(index, reason);
        }
    }

    fn finish(&mut self, index: usize, reason: &'static str) {
        let choice = &mut self.choices[index];
        if choice.ended.is_some() {
            return;
        }
        choice.ended = Some(reason);
        if self.admitted.batch {
            return;
        }
        let metrics = &self.metrics;
        metrics.finished.with_label_values(&[reason]).inc();
        metrics.e2e.observe(self.admitted.arrived.elapsed().as_secs_f64());
        metrics.prompt.observe(choice.prompt as f64);
        metrics.generation.observe(f64::from(choice.tokens));
        if choice.first_token.is_some() || choice.cost.queue > 0.0 {
            choice.queue_observed = true;
            metrics.queue.observe(choice.cost.queue);
        }
        if let (Some(first), Some(last)) = (choice.first_token, choice.last_token) {
            let queue = Duration::try_from_secs_f64(choice.cost.queue).unwrap_or_default();
            let started = self.submitted + queue;
            let since = |later: Instant, earlier| later.saturating_duration_since(earlier).as_secs_f64();
            metrics.prefill.observe(since(first, started));
            metrics.decode.observe(since(last, first));
            metrics.inference.observe(since(last, started));
            let cached = choice.cost.cached_tokens as usize;
            metrics.computed.observe(choice.prompt.saturating_sub(cached) as f64);
            if choice.tokens > 1 {
                metrics.per_token.observe(since(last, first) / f64::from(choice.tokens - 1));
            }
        }
    }

    /// Puts tokens and cost into the record of the request, however it ended.
    fn record(&self, ended_at: Instant) {
        let cost = self.choices.iter().fold(Cost::default(), |sum, choice| sum.and(choice.cost));
        let ended: Vec<&str> = self.choices.iter().filter_map(|choice| choice.ended).collect();
        let generation = GenerationRecord {
            id: self.admitted.id.clone(),
            key: self.admitted.key.clone(),
            ended: ended.join(","),
            prompt_tokens: self.choices.iter().map(|choice| choice.prompt).sum(),
            generated_tokens: self.choices.iter().map(|choice| choice.tokens).sum(),
            cached_tokens: cost.cached_tokens,
            computed_tokens: cost.computed_tokens,
            recomputed_tokens: cost.recomputed_tokens,
            queue: cost.queue,
            prefill: cost.prefill,
            decode: cost.decode,
            kv_block_seconds: cost.kv_block_seconds,
            total: ended_at.saturating_duration_since(self.admitted.arrived),
        };
        self.admitted.record.generated(generation, ended_at);
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.finish_all("abort");
        let ended = *self.ended.get_or_insert_with(Instant::now);
        // Choices without a token waited too; leaving them out would make overload look better than it is.
        // Their wait is the one that the engine reported, or else the time from submission to end.
        for choice in self.choices.iter().filter(|choice| !choice.queue_observed) {
            let all = ended.saturating_duration_since(self.submitted).as_secs_f64();
            self.metrics.queue.observe(if choice.cost.queue > 0.0 { choice.cost.queue } else { all });
        }
        let longest = self.choices.iter().map(|choice| choice.tokens).max().unwrap_or(0);
        self.metrics.longest_choice.observe(f64::from(longest));
        self.record(ended);
    }
}
