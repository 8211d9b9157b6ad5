//! What one wants to know of a run: rates, percentiles, and how many requests were served well enough.

use std::fmt::Write;

use serde::Serialize;

use super::journey::{Journey, Outcome, Sample};

/// When a request is served well enough: both hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slo {
    /// Seconds until its first token, at most.
    pub ttft: f64,
    /// Seconds from token to token, at most, on the request's average.
    pub itl: f64,
}

/// Of some values, in seconds; all 0 where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// A run in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Requests that came.
    pub requests: usize,
    /// Of them, those answered to their end.
    pub finished: usize,
    /// Those refused.
    pub refused: usize,
    /// Those whose client left.
    pub left: usize,
    /// Those that failed, or had not ended when the run did.
    pub unfinished: usize,
    /// Seconds from the first arrival to the last token.
    pub seconds: f64,
    /// Prompt tokens of requests that were answered or begun to be.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Steps.
    pub steps: u64,
    /// Requests finished per second.
    pub requests_per_second: f64,
    /// Prompt tokens per second.
    pub prompt_tokens_per_second: f64,
    /// Tokens generated per second.
    pub generated_tokens_per_second: f64,
    /// From arrival to first token.
    pub ttft: Percentiles,
    /// How far the predicted time to the first token was from what it was, where it was predicted.
    pub ttft_off: Percentiles,
    /// From token to token, of all pairs.
    pub itl: Percentiles,
    /// From arrival to the end, of those finished.
    pub latency: Percentiles,
    /// When a request counts as served well.
    pub slo: Slo,
    /// Requests per second that finished and were served well.
    pub goodput: f64,
    /// Those, of all that came and whose client stayed.
    pub good_share: f64,
    /// KV blocks in use, of all: mean over the time of steps, and the most.
    pub kv_mean: f64,
    /// The most.
    pub kv_max: f64,
    /// Sequences that gave up their blocks.
    pub preemptions: u64,
    /// Tokens found in the prefix cache, of those looked up.
    pub prefix_hit_rate: f64,
}

impl Percentiles {
    /// Of values in any order. A percentile is the smallest value that so many are not above.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let Some(max) = values.last().copied() else { return Self::default() };
        let at = |share: f64| values[((values.len() as f64 * share).ceil() as usize).max(1) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
    }
}

impl Report {
    /// Of what became of all requests and of the server.
    pub fn new(journeys: &[&Journey], samples: &[Sample], slo: Slo) -> Self {
        let ended = |wanted: Outcome| journeys.iter().filter(|j| j.outcome == wanted).count();
        let finish = |j: &&Journey| match j.outcome {
            Outcome::Finished(at) => Some(at - j.arrived),
            _ => None,
        };
        let latency: Vec<f64> = journeys.iter().filter_map(finish).collect();
        let good = journeys.iter().filter(|j| finish(j).is_some() && is_good(j, slo)).count();
        let first = journeys.iter().map(|j| j.arrived).fold(f64::INFINITY, f64::min);
        let last = samples.last().map_or(0.0, |sample| sample.at);
        let seconds = if first < last { last - first } else { 0.0 };
        let per_second = |count: usize| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let begun = journeys.iter().filter(|j| !j.tokens.is_empty());
        let prompt_tokens = begun.map(|j| j.prompt).sum();
        let generated_tokens = journeys.iter().map(|j| j.tokens.len()).sum();
        let (left, finished) = (ended(Outcome::Left), latency.len());
        let (queries, hits) = samples.last().map_or((0, 0), |sample| sample.prefix);
        Self {
            requests: journeys.len(),
            finished,
            refused: ended(Outcome::Refused),
            left,
            unfinished: ended(Outcome::Failed) + ended(Outcome::Open),
            seconds,
            prompt_tokens,
            generated_tokens,
            steps: samples.last().map_or(0, |sample| sample.steps),
            requests_per_second: per_second(finished),
            prompt_tokens_per_second: per_second(prompt_tokens),
            generated_tokens_per_second: per_second(generated_tokens),
            ttft: Percentiles::of(journeys.iter().filter_map(|j| j.first_token()).collect()),
            ttft_off: Percentiles::of(foreseen(journeys).iter().map(|(x, y)| (x - y).abs()).collect()),
            itl: Percentiles::of(journeys.iter().flat_map(|j| j.gaps()).collect()),
            latency: Percentiles::of(latency),
            slo,
            goodput: per_second(good),
            good_share: good as f64 / (journeys.len() - left).max(1) as f64,
            kv_mean: kv_mean(samples),
            kv_max: samples.iter().map(|sample| sample.kv).fold(0.0, f64::max),
            preemptions: samples.last().map_or(0, |sample| sample.preemptions),
            prefix_hit_rate: if queries == 0 { 0.0 } else { hits as f64 / queries as f64 },
        }
    }
}

