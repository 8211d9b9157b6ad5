//! Products of many rows by cuBLASLt, where measurement finds that quicker than passes of `gemm_stream`; with
//! `kernels/unpack.cu` before and `kernels/rescale.cu` after, since the library takes row-major operands, and scales
//! of whole matrices only.
//!
//! Its sums have another order than `gemm_stream`'s, so that a row's bits come to depend on how many rows there are:
//! whoever asks for this gives up that a request's tokens never depend on its company.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::driver::{Algorithm, Driver, Launch, Product};
use super::{Acts, Buffer, Cuda, Floats, Matrix, linear, random_weights};
use crate::device::{ActQuant, DeviceError, RandomWeights, fp8};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct UnpackParams {
    w: u64,
    rows: u64,
    n: u32,
    k: u32,
    k_blocks: u32,
    unused: u32,
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
/// Blocks of `unpack`: eight for each multiprocessor of an H100.
const BLOCKS: usize = 1056;
/// Rows from which on the library is tried.
const LEAST_ROWS: usize = 256;
/// Times that a way is run against the clock.
const TIMES: usize = 5;
/// Largest difference from `gemm_stream` in units of the outputs' root mean square. Another order of sums changes far
/// less, and a wrong algorithm far more; how much less has not been measured on a GPU yet.
const TOLERANCE: f32 = 0.02;

/// How products of many rows are done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Products {
    /// A row has the same bits whatever the rows beside it.
    #[default]
    Deterministic,
    /// As is fastest, by measurement when the device gets ready.
    Fastest {
        /// Where what was found is kept for the next time.
        cache: Option<PathBuf>,
    },
}

/// The fastest way for each shape and number of rows.
#[derive(Debug, Default)]
pub(super) struct Large {
    cache: Option<PathBuf>,
    /// \[out, in\] of the E4M3 matrices made so far.
    shapes: BTreeSet<(usize, usize)>,
    /// By shape, the rows that each holds for at most; `None` is `gemm_stream`.
    choices: BTreeMap<(usize, usize), BTreeMap<usize, Option<Algorithm>>>,
    /// Room for the largest of the matrices.
    unpacked: Option<Buffer<u8>>,
}

/// A measured choice, as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    out: usize,
    input: usize,
    rows: usize,
    algorithm: Option<Algorithm>,
}

/// The file: choices hold for one kind of GPU and one version of the library.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    device: String,
    library: usize,
    choices: Vec<Entry>,
}

impl Large {
    pub(super) fn new(cache: Option<PathBuf>) -> Self {
        Self { cache, ..Self::default() }
    }

    /// Notes a matrix, if the library takes such.
    pub(super) fn add(&mut self, driver: &Driver, matrix: &Matrix) -> Result<(), DeviceError> {
        if matrix.bf16() || !matrix.out.is_multiple_of(16) {
            return Ok(());
        }
        self.shapes.insert((matrix.out, matrix.input));
        let bytes = matrix.out * matrix.input;
        if self.unpacked.as_ref().is_none_or(|room| room.len() < bytes) {
            self.unpacked = None;
            self.unpacked = Some(driver.buffer(bytes)?);
        }
        Ok(())
    }

    /// The library's algorithm for a product, if it is the faster way.
    pub(super) fn choice(&self, x: &Acts, w: &Matrix) -> Option<Algorithm> {
        let choices = self.choices.get(&(w.out, w.input)).filter(|_| x.rows >= LEAST_ROWS && !x.bf16)?;
        *choices.range(x.rows..).next()?.1
    }

    fn remember(&mut self, entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| self.shapes.contains(&(entry.out, entry.input))) {
            let shape = self.choices.entry((entry.out, entry.input)).or_default();
            shape.insert(entry.rows, entry.algorithm);
        }
    }
}

