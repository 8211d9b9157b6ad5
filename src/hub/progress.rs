//! Progress of a download on standard error.

use std::time::Duration;

use crate::stdio::{ProgressBars, ProgressDisplay};

/// The bar of a terminal.
const BAR: &str = "downloading {bar:24} {decimal_bytes}/{decimal_total_bytes} {msg}";
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
    /// Time from the start to the first byte. Before it, the hub is asked and earlier bytes are checked.
    first_byte: Option<Duration>,
}

impl DownloadDisplay {
    /// Starts the clock.
    pub(super) fn start(bars: &ProgressBars) -> Self {
        Self { display: ProgressDisplay::start(bars, BAR), first_byte: None }
    }

    pub(super) fn update(&mut self, progress: DownloadProgress) {
        self.display.set_position(progress.done, Some(progress.total));
        if progress.received > 0 && self.first_byte.is_none() {
            self.first_byte = Some(self.display.elapsed());
        }
        if self.display.is_due(RATE_EVERY) {
            let seconds = self.display.elapsed().saturating_sub(self.first_byte.unwrap_or_default());
            let rate = rate(progress.received, seconds);
            let left = match progress.received {
                0 => String::new(),
                _ => format!(", {:.0} s left", gb(progress.total.saturating_sub(progress.done)) / rate),
            };
            let share = 100.0 * progress.done as f64 / progress.total.max(1) as f64;
            let (done, total) = (gb(progress.done), gb(progress.total));
            let beside = format!("{rate:.2} GB/s{left}");
            let line = format!("downloading {done:.2} of {total:.2} GB ({share:.0} %), {rate:.2} GB/s{left}");
            self.display.show(&beside, &line);
        }
    }

    /// Removes the bar.
    pub(super) fn remove(&self) {
        self.display.finish();
    }

    /// Logs size, time and rate.
    pub(super) fn finish(&self, received: u64) {
        let elapsed = self.display.elapsed();
        tracing::info!(
            "downloaded {:.2} GB in {:.2} s ({:.2} GB/s)",
            gb(received),
            elapsed.as_secs_f64(),
            rate(received, elapsed)
        );
    }
}

/// A rate in GB/s. Bytes that were in the cache before do not count.
fn rate(received: u64, time: Duration) -> f64 {
    gb(received) / time.as_secs_f64().max(1e-9)
}

/// A size in GB, which are 10^9 bytes.
pub(super) fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
