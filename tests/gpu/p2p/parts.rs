//! Parts of sums between ranks: products whose rows go to the ranks that sum them.

use octant::comm::{Communicator, GroupBuffers, Local, Message, OneShotRows, P2p, ResidualUpdate};
use octant::device::cuda::{Acts, Cuda, Floats};
use octant::device::{
    ActQuant, Activation, Device, DeviceError, FloatType, HostMatrix, MatrixData, StepCapacity, upload_matrix,
};

use super::{TIMEOUT, on_group, on_ranks, values};
use crate::dev;

/// A product whose results are a rank's part of a sum.
pub(super) struct PartProduct {
    values: Floats,
    x: Acts,
    weights: <Cuda as Device>::Matrix,
}

/// Inputs of such a product.
const INPUTS: usize = 48;

impl PartProduct {
    pub(super) fn new(device: &Cuda, rows: usize, cols: usize) -> Self {
        // All signs, and magnitudes from 2^-5 to 2^5.
        let codes: Vec<u8> =
            (0..cols * INPUTS).map(|i| (i * 37 % 2 * 128 + 16 + i * 101 % 83) as u8).collect();
        let scales: Vec<f32> = (0..cols).map(|i| 0.07 + i as f32 / 977.0).collect();
        let data = MatrixData::Fp8 { codes: &codes, scales: &scales };
        let (values, x) = (device.floats(rows, INPUTS).unwrap(), device.acts(rows, INPUTS).unwrap());
        let weights = upload_matrix(device, HostMatrix { out: cols, input: INPUTS, data }).unwrap();
        Self { values, x, weights }
    }

    /// Computes a part.
    pub(super) fn run(
        &mut self,
        device: &Cuda,
        comm: &impl Communicator<Cuda>,
        part: Part,
        delta: &mut Floats,
    ) -> Result<(), DeviceError> {
        device.write(&values(part.seed, part.rows * INPUTS), &mut self.values)?;
        device.activation(Activation::SquaredRelu, &self.values, part.quant, &mut self.x)?;
        comm.linear_part(device, &self.x, &self.weights, delta)
    }
}

/// A rank's part of a sum.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) seed: usize,
    pub(super) rows: usize,
    /// Type of the inputs of its product.
    pub(super) quant: ActQuant,
}

/// Products of more rows than the kernel computes at a time, and of outputs that do not fill a tile.
#[test]
fn parts_of_many_rows_are_pushed_to_the_ranks_that_sum_them() {
    for (count, rows, cols, quant) in [
        (2_usize, 300_usize, 144, ActQuant::Fp8PerToken),
        (3, 301, 80, ActQuant::Fp8PerToken),
        (8, 260, 16, ActQuant::Fp8PerToken),
        (3, 130, 144, ActQuant::Bf16),
    ] {
        let parts = if quant == ActQuant::Bf16 { FloatType::F32 } else { FloatType::Bf16 };
        let shape = Message { float_type: parts, rows: rows.next_multiple_of(count), cols };
        let expected = on_group(dev::ranks(count), Local::group(count, TIMEOUT), |rank, device, comm| {
            sum_of_products(device, &comm, Part { seed: rank, rows, quant }, shape)
        });
        let got = on_ranks(count, OneShotRows::Fixed(0), |rank, device, comm| {
            sum_of_products(device, &comm, Part { seed: rank, rows, quant }, shape)
        });
        assert!(got == expected, "{count} ranks, {rows} x {cols}, {quant:?}");
        assert!(got.iter().all(|rank| *rank == got[0]), "{count} ranks, {rows} x {cols}, {quant:?}");
    }
}

/// A library cannot store rows in other ranks' memory.
#[test]
fn a_library_computes_no_parts_that_are_pushed() {
    let (count, rows, cols, quant) = (2, 300, 144, ActQuant::Fp8PerToken);
    let shape = Message { float_type: FloatType::Bf16, rows, cols };
    let run = |devices: Vec<Cuda>| {
        let group = P2p::group(&devices, TIMEOUT, shape, OneShotRows::Fixed(0)).unwrap();
        on_group(devices, group, |rank, device, comm| {
            // The library is measured for the shapes of the matrices that exist.
            let _product = PartProduct::new(device, rows, cols);
            let _step = device.step(StepCapacity { rows, max_positions: 64, ..Default::default() }).unwrap();
            sum_of_products(device, &comm, Part { seed: rank, rows, quant }, shape)
        })
    };
    assert!(run(dev::library_ranks(count)) == run(dev::ranks(count)));
}

/// A rank's memory has the parts of all ranks for the rows that it sums, and no others.
#[test]
fn a_row_of_a_part_is_where_it_is_summed() {
    let (count, rows, cols, quant) = (3, 7, 16, ActQuant::Fp8PerToken);
    let shared = on_ranks(count, OneShotRows::Fixed(0), |rank, device, comm| {
        let mut product = PartProduct::new(device, rows, cols);
        let delta = || device.floats_of(FloatType::Bf16, 9, cols).unwrap();
        let (mut residual, mut pushed, mut own) = (device.floats(rows, cols).unwrap(), delta(), delta());
        comm.register(GroupBuffers { floats: &[&residual, &pushed], acts: &[] }).unwrap();
        product.run(device, &comm, Part { seed: rank, rows, quant }, &mut pushed).unwrap();
        device.linear(&product.x, &product.weights, &mut own).unwrap();
        device.write(&vec![0.0; rows * cols], &mut residual).unwrap();
        // All have pushed their parts once the sum has ended.
        comm.reduce_add(device, ResidualUpdate { residual: &mut residual, delta: &mut pushed }).unwrap();
        [device.read(&pushed).unwrap(), device.read(&own).unwrap()]
    });
    for (rank, share) in [0..2, 2..4, 4..7].into_iter().enumerate() {
        let parts = shared.iter().flat_map(|[_, part]| &part[share.start * cols..share.end * cols]);
        // Seven rows of memory are read; the last rank's share has nine.
        let expected: Vec<f32> = parts.copied().take(rows * cols).collect();
        assert_eq!(shared[rank][0][..expected.len()], expected, "rank {rank}");
    }
}

/// Two sums of the parts of all ranks, of different parts. `shape` is that of the deltas.
fn sum_of_products(device: &Cuda, comm: &impl Communicator<Cuda>, part: Part, shape: Message) -> Vec<f32> {
    let Message { float_type, rows, cols } = shape;
    let mut product = PartProduct::new(device, part.rows, cols);
    let delta = || device.floats_of(float_type, rows, cols).unwrap();
    let (mut residual, mut deltas) = (device.floats(part.rows, cols).unwrap(), [delta(), delta()]);
    comm.register(GroupBuffers { floats: &[&residual, &deltas[0], &deltas[1]], acts: &[] }).unwrap();
    device.write(&vec![0.0; part.rows * cols], &mut residual).unwrap();
    for (turn, delta) in deltas.iter_mut().enumerate() {
        let part = Part { seed: part.seed + 100 * turn, ..part };
        product.run(device, comm, part, delta).unwrap();
        comm.reduce_add(device, ResidualUpdate { residual: &mut residual, delta }).unwrap();
    }
    device.read(&residual).unwrap()
}
