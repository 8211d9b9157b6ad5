//! Groups whose ranks access one another's memory on GPUs and sum in rank order. With few rows every rank
//! reduces all of them (one-shot); with more rows each rank reduces its share and writes it to the others
//! (two-shot). Both give the same bits. The number of rows from which two-shot mode is faster is
//! measured at start. One-shot sums of a few rows of BF16 go by packets.
//!
//! In two-shot mode the product whose results are summed stores each row in the memory of the rank that sums
//! it. cuBLASLt cannot do that, so it computes no such product.

use std::time::{Duration, Instant};

use super::{Communicator, GroupBuffers, Local, Message, ResidualUpdate};
use crate::device::cuda::{Acts, Cuda, Floats, Matrix, Peers, ReduceMode, Reduction};
use crate::device::{
    ActQuant, Activation, Device, DeviceError, MatrixShape, Norm, NormKind, PEER, upload_floats,
};

/// The least timeout of the threads' barrier. Some ranks take far longer than others to allocate and measure.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(600);

/// Numbers of rows at which both modes are measured.
const MEASURED_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Inputs of the products whose results are summed: few, so that sums take most of the time.
const MEASURED_INPUTS: usize = 128;

/// Reductions per timed run.
const REDUCTIONS: usize = 20;
/// Timed runs per mode and number of rows.
const RUNS: usize = 5;

/// The largest number of rows that is reduced in one-shot mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneShotRows {
    /// This number.
    Fixed(usize),
    /// Measured.
    Measured,
}

/// A rank of a group on GPUs.
#[derive(Debug)]
pub struct P2p {
    peers: Peers,
    /// The barrier of the ranks' threads.
    threads: Local,
    /// Rows up to which reductions are one-shot.
    one_shot_rows: usize,
}

impl P2p {
    /// Makes a group with one rank per device, whose largest message is `largest`. An operation waits at most
    /// `timeout` for another rank.
    ///
    /// # Errors
    /// If a device cannot access another's memory, or the measurement fails.
    pub fn group(
        devices: &[Cuda],
        timeout: Duration,
        largest: Message,
        one_shot: OneShotRows,
    ) -> Result<Vec<Self>, DeviceError> {
        let threads = Local::group(devices.len(), timeout.max(START_TIMEOUT));
        let ranks = Peers::group(devices, timeout, largest)?.into_iter().zip(threads);
        let group: Vec<Self> =
            ranks.map(|(peers, threads)| Self { peers, threads, one_shot_rows: 0 }).collect();
        match one_shot {
            OneShotRows::Fixed(rows) => Ok(with_one_shot_rows(group, rows)),
            OneShotRows::Measured => measured_group(group, devices, largest),
        }
    }

    /// The mode of a reduction of `rows` rows.
    fn mode(&self, rows: usize) -> ReduceMode {
        if rows <= self.one_shot_rows { ReduceMode::OneShot } else { ReduceMode::TwoShot }
    }

    /// Shares buffers with the group, and returns when every rank has done so.
    fn share(&self, floats: &[&Floats], acts: &[&Acts]) -> Result<(), DeviceError> {
        floats.iter().for_each(|floats| self.peers.share_floats(floats));
        acts.iter().for_each(|acts| self.peers.share_acts(acts));
        self.threads.barrier()
    }

    /// Measures reductions of each number of rows, in place of those of `largest`: seconds in one-shot and in
    /// two-shot mode, with a product of few inputs that computes the parts. Every rank of the group calls
    /// this, and gets its own figures.
    ///
    /// # Errors
    /// If a rank does not take part, or memory runs out.
    pub fn measure(
        &self,
        cuda: &Cuda,
        counts: &[usize],
        largest: Message,
    ) -> Result<Vec<[f64; 2]>, DeviceError> {
        let Message { float_type, cols, .. } = largest;
        let most = counts.iter().copied().max().unwrap_or(1);
        // Room for the parts of all ranks.
        let delta = || cuda.floats_of(float_type, most.next_multiple_of(self.peers.size()), cols);
        let weight = upload_floats(cuda, cols, &vec![1.0; cols])?;
        let mut bench = ReductionBench {
            residual: cuda.floats(most, cols)?,
            deltas: [delta()?, delta()?],
            product: BenchProduct::new(cuda, most, cols)?,
            norm: Norm { kind: NormKind::RmsNorm, weight, bias: None, eps: 1.0 },
            out: cuda.acts(most, cols)?,
            mark: upload_floats(cuda, 1, &[0.0])?,
        };
        self.share(&[&bench.deltas[0], &bench.deltas[1]], &[&bench.out])?;
        let mut measured = Vec::new();
        for rows in counts {
            let one_shot = self.time(cuda, &mut bench, *rows, ReduceMode::OneShot)?;
            measured.push([one_shot, self.time(cuda, &mut bench, *rows, ReduceMode::TwoShot)?]);
        }
        // Other ranks may still read this rank's buffers before the first barrier, and share new ones after
        // the second.
        self.threads.barrier()?;
        // Two deltas, and values and scales of the output.
        self.peers.unshare(4);
        self.threads.barrier()?;
        Ok(measured)
    }

