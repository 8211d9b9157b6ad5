//! Measurements of an engine without HTTP and without text: `octant bench throughput` and
//! `octant bench latency`, with the figures of vLLM's commands of these names.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::engine::{EngineHandle, SubmitOptions, UpdateStream};
use crate::random::Random;
use crate::request::{Finish, Request, SamplingParams, StopRules, Tenant};
use crate::statistics::{percentile, sorted};

/// Greedy requests of random tokens, of equal lengths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RandomRequests {
    /// Prompt tokens of each.
    pub(crate) input_len: usize,
    /// Generated tokens of each.
    pub(crate) output_len: usize,
    /// Token ids are below this.
    pub(crate) vocab: usize,
    /// Seed of the prompts.
    pub(crate) seed: u64,
}

/// Figures of `octant bench throughput`. The names in JSON are vLLM's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ThroughputFigures {
    /// Seconds from the first submission to the last token.
    pub(crate) elapsed_time: f64,
    /// Requests, all answered.
    pub(crate) num_requests: usize,
    /// Prompt and generated tokens.
    pub(crate) total_num_tokens: usize,
    /// Generated tokens.
    pub(crate) total_output_tokens: usize,
    /// Requests per second.
    pub(crate) requests_per_second: f64,
    /// Prompt and generated tokens per second.
    pub(crate) tokens_per_second: f64,
    /// Generated tokens per second.
    pub(crate) output_tokens_per_second: f64,
}

/// Figures of `octant bench latency`, in seconds of a batch. The names in JSON are vLLM's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LatencyFigures {
    /// Mean.
    pub(crate) avg_latency: f64,
    /// Each timed batch.
    pub(crate) latencies: Vec<f64>,
    /// The percentiles of [`PERCENTILES`].
    pub(crate) percentiles: serde_json::Map<String, serde_json::Value>,
}

/// Percentiles that are reported, in %.
const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];

impl RandomRequests {
    /// Request number `index`. Its prompt shares no prefix with that of another number.
    fn request(&self, index: usize) -> Request {
        let mut random = Random::stream(self.seed, index as u64);
        let token = |_| (random.bits() % self.vocab as u64) as u32;
        Request {
            prompt: (0..self.input_len).map(token).collect(),
            sampling: Arc::new(SamplingParams::greedy()),
            stop: StopRules {
                max_tokens: u32::try_from(self.output_len).unwrap_or(u32::MAX),
                stop_ids: Vec::new(),
            },
            priority: 0,
            tenant: Tenant::default(),
            cache_salt: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
            reward: false,
            batch: false,
        }
    }
}

/// Submits all requests at once and waits for their answers.
///
/// # Errors
/// A request is refused or fails.
pub(crate) async fn throughput(
    engine: &EngineHandle,
    requests: RandomRequests,
    count: usize,
) -> anyhow::Result<ThroughputFigures> {
    let prompts: Vec<Request> = (0..count).map(|index| requests.request(index)).collect();
    let began = Instant::now();
    let generated = answers(engine, prompts).await?;
    let seconds = began.elapsed().as_secs_f64();
    let total = generated + count * requests.input_len;
    let per_second = |number: usize| number as f64 / seconds;
    Ok(ThroughputFigures {
        elapsed_time: seconds,
        num_requests: count,
        total_num_tokens: total,
        total_output_tokens: generated,
        requests_per_second: per_second(count),
        tokens_per_second: per_second(total),
        output_tokens_per_second: per_second(generated),
    })
}

/// Times batches, each submitted when the one before has been answered. `warm_up` batches come first. Every
/// batch has prompts of its own.
///
/// # Errors
/// A request is refused or fails.
pub(crate) async fn latency(
    engine: &EngineHandle,
    requests: RandomRequests,
    batch: usize,
    warm_up: usize,
    timed: usize,
) -> anyhow::Result<LatencyFigures> {
    let mut latencies = Vec::with_capacity(timed);
    for turn in 0..warm_up + timed {
        let prompts = (turn * batch..(turn + 1) * batch).map(|index| requests.request(index)).collect();
        let began = Instant::now();
        answers(engine, prompts).await?;
        if turn >= warm_up {
            latencies.push(began.elapsed().as_secs_f64());
        }
    }
    let ordered = sorted(latencies.clone());
    let named = |percent: u32| {
        let value = percentile(&ordered, f64::from(percent) / 100.0);
        (percent.to_string(), serde_json::Value::from(value))
    };
    Ok(LatencyFigures {
        avg_latency: latencies.iter().sum::<f64>() / latencies.len() as f64,
        percentiles: PERCENTILES.into_iter().map(named).collect(),
        latencies,
    })
}

/// Submits requests together and waits for all answers. Returns the number of generated tokens.
async fn answers(engine: &EngineHandle, requests: Vec<Request>) -> anyhow::Result<usize> {
    let permit = engine.enter(requests.len()).context("the engine refuses the requests")?;
    let streams = permit.submit(requests, SubmitOptions::default()).await;
    let streams = streams.context("the engine refuses the requests")?;
    let mut generated = 0;
    for stream in streams {
        generated += answer(stream).await?;
    }
    Ok(generated)
}

/// The number of tokens of an answer.
async fn answer(mut stream: UpdateStream) -> anyhow::Result<usize> {
    let mut generated = 0;
    loop {
        let update = stream.next().await;
        generated += update.tokens.len();
        match update.finish {
            None => {}
            Some(finish) => {
                ensure!(finish == Finish::Length, "a request ended early: {finish:?}");
                return Ok(generated);
            }
        }
    }
}
