//! Histograms of scores: bins with round borders, drawn as SVG for the report and as bars for a terminal.

use std::fmt::Write as _;

use super::html::{escape, number};

/// About this number of bins between the smallest and the largest value.
const BINS: f64 = 24.0;

/// Size of the drawing, and its margins, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 28.0;

/// About this number of labels along the x axis.
const LABELS: usize = 8;

/// Longest bar in a terminal, in characters.
const BAR: usize = 40;

/// Counts of values between borders of equal distance.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Lower border of the first bin.
    pub start: f64,
    /// Width of a bin.
    pub step: f64,
    /// Values of each bin; its lower border belongs to it, its upper one does not.
    pub counts: Vec<usize>,
}

impl Histogram {
    /// Counts the finite values. There are no bins if there are no values.
    pub fn of(values: &[f64]) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (min, max) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        if min > max {
            return Self { start: 0.0, step: 1.0, counts: Vec::new() };
        }
        let step = round_step((max - min) / BINS);
        // A border belongs to the bin above it, although 0.3 / 0.1 is a little less than 3.
        let bin_of = |value: f64| (value / step + 1e-9).floor();
        let first = bin_of(min);
        let bin = |value: f64| (bin_of(value) - first) as usize;
        let mut counts = vec![0; bin(max) + 1];
        for value in finite() {
            counts[bin(value)] += 1;
        }
        Self { start: first * step, step, counts }
    }

    fn border(&self, bin: usize) -> f64 {
        self.start + self.step * bin as f64
    }

    /// Draws the bins; those below the threshold have a colour of their own, and a line marks it.
    pub(super) fn svg(&self, name: &str, threshold: Option<f64>) -> String {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let bins = self.counts.len().max(1);
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let x = |value: f64| LEFT + wide * (value - self.start) / (self.step * bins as f64);
        let y = |count: f64| TOP + high * (1.0 - count / most);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Histogram of {}\">\n",
            escape(name)
        );
        for count in [most, (most / 2.0).round()] {
            let line = y(count);
            _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{line:.1}\" y2=\"{line:.1}\"/>",
                WIDTH - RIGHT
            );
            _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{count}</text>",
                LEFT - 6.0,
                line + 4.0
            );
        }
        for (bin, count) in self.counts.iter().enumerate() {
            let (from, to) = (self.border(bin), self.border(bin + 1));
            let class = if threshold.is_some_and(|least| to <= least) { "bar dropped" } else { "bar" };
            _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} to {}: {count}</title></rect>",
                x(from) + 0.5,
                y(*count as f64),
                (x(to) - x(from) - 1.0).max(0.5),
                high * *count as f64 / most,
                number(from),
                number(to)
            );
        }
        let bottom = TOP + high;
        _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>",
            WIDTH - RIGHT
        );
        for bin in (0..=bins).step_by(bins.div_ceil(LABELS).max(1)) {
            let at = x(self.border(bin));
            _ = writeln!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                number(self.border(bin))
            );
        }
        let inside = |least: &f64| (self.start..=self.border(bins)).contains(least);
        if let Some(least) = threshold.filter(inside) {
            let at = x(least);
            let anchor = if at > WIDTH / 2.0 { "end" } else { "start" };
            _ = writeln!(
                out,
                "<line class=\"threshold\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>"
            );
            _ = writeln!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">threshold {}</text>",
                TOP - 7.0,
                number(least)
            );
        }
        out.push_str("</svg>\n");
        out
    }

    /// One line per bin: its lower border, its count and a bar.
    pub(super) fn bars(&self) -> String {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1);
        let mut out = String::new();
        for (bin, count) in self.counts.iter().enumerate() {
            let bar = "█".repeat((count * BAR).div_ceil(most));
            let line = format!("{:>10} {count:>8} {bar}", number(self.border(bin)));
            _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `step`; 0.1 where all values are the
/// same.
fn round_step(step: f64) -> f64 {
    if !(step.is_finite() && step > 0.0) {
        return 0.1;
    }
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|round| *round >= step)
        .unwrap_or(10.0 * power)
}
