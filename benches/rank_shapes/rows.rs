//! Kernels of rows: norms, the activation, additions, selections and reward heads.

use octant::device::{
    ActQuant, Activation, Device, DeviceError, FloatType, Norm, NormKind, RewardWeights, StepCapacity,
    upload_floats,
};

use crate::inputs::{Identity, noise, rounded, rows_of};
use crate::rank::{ALL, FEW, Kernel, RANKS, ROWS, Rank};
use crate::report::{Bound, EXACT, Measure, Quantised, Report};

/// Values of NeMo's reward heads: of those that the release describes, and of all that it has weights for.
const REWARD_WIDTHS: [usize; 2] = [5, 9];

/// The largest share of elements that another order of sums may round otherwise: four times what follows from
/// differences of 1e-6 of an element where the next boundary of BF16 is 2e-3 away on average.
const MOST_ROUNDED_OTHERWISE: f64 = 2e-3;

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    norms(rank, report)?;
    activations(rank, report)?;
    additions(rank, report)?;
    selection(rank, report)?;
    REWARD_WIDTHS.iter().try_for_each(|width| reward_head(rank, report, *width))
}

/// The norm of the model, with noise for weights.
pub(crate) fn norm<D: Device>(device: &D, rank: &Rank) -> Result<Norm<D>, DeviceError> {
    let (kind, hidden) = (rank.share.norm, rank.share.hidden);
    let bias = || upload_floats(device, hidden, &noise(11, hidden));
    Ok(Norm {
        kind,
        weight: upload_floats(device, hidden, &noise(10, hidden))?,
        bias: kind.has_bias().then(bias).transpose()?,
        eps: rank.share.norm_eps,
    })
}

/// The type of a layer's addition to the residual stream, and that of the next product's inputs.
struct NormCase {
    name: &'static str,
    delta: Option<FloatType>,
    quant: ActQuant,
}

const NORMS: [NormCase; 3] = [
    NormCase { name: "without delta, to E4M3", delta: None, quant: ActQuant::Fp8PerToken },
    NormCase { name: "with BF16 delta, to E4M3", delta: Some(FloatType::Bf16), quant: ActQuant::Fp8PerToken },
    NormCase { name: "with F32 delta, to BF16", delta: Some(FloatType::F32), quant: ActQuant::Bf16 },
];

/// A norm on one device.
struct NormOn<'a, D: Device> {
    device: &'a D,
    norm: &'a Norm<D>,
    identity: &'a Identity<D>,
    cols: usize,
}

impl<D: Device> NormOn<'_, D> {
    /// The normalised rows, with or without the residual stream before them.
    fn run(&self, case: &NormCase, x: &[f32], delta: &[f32]) -> Result<NormResults, DeviceError> {
        let Self { device, norm, identity, cols } = self;
        let mut residual = rows_of(*device, FloatType::F32, x, *cols)?;
        let delta = case.delta.map(|float_type| rows_of(*device, float_type, delta, *cols)).transpose()?;
        let mut out = device.acts(residual.rows(), *cols)?;
        device.norm(&mut residual, delta.as_ref(), norm, case.quant, &mut out)?;
        Ok(NormResults {
            residual: device.read(&residual)?,
            normalised: identity.show(*device, &out, residual.rows())?,
        })
    }
}

/// The results of a norm.
struct NormResults {
    residual: Vec<f32>,
    normalised: Vec<f32>,
}

