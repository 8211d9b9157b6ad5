//! Progress of loading weights: a bar on a terminal, else a line of the log every five seconds.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::model::LoadProgress;
use crate::stdio::ProgressBars;

/// Interval of the lines if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar, or lines of the log.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Instant,
    done: u64,
}

impl Progress {
    /// Starts the clock. The first update shows the bar.
    pub(crate) fn start(bars: &ProgressBars) -> Self {
        let template = "loading {bar:32} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} \
                        left  {msg}";
        let bar = bars.bar(Some(0), template);
        Self { bar, start: Instant::now(), last_line: Instant::now(), done: 0 }
    }

    /// Shows the progress after another piece of a tensor.
    pub(crate) fn update(&mut self, progress: &LoadProgress<'_>) {
        self.done = progress.done;
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            if bar.message() != progress.tensor {
                bar.set_message(progress.tensor.to_owned());
            }
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!("{}", line(progress, self.start.elapsed()));
        }
    }

    /// Removes the bar and logs size, time and rate.
    pub(crate) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
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
