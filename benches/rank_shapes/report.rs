//! Comparisons with the CPU device, and the report of all cases.

use octant::device::{ActQuant, fp8};

/// How results are compared with those of the CPU device.
pub(crate) enum Measure {
    /// The largest difference, as a share of a size.
    Share {
        /// The size.
        size: f32,
        /// The size in words, for the report.
        of: &'static str,
    },
    /// The number of elements whose bits differ.
    Different,
    /// The largest difference, as a share of the largest element of the same part of a row.
    ShareOfPart {
        /// Elements of a part.
        len: usize,
    },
    /// The largest difference between quantised rows, in units in the last place.
    Units(Quantised),
    /// The share of elements that were rounded otherwise: those that differ by more than half a unit. The
    /// scale of an E4M3 row may differ by a unit of F32, and then the bits of all its elements do.
    RoundedOtherwise(Quantised),
}

/// Quantised rows.
#[derive(Clone, Copy)]
pub(crate) struct Quantised {
    pub(crate) quant: ActQuant,
    /// Elements of a row.
    pub(crate) cols: usize,
    /// The difference before quantisation that is not counted.
    pub(crate) slack: f32,
}

/// A measure and the most that it may be.
pub(crate) struct Bound {
    pub(crate) measure: Measure,
    pub(crate) most: f64,
}

/// The result of a comparison.
pub(crate) struct Difference {
    pub(crate) found: f64,
    pub(crate) most: f64,
    /// The unit of `found`, for the report.
    pub(crate) unit: &'static str,
}

/// No element may have other bits.
pub(crate) const EXACT: Bound = Bound { measure: Measure::Different, most: 0.0 };

impl Bound {
    pub(crate) fn check(&self, got: &[f32], expected: &[f32]) -> Difference {
        assert_eq!(got.len(), expected.len(), "elements of a result");
        let pairs = || got.iter().zip(expected);
        let different = || pairs().filter(|(got, expected)| got.to_bits() != expected.to_bits()).count();
        let (found, unit) = match self.measure {
            Measure::Share { size, of } => {
                (largest(pairs().map(|(got, expected)| (got - expected).abs() / size)), of)
            }
            Measure::ShareOfPart { len } => {
                let parts = got.chunks_exact(len).zip(expected.chunks_exact(len));
                let share = |(got, expected): (&[f32], &[f32])| {
                    let differences = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
                    largest(differences) as f32 / fp8::amax(expected)
                };
                (largest(parts.map(share)), "of a part's largest value")
            }
            Measure::Different => (different() as f64, "elements"),
            Measure::Units(quantised) => (largest(quantised.units(got, expected).into_iter()), "units"),
            Measure::RoundedOtherwise(quantised) => {
                let units = quantised.units(got, expected);
                let others = units.iter().filter(|units| **units > 0.5).count();
                (others as f64 / units.len() as f64, "of all elements rounded otherwise")
            }
        };
        Difference { found, most: self.most, unit }
    }
}

/// The largest of some differences; NaN if one is NaN.
fn largest(differences: impl Iterator<Item = f32>) -> f64 {
    let larger = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
    f64::from(differences.fold(0.0, larger))
}

impl Quantised {
    /// The difference of each element, in units in the last place.
    fn units(&self, got: &[f32], expected: &[f32]) -> Vec<f32> {
        let Self { quant, cols, slack } = *self;
        let mut all = Vec::with_capacity(got.len());
        for (got, expected) in got.chunks_exact(cols).zip(expected.chunks_exact(cols)) {
            let scale = fp8::scale_for(fp8::amax(expected));
            let unit = |x: f32| match quant {
                // Eight significant bits.
                ActQuant::Bf16 => (x.abs().max(f32::MIN_POSITIVE).log2().floor() - 7.0).exp2(),
                // Four significant bits, and a subnormal step of 2^-9.
                ActQuant::Fp8PerToken | ActQuant::Fp8Static(_) => {
                    (x.abs() / scale).max(1.0 / 64.0).log2().floor().exp2() / 8.0 * scale
                }
            };
            let difference = |(got, expected): (&f32, &f32)| {
                let beyond = (got - expected).abs() - slack;
                if beyond <= 0.0 { 0.0 } else { beyond / unit(*got).max(unit(*expected)) }
            };
            all.extend(got.iter().zip(expected).map(difference));
        }
        all
    }
}

/// Whether all elements have the same bits.
pub(crate) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A kernel with a number of rows.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) rows: usize,
    /// Differences from the CPU device.
    pub(crate) errors: Vec<Difference>,
    /// Whether the rows have the bits that they have in another batch or by another path.
    pub(crate) same: bool,
    pub(crate) seconds: f64,
}

/// All cases so far.
#[derive(Default)]
pub(crate) struct Report {
    cases: usize,
    failed: Vec<String>,
}

impl Report {
    /// Prints the line of a case.
    pub(crate) fn add(&mut self, case: Case) {
        let Case { name, rows, errors, same, seconds } = case;
        let list = errors
            .iter()
            .map(|Difference { found, most, unit }| format!("{found:.1e} {unit} (at most {most:.1e}), "));
        let list: String = list.collect();
        let line = format!("{name}, {rows} rows: {list}same bits {same}, {seconds:.2} s");
        // A comparison with NaN is false.
        let passed = same && errors.iter().all(|error| error.found <= error.most);
        println!("{line}{}", if passed { "" } else { "  FAILED" });
        self.cases += 1;
        if !passed {
            self.failed.push(line);
        }
    }

    /// Prints the failed cases, and returns whether there are none.
    pub(crate) fn end(&self) -> bool {
        let Self { cases, failed } = self;
        println!("{cases} cases, {} failed", failed.len());
        failed.iter().for_each(|line| println!("FAILED {line}"));
        *cases > 0 && failed.is_empty()
    }
}
