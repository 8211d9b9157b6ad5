//! The progress of a run on standard error.

use std::time::Duration;

use super::progress_text::{Counts, progress_line, rate_and_time_left, total};
use crate::batch::offline::Progress;
use crate::stdio::{Log, ProgressDisplay};

/// Interval between two messages beside the bar.
const REFRESH: Duration = Duration::from_millis(500);

/// Shows progress.
pub(super) struct BatchProgress {
    display: ProgressDisplay,
    /// Tokens of the run and time at the last message.
    before: (u64, Duration),
}

impl BatchProgress {
    /// Starts the clock.
    pub(super) fn start(log: &Log, found: Progress) -> Self {
        let display = ProgressDisplay::start(&log.handle().bars, "{bar:32} {pos}/{len} {msg}");
        display.set_position(found.succeeded + found.failed, Some(found.lines));
        Self { display, before: (0, Duration::ZERO) }
    }

    /// Shows how far the run has come, if it is time to.
    pub(super) fn show(&mut self, now: &Progress) {
        let now = counts(now);
        self.display.set_position(now.done, Some(now.lines));
        if !self.display.is_due(REFRESH) {
            return;
        }
        let elapsed = self.display.elapsed();
        let (before, then) = std::mem::replace(&mut self.before, (now.tokens, elapsed));
        let text = rate_and_time_left(&now, now.tokens - before, elapsed - then, elapsed);
        self.display.show(&text, &progress_line(&now, &text));
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.display.finish();
    }

    /// Logs what the whole run did.
    pub(super) fn log_total(&self, now: &Progress) {
        tracing::info!("{}", total(&counts(now), self.display.elapsed()));
    }
}

fn counts(now: &Progress) -> Counts {
    Counts {
        lines: now.lines,
        done: now.succeeded + now.failed,
        failed: now.failed,
        written: now.written,
        tokens: now.prompt_tokens + now.generated_tokens,
    }
}
