//! Progress of loading weights on standard error.

use std::time::Duration;

use crate::model::LoadProgress;
use crate::stdio::{ProgressBars, ProgressDisplay};

/// The bar of a terminal.
const BAR: &str =
    "loading {bar:32} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left  {msg}";

/// Shows bytes, rate and time left.
pub(crate) struct LoadingDisplay {
    display: ProgressDisplay,
    done: u64,
}

impl LoadingDisplay {
    /// Starts the clock.
    pub(crate) fn start(bars: &ProgressBars) -> Self {
        Self { display: ProgressDisplay::start(bars, BAR), done: 0 }
    }

    /// Shows the progress after another piece of a tensor.
    pub(crate) fn update(&mut self, progress: &LoadProgress<'_>) {
        self.done = progress.done;
        self.display.set_position(progress.done, Some(progress.total));
        if self.display.is_due(Duration::ZERO) {
            self.display.show(progress.tensor, &line(progress, self.display.elapsed()));
        }
    }

    /// Removes the bar and logs size, time and rate.
    pub(crate) fn finish(self) {
        self.display.finish();
        let seconds = self.display.elapsed().as_secs_f64();
        let gb = self.done as f64 / 1e9;
        tracing::info!("loaded {gb:.2} GB in {seconds:.2} s ({:.2} GB/s)", gb / seconds.max(1e-9));
    }
}

/// One line: bytes loaded after `elapsed`, the rate, and the time left at this rate.
pub fn line(progress: &LoadProgress<'_>, elapsed: Duration) -> String {
    let LoadProgress { done, total, tensor } = progress;
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let rate = gb(*done) / elapsed.as_secs_f64().max(1e-9);
    let left = gb(total.saturating_sub(*done)) / rate.max(1e-9);
    let share = 100.0 * *done as f64 / (*total).max(1) as f64;
    format!(
        "loading {:.2} of {:.2} GB ({share:.0} %), {rate:.2} GB/s, {left:.0} s left: {tensor}",
        gb(*done),
        gb(*total)
    )
}
