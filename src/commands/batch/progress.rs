//! The progress of a run on standard error.

use std::time::Duration;

use crate::batch::offline::Progress;
use crate::stdio::{Log, ProgressDisplay};

/// Interval between two messages beside the bar.
const REFRESH: Duration = Duration::from_millis(500);

/// Shows progress.
pub(super) struct BatchProgress {
    display: ProgressDisplay,
    /// Generated tokens and time at the last message.
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
        let done = now.succeeded + now.failed;
        self.display.set_position(done, Some(now.lines));
        if !self.display.is_due(REFRESH) {
            return;
        }
        let elapsed = self.display.elapsed();
        let tokens = now.prompt_tokens + now.generated_tokens;
        let (before, then) = std::mem::replace(&mut self.before, (tokens, elapsed));
        let rate = (tokens - before) as f64 / (elapsed - then).as_secs_f64().max(1e-3);
        let left = time_left(now, elapsed).map_or("unknown time".to_owned(), clock);
        let text = format!("{} failed, {rate:.0} tokens/s, {left} left", now.failed);
        self.display.show(&text, &format!("{done} of {} requests, {text}", now.lines));
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.display.finish();
    }
}

/// The time that the remaining lines take, if they take as long as those of this run.
fn time_left(now: &Progress, elapsed: Duration) -> Option<Duration> {
    let left = now.lines - now.succeeded - now.failed;
    let seconds = elapsed.as_secs_f64() * left as f64 / now.written as f64;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A duration as hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
