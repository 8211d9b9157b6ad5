//! cuBLASLt computes a product of many rows if it was measured to be faster than the `linear` kernel.
//! `kernels/unpack.cu` runs before it, once for each operand, and `kernels/rescale.cu` after it, since the
//! library takes row-major operands and scales of whole matrices only.
//!
//! The library writes BF16 sums without scales, which `rescale` multiplies and rounds again. It computes no
//! products whose output is F32: those of a model that is served unquantised, and logits.
//!
//! The library sums in another order than `linear`, so a row's bits depend on the number of rows. With these
//! products a request's tokens may depend on the other requests of a step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::backend::{Algorithm, Product, ProductLibrary, ProductShape};
use super::driver::Driver;
use super::matrix::TILE;
use super::{Acts, Buffer, Cuda, Floats, Launch, Matrix, linear, random_weights};
use crate::device::{ActQuant, Device, DeviceError, FloatType, RandomWeights, fp8};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct UnpackParams {
    packed: u64,
    rows: u64,
    n: u32,
    k: u32,
    tile_rows: u32,
    chunks: u32,
}
const _: () = assert!(size_of::<UnpackParams>() == 32);

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RescaleParams {
    out: u64,
    x_scales: u64,
    w_scales: u64,
    n: u32,
    unused: u32,
}
const _: () = assert!(size_of::<RescaleParams>() == 32);

const THREADS: usize = 256;
/// Blocks of `unpack`: eight per multiprocessor of an H100.
const BLOCKS: usize = 1056;
/// The smallest number of rows for which the library may compute a product.
const MIN_ROWS: usize = 256;
/// Timed runs per algorithm.
const TIMES: usize = 5;
/// Largest accepted difference from `linear`, relative to the root mean square of the outputs. It is meant to
/// be far above the effect of another order of sums, which has not been measured on a GPU yet, and far below
/// a wrong result.
const TOLERANCE: f32 = 0.02;
/// Relative difference of a rounding to BF16 by `linear` and of two for the library: three half units.
const ROUNDING: f32 = 1.0 / 128.0;

/// The choice of kernels for products of many rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Products {
    /// The `linear` kernel computes every product: a row's bits do not depend on the other rows.
    #[default]
    Deterministic,
    /// The faster of the `linear` kernel and cuBLASLt, measured at start-up, computes a product.
    Fastest {
        /// The file that keeps the measured choices for the next start.
        cache: Option<PathBuf>,
    },
}

/// The fastest algorithm for each shape and number of rows.
#[derive(Debug, Default)]
pub(super) struct LibraryProducts {
    cache: Option<PathBuf>,
    /// \[out, in\] of the E4M3 matrices made so far.
    shapes: BTreeSet<(usize, usize)>,
    /// Choices by shape, then by the largest number of rows they are for; `None` is the `linear` kernel.
    choices: BTreeMap<(usize, usize), BTreeMap<usize, Option<Algorithm>>>,
    /// Memory for the largest matrix, row-major.
    weights: Option<Buffer<u8>>,
    /// Memory for the inputs of the most rows that were measured, row-major.
    inputs: Option<Buffer<u8>>,
}

/// A measured choice in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TunedProduct {
    out: usize,
    input: usize,
    rows: usize,
    algorithm: Option<Algorithm>,
}

/// The file of choices, which are for one model of GPU and one version of the library.
#[derive(Debug, Serialize, Deserialize)]
struct ChoiceFile {
    device: String,
    library: usize,
    choices: Vec<TunedProduct>,
}

impl LibraryProducts {
    /// Creates an empty set of choices. `cache` is the file that keeps them.
    pub(super) fn new(cache: Option<PathBuf>) -> Self {
        Self { cache, ..Self::default() }
    }

    /// Adds a matrix to those that are measured, if the library supports it.
    pub(super) fn add(&mut self, driver: &Driver, matrix: &Matrix) -> Result<(), DeviceError> {
        if matrix.bf16() || !matrix.out.is_multiple_of(16) {
            return Ok(());
        }
        self.shapes.insert((matrix.out, matrix.input));
        grow(driver, &mut self.weights, matrix.out * matrix.input)
    }

    /// The library's algorithm for a product, if it is faster than the `linear` kernel.
    pub(super) fn choice(&self, x: &Acts, w: &Matrix, out: &Floats) -> Option<Algorithm> {
        let fits = x.rows >= MIN_ROWS && !x.bf16 && out.float_type == FloatType::Bf16;
        let choices = self.choices.get(&(w.out, w.input)).filter(|_| fits)?;
        *choices.range(x.rows..).next()?.1
    }

