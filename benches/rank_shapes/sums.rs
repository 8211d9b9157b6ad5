//! Sums and gathers between eight ranks on the host, against a group of threads whose devices are CPUs.

use std::time::Instant;

use octant::comm::{Communicator, GroupBuffers, Local, Message, OneShotRows, P2p, ResidualUpdate};
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::cuda::{Cuda, Products};
use octant::device::{
    ActQuant, Activation, Device, DeviceError, FloatType, Floats, HostMatrix, MatrixData, SHORTLIST,
    upload_matrix,
};

use crate::group::{TIMEOUT, on_ranks};
use crate::inputs::{noise, product};
use crate::rank::{FEW, RANKS, ROWS, Rank};
use crate::report::{Case, Difference, EXACT, Report, same_bits};
use crate::rows::norm;

/// Inputs of the products whose results are summed.
const INPUTS: usize = 48;
/// Sums with a norm, before one without.
const TURNS: usize = 2;
/// Outputs of the product that shows normalised rows, a tile of the kernel. Each adds a share of the columns.
const SHOWN: usize = 128;

/// How ranks exchange parts. The first is for BF16 parts.
struct Mode {
    name: &'static str,
    /// Rows up to which every rank reads all parts.
    one_shot: usize,
    /// Rows up to which BF16 parts go by packets, in these.
    packet_rows: usize,
}

const MODES: [Mode; 3] = [
    Mode { name: "one shot, by packets", one_shot: ROWS, packet_rows: ROWS },
    Mode { name: "one shot", one_shot: ROWS, packet_rows: 1 },
    Mode { name: "two shots", one_shot: 0, packet_rows: ROWS },
];

/// The types of parts and of the inputs of products: where the model is served in FP8, and unquantised.
struct Types {
    parts: FloatType,
    quant: ActQuant,
}

const TYPES: [Types; 2] = [
    Types { parts: FloatType::Bf16, quant: ActQuant::Fp8PerToken },
    Types { parts: FloatType::F32, quant: ActQuant::Bf16 },
];

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let cpu = |_| Cpu::new(CpuOptions { threads: 1, ..Default::default() });
    let host = |number| Cuda::on_host(number % 2 == 1, Products::default());
    let cpus = (0..RANKS).map(cpu).collect::<Result<Vec<_>, _>>()?;
    let hosts = (0..RANKS).map(host).collect::<Result<Vec<_>, _>>()?;
    let threads = || Local::group(RANKS, TIMEOUT);
    for types in &TYPES {
        let expected = on_ranks(&cpus, threads(), |number, device, comm| {
            Sums::new(rank, device, &comm, types)?.all(number, &comm)
        })?;
        let by_threads = on_ranks(&hosts, threads(), |number, device, comm| {
            Sums::new(rank, device, &comm, types)?.all(number, &comm)
        })?;
        // F32 parts do not go by packets.
        let first = usize::from(types.parts == FloatType::F32);
        for mode in &MODES[first..] {
            let largest =
                Message { float_type: types.parts, rows: mode.packet_rows, cols: rank.share.hidden };
            let group = P2p::group(&hosts, TIMEOUT, largest, OneShotRows::Fixed(mode.one_shot))?;
            let got = on_ranks(&hosts, group, |number, device, comm| {
                Sums::new(rank, device, &comm, types)?.all(number, &comm)
            })?;
            let reference = Reference { expected: &expected, by_threads: &by_threads };
            compare(rank, report, &Compared { mode, types, reference, got: &got });
        }
    }
    gathers(rank, report, &cpus, &hosts)
}

/// The results of one number of rows.
struct Summed {
    /// The residual stream after all sums.
    residual: Vec<f32>,
    /// Products of the normalised rows.
    shown: Vec<f32>,
    seconds: f64,
}

/// The results of each rank for each number of rows.
struct Reference<'a> {
    /// On CPUs.
    expected: &'a [Vec<Summed>],
    /// Kernels on the host, in a group of threads.
    by_threads: &'a [Vec<Summed>],
}

/// The results of a mode.
struct Compared<'a> {
    mode: &'a Mode,
    types: &'a Types,
    reference: Reference<'a>,
    got: &'a [Vec<Summed>],
}

