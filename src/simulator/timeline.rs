//! Times of each request and states of the server in one run, simulated or recorded: the input of reports and
//! plots.

use crate::scheduler::Counts;

/// A request from its arrival to its end. Times are in seconds since the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestTimeline {
    /// Time of arrival.
    pub arrived: f64,
    /// Number of prompt tokens.
    pub prompt_tokens: usize,
    /// Time of each generated token.
    pub tokens: Vec<f64>,
    /// TTFT in seconds as predicted on arrival, where it was predicted.
    pub predicted_ttft: Option<f64>,
    /// How it ended.
    pub outcome: RequestOutcome,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RequestOutcome {
    /// It had not ended when the run did.
    Open,
    /// Refused on arrival: the queue was full, the predicted TTFT too long, or the request can never run.
    Refused,
    /// The client disconnected.
    Left,
    /// Answered with an error.
    Failed,
    /// Answered completely, at this time.
    Finished(f64),
}

impl RequestTimeline {
    /// A request that has just arrived.
    pub fn new(arrived: f64, prompt_tokens: usize) -> Self {
        let outcome = RequestOutcome::Open;
        Self { arrived, prompt_tokens, tokens: Vec::new(), predicted_ttft: None, outcome }
    }

    /// Seconds from arrival to the first token.
    pub(crate) fn ttft(&self) -> Option<f64> {
        self.tokens.first().map(|at| at - self.arrived)
    }

    /// Seconds between consecutive tokens.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = f64> {
        self.tokens.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Mean of [`RequestTimeline::gaps`].
    pub(crate) fn mean_gap(&self) -> Option<f64> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        (self.tokens.len() > 1).then(|| (last - first) / (self.tokens.len() - 1) as f64)
    }
}

/// State of the server after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerSample {
    /// Time in seconds since the start of the run.
    pub at: f64,
    /// Running sequences.
    pub running: usize,
    /// Waiting sequences.
    pub waiting: usize,
    /// KV blocks in use, as a share of all.
    pub kv: f64,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache since the start.
    pub prefix_queries: u64,
    /// Tokens found in the prefix cache since the start.
    pub prefix_hits: u64,
    /// Steps planned since the start.
    pub steps: u64,
}

impl ServerSample {
    /// Takes the scheduler's counts at a time.
    pub(crate) fn new(at: f64, counts: &Counts) -> Self {
        Self {
            at,
            running: counts.running,
            waiting: counts.waiting,
            kv: counts.blocks_used as f64 / counts.blocks_total as f64,
            preemptions: counts.preemptions,
            prefix_queries: counts.prefix_queries,
            prefix_hits: counts.prefix_hits,
            steps: counts.steps,
        }
    }
}