    fn set_choices(&mut self, entries: &[TunedProduct]) {
        for entry in entries.iter().filter(|entry| self.shapes.contains(&(entry.out, entry.input))) {
            let shape = self.choices.entry((entry.out, entry.input)).or_default();
            shape.insert(entry.rows, entry.algorithm);
        }
    }
}

/// Computes out = x · wᵀ by an algorithm of the library.
pub(super) fn run(
    cuda: &Cuda,
    products: &LibraryProducts,
    algorithm: Algorithm,
    x: &Acts,
    w: &Matrix,
    out: &mut Floats,
) -> Result<(), DeviceError> {
    assert_eq!(
        (x.cols, out.cols),
        (w.input, w.out),
        "input and output of a [{}, {}] product",
        w.out,
        w.input
    );
    assert!(!x.bf16 && !w.bf16(), "the library multiplies E4M3 by E4M3");
    assert_eq!(out.float_type, FloatType::Bf16, "output of the library");
    out.set_rows(x.rows);
    let scales = w.scales.as_ref().expect("E4M3 has scales");
    let weights = products.weights.as_ref().expect("a buffer was made with the matrix");
    let inputs = products.inputs.as_ref().expect("a buffer was made before the choices");
    let packed = Packed { data: &w.data, rows: w.out, cols: w.input, tile_rows: TILE, chunks: w.chunks() };
    unpack(cuda, packed, weights)?;
    let packed =
        Packed { data: &x.values, rows: x.rows, cols: x.cols, tile_rows: x.chunk_rows(), chunks: x.chunks() };
    unpack(cuda, packed, inputs)?;
    let product = Product {
        shape: ProductShape { m: x.rows, n: w.out, k: w.input },
        w: weights.address(),
        x: inputs.address(),
        out: out.data.address(),
    };
    let library = cuda.driver.backend().library().expect("choices are made with the library loaded");
    // SAFETY: shapes have been checked, and the output has room for the rows.
    unsafe { library.product(&product, algorithm) }?;
    let rescale = RescaleParams {
        out: out.data.address(),
        x_scales: x.scales.address(),
        w_scales: scales.address(),
        n: w.out as u32,
        unused: 0,
    };
    let grid = [x.rows, w.out.div_ceil(8 * THREADS), 1];
    let launch = Launch { kernel: "rescale", grid, threads: THREADS as u32, shared: 0 };
    // SAFETY: as above.
    unsafe { cuda.driver.launch(launch, &rescale) }
}

/// An E4M3 operand in the layout of `kernels/pack.cuh`.
struct Packed<'a> {
    data: &'a Buffer<u8>,
    rows: usize,
    cols: usize,
    tile_rows: usize,
    chunks: usize,
}

/// Copies an operand to `rows`, row-major.
fn unpack(cuda: &Cuda, packed: Packed<'_>, rows: &Buffer<u8>) -> Result<(), DeviceError> {
    let bytes = packed.rows * packed.cols;
    assert!(bytes <= rows.len(), "{bytes} bytes of an operand, room for {}", rows.len());
    let params = UnpackParams {
        packed: packed.data.address(),
        rows: rows.address(),
        n: packed.rows as u32,
        k: packed.cols as u32,
        tile_rows: packed.tile_rows as u32,
        chunks: packed.chunks as u32,
    };
    let blocks = BLOCKS.min((bytes / 16).div_ceil(THREADS));
    let launch = Launch { kernel: "unpack", grid: [blocks, 1, 1], threads: THREADS as u32, shared: 0 };
    // SAFETY: the output has room, as asserted.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// Makes room for `bytes` bytes.
fn grow(driver: &Driver, buffer: &mut Option<Buffer<u8>>, bytes: usize) -> Result<(), DeviceError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
        *buffer = None;
        *buffer = Some(driver.buffer(bytes)?);
    }
    Ok(())
}