/// Adds a case for each number of rows. Residual streams must have the bits of the CPUs' sums. Normalised
/// rows must have those of the norm's kernel after sums over threads; `rows` compares that kernel with the
/// CPU.
fn compare(rank: &Rank, report: &mut Report, compared: &Compared<'_>) {
    let Compared { mode, types, reference, got } = compared;
    for (index, rows) in FEW.into_iter().enumerate() {
        let mut different = 0.0;
        let mut same = true;
        for number in 0..RANKS {
            let (got, on_cpu) = (&got[number][index], &reference.expected[number][index]);
            different += EXACT.check(&got.residual, &on_cpu.residual).found;
            let by_threads = &reference.by_threads[number][index];
            same &= same_bits(&got.shown, &by_threads.shown);
            same &= same_bits(&got.residual, &by_threads.residual);
        }
        let kernels = match (types.parts, mode.one_shot) {
            (FloatType::Bf16, ROWS) if rows <= mode.packet_rows => "packet_norm, reduce",
            (_, ROWS) => "reduce_norm, reduce",
            _ => "linear with pushed rows, reduce_norm, reduce",
        };
        let (parts, cols) = (types.parts, rank.share.hidden);
        let name = format!("{kernels} [{cols}], {RANKS} ranks, {parts:?} parts, {}", mode.name);
        let errors = vec![Difference { found: different, most: 0.0, unit: "elements" }];
        report.add(Case { name, rows, errors, same, seconds: got[0][index].seconds });
    }
}

/// One rank's buffers.
struct Sums<'a, D: Device> {
    device: &'a D,
    cols: usize,
    quant: ActQuant,
    norm: octant::device::Norm<D>,
    residual: Floats<D>,
    deltas: [Floats<D>; 2],
    values: Floats<D>,
    inputs: D::Acts,
    /// Makes parts.
    weights: D::Matrix,
    out: D::Acts,
    /// Shows normalised rows.
    shown: D::Matrix,
}

impl<'a, D: Device> Sums<'a, D> {
    fn new(
        rank: &Rank,
        device: &'a D,
        comm: &impl Communicator<D>,
        types: &Types,
    ) -> Result<Self, DeviceError> {
        let cols = rank.share.hidden;
        let sums = Self {
            device,
            cols,
            quant: types.quant,
            norm: norm(device, rank)?,
            residual: device.floats(ROWS, cols)?,
            deltas: [device.floats_of(types.parts, ROWS, cols)?, device.floats_of(types.parts, ROWS, cols)?],
            values: device.floats(ROWS, INPUTS)?,
            inputs: device.acts(ROWS, INPUTS)?,
            weights: part_weights(device, cols)?,
            out: device.acts(ROWS, cols)?,
            shown: show_weights(device, cols)?,
        };
        let floats = [&sums.residual, &sums.deltas[0], &sums.deltas[1]];
        comm.register(GroupBuffers { floats: &floats, acts: &[&sums.out] })?;
        Ok(sums)
    }

    /// The sums of each number of rows.
    fn all(mut self, number: usize, comm: &impl Communicator<D>) -> Result<Vec<Summed>, DeviceError> {
        FEW.into_iter().map(|rows| self.run(number, comm, rows)).collect()
    }

    /// Sums twice with a norm, and once without. Every part is of other values.
    fn run(
        &mut self,
        number: usize,
        comm: &impl Communicator<D>,
        rows: usize,
    ) -> Result<Summed, DeviceError> {
        let began = Instant::now();
        self.device.write(&noise(41, rows * self.cols), &mut self.residual)?;
        let mut shown = Vec::new();
        for turn in 0..=TURNS {
            let seed = (100 * turn + number) as u64;
            self.device.write(&noise(seed, rows * INPUTS), &mut self.values)?;
            self.device.activation(Activation::SquaredRelu, &self.values, self.quant, &mut self.inputs)?;
            let delta = &mut self.deltas[turn % 2];
            comm.linear_part(self.device, &self.inputs, &self.weights, delta)?;
            let update = ResidualUpdate { residual: &mut self.residual, delta };
            if turn == TURNS {
                comm.reduce_add(self.device, update)?;
            } else {
                comm.reduce_norm(self.device, update, &self.norm, self.quant, &mut self.out)?;
                let seen = self.device.floats(rows, SHOWN)?;
                shown.extend(product(self.device, &self.out, &self.shown, seen)?);
            }
        }
        let residual = self.device.read(&self.residual)?;
        Ok(Summed { residual, shown, seconds: began.elapsed().as_secs_f64() })
    }
}

/// Weights of a product that makes parts. Each output is one input times a number of either sign from 2^-5 to
/// 2^5, so that parts are the same bits on every device, and rounded to the type of parts.
fn part_weights<D: Device>(device: &D, cols: usize) -> Result<D::Matrix, DeviceError> {
    let mut codes = vec![0; cols * INPUTS];
    for (index, row) in codes.chunks_exact_mut(INPUTS).enumerate() {
        row[index * 5 % INPUTS] = (index * 37 % 2 * 128 + 16 + index * 101 % 83) as u8;
    }
    let data = MatrixData::Fp8 { codes: &codes, scales: &vec![1.0; cols] };
    upload_matrix(device, HostMatrix { out: cols, input: INPUTS, data })
}

