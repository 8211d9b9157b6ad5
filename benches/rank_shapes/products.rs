//! Products of a layer with E4M3 weights and inputs: results in F32 near those of the CPU device, and in BF16
//! the nearest values to these.

use octant::device::cuda::Matrix;
use octant::device::{
    ActQuant, Activation, Device, DeviceError, FloatType, HostMatrix, MatrixData, MatrixShape,
    QuantisedActivation, fp8, upload_matrix,
};

use crate::inputs::{Identity, acts, magnitude, noise, product, rounded};
use crate::rank::{ALL, FEW, Kernel, ORDERS, ROWS, Rank};
use crate::report::{Bound, EXACT, Measure, Report};
use crate::rows::activated;

/// The bound of a difference from the CPU device, as a share of the sum of absolute terms. Both multiply the
/// same E4M3 values exactly. `rounding` of `tests/gpu/dev.rs` allows each 2e-6 where sums are F32. With 13
/// fraction bits the largest difference of all these products was 3.9e-5 (2026-11-30), for 2,304 inputs; the
/// bound is four times that.
pub(crate) fn most_error() -> f64 {
    let truncates = std::env::var_os("OCTANT_HOST_TRUNCATES").is_some_and(|value| value == "1");
    if truncates { 1.6e-4 } else { 4e-6 }
}

const MLP_UP: &str = "MLP up";

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let names = ["QKV", "attention output", MLP_UP, "MLP down"];
    for (name, (out, input)) in names.into_iter().zip(rank.share.linear_shapes()) {
        layer_product(rank, report, name, MatrixShape { out, input, bf16: false })?;
    }
    Ok(())
}

/// Checks the product with one weight of a layer.
fn layer_product(
    rank: &Rank,
    report: &mut Report,
    name: &str,
    MatrixShape { out, input, .. }: MatrixShape,
) -> Result<(), DeviceError> {
    let codes: Vec<u8> = noise(1, out * input).into_iter().map(fp8::encode).collect();
    // From 1 to 2.
    let scales: Vec<f32> = (0..out).map(|index| 1.0 + index as f32 / out as f32).collect();
    let matrix = HostMatrix { out, input, data: MatrixData::Fp8 { codes: &codes, scales: &scales } };
    let x = noise(2, ROWS * input);
    let quant = ActQuant::Fp8PerToken;
    let expected = product(
        &rank.cpu,
        &acts(&rank.cpu, &x, input, quant)?,
        &upload_matrix(&rank.cpu, matrix)?,
        rank.cpu.floats(ROWS, out)?,
    )?;
    // The sum of absolute terms by mean magnitudes, with the least scale, which is 1.
    let size = input as f32 * magnitude(&x) * magnitude(&noise(1, input));
    let of = "of the sum of absolute terms";
    let bound = Bound { measure: Measure::Share { size, of }, most: most_error() };
    let weights = rank.on_hosts(|host| upload_matrix(host, matrix))?;
    let run = |float_type: FloatType| {
        let (x, weights) = (&x, &weights);
        move |order: usize, rows: std::ops::Range<usize>| {
            let host = &rank.hosts[order];
            let x = acts(host, &x[rows.start * input..], input, quant)?;
            product(host, &x, &weights[order], host.floats_of(float_type, rows.len(), out)?)
        }
    };
    let kernel = Kernel {
        name: &format!("{name} [{out}, {input}]"),
        expected: &expected,
        bounds: &[bound],
        counts: &ALL,
    };
    let exact = rank.check(report, &kernel, run(FloatType::F32))?;
    let kernel = Kernel {
        name: &format!("{name} [{out}, {input}] in BF16"),
        expected: &rounded(FloatType::Bf16, exact),
        bounds: &[EXACT],
        counts: &FEW,
    };
    let halves = rank.check(report, &kernel, run(FloatType::Bf16))?;
    if name == MLP_UP { with_activation(rank, report, &x, &weights, &halves) } else { Ok(()) }
}

/// Checks MLP up with its activation: its rows have the bits of the activation of `products`.
fn with_activation(
    rank: &Rank,
    report: &mut Report,
    x: &[f32],
    weights: &[Matrix; ORDERS],
    products: &[f32],
) -> Result<(), DeviceError> {
    let (out, input) = (products.len() / ROWS, x.len() / ROWS);
    let quant = ActQuant::Fp8PerToken;
    let on_cpu = Identity::new(&rank.cpu, out)?;
    let on_hosts = rank.on_hosts(|host| Identity::new(host, out))?;
    let kernel = Kernel {
        name: &format!("{MLP_UP} [{out}, {input}] with squared ReLU to {quant:?}"),
        expected: &activated(&rank.cpu, &on_cpu, FloatType::Bf16, quant, products)?,
        bounds: &[EXACT],
        counts: &FEW,
    };
    rank.check(report, &kernel, |order, rows| {
        let host = &rank.hosts[order];
        let x = acts(host, &x[rows.start * input..], input, quant)?;
        let mut h = host.floats_of(FloatType::Bf16, rows.len(), out)?;
        let mut activated = host.acts(rows.len(), out)?;
        let activation = QuantisedActivation { kind: Activation::SquaredRelu, quant };
        host.linear_activation(&x, &weights[order], activation, &mut h, &mut activated)?;
        on_hosts[order].show(host, &activated, rows.len())
    })?;
    Ok(())
}
