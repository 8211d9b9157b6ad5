//! The device under test: CUDA.

use std::path::Path;

use octant::device::cuda::{Cuda, Matrix, Products};
use octant::device::{ActQuant, DeviceError, HostMatrix, MatrixData, RandomWeights};

pub type Dev = Cuda;

/// Input features of a matrix must be a multiple of this.
pub const INPUTS: usize = 16;

/// Tokens per answer in tests of whole models. Few on the host, where steps are slow.
pub const GENERATED: u32 = if cfg!(feature = "host-kernels") { 6 } else { 40 };

/// Numbers of KV blocks that are small enough for sequences to be preempted.
pub const SCARCE: std::ops::RangeInclusive<usize> =
    if cfg!(feature = "host-kernels") { 7..=7 } else { 4..=8 };

/// The number of prompts, and of tokens of each, for which the demo model is compared.
pub const SMOLLM2: (usize, usize) =
    if cfg!(feature = "host-kernels") { (1, 1) } else { (usize::MAX, usize::MAX) };
/// The most by which FP8 may raise the perplexity of a text of 511 tokens, as a share: three standard
/// deviations above the mean. Over 24 texts of 450 tokens it is 3.3 % with a standard deviation of 1.3 %, by
/// the kernels on the host (`benches/results/2026-11-30-accumulation.md`). The text of the test has 2.4 %,
/// and 2.5 % with 13 fraction bits.
pub const FP8_PERPLEXITY: f64 = 0.07;
/// Whether the device is fast enough to score whole texts.
pub const FAST: bool = !cfg!(feature = "host-kernels");

/// Says why a test does not run on a GPU. The test fails if `OCTANT_REQUIRE_GPU` is 1.
pub fn not_on_a_gpu(reason: &str) {
    let required = std::env::var_os("OCTANT_REQUIRE_GPU").is_some_and(|value| value == "1");
    assert!(!required, "OCTANT_REQUIRE_GPU is 1, and this test cannot run on a GPU: {reason}");
    eprintln!("not run on a GPU: {reason}");
}

/// The GPU, if the machine has one, and the kernels on the host with threads in ascending and in descending
/// order.
pub fn all() -> Vec<Dev> {
    let mut all = Vec::new();
    #[cfg(feature = "cuda")]
    match Cuda::new(0, Products::default()) {
        Ok(gpu) => all.push(gpu),
        Err(error) => not_on_a_gpu(&error.to_string()),
    }
    #[cfg(not(feature = "cuda"))]
    not_on_a_gpu("the tests were built without the feature `cuda`");
    #[cfg(feature = "host-kernels")]
    all.extend([false, true].map(|descending| Cuda::on_host(descending, Products::default()).unwrap()));
    all
}

/// A device whose products of many rows need not be deterministic.
pub fn fastest(cache: &Path) -> Option<Dev> {
    let products = Products::Fastest { cache: Some(cache.to_owned()) };
    #[cfg(feature = "host-kernels")]
    return Some(Cuda::on_host(false, products).unwrap());
    #[cfg(not(feature = "host-kernels"))]
    Cuda::new(0, products).inspect_err(|error| not_on_a_gpu(&error.to_string())).ok()
}

/// Makes the devices of a group. All are on GPU 0. With `host-kernels` all are on the host, and every second
/// one runs threads in descending order.
pub fn ranks(count: usize) -> Vec<Dev> {
    ranks_with(count, &Products::default())
}

/// The same, with products that need not be deterministic.
pub fn library_ranks(count: usize) -> Vec<Dev> {
    ranks_with(count, &Products::Fastest { cache: None })
}

fn ranks_with(count: usize, products: &Products) -> Vec<Dev> {
    #[cfg(feature = "host-kernels")]
    return (0..count).map(|rank| Cuda::on_host(rank % 2 == 1, products.clone()).unwrap()).collect();
    #[cfg(not(feature = "host-kernels"))]
    {
        one();
        (0..count).map(|_| Cuda::new(0, products.clone()).unwrap()).collect()
    }
}

/// The first device. Without one, the test process exits with status 0; `all` has printed the reason, or has
/// failed the test.
pub fn one() -> Dev {
    all().into_iter().next().unwrap_or_else(|| std::process::exit(0))
}

/// Another device that must give the same bits.
pub fn other(_device: &Dev) -> Dev {
    all().pop().unwrap_or_else(|| std::process::exit(0))
}

pub fn name(device: &Dev) -> String {
    device.name()
}

/// Random weights, as benchmarks make them on this device.
pub fn random_weights(device: &Dev, weights: &RandomWeights<'_>) -> Result<Matrix, DeviceError> {
    device.random_weights(weights)
}

/// Whether products with this matrix take inputs of this type.
pub fn takes(matrix: &HostMatrix<'_>, quant: ActQuant) -> bool {
    matches!(matrix.data, MatrixData::Fp8 { .. }) || quant == ActQuant::Bf16
}

/// Bound of the error of a product, as a share of the sum of absolute terms. Products with BF16 inputs are
/// summed in F32. The tensor cores sum E4M3 products of 128 inputs with 13 fraction bits; the emulator does
/// so if `OCTANT_HOST_TRUNCATES` is 1, and otherwise sums in F32.
pub fn rounding(matrix: &HostMatrix<'_>, quant: ActQuant) -> f64 {
    let on_gpu = !cfg!(feature = "host-kernels");
    let truncates = on_gpu || std::env::var_os("OCTANT_HOST_TRUNCATES").is_some_and(|value| value == "1");
    let e4m3 = matches!(matrix.data, MatrixData::Fp8 { .. }) && quant != ActQuant::Bf16;
    if truncates && e4m3 { TRUNCATED } else { 2e-6 }
}

/// The same bound for sums with 13 fraction bits. Errors of 2,048 outputs of noise like that of `linear`, by
/// the emulator, 2026-11-29; the last column is their root mean square over that of the outputs:
///
/// | inputs | median | 99 % | largest | of outputs |
/// |---|---|---|---|---|
/// | 48 | 5.7e-6 | 5.8e-5 | 1.3e-4 | 7e-5 |
/// | 144 | 6.1e-6 | 6.0e-5 | 1.5e-4 | 1.2e-4 |
/// | 576 | 4.6e-6 | 2.4e-5 | 4.6e-5 | 1.2e-4 |
/// | 4,096 | 2.0e-6 | 8.1e-6 | 1.1e-5 | 1.2e-4 |
/// | 18,432 | 9.6e-7 | 3.8e-6 | 5.6e-6 | 1.3e-4 |
const TRUNCATED: f64 = 4e-4;
