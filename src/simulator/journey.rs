//! What became of requests, and of the server over time: what reports are made of, whether it was measured or simulated.

use crate::scheduler::Counts;

/// One request from its arrival to its end. Times are seconds from one common beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Journey {
    /// When it came.
    pub arrived: f64,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// When each token of its answer was there.
    pub tokens: Vec<f64>,
    /// Seconds from its arrival until its first token as they were predicted when it came, if they were.
    pub predicted: Option<f64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It has not.
    Open,
    /// Its queue was full, or it could never run.
    Refused,
    /// Its client left.
    Left,
    /// It was answered with an error.
    Failed,
    /// With its last token, at this time.
    Finished(f64),
}

impl Journey {
    /// Of a request that has just come.
    pub fn new(arrived: f64, prompt: usize) -> Self {
        Self { arrived, prompt, tokens: Vec::new(), predicted: None, outcome: Outcome::Open }
    }

    /// Seconds from its arrival to its first token.
    pub fn first_token(&self) -> Option<f64> {
        self.tokens.first().map(|at| at - self.arrived)
    }

    /// Seconds from token to token.
    pub fn gaps(&self) -> impl Iterator<Item = f64> {
        self.tokens.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// The mean of those.
    pub fn mean_gap(&self) -> Option<f64> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        (self.tokens.len() > 1).then(|| (last - first) / (self.tokens.len() - 1) as f64)
    }
}

/// The server after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When, in seconds.
    pub at: f64,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV blocks in use, of all.
    pub kv: f64,
    /// Preemptions so far.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache so far, and found.
    pub prefix: (u64, u64),
    /// Steps planned so far.
    pub steps: u64,
}

impl Sample {
    /// At this time the scheduler had these counts.
    pub fn new(at: f64, counts: &Counts) -> Self {
        Self {
            at,
            running: counts.running,
            waiting: counts.waiting,
            kv: counts.blocks_used as f64 / counts.blocks_total as f64,
            preemptions: counts.preemptions,
            prefix: (counts.prefix_queries, counts.prefix_hits),
            steps: counts.steps,
        }
    }
}