/// x · wᵀ by an algorithm of the library.
pub(super) fn run(
    cuda: &Cuda,
    large: &Large,
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
    assert!(!x.bf16 && !w.bf16(), "the library multiplies E4M3 by E4M3 here");
    out.resize(x.rows);
    let room = large.unpacked.as_ref().expect("room was made for every matrix");
    let scales = w.scales.as_ref().expect("E4M3 has scales");
    let unpack = UnpackParams {
        w: w.data.address(),
        rows: room.address(),
        n: w.out as u32,
        k: w.input as u32,
        k_blocks: w.k_blocks() as u32,
        unused: 0,
    };
    let blocks = BLOCKS.min((w.out.div_ceil(16) * w.k_blocks() * 32).div_ceil(THREADS));
    let launch = Launch { kernel: "unpack", grid: [blocks, 1, 1], threads: THREADS as u32, shared: 0 };
    // SAFETY: the room is as large as the largest matrix.
    unsafe { cuda.driver.launch(launch, &unpack) }?;
    let (w_rows, x_rows, out_rows) = (room.address(), x.values.address(), out.data.address());
    let product = Product { w: w_rows, x: x_rows, out: out_rows, n: w.out, k: w.input, m: x.rows };
    // SAFETY: the shapes have been compared, and the output resized.
    unsafe { cuda.driver.product(&product, algorithm) }?;
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

/// Finds the fastest way for every shape, for powers of two of rows up to what `rows` need, unless the file knows.
pub(super) fn tune(cuda: &Cuda, large: &mut Large, rows: usize) -> Result<(), DeviceError> {
    let Some(library) = cuda.driver.library() else {
        tracing::warn!("cuBLASLt cannot be loaded: products of many rows take several passes instead");
        return Ok(());
    };
    let device = cuda.name();
    let kept = large
        .cache
        .as_deref()
        .and_then(read)
        .filter(|kept| (&kept.device, kept.library) == (&device, library));
    let mut entries = kept.map_or_else(Vec::new, |kept| kept.choices);
    let known = entries.len();
    let buckets = (0..).map(|i| LEAST_ROWS << i);
    let most = rows.next_power_of_two();
    for rows in buckets.take_while(|bucket| *bucket <= most) {
        for (out, input) in large.shapes.clone() {
            let same = |entry: &Entry| (entry.out, entry.input, entry.rows) == (out, input, rows);
            if !entries.iter().any(same) {
                let algorithm = fastest(cuda, large, (out, input), rows)?;
                entries.push(Entry { out, input, rows, algorithm });
            }
        }
    }
    large.remember(&entries);
    if let (Some(path), true) = (&large.cache, entries.len() > known) {
        let kept = Kept { device, library, choices: entries };
        if let Err(error) = write(path, &kept) {
            tracing::warn!(path = %path.display(), %error, "the choice of products was not kept");
        }
    }
    Ok(())
}

/// The fastest of `gemm_stream` and all algorithms that the library offers and that compute the same.
fn fastest(
    cuda: &Cuda,
    large: &Large,
    (out, input): (usize, usize),
    rows: usize,
) -> Result<Option<Algorithm>, DeviceError> {
    let codes = std::array::from_fn(|i| fp8::encode((i as f32 - 127.5) / 64.0));
    let noise_of =
        |out, seed| RandomWeights { out, input, seed, codes: &codes, scale: 1.0 / 64.0, bf16: false };
    let w = random_weights::run(cuda, &noise_of(out, 1))?;
    let x = inputs(cuda, &noise_of(rows, 2))?;
    let mut floats = Floats { rows: 0, cols: out, data: cuda.driver.buffer(rows * out)? };
    let streamed = time(&mut floats, &mut |floats| linear::run(cuda, &x, &w, floats))?;
    let expected = floats.data.read(rows * out)?;
    let mut best = (streamed, None);
    for algorithm in cuda.driver.algorithms(rows, out, input)? {
        let mut product = |floats: &mut Floats| run(cuda, large, algorithm, &x, &w, floats);
        let Ok(seconds) = time(&mut floats, &mut product) else { continue };
        if seconds < best.0 && agrees(&expected, &floats.data.read(rows * out)?) {
            best = (seconds, Some(algorithm));
        }
    }
    tracing::info!(
        out,
        input,
        rows,
        stream_ms = streamed * 1e3,
        best_ms = best.0 * 1e3,
        cublaslt = best.1.is_some(),
        "measured a product"
    );
    Ok(best.1)
}

/// Random inputs, row-major as products read them.
fn inputs(cuda: &Cuda, noise: &RandomWeights<'_>) -> Result<Acts, DeviceError> {
    let mut x = Acts::new(&cuda.driver, noise.out, noise.input)?;
    let _target = x.target(noise.out, ActQuant::Fp8PerToken);
    x.values.write(0, &noise.codes())?;
    x.scales.write(0, &vec![noise.scale; noise.out])?;
    Ok(x)
}

/// Seconds of an operation, the median of some.
fn time(
    floats: &mut Floats,
    operation: &mut dyn FnMut(&mut Floats) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        // Reading back waits.
        floats.data.read(1)?;
        let start = Instant::now();
        operation(floats)?;
        floats.data.read(1)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMES / 2])
}

/// Whether two results of one product are the same but for the order of sums.
fn agrees(expected: &[f32], got: &[f32]) -> bool {
    let squares: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let rms = (squares / expected.len() as f64).sqrt() as f32;
    // NaN is no agreement.
    expected.iter().zip(got).all(|(a, b)| (a - b).abs() <= TOLERANCE * rms)
}

fn read(path: &Path) -> Option<Kept> {
    // A file that is absent, broken or of another form is measured anew.
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Another process may read, or write, at the same time.
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&beside, serde_json::to_vec_pretty(kept)?)?;
    std::fs::rename(&beside, path)
}