fn norms(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let cols = rank.share.hidden;
    assert!(matches!(rank.share.norm, NormKind::LayerNorm1p), "the norm of the 340B");
    let x: Vec<f32> = noise(12, ROWS * cols).into_iter().map(|x| 7.0 * x + 0.5).collect();
    let on_cpu = (norm(&rank.cpu, rank)?, Identity::new(&rank.cpu, cols)?);
    let on_hosts = rank.on_hosts(|host| Ok((norm(host, rank)?, Identity::new(host, cols)?)))?;
    for case in &NORMS {
        let delta = rounded(case.delta.unwrap_or(FloatType::F32), noise(13, ROWS * cols));
        let cpu = NormOn { device: &rank.cpu, norm: &on_cpu.0, identity: &on_cpu.1, cols };
        let NormResults { residual, normalised } = cpu.run(case, &x, &delta)?;
        // `kernels/norm.cu` promises one unit. `tests/device/rows.rs` has the same slack near zero, and 0.1 %
        // of a unit for scales that differ.
        let quantised = Quantised { quant: case.quant, cols, slack: 1e-6 };
        // BF16 inputs of the product that shows the rows take six times as long.
        let counts = if case.quant == ActQuant::Bf16 { &FEW[..2] } else { &FEW };
        let kernel = Kernel {
            name: &format!("norm [{cols}] {}", case.name),
            expected: &normalised,
            bounds: &[
                Bound { measure: Measure::Units(quantised), most: 1.001 },
                Bound { measure: Measure::RoundedOtherwise(quantised), most: MOST_ROUNDED_OTHERWISE },
            ],
            counts,
        };
        let mut residuals = Vec::new();
        rank.check(report, &kernel, |order, rows| {
            let (norm, identity) = &on_hosts[order];
            let host = NormOn { device: &rank.hosts[order], norm, identity, cols };
            let elements = rows.start * cols..rows.end * cols;
            let results = host.run(case, &x[elements.clone()], &delta[elements])?;
            residuals.push(results.residual);
            Ok(results.normalised)
        })?;
        // The sums of the calls above.
        let mut residuals = residuals.into_iter();
        let kernel = Kernel {
            name: &format!("norm [{cols}] {}: residual", case.name),
            expected: &residual,
            bounds: &[EXACT],
            counts,
        };
        rank.check(report, &kernel, |_, _| Ok(residuals.next().unwrap_or_default()))?;
    }
    Ok(())
}

/// The activation of the MLP's results, which are BF16 where the model is served in FP8.
fn activations(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let cols = rank.share.ffn;
    assert!(matches!(rank.share.activation, Activation::SquaredRelu), "the activation of the 340B");
    let on_cpu = Identity::new(&rank.cpu, cols)?;
    let on_hosts = rank.on_hosts(|host| Identity::new(host, cols))?;
    for (float_type, quant) in [(FloatType::Bf16, ActQuant::Fp8PerToken), (FloatType::F32, ActQuant::Bf16)] {
        let mut h = noise(14, ROWS * cols);
        h.iter_mut().step_by(7).for_each(|x| *x *= 60.0);
        let h = rounded(float_type, h);
        let expected = activated(&rank.cpu, &on_cpu, float_type, quant, &h)?;
        // Squares, their largest and their scale are each one operation, so nothing can differ.
        let kernel = Kernel {
            name: &format!("squared ReLU [{cols}] from {float_type:?} to {quant:?}"),
            expected: &expected,
            bounds: &[EXACT],
            counts: &ALL,
        };
        rank.check(report, &kernel, |order, rows| {
            activated(&rank.hosts[order], &on_hosts[order], float_type, quant, &h[rows.start * cols..])
        })?;
    }
    Ok(())
}

/// Activated rows.
pub(crate) fn activated<D: Device>(
    device: &D,
    identity: &Identity<D>,
    float_type: FloatType,
    quant: ActQuant,
    h: &[f32],
) -> Result<Vec<f32>, DeviceError> {
    let cols = identity.cols();
    let h = rows_of(device, float_type, h, cols)?;
    let mut out = device.acts(h.rows(), cols)?;
    device.activation(Activation::SquaredRelu, &h, quant, &mut out)?;
    identity.show(device, &out, h.rows())
}

