//! When requests are due, decided before any is sent.
//!
//! An open-loop run must not slow down because the server does: the times are a pure function of rate, spacing and seed.
//! All spacings are renewal processes with unit mean, `S(1) < S(2) < ...`, and the n-th request is due when the integral
//! of the rate reaches `S(n)`. A ramp is thereby Poisson (or gamma, or constant) at every moment of it, at the rate of
//! that moment.

use std::time::Duration;

use crate::random::Random;

/// How the intervals between requests are distributed about their mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spacing {
    /// All alike.
    Constant,
    /// Exponential: as many independent users send.
    Poisson,
    /// Gamma with this shape. Below 1 is burstier than Poisson, 1 is Poisson, above is more regular; the intervals'
    /// standard deviation is `1 / sqrt(burstiness)` of their mean.
    Gamma {
        /// The shape.
        burstiness: f64,
    },
}

/// Requests per second, at the beginning and, changing evenly, at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// At the beginning.
    pub from: f64,
    /// At the end.
    pub to: f64,
}

/// The times at which requests are due, after the run's beginning, in order; without an end unless the run has one.
#[derive(Debug, Clone)]
pub struct Arrivals {
    rate: Rate,
    seconds: Option<f64>,
    spacing: Spacing,
    random: Random,
    sum: f64,
}

impl Arrivals {
    /// The arrivals of a run that takes requests for so long; a ramp is over that time, and is none without it.
    pub fn new(rate: Rate, duration: Option<Duration>, spacing: Spacing, seed: u64) -> Self {
        let seconds = duration.map(|duration| duration.as_secs_f64());
        Self { rate, seconds, spacing, random: Random::new(seed), sum: 0.0 }
    }

    fn interval(&mut self) -> f64 {
        match self.spacing {
            Spacing::Constant => 1.0,
            Spacing::Poisson => self.random.exponential(),
            Spacing::Gamma { burstiness } => self.random.gamma(burstiness) / burstiness,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.sum += self.interval();
        let Rate { from, to } = self.rate;
        if self.seconds.is_some_and(|seconds| self.sum > 0.5 * (from + to) * seconds) {
            return None;
        }
        // The rate's integral is from t + growth t^2 / 2; this form of its inverse holds without growth too.
        let growth = self.seconds.map_or(0.0, |seconds| (to - from) / seconds);
        let root = (from * from + 2.0 * growth * self.sum).max(0.0).sqrt();
        Some(Duration::from_secs_f64(2.0 * self.sum / (from + root)))
    }
}
