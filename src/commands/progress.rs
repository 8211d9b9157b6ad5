//! Shows how loading gets on: a bar on a terminal, a line now and then anywhere else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::LoadProgress;
use crate::runner::gib;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar, or lines, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Instant,
    /// Bytes that each rank has gone through.
    done: Vec<u64>,
}

impl Progress {
    /// Begins; nothing is shown before the first tensor.
    pub fn start(ranks: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "loading {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}",
            );
            ProgressBar::new(0).with_style(style.expect("the template is sound"))
        });
        Self { bar, start: Instant::now(), last_line: Instant::now(), done: vec![0; ranks] }
    }

    /// A rank has gone through one more tensor.
    pub fn update(&mut self, rank: usize, progress: &LoadProgress<'_>) {
        self.done[rank] = progress.done;
        let done = self.done();
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(done);
            bar.set_message(progress.tensor.to_owned());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let share = 100.0 * done as f64 / progress.total.max(1) as f64;
            eprintln!("loading {share:.0} % of {}: {}", gib(progress.total), progress.tensor);
        }
    }

    /// Of the checkpoint, in ranks' parts: each rank takes its own from every tensor.
    fn done(&self) -> u64 {
        self.done.iter().sum::<u64>() / self.done.len() as u64
    }

    /// Everything is in.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = self.done() as f64 / 1e9 / seconds.max(1e-9);
        eprintln!("loaded {} in {seconds:.2} s ({rate:.2} GB/s)", gib(self.done()));
    }
}
