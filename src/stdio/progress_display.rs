//! Progress on standard error: a bar on a terminal, else a line of the log every five seconds.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::ProgressBars;

/// Interval of the lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar or lines on standard error.
pub(crate) struct ProgressDisplay {
    bars: ProgressBars,
    /// `None` if standard error is not a terminal.
    bar: Option<ProgressBar>,
    start: Instant,
    last_shown: Instant,
}

impl ProgressDisplay {
    /// Starts the clock. The bar appears when its first position is set. `template` is in indicatif's syntax.
    pub(crate) fn start(bars: &ProgressBars, template: &str) -> Self {
        let now = Instant::now();
        Self { bar: bars.bar(None, template), bars: bars.clone(), start: now, last_shown: now }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Moves the bar.
    pub(crate) fn set_position(&self, done: u64, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    }

    /// Returns whether a message is due: on a terminal after `bar_interval`, else after five seconds. The
    /// interval then starts again.
    pub(crate) fn is_due(&mut self, bar_interval: Duration) -> bool {
        let interval = if self.bar.is_some() { bar_interval } else { LINE_EVERY };
        let is_due = self.last_shown.elapsed() >= interval;
        if is_due {
            self.last_shown = Instant::now();
        }
        is_due
    }

    /// Shows a message beside the bar, or a line without one.
    pub(crate) fn show(&self, beside_bar: &str, line: &str) {
        match &self.bar {
            Some(bar) if bar.message() != beside_bar => bar.set_message(beside_bar.to_owned()),
            Some(_) => {}
            None => tracing::info!("{line}"),
        }
    }

    /// Removes the bar, and waits a limited time until it is gone.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            self.bars.remove(bar);
        }
    }
}