/// The parts of all other ranks added to the residual stream.
fn additions(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let cols = rank.share.hidden;
    for float_type in [FloatType::Bf16, FloatType::F32] {
        let parts: Vec<Vec<f32>> =
            (1..RANKS as u64).map(|seed| rounded(float_type, noise(seed, ROWS * cols))).collect();
        let x = noise(15, ROWS * cols);
        let sum = |index: usize| parts.iter().fold(x[index], |sum, part| sum + part[index]);
        let sums: Vec<f32> = (0..ROWS * cols).map(sum).collect();
        let kernel = Kernel {
            name: &format!("add [{cols}], {} parts in {float_type:?}", parts.len()),
            expected: &added(&rank.cpu, float_type, &parts, &x, cols)?,
            bounds: &[EXACT],
            counts: &ALL,
        };
        let got = rank.check(report, &kernel, |order, rows| {
            let parts: Vec<Vec<f32>> = parts.iter().map(|part| part[rows.start * cols..].to_vec()).collect();
            added(&rank.hosts[order], float_type, &parts, &x[rows.start * cols..], cols)
        })?;
        assert!(got == sums, "sums in order");
    }
    Ok(())
}

/// `x` with all parts added.
fn added<D: Device>(
    device: &D,
    float_type: FloatType,
    parts: &[Vec<f32>],
    x: &[f32],
    cols: usize,
) -> Result<Vec<f32>, DeviceError> {
    let parts = parts.iter().map(|part| rows_of(device, float_type, part, cols));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let mut x = rows_of(device, FloatType::F32, x, cols)?;
    device.add(&parts, &mut x)?;
    device.read(&x)
}

/// Rows of the residual stream whose logits are wanted, in any order.
fn selection(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let cols = rank.share.hidden;
    let x = noise(16, ROWS * cols);
    let order: Vec<u32> = (0..ROWS as u32).map(|row| (7 * row + 3) % ROWS as u32).collect();
    let selected = order.iter().flat_map(|row| &x[*row as usize * cols..(*row as usize + 1) * cols]);
    let kernel = Kernel {
        name: &format!("select [{cols}]"),
        expected: &selected.copied().collect::<Vec<f32>>(),
        bounds: &[EXACT],
        counts: &ALL,
    };
    rank.check(report, &kernel, |host, rows| {
        let device = &rank.hosts[host];
        // The device allocates the list of selected rows with the step.
        let capacity = StepCapacity { rows: ROWS, max_positions: 64, ..Default::default() };
        let _step = device.step(capacity)?;
        let from = rows_of(device, FloatType::F32, &x, cols)?;
        let mut out = device.floats(rows.len(), cols)?;
        // In two calls: the second starts after the rows of the first.
        let half = rows.start + rows.len() / 2;
        device.select(&from, &order[rows.start..half], &mut out, 0)?;
        device.select(&from, &order[half..rows.end], &mut out, half - rows.start)?;
        device.read(&out)
    })?;
    Ok(())
}

/// A reward head after the final norm.
fn reward_head(rank: &Rank, report: &mut Report, width: usize) -> Result<(), DeviceError> {
    let cols = rank.share.hidden;
    let x = noise(17, ROWS * cols);
    let expected = rewards(&rank.cpu, rank, width, &x)?;
    // `tests/device/reward.rs` allows 1e-6 for each input: normalised inputs and weights are about 1.
    let measure = Measure::Share { size: 1.0, of: "absolute" };
    let kernel = Kernel {
        name: &format!("reward head [{width}, {cols}]"),
        expected: &expected,
        bounds: &[Bound { measure, most: 1e-6 * cols as f64 }],
        counts: &ALL,
    };
    rank.check(report, &kernel, |order, rows| {
        rewards(&rank.hosts[order], rank, width, &x[rows.start * cols..])
    })?;
    Ok(())
}

/// The values of a reward head for rows of the residual stream.
fn rewards<D: Device>(device: &D, rank: &Rank, width: usize, x: &[f32]) -> Result<Vec<f32>, DeviceError> {
    let cols = rank.share.hidden;
    let head = RewardWeights {
        weight: upload_floats(device, cols, &noise(18, width * cols))?,
        bias: upload_floats(device, width, &noise(19, width))?,
    };
    let hidden = rows_of(device, FloatType::F32, x, cols)?;
    let mut out = device.floats(hidden.rows(), width)?;
    device.reward_head(&hidden, &norm(device, rank)?, &head, &mut out)?;
    device.read(&out)
}
