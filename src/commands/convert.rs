//! `octant quantize` and `octant import-nemo`: convert checkpoint directories and show the progress.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::config::{ImportNemoArgs, QuantizeArgs, ScaleScheme};
use crate::machine::cores;
use crate::offline::{self, Conversion, ConversionProgress, Converted, Granularity};
use crate::stdio::Log;

/// Interval of progress lines if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Weights with the largest errors that the summary lists.
const WORST: usize = 3;

/// Quantises a Hugging Face directory to FP8.
pub fn quantize(args: QuantizeArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let conversion = Conversion {
        input: args.input,
        output: args.output,
        granularity: Some(granularity(args.scheme)),
        tokenizer: true,
        shard_size: args.common.shard_size.0,
        threads: args.common.threads.unwrap_or_else(cores),
    };
    let display = ProgressDisplay::start("quantizing", log);
    let converted = offline::quantize(&conversion, &|progress| display.update(&progress))?;
    display.finish(&converted, &conversion);
    Ok(ExitCode::SUCCESS)
}

/// Converts a NeMo directory to a Hugging Face directory.
pub fn import_nemo(args: ImportNemoArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let conversion = Conversion {
        input: args.input,
        output: args.output,
        granularity: args.quantize.map(granularity),
        tokenizer: !args.without_tokenizer,
        shard_size: args.common.shard_size.0,
        threads: args.common.threads.unwrap_or_else(cores),
    };
    let display = ProgressDisplay::start("importing", log);
    let converted = offline::import_nemo(&conversion, &|progress| display.update(&progress))?;
    display.finish(&converted, &conversion);
    Ok(ExitCode::SUCCESS)
}

fn granularity(scheme: ScaleScheme) -> Granularity {
    match scheme {
        ScaleScheme::Channel => Granularity::Channel,
        ScaleScheme::Tensor => Granularity::Tensor,
    }
}

/// Progress: a bar on a terminal, else a line of the log every five seconds.
struct ProgressDisplay {
    verb: &'static str,
    bar: Option<ProgressBar>,
    start: Instant,
    /// Time of the last line, and the most bytes converted so far.
    last: Mutex<(Instant, u64)>,
}

impl ProgressDisplay {
    fn start(verb: &'static str, log: &Log) -> Self {
        let bar = log.handle().bars.bar(Some(0), "{prefix} {bar:32} {msg}").map(|bar| bar.with_prefix(verb));
        let start = Instant::now();
        Self { verb, bar, start, last: Mutex::new((start, 0)) }
    }

    fn update(&self, progress: &ConversionProgress<'_>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads report their progress out of order.
        last.1 = last.1.max(progress.done);
        let line = line(last.1, progress, self.start.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(last.1);
            bar.set_message(line);
        } else if last.0.elapsed() >= LINE_EVERY {
            last.0 = Instant::now();
            tracing::info!("{} {line}", self.verb);
        }
    }

    fn finish(&self, converted: &Converted, conversion: &Conversion) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let Converted { already_complete, tensors, bytes, reports, not_copied } = converted;
        let out = conversion.output.display();
        if *already_complete {
            tracing::info!("{out} is already complete");
            return;
        }
        for name in not_copied {
            tracing::warn!("not copied: {name}");
        }
        if !reports.is_empty() {
            let mut worst: Vec<_> = reports.iter().collect();
            worst.sort_by(|a, b| b.relative_rms_error.total_cmp(&a.relative_rms_error));
            tracing::info!("{} weights quantised; the relative RMS error is the largest for", reports.len());
            for report in worst.into_iter().take(WORST) {
                let saturated = report.saturated;
                tracing::info!(
                    "  {:.3} %  {} (largest error {:.3e}; {saturated} values saturated, {} became zero)",
                    100.0 * report.relative_rms_error,
                    report.name,
                    report.max_abs_error,
                    report.zeroed,
                );
            }
        }
        let seconds = self.start.elapsed().as_secs_f64();
        tracing::info!("wrote {out}: {tensors} tensors of {} in {seconds:.1} s", gb(*bytes));
    }
}

/// One line: bytes done, the rate of this run, and the time left.
fn line(done: u64, progress: &ConversionProgress<'_>, elapsed: Duration) -> String {
    let ConversionProgress { earlier, total, tensor, .. } = progress;
    let rate = (done - earlier.min(&done)) as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = Duration::from_secs(((total - done.min(*total)) as f64 / rate.max(1.0)) as u64);
    let share = 100.0 * done as f64 / (*total).max(1) as f64;
    format!(
        "{share:.0} % of {}, {:.2} GB/s, {}:{:02}:{:02} left: {tensor}",
        gb(*total),
        rate / 1e9,
        left.as_secs() / 3600,
        left.as_secs() / 60 % 60,
        left.as_secs() % 60,
    )
}

fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::line;
    use crate::offline::ConversionProgress;

    #[test]
    fn the_rate_is_that_of_this_run() {
        let (done, earlier, total) = (60_000_000_000, 40_000_000_000, 100_000_000_000);
        let progress = ConversionProgress { done, earlier, total, tensor: "w" };
        let text = line(done, &progress, Duration::from_secs(10));
        assert_eq!(text, "60 % of 100.0 GB, 2.00 GB/s, 0:00:20 left: w");
    }
}
