//! The clock beside the turns: what steps took, and what that says of the steps to come.

use std::collections::VecDeque;
use std::time::Instant;

use super::turn::Moment;
use super::{Forecast, Pipeline, Stats};

/// What is known of time; told of each moment of a turn as it passes.
pub(super) struct Watch {
    last_step: Option<Instant>,
    busy_since: Option<Instant>,
    forecast: Forecast,
    /// Of each step in flight, its tokens and when it was enqueued.
    launched: VecDeque<(usize, Instant)>,
}

impl Watch {
    /// With nothing to do.
    pub(super) fn new(forecast: Forecast) -> Self {
        Self { last_step: None, busy_since: None, forecast, launched: VecDeque::new() }
    }

    /// A moment of a turn.
    pub(super) fn see(&mut self, _pipeline: &Pipeline, moment: Moment<'_>) {
        match moment {
            Moment::Launching(plan) => {
                let tokens = plan.rows.iter().map(|row| row.tokens.len()).sum();
                self.launched.push_back((tokens, Instant::now()));
            }
            Moment::Telling => {}
            Moment::Results => self.results(Instant::now()),
            Moment::Committed(updates) => {
                let tokens = updates.iter().filter(|(_, update)| update.token.is_some()).count();
                let ended = updates.iter().filter(|(_, update)| update.finish.is_some()).count();
                self.forecast.answers(tokens, ended);
            }
        }
    }

    /// A step has ended: how long did it take? It began when it was enqueued or when the one before ended.
    fn results(&mut self, now: Instant) {
        if let Some((tokens, enqueued)) = self.launched.pop_front() {
            let begin = self.last_step.map_or(enqueued, |last| last.max(enqueued));
            self.forecast.step(tokens, now.duration_since(begin).as_secs_f64());
        }
        self.last_step = Some(now);
    }

    /// There is something to do. Returns since when.
    pub(super) fn busy(&mut self) -> Option<Instant> {
        self.busy_since.get_or_insert_with(Instant::now);
        self.busy_since
    }

    /// There is nothing to do.
    pub(super) fn rest(&mut self) {
        self.busy_since = None;
    }

    /// What to expect.
    pub(super) fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// How things stand.
    pub(super) fn stats(&self, pipeline: &Pipeline) -> Stats {
        let counts = pipeline.scheduler().counts();
        Stats {
            in_flight: pipeline.in_flight(),
            last_step: self.last_step,
            busy_since: self.busy_since,
            next_end: self.forecast.next_end(counts.running),
            counts,
            failed: None,
        }
    }
}
