//! A check of every product kernel at start: products of small integers, which are exact in any order of
//! sums, compared with sums on the CPU. SwiGLU of the sums is compared within a few roundings.

use std::ops::Range;

use super::linear::{self, RowsOfRank, Target, Types};
use super::matrix::{CHUNK, pack_row};
use super::{Acts, Buffer, Cuda, Floats, Matrix, MatrixBuilder};
use crate::device::product_tiles::{Division, MaxRows};
use crate::device::{
    ActQuant, Device, DeviceError, FloatType, GatedRows, HostRows, MatrixData, MatrixShape, fp8,
};
use crate::random::Random;

/// Outputs: a whole tile, and eight gates and eight values of a second one.
const OUT: usize = 144;
/// Outputs that share one maximum, and the number of such groups of a row: two per tile.
const GROUP: usize = 64;
const GROUPS: usize = 4;
/// Inputs: 15 chunks of E4M3, more than a block has stages. The last chunk is not full.
const INPUT: usize = 1808;
/// Rows: those of the largest variant.
const ROWS: usize = MaxRows::EQUAL.spread;
/// The first row that the kernel stores elsewhere, as it does for ranks that sum rows. Every launch has rows
/// before and after it.
const SPLIT: usize = ROWS - 4;
/// The largest operand. The sum of a chunk is at most 2^13, so that it is exact also in tensor cores that
/// keep 13 fraction bits.
const LARGEST: u64 = 8;

pub(super) fn run(cuda: &Cuda) -> Result<(), DeviceError> {
    // The scratch of the test is freed after it: memory is planned from what is free then.
    let before = std::mem::take(&mut cuda.scratch().linear);
    let outcome = check_variants(cuda);
    cuda.scratch().linear = before;
    outcome
}

fn check_variants(cuda: &Cuda) -> Result<(), DeviceError> {
    let operands = Operands::new();
    for types in linear::TYPES {
        let test = Test::new(cuda, types, &operands)?;
        for variant in types.variants() {
            // The last rows, as many as the variant takes at a time, and one less.
            let (end, first) = (ROWS, ROWS - variant.rows);
            test.check(first..end, Division::Spread, variant.kernel)?;
            test.check(first..end - 1, Division::Spread, variant.kernel)?;
        }
        // Several tiles of rows, of which the last is not full.
        let whole = types.whole();
        test.check(ROWS - 2 * whole.rows..ROWS - 1, Division::Whole, whole.kernel)?;
    }
    Ok(())
}

/// Integers, and their products without scales.
struct Operands {
    /// \[out, input\]
    w: Vec<i16>,
    /// \[rows, input\]
    x: Vec<i16>,
    /// \[rows, out\]
    sums: Vec<f32>,
}

impl Operands {
    fn new() -> Self {
        let mut random = Random::new(1);
        let mut integers = |len: usize| -> Vec<i16> {
            (0..len).map(|_| (random.bits() % (2 * LARGEST + 1)) as i16 - LARGEST as i16).collect()
        };
        let (w, x) = (integers(OUT * INPUT), integers(ROWS * INPUT));
        let sum = |x: &[i16], w: &[i16]| -> i32 {
            x.iter().zip(w).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum()
        };
        let row = |x: &[i16]| w.chunks_exact(INPUT).map(|w| sum(x, w) as f32).collect::<Vec<_>>();
        let sums = x.chunks_exact(INPUT).flat_map(row).collect();
        Self { w, x, sums }
    }
}

/// The scale of a row or an output: a power of two, so that products stay exact.
fn scale(index: usize) -> f32 {
    [1.0, 0.5, 4.0, 0.25, 2.0][index % 5]
}

/// The ways in which a kernel stores a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32,
    Bf16,
    /// SwiGLU of BF16 outputs.
    SwiGlu,
}

impl Stored {
    /// Elements of a row.
    fn cols(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => OUT,
            Self::SwiGlu => OUT / 2,
        }
    }

    /// The largest error, as a share of the value. `kernels/silu.cuh` has the error of silu.
    fn tolerance(self) -> f32 {
        match self {
            Self::F32 | Self::Bf16 => 0.0,
            Self::SwiGlu => 2e-5,
        }
    }
}

/// The operands on the device as elements of some types, and the expected results.
struct Test<'a> {
    cuda: &'a Cuda,
    w: Matrix,
    x: Acts,
    /// Memory for what is stored: F32 or BF16 outputs, or F32 after SwiGLU.
    f32: Floats,
    bf16: Floats,
    swiglu: Floats,
    types: Types,
    /// \[rows, groups\]: the largest outputs of rows, which a kernel stores beside BF16 outputs.
    maxima: Buffer<f32>,
    /// \[rows, out\]
    expected: Vec<f32>,
}