/// Finds the fastest algorithm for each shape and each number of rows that is a power of two, from
/// [`MIN_ROWS`] to the first that is at least `rows`. Choices in the file are not measured again.
pub(super) fn tune(cuda: &Cuda, products: &mut LibraryProducts, rows: usize) -> Result<(), DeviceError> {
    let Some(version) = cuda.driver.backend().library().map(ProductLibrary::version) else {
        tracing::warn!("cuBLASLt cannot be loaded: products of many rows take several passes");
        return Ok(());
    };
    let device = cuda.name();
    let kept = products
        .cache
        .as_deref()
        .and_then(read)
        .filter(|kept| (&kept.device, kept.library) == (&device, version));
    let mut entries = kept.map_or_else(Vec::new, |kept| kept.choices);
    let known = entries.len();
    let buckets = (0..).map(|i| MIN_ROWS << i);
    let most = rows.next_power_of_two();
    if most >= MIN_ROWS {
        let widest = products.shapes.iter().map(|(_, input)| *input).max().unwrap_or(0);
        grow(&cuda.driver, &mut products.inputs, most * widest)?;
    }
    for rows in buckets.take_while(|bucket| *bucket <= most) {
        for (out, input) in products.shapes.clone() {
            let same = |entry: &TunedProduct| (entry.out, entry.input, entry.rows) == (out, input, rows);
            if !entries.iter().any(same) {
                let shape = ProductShape { m: rows, n: out, k: input };
                let algorithm = fastest(cuda, products, shape)?;
                entries.push(TunedProduct { out, input, rows, algorithm });
            }
        }
    }
    products.set_choices(&entries);
    if let (Some(path), true) = (&products.cache, entries.len() > known) {
        let kept = ChoiceFile { device, library: version, choices: entries };
        if let Err(error) = write(path, &kept) {
            tracing::warn!(path = %path.display(), %error, "the choices of products could not be written");
        }
    }
    Ok(())
}

/// The fastest of the `linear` kernel (`None`) and the library's algorithms that agree with it.
fn fastest(
    cuda: &Cuda,
    products: &LibraryProducts,
    shape: ProductShape,
) -> Result<Option<Algorithm>, DeviceError> {
    let ProductShape { m: rows, n: out, k: input } = shape;
    let codes = std::array::from_fn(|i| fp8::encode((i as f32 - 127.5) / 64.0));
    let random =
        |out, seed| RandomWeights { out, input, seed, codes: &codes, scale: 1.0 / 64.0, bf16: false };
    let w = random_weights::run(cuda, &random(out, 1))?;
    let x = inputs(cuda, &random(rows, 2))?;
    let mut floats = cuda.floats_of(FloatType::Bf16, rows, out)?;
    let own = time(cuda, &mut floats, &mut |floats| linear::run(cuda, &x, &w, floats))?;
    let expected = floats.data.read(rows * out)?;
    let mut best = (own, None);
    let library = cuda.driver.backend().library();
    for algorithm in library.map_or(Ok(Vec::new()), |library| library.algorithms(shape))? {
        let mut product = |floats: &mut Floats| run(cuda, products, algorithm, &x, &w, floats);
        let Ok(seconds) = time(cuda, &mut floats, &mut product) else { continue };
        if seconds < best.0 && agrees(&expected, &floats.data.read(rows * out)?) {
            best = (seconds, Some(algorithm));
        }
    }
    tracing::info!(
        out,
        input,
        rows,
        stream_ms = own * 1e3,
        best_ms = best.0 * 1e3,
        cublaslt = best.1.is_some(),
        "measured a product"
    );
    Ok(best.1)
}

/// Random inputs of products.
fn inputs(cuda: &Cuda, random: &RandomWeights<'_>) -> Result<Acts, DeviceError> {
    let mut x = Acts::new(&cuda.driver, random.out, random.input)?;
    let _target = x.target(random.out, ActQuant::Fp8PerToken);
    // Codes of random numbers are random in any order.
    x.values.write(0, &random.codes())?;
    x.scales.write(0, &vec![random.scale; random.out])?;
    Ok(x)
}

/// The median duration of an operation in seconds.
fn time(
    cuda: &Cuda,
    floats: &mut Floats,
    operation: &mut dyn FnMut(&mut Floats) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        // A read waits for all enqueued work.
        floats.data.read(1)?;
        let duration = cuda.driver.backend().time(&mut || {
            operation(floats)?;
            floats.data.read(1).map(drop)
        })?;
        times.push(duration.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMES / 2])
}

/// Whether two results of a product agree up to the order of sums and roundings to BF16.
fn agrees(expected: &[f32], got: &[f32]) -> bool {
    let squares: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let rms = (squares / expected.len() as f64).sqrt() as f32;
    // A NaN compares false, and so disagrees.
    expected.iter().zip(got).all(|(a, b)| (a - b).abs() <= TOLERANCE * rms + ROUNDING * a.abs())
}

fn read(path: &Path) -> Option<ChoiceFile> {
    // Without a readable file everything is measured again.
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write(path: &Path, kept: &ChoiceFile) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Another process may read or write the file at the same time.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, serde_json::to_vec_pretty(kept)?)?;
    std::fs::rename(&temporary, path)
}