/// Weights of a product each of whose outputs adds consecutive columns times numbers of either sign, so that
/// an element with another value changes an output.
fn show_weights<D: Device>(device: &D, cols: usize) -> Result<D::Matrix, DeviceError> {
    let mut codes = vec![0; SHOWN * cols];
    let share = cols.div_ceil(SHOWN);
    for (index, row) in codes.chunks_exact_mut(cols).enumerate() {
        for (column, code) in row.iter_mut().enumerate().skip(index * share).take(share) {
            // From 1 to 1.875, of either sign.
            *code = (column * 37 % 2 * 128 + 0x38 + column * 5 % 8) as u8;
        }
    }
    let data = MatrixData::Fp8 { codes: &codes, scales: &[1.0; SHOWN] };
    upload_matrix(device, HostMatrix { out: SHOWN, input: cols, data })
}

/// Sums of whole operands, and gathers of logits and of shortlists.
fn gathers(rank: &Rank, report: &mut Report, cpus: &[Cpu], hosts: &[Cuda]) -> Result<(), DeviceError> {
    let hidden = rank.share.hidden;
    let widths = [hidden, rank.share.vocab, 2 * SHORTLIST];
    let names = ["reduce", "gather of logits", "gather of shortlists"];
    let expected = on_ranks(cpus, Local::group(RANKS, TIMEOUT), |number, device, comm| {
        exchanged(device, &comm, number, widths)
    })?;
    let largest = Message { float_type: FloatType::F32, rows: ROWS, cols: hidden };
    let group = P2p::group(hosts, TIMEOUT, largest, OneShotRows::Fixed(0))?;
    let got = on_ranks(hosts, group, |number, device, comm| exchanged(device, &comm, number, widths))?;
    for (kind, (name, width)) in names.into_iter().zip(widths).enumerate() {
        for (index, rows) in FEW.into_iter().enumerate() {
            let of = |number: usize| &got[number][index].results[kind];
            let found = (0..RANKS)
                .map(|number| EXACT.check(of(number), &expected[number][index].results[kind]).found);
            let errors = vec![Difference { found: found.sum(), most: 0.0, unit: "elements" }];
            let same = (1..RANKS).all(|number| same_bits(of(number), of(0)));
            let name = format!("{name} [{width}], {RANKS} ranks");
            report.add(Case { name, rows, errors, same, seconds: got[0][index].seconds[kind] });
        }
    }
    Ok(())
}

/// The results of a sum and two gathers of one number of rows.
struct Exchanged {
    results: [Vec<f32>; 3],
    seconds: [f64; 3],
}

/// One rank's results for each number of rows. `widths` are the columns of the operands.
fn exchanged<D: Device>(
    device: &D,
    comm: &impl Communicator<D>,
    number: usize,
    widths: [usize; 3],
) -> Result<Vec<Exchanged>, DeviceError> {
    let [summed, logits, lists] = widths;
    let (mut x, mut part) = (device.floats(ROWS, summed)?, device.floats(ROWS, logits)?);
    let mut short = device.floats(ROWS, lists)?;
    let mut whole = device.floats(ROWS, RANKS * logits)?;
    let mut all = device.floats(ROWS, RANKS * lists)?;
    comm.register(GroupBuffers { floats: &[&x, &part, &short], acts: &[] })?;
    let timed = |run: &mut dyn FnMut() -> Result<Vec<f32>, DeviceError>| {
        let began = Instant::now();
        run().map(|result| (result, began.elapsed().as_secs_f64()))
    };
    let mut exchange = |rows: usize| {
        let seed = (1000 * rows + number) as u64;
        device.write(&noise(seed, rows * summed), &mut x)?;
        device.write(&noise(seed, rows * logits), &mut part)?;
        device.write(&noise(seed, rows * lists), &mut short)?;
        let (sum, sum_seconds) = timed(&mut || {
            comm.all_reduce(device, &mut x)?;
            device.read(&x)
        })?;
        let (gathered, logit_seconds) = timed(&mut || {
            comm.all_gather(device, &part, &mut whole)?;
            device.read(&whole)
        })?;
        let (joined, list_seconds) = timed(&mut || {
            comm.all_gather(device, &short, &mut all)?;
            device.read(&all)
        })?;
        let seconds = [sum_seconds, logit_seconds, list_seconds];
        Ok(Exchanged { results: [sum, gathered, joined], seconds })
    };
    FEW.into_iter().map(&mut exchange).collect()
}