impl<'a> Test<'a> {
    fn new(cuda: &'a Cuda, types: Types, operands: &Operands) -> Result<Self, DeviceError> {
        let memory = |float_type, stored: Stored| cuda.floats_of(float_type, ROWS + 1, stored.cols());
        let (f32, bf16) = (memory(FloatType::F32, Stored::F32)?, memory(FloatType::Bf16, Stored::Bf16)?);
        let swiglu = memory(FloatType::F32, Stored::SwiGlu)?;
        let scaled = |index: usize, sum: &f32| {
            let row = if types.x_bf16 { 1.0 } else { scale(index / OUT) };
            let output = if types.w_bf16 { 1.0 } else { scale(index % OUT) };
            sum * row * output
        };
        let expected = operands.sums.iter().enumerate().map(|(index, sum)| scaled(index, sum)).collect();
        let (w, x) = (weights(cuda, types.w_bf16, &operands.w)?, inputs(cuda, types.x_bf16, &operands.x)?);
        let maxima = cuda.driver.buffer(ROWS * GROUPS)?;
        Ok(Self { cuda, w, x, f32, bf16, swiglu, types, maxima, expected })
    }

    /// Computes some rows and stores them in each way, and compares them. The kernel must not write the other
    /// rows.
    fn check(&self, rows: Range<usize>, division: Division, kernel: &'static str) -> Result<(), DeviceError> {
        self.check_stored(Stored::F32, rows.clone(), division, kernel)?;
        self.check_stored(Stored::Bf16, rows.clone(), division, kernel)?;
        match self.types {
            Types { w_bf16: false, x_bf16: false } => {
                self.check_stored(Stored::SwiGlu, rows, division, kernel)
            }
            _ => Ok(()),
        }
    }

    /// The value that should be stored of a row.
    fn expected(&self, stored: Stored, row: usize, col: usize) -> f32 {
        let output = |index: usize| self.expected[row * OUT + index];
        match stored {
            Stored::F32 => output(col),
            Stored::Bf16 => FloatType::Bf16.round(output(col)),
            Stored::SwiGlu => {
                let of = |which: GatedRows| FloatType::Bf16.round(output(which.row(col, OUT / 2)));
                let [gate, up] = [GatedRows::Gate, GatedRows::Up].map(|which| f64::from(of(which)));
                (gate / (1.0 + (-gate).exp()) * up) as f32
            }
        }
    }

    fn check_stored(
        &self,
        stored: Stored,
        rows: Range<usize>,
        division: Division,
        kernel: &'static str,
    ) -> Result<(), DeviceError> {
        let (memory, outputs) = match stored {
            Stored::F32 => (&self.f32, &self.f32),
            Stored::Bf16 => (&self.bf16, &self.bf16),
            Stored::SwiGlu => (&self.swiglu, &self.bf16),
        };
        let (unwritten, cols) = (f32::NAN, stored.cols());
        memory.data.write(&vec![unwritten; (ROWS + 1) * cols])?;
        // As if two ranks summed the rows. Those of the second are stored one row later.
        let first = RowsOfRank { base: memory.data.address(), end: SPLIT };
        let second = RowsOfRank { base: first.base + memory.row_bytes() as u64, end: ROWS };
        let mut target = Target::of_ranks(outputs, [first, second]);
        if stored != Stored::F32 {
            self.maxima.write(0, &vec![unwritten; ROWS * GROUPS])?;
            target = target.with_maxima(self.maxima.address());
        }
        let target = if stored == Stored::SwiGlu { target.gated() } else { target };
        linear::launch(self.cuda, &self.x, &self.w, &target, rows.clone(), division)?;
        for (index, got) in memory.data.read((ROWS + 1) * cols)?.into_iter().enumerate() {
            let (at, col) = (index / cols, index % cols);
            let row = if at > SPLIT { at - 1 } else { at };
            let expected = match at != SPLIT && rows.contains(&row) {
                true => self.expected(stored, row, col),
                false => unwritten,
            };
            let place = || format!("row {row} and column {col} of rows {rows:?} as {stored:?}");
            let value = Value { got, expected, tolerance: stored.tolerance() };
            value.check(kernel, division, place)?;
        }
        match stored {
            Stored::F32 => Ok(()),
            Stored::Bf16 | Stored::SwiGlu => self.check_maxima(stored, rows, division, kernel),
        }
    }

