//! Times at which the requests of an open loop are due. They depend only on rate, duration, spacing and seed,
//! so a slow server does not delay them.
//!
//! Each spacing gives a renewal process `S(1) < S(2) < ...` whose intervals have mean 1. Request n is due
//! when the integral of the rate reaches `S(n)`. If the rate changes, requests therefore arrive at every
//! moment as in a Poisson (or gamma, or constant) process of the current rate.

use std::time::Duration;

use crate::random::Random;

/// Distribution of the intervals between requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spacing {
    /// Equal intervals.
    Constant,
    /// Exponential intervals, as of many independent users.
    Poisson,
    /// Gamma distributed intervals. Their standard deviation is `1 / sqrt(burstiness)` of their mean.
    Gamma {
        /// Shape parameter: below 1 is burstier than Poisson, 1 is Poisson, above 1 is more regular.
        burstiness: f64,
    },
}

/// Requests per second, changing linearly from the start to the end of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Rate at the start.
    pub from: f64,
    /// Rate at the end.
    pub to: f64,
}

/// Due times in ascending order, since the start of the run. The sequence ends with the run's duration, if it
/// has one.
#[derive(Debug, Clone)]
pub struct Arrivals {
    rate: Rate,
    seconds: Option<f64>,
    spacing: Spacing,
    random: Random,
    sum: f64,
}

impl Arrivals {
    /// Due times of a run of this duration. The rate changes over the duration; without one it stays at
    /// `rate.from`.
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
        // The integral of the rate is from * t + growth * t^2 / 2. This form of its inverse also holds for
        // growth 0.
        let growth = self.seconds.map_or(0.0, |seconds| (to - from) / seconds);
        let root = (from * from + 2.0 * growth * self.sum).max(0.0).sqrt();
        Some(Duration::from_secs_f64(2.0 * self.sum / (from + root)))
    }
}
