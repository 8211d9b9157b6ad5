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

/// Height of the plotting area.
const HIGH: f64 = HEIGHT - TOP - BOTTOM;

/// About this number of labels along the x axis.
const LABELS: usize = 8;

/// Longest bar in a terminal, in characters.
const BAR: usize = 40;

/// Counts of values in bins of equal width.
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
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Histogram of {}\">\n",
            escape(name)
        );
        let right = WIDTH - RIGHT;
        for count in [most, (most / 2.0).round()] {
            let y = TOP + HIGH * (1.0 - count / most);
            _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            label(&mut out, Label { x: LEFT - 6.0, y: y + 4.0, anchor: "end", text: &number(count) });
        }
        for (bin, count) in self.counts.iter().enumerate() {
            self.bar(&mut out, bin, HIGH * *count as f64 / most, threshold);
        }
        let bottom = TOP + HIGH;
        _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>");
        let bins = self.counts.len();
        for bin in (0..=bins).step_by(bins.div_ceil(LABELS).max(1)) {
            let border = self.border(bin);
            let text = &number(border);
            label(&mut out, Label { x: self.x(border), y: bottom + 17.0, anchor: "middle", text });
        }
        let inside = |least: &f64| (self.start..=self.border(bins)).contains(least);
        if let Some(least) = threshold.filter(inside) {
            let x = self.x(least);
            let anchor = if x > WIDTH / 2.0 { "end" } else { "start" };
            _ = writeln!(out, "<path class=\"threshold\" d=\"M{x:.1} {TOP}V{bottom}\"/>");
            label(&mut out, Label { x, y: TOP - 7.0, anchor, text: &format!("threshold {}", number(least)) });
        }
        out.push_str("</svg>\n");
        out
    }

    /// The x coordinate of a value.
    fn x(&self, value: f64) -> f64 {
        let bins = self.counts.len().max(1);
        LEFT + (WIDTH - LEFT - RIGHT) * (value - self.start) / (self.step * bins as f64)
    }

    fn bar(&self, out: &mut String, bin: usize, height: f64, threshold: Option<f64>) {
        let (from, to) = (self.border(bin), self.border(bin + 1));
        // A border is computed with a rounding error, so a tiny part of a bin may lie above the threshold.
        let is_dropped = threshold.is_some_and(|least| to <= least + 1e-9 * self.step);
        let class = if is_dropped { "bar dropped" } else { "bar" };
        let (x, y) = (self.x(from) + 0.5, TOP + HIGH - height);
        let width = (self.x(to) - self.x(from) - 1.0).max(0.5);
        _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{} to {}: {}</title></rect>",
            number(from),
            number(to),
            self.counts[bin]
        );
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

/// Text in a drawing.
struct Label<'a> {
    x: f64,
    y: f64,
    /// The side of the text that stands at `x`.
    anchor: &'a str,
    text: &'a str,
}

fn label(out: &mut String, label: Label<'_>) {
    let Label { x, y, anchor, text } = label;
    _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
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
