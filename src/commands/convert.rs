//! `octant quantize` and `octant import-nemo`: convert checkpoint directories and show the progress.

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::{ImportNemoArgs, QuantizeArgs, ScaleScheme};
use crate::hub::{self, Part};
use crate::machine::cores;
use crate::offline::{self, Conversion, ConversionProgress, Converted, Granularity};
use crate::stdio::{Log, ProgressDisplay};

/// Weights with the largest errors that the summary lists.
const WORST: usize = 3;

/// Quantises a Hugging Face directory to FP8.
pub fn quantize(args: QuantizeArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let conversion = Conversion {
        input: hub::directory(&args.input, Part::Model, &log.handle().bars)?,
        output: args.output,
        granularity: Some(granularity(args.scheme)),
        tokenizer: true,
        shard_size: args.common.shard_size.0,
        threads: args.common.threads.unwrap_or_else(cores),
    };
    let display = ConversionDisplay::start("quantizing", log);
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
    let display = ConversionDisplay::start("importing", log);
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

/// Shows the progress of a conversion and its summary.
struct ConversionDisplay {
    verb: &'static str,
    shown: Mutex<Shown>,
}

struct Shown {
    display: ProgressDisplay,
    /// The most bytes converted so far. Threads report their progress out of order.
    done: u64,
}

impl ConversionDisplay {
    fn start(verb: &'static str, log: &Log) -> Self {
        let display = ProgressDisplay::start(&log.handle().bars, &format!("{verb} {{bar:32}} {{msg}}"));
        Self { verb, shown: Mutex::new(Shown { display, done: 0 }) }
    }

    fn update(&self, progress: &ConversionProgress<'_>) {
        let mut shown = self.shown();
        let Shown { display, done } = &mut *shown;
        *done = progress.done.max(*done);
        display.set_position(*done, Some(progress.total));
        if display.is_due(Duration::ZERO) {
            let line = progress_line(*done, progress, display.elapsed());
            display.show(&line, &format!("{} {line}", self.verb));
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, converted: &Converted, conversion: &Conversion) {
        let display = &self.shown().display;
        display.finish();
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
        let seconds = display.elapsed().as_secs_f64();
        tracing::info!("wrote {out}: {tensors} tensors of {} in {seconds:.1} s", gb(*bytes));
    }
}

/// One line: bytes done, the rate of this run, and the time left.
pub fn progress_line(done: u64, progress: &ConversionProgress<'_>, elapsed: Duration) -> String {
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
