//! Figures of a simulated or recorded run: rates, latencies, goodput, and the use of the KV cache.

use std::fmt::Write;

use serde::Serialize;

use super::timeline::{RequestOutcome, RequestTimeline, ServerSample};
use crate::statistics::Distribution;

/// Service level objective of a request. Both limits must hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slo {
    /// Highest TTFT in seconds.
    pub ttft: f64,
    /// Highest mean inter-token latency of the request, in seconds.
    pub itl: f64,
}

/// Figures of a run. Latencies are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulationReport {
    /// Requests that arrived.
    pub requests: usize,
    /// Requests answered completely.
    pub finished: usize,
    /// Requests refused.
    pub refused: usize,
    /// Requests whose client disconnected.
    pub left: usize,
    /// Requests that failed, or had not ended when the run did.
    pub unfinished: usize,
    /// Seconds from the first arrival to the end of the last step.
    pub seconds: f64,
    /// Prompt tokens of requests with at least one generated token.
    pub prompt_tokens: usize,
    /// Generated tokens.
    pub generated_tokens: usize,
    /// Steps.
    pub steps: u64,
    /// Finished requests per second.
    pub requests_per_second: f64,
    /// Prompt tokens per second.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens per second.
    pub generated_tokens_per_second: f64,
    /// Time from arrival to the first token.
    pub ttft: Distribution,
    /// Absolute difference of predicted and actual TTFT, over requests whose TTFT was predicted.
    pub ttft_off: Distribution,
    /// Time between consecutive tokens, over all pairs.
    pub itl: Distribution,
    /// Time from arrival to the end, over finished requests.
    pub latency: Distribution,
    /// The objective that goodput counts.
    pub slo: Slo,
    /// Finished requests within the objective, per second.
    pub goodput: f64,
    /// Finished requests within the objective, as a share of those whose client did not disconnect.
    pub good_share: f64,
    /// Mean share of KV blocks in use, weighted by time.
    pub kv_mean: f64,
    /// Highest share of KV blocks in use.
    pub kv_max: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Tokens found in the prefix cache, as a share of those looked up.
    pub prefix_hit_rate: f64,
}

impl SimulationReport {
    /// Summarises all requests of a run and the states of its server.
    pub fn new(requests: &[&RequestTimeline], samples: &[ServerSample], slo: Slo) -> Self {
        let ended = |wanted: RequestOutcome| requests.iter().filter(|r| r.outcome == wanted).count();
        let finish = |r: &&RequestTimeline| match r.outcome {
            RequestOutcome::Finished(at) => Some(at - r.arrived),
            _ => None,
        };
        let latency: Vec<f64> = requests.iter().filter_map(finish).collect();
        let good = requests.iter().filter(|r| finish(r).is_some() && is_within(r, slo)).count();
        let first = requests.iter().map(|r| r.arrived).fold(f64::INFINITY, f64::min);
        let last = samples.last().map_or(0.0, |sample| sample.at);
        let seconds = if first < last { last - first } else { 0.0 };
        let per_second = |count: usize| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let begun = requests.iter().filter(|r| !r.tokens.is_empty());
        let prompt_tokens = begun.map(|r| r.prompt_tokens).sum();
        let generated_tokens = requests.iter().map(|r| r.tokens.len()).sum();
        let (left, finished) = (ended(RequestOutcome::Left), latency.len());
        let (queries, hits) = samples.last().map_or((0, 0), |s| (s.prefix_queries, s.prefix_hits));
        let predictions = predicted_and_actual_ttft(requests);
        Self {
            requests: requests.len(),
            finished,
            refused: ended(RequestOutcome::Refused),
            left,
            unfinished: ended(RequestOutcome::Failed) + ended(RequestOutcome::Open),
            seconds,
            prompt_tokens,
            generated_tokens,
            steps: samples.last().map_or(0, |sample| sample.steps),
            requests_per_second: per_second(finished),
            prompt_tokens_per_second: per_second(prompt_tokens),
            generated_tokens_per_second: per_second(generated_tokens),
            ttft: Distribution::of(requests.iter().filter_map(|r| r.ttft()).collect()),
            ttft_off: Distribution::of(predictions.iter().map(|(x, y)| (x - y).abs()).collect()),
            itl: Distribution::of(requests.iter().flat_map(|r| r.gaps()).collect()),
            latency: Distribution::of(latency),
            slo,
            goodput: per_second(good),
            good_share: good as f64 / (requests.len() - left).max(1) as f64,
            kv_mean: kv_mean(samples),
            kv_max: samples.iter().map(|sample| sample.kv).fold(0.0, f64::max),
            preemptions: samples.last().map_or(0, |sample| sample.preemptions),
            prefix_hit_rate: if queries == 0 { 0.0 } else { hits as f64 / queries as f64 },
        }
    }
}

