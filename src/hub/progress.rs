//! Progress of a download on standard error.

use std::time::Duration;

use crate::stdio::{ProgressBars, ProgressDisplay};

/// The bar of a terminal.
const BAR: &str = "downloading {bar:32} {decimal_bytes}/{decimal_total_bytes} {msg}";
/// Interval of the rate beside the bar.
const RATE_EVERY: Duration = Duration::from_millis(500);

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DownloadProgress {
    /// Bytes in the cache.
    pub(crate) done: u64,
    /// Bytes in all.
    pub(crate) total: u64,
    /// Bytes that came over the network.
    pub(super) received: u64,
}

/// Shows bytes, rate and time left.
pub(super) struct DownloadDisplay {
    display: ProgressDisplay,
}

impl DownloadDisplay {
    /// Starts the clock.
    pub(super) fn start(bars: &ProgressBars) -> Self {
        Self { display: ProgressDisplay::start(bars, BAR) }
    }

    pub(super) fn update(&mut self, progress: DownloadProgress) {
        self.display.set_position(progress.done, Some(progress.total));
        if self.display.is_due(RATE_EVERY) {
            let rate = self.rate(progress.received);
            let left = gb(progress.total.saturating_sub(progress.done)) / rate.max(1e-9);
            let beside = format!("{rate:.2} GB/s {left:.0} s left");
            let share = 100.0 * progress.done as f64 / progress.total.max(1) as f64;
            let (done, total) = (gb(progress.done), gb(progress.total));
            let line = format!(
                "downloading {done:.2} of {total:.2} GB ({share:.0} %), {rate:.2} GB/s, {left:.0} s left"
            );
            self.display.show(&beside, &line);
        }
    }

    /// Removes the bar.
    pub(super) fn remove(&self) {
        self.display.finish();
    }

    /// Logs size, time and rate.
    pub(super) fn finish(&self, received: u64) {
        let seconds = self.display.elapsed().as_secs_f64();
        tracing::info!(
            "downloaded {:.2} GB in {seconds:.2} s ({:.2} GB/s)",
            gb(received),
            self.rate(received)
        );
    }

    /// The mean rate since the start in GB/s. Bytes that were there before do not count.
    fn rate(&self, received: u64) -> f64 {
        gb(received) / self.display.elapsed().as_secs_f64().max(1e-9)
    }
}

/// A size in GB, which are 10^9 bytes.
pub(super) fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