    /// Compares the maxima of each group: of outputs, at least 0, or of magnitudes of SwiGLU.
    fn check_maxima(
        &self,
        stored: Stored,
        rows: Range<usize>,
        division: Division,
        kernel: &'static str,
    ) -> Result<(), DeviceError> {
        let (cols, group_cols) = (stored.cols(), GROUP * stored.cols() / OUT);
        for (index, got) in self.maxima.read(ROWS * GROUPS)?.into_iter().enumerate() {
            let (row, group) = (index / GROUPS, index % GROUPS);
            let all = (group * group_cols).min(cols)..((group + 1) * group_cols).min(cols);
            let magnitude = |col| match stored {
                Stored::F32 | Stored::Bf16 => self.expected(stored, row, col),
                Stored::SwiGlu => self.expected(stored, row, col).abs(),
            };
            let expected = match rows.contains(&row) {
                true => all.map(magnitude).fold(0.0, f32::max),
                false => f32::NAN,
            };
            let place =
                || format!("the largest of group {group} of row {row} of rows {rows:?} as {stored:?}");
            Value { got, expected, tolerance: stored.tolerance() }.check(kernel, division, place)?;
        }
        Ok(())
    }
}

/// A value that a kernel has stored, and the one that it should have. NaN stands for none.
struct Value {
    got: f32,
    expected: f32,
    /// The largest error, as a share of the value.
    tolerance: f32,
}

impl Value {
    /// Fails if the kernel has stored another value.
    fn check(
        &self,
        kernel: &'static str,
        division: Division,
        place: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        let Self { got, expected, tolerance } = *self;
        // SwiGLU of gates below -87.3 would be less than 1e-30.
        let near = (got - expected).abs() <= tolerance * (expected.abs() + 1e-25);
        if got == expected || near || (got.is_nan() && expected.is_nan()) {
            return Ok(());
        }
        let work = match division {
            Division::Spread => "spread over blocks",
            Division::Whole => "in whole tiles",
        };
        let message = format!(
            "wrong products in the self-test: expected {expected} for {}, {work}, got {got}",
            place()
        );
        Err(DeviceError { op: kernel, message })
    }
}

fn e4m3(integers: &[i16]) -> Vec<u8> {
    integers.iter().map(|x| fp8::encode(f32::from(*x))).collect()
}

fn bf16(integers: &[i16]) -> Vec<u16> {
    integers.iter().map(|x| fp8::bf16_bits(f32::from(*x))).collect()
}

/// A matrix outside of the device's own list of matrices, which is for those of a model.
fn weights(cuda: &Cuda, is_bf16: bool, integers: &[i16]) -> Result<Matrix, DeviceError> {
    let (codes, values) = (e4m3(integers), bf16(integers));
    let scales: Vec<f32> = (0..OUT).map(scale).collect();
    let data = match is_bf16 {
        true => MatrixData::Bf16(&values),
        false => MatrixData::Fp8 { codes: &codes, scales: &scales },
    };
    let builder = MatrixBuilder::new(&cuda.driver, MatrixShape { out: OUT, input: INPUT, bf16: is_bf16 })?;
    builder.write(0, HostRows { rows: OUT, input: INPUT, stride: INPUT, data })?;
    let matrix = builder.finish()?;
    cuda.scratch().linear.grow(&cuda.driver, &matrix)?;
    Ok(matrix)
}

/// Inputs that the host packs, so that no other kernel is involved.
fn inputs(cuda: &Cuda, is_bf16: bool, integers: &[i16]) -> Result<Acts, DeviceError> {
    let mut acts = cuda.acts(ROWS, INPUT)?;
    let quant = if is_bf16 { ActQuant::Bf16 } else { ActQuant::Fp8PerToken };
    let _target = acts.target(ROWS, quant);
    let bytes: Vec<u8> = match is_bf16 {
        true => bytemuck::cast_slice(&bf16(integers)).to_vec(),
        false => e4m3(integers),
    };
    let mut packed = vec![0; acts.chunks() * acts.chunk_rows() * CHUNK];
    for (index, row) in bytes.chunks_exact(bytes.len() / ROWS).enumerate() {
        pack_row(row, index, acts.chunk_rows(), &mut packed);
    }
    acts.values.write(0, &packed)?;
    acts.scales.write(0, &(0..ROWS).map(scale).collect::<Vec<_>>())?;
    Ok(acts)
}