/// Predicted and actual TTFT in seconds of each request that has both.
pub fn predicted_and_actual_ttft(requests: &[&RequestTimeline]) -> Vec<(f64, f64)> {
    requests.iter().filter_map(|request| Some((request.predicted_ttft?, request.ttft()?))).collect()
}

fn is_within(request: &RequestTimeline, slo: Slo) -> bool {
    request.ttft().is_none_or(|x| x <= slo.ttft) && request.mean_gap().is_none_or(|x| x <= slo.itl)
}

/// Mean of the samples, each weighted by the time until the next.
fn kv_mean(samples: &[ServerSample]) -> f64 {
    let time: f64 = samples.windows(2).map(|pair| pair[1].at - pair[0].at).sum();
    let sum: f64 = samples.windows(2).map(|pair| pair[0].kv * (pair[1].at - pair[0].at)).sum();
    if time > 0.0 { sum / time } else { 0.0 }
}

/// Reports as text, one column for each, with their names as heads if there are several.
pub fn table(reports: &[(&str, &SimulationReport)]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, cell: &dyn Fn(&SimulationReport) -> String| {
        let cells: String = reports.iter().map(|(_, report)| format!("{:>24}", cell(report))).collect();
        let _infallible = writeln!(text, "{name:<28}{cells}");
    };
    let percentiles = |d: Distribution| format!("{:.4} {:.4} {:.4}", d.p50, d.p90, d.p99);
    line("requests", &|r| r.requests.to_string());
    line("  finished/refused/left", &|r| format!("{}/{}/{}", r.finished, r.refused, r.left));
    line("  failed or unfinished", &|r| r.unfinished.to_string());
    line("seconds", &|r| format!("{:.3}", r.seconds));
    line("requests/s", &|r| format!("{:.3}", r.requests_per_second));
    line("prompt tokens/s", &|r| format!("{:.1}", r.prompt_tokens_per_second));
    line("generated tokens/s", &|r| format!("{:.1}", r.generated_tokens_per_second));
    line("TTFT s, p50 p90 p99", &|r| percentiles(r.ttft));
    line("  error of prediction s", &|r| percentiles(r.ttft_off));
    line("inter-token s, p50 p90 p99", &|r| percentiles(r.itl));
    line("latency s, p50 p90 p99", &|r| percentiles(r.latency));
    line("within the SLO", &|r| format!("{:.2} %", 100.0 * r.good_share));
    line("goodput, requests/s", &|r| format!("{:.3}", r.goodput));
    line("KV use, mean and max", &|r| format!("{:.1} % {:.1} %", 100.0 * r.kv_mean, 100.0 * r.kv_max));
    line("preemptions", &|r| r.preemptions.to_string());
    line("prefix cache hits", &|r| format!("{:.1} %", 100.0 * r.prefix_hit_rate));
    line("steps", &|r| r.steps.to_string());
    let heads: String = reports.iter().map(|(name, _)| format!("{name:>24}")).collect();
    if reports.len() > 1 { format!("{:<28}{heads}\n{text}", "") } else { text }
}