    /// The seconds of one reduction, the least of several runs.
    fn time(
        &self,
        cuda: &Cuda,
        bench: &mut ReductionBench,
        rows: usize,
        mode: ReduceMode,
    ) -> Result<f64, DeviceError> {
        let ReductionBench { residual, deltas, product, norm, out, mark } = bench;
        let zeros = vec![0.0; rows * residual.cols()];
        cuda.write(&zeros, residual)?;
        deltas.iter_mut().try_for_each(|delta| cuda.write(&zeros, delta))?;
        product.set_rows(cuda, rows)?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            cuda.read(mark)?;
            self.threads.barrier()?;
            let begun = Instant::now();
            for turn in 0..REDUCTIONS {
                let delta = &mut deltas[turn % 2];
                self.compute_part(cuda, &product.inputs, &product.matrix, delta, mode)?;
                let reduction = Reduction { residual: &mut *residual, delta, mode };
                self.peers.reduce_norm(cuda, reduction, norm, ActQuant::Fp8PerToken, out)?;
            }
            cuda.read(mark)?;
            best = best.min(begun.elapsed().as_secs_f64() / REDUCTIONS as f64);
        }
        Ok(best)
    }

    /// delta = inputs · matrixᵀ, for a reduction in a mode.
    fn compute_part(
        &self,
        cuda: &Cuda,
        inputs: &Acts,
        matrix: &Matrix,
        delta: &mut Floats,
        mode: ReduceMode,
    ) -> Result<(), DeviceError> {
        match mode {
            ReduceMode::OneShot => cuda.linear(inputs, matrix, delta),
            ReduceMode::TwoShot => self.peers.push_product(cuda, inputs, matrix, delta),
        }
    }
}

fn with_one_shot_rows(mut group: Vec<P2p>, rows: usize) -> Vec<P2p> {
    group.iter_mut().for_each(|rank| rank.one_shot_rows = rows);
    group
}

/// Measures both modes on all ranks at once. Sets the largest number of rows up to which one-shot reductions
/// were at least as fast on rank 0.
fn measured_group(group: Vec<P2p>, devices: &[Cuda], largest: Message) -> Result<Vec<P2p>, DeviceError> {
    if group.len() == 1 {
        return Ok(group);
    }
    let counts: Vec<usize> =
        MEASURED_ROWS.into_iter().filter(|count| *count <= largest.rows.max(1)).collect();
    let outcomes: Vec<Result<MeasuredRank, DeviceError>> = std::thread::scope(|scope| {
        let counts = &counts;
        // A rank that fails is dropped at once, so that the others stop waiting for it.
        let measure = move |(rank, device): (P2p, &Cuda)| {
            let measured = rank.measure(device, counts, largest)?;
            Ok(MeasuredRank { rank, measured })
        };
        let ranks = group.into_iter().zip(devices);
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || measure(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
    });
    let cause = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).find(|error| error.op != PEER);
    if let Some(error) = cause {
        return Err(error.clone());
    }
    let ranks = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
    let (group, measured): (Vec<P2p>, Vec<_>) =
        ranks.map(|MeasuredRank { rank, measured }| (rank, measured)).unzip();
    let is_faster = |([one_shot, two_shot], _): &(&[f64; 2], &usize)| one_shot <= two_shot;
    let one_shot_rows =
        measured[0].iter().zip(&counts).take_while(is_faster).last().map_or(0, |(_, rows)| *rows);
    Ok(with_one_shot_rows(group, one_shot_rows))
}

/// A rank with its seconds per reduction, one-shot and two-shot, for each number of rows.
struct MeasuredRank {
    rank: P2p,
    measured: Vec<[f64; 2]>,
}

/// The buffers of a measurement.
struct ReductionBench {
    residual: Floats,
    deltas: [Floats; 2],
    /// Computes the deltas.
    product: BenchProduct,
    norm: Norm<Cuda>,
    out: Acts,
    /// One element. Reading it waits for all work enqueued before.
    mark: Floats,
}

/// A product of zeros.
struct BenchProduct {
    values: Floats,
    inputs: Acts,
    matrix: Matrix,
}

impl BenchProduct {
    /// A product of up to `rows` rows with `cols` outputs.
    fn new(cuda: &Cuda, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let shape = MatrixShape { out: cols, input: MEASURED_INPUTS, bf16: false };
        Ok(Self {
            values: cuda.floats(rows, MEASURED_INPUTS)?,
            inputs: cuda.acts(rows, MEASURED_INPUTS)?,
            matrix: cuda.zeros(shape)?,
        })
    }

    fn set_rows(&mut self, cuda: &Cuda, rows: usize) -> Result<(), DeviceError> {
        let Self { values, inputs, .. } = self;
        cuda.write(&vec![0.0; rows * MEASURED_INPUTS], values)?;
        cuda.activation(Activation::SquaredRelu, values, ActQuant::Fp8PerToken, inputs)
    }
}

impl Communicator<Cuda> for P2p {
    const RUNS_BESIDE: bool = true;

    fn register(&self, buffers: GroupBuffers<'_, Cuda>) -> Result<(), DeviceError> {
        self.share(buffers.floats, buffers.acts)
    }

    fn all_reduce(&self, cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.peers.reduce(cuda, x)
    }

    fn linear_part(
        &self,
        cuda: &Cuda,
        x: &Acts,
        matrix: &Matrix,
        delta: &mut Floats,
    ) -> Result<(), DeviceError> {
        self.compute_part(cuda, x, matrix, delta, self.mode(x.rows()))
    }

    fn all_gather(&self, cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.peers.gather(cuda, part, whole)
    }

    fn reduce_norm(
        &self,
        cuda: &Cuda,
        update: ResidualUpdate<'_, Cuda>,
        norm: &Norm<Cuda>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        let mode = self.mode(delta.rows());
        self.peers.reduce_norm(cuda, Reduction { residual, delta, mode }, norm, quant, out)
    }

    fn reduce_add(&self, cuda: &Cuda, update: ResidualUpdate<'_, Cuda>) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        let mode = self.mode(delta.rows());
        self.peers.reduce_add(cuda, Reduction { residual, delta, mode })
    }
}