/// Of each request whose first token was predicted: in how many seconds, and in how many it came.
pub fn foreseen(journeys: &[&Journey]) -> Vec<(f64, f64)> {
    journeys.iter().filter_map(|journey| Some((journey.predicted?, journey.first_token()?))).collect()
}

fn is_good(journey: &Journey, slo: Slo) -> bool {
    journey.first_token().is_none_or(|x| x <= slo.ttft) && journey.mean_gap().is_none_or(|x| x <= slo.itl)
}

/// Each sample counts for the time until the next.
fn kv_mean(samples: &[Sample]) -> f64 {
    let time: f64 = samples.windows(2).map(|pair| pair[1].at - pair[0].at).sum();
    let sum: f64 = samples.windows(2).map(|pair| pair[0].kv * (pair[1].at - pair[0].at)).sum();
    if time > 0.0 { sum / time } else { 0.0 }
}

/// Reports beside each other, each under its name.
pub fn table(reports: &[(&str, &Report)]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, cell: &dyn Fn(&Report) -> String| {
        let cells: String = reports.iter().map(|(_, report)| format!("{:>24}", cell(report))).collect();
        let _infallible = writeln!(text, "{name:<28}{cells}");
    };
    let percentiles = |p: Percentiles| format!("{:.4} {:.4} {:.4}", p.p50, p.p90, p.p99);
    line("requests", &|r| r.requests.to_string());
    line("  finished/refused/left", &|r| format!("{}/{}/{}", r.finished, r.refused, r.left));
    line("  failed or not ended", &|r| r.unfinished.to_string());
    line("seconds", &|r| format!("{:.3}", r.seconds));
    line("requests/s", &|r| format!("{:.3}", r.requests_per_second));
    line("prompt tokens/s", &|r| format!("{:.1}", r.prompt_tokens_per_second));
    line("generated tokens/s", &|r| format!("{:.1}", r.generated_tokens_per_second));
    line("TTFT s, p50 p90 p99", &|r| percentiles(r.ttft));
    line("  predicted, off by", &|r| percentiles(r.ttft_off));
    line("inter-token s, p50 p90 p99", &|r| percentiles(r.itl));
    line("latency s, p50 p90 p99", &|r| percentiles(r.latency));
    line("within the SLO", &|r| format!("{:.2} %", 100.0 * r.good_share));
    line("goodput, requests/s", &|r| format!("{:.3}", r.goodput));
    line("KV use, mean and most", &|r| format!("{:.1} % {:.1} %", 100.0 * r.kv_mean, 100.0 * r.kv_max));
    line("preemptions", &|r| r.preemptions.to_string());
    line("prefix hits", &|r| format!("{:.1} %", 100.0 * r.prefix_hit_rate));
    line("steps", &|r| r.steps.to_string());
    let heads: String = reports.iter().map(|(name, _)| format!("{name:>24}")).collect();
    if reports.len() > 1 { format!("{:<28}{heads}\n{text}", "") } else { text }
}
