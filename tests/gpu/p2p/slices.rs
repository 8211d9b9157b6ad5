//! Rows over a cluster of blocks, several of which have a slice.

use octant::comm::{Communicator, GroupBuffers, Local, Message, OneShotRows, P2p, ResidualUpdate};
use octant::device::cuda::Cuda;
use octant::device::{
    ActQuant, Device, FloatType, HostMatrix, MatrixData, Norm, NormKind, upload_floats, upload_matrix,
};

use super::parts::{Part, PartProduct};
use super::{TIMEOUT, on_group, values};
use crate::dev;

const ROWS: usize = 2;
/// A multiple of each number of ranks.
const DELTA_ROWS: usize = 6;
/// Outputs of the product that shows the normalised rows.
const OUTPUTS: usize = 16;

/// Sums three times with a norm and once without. Returns products of the normalised rows, and the residual
/// at the end.
fn sums(
    device: &Cuda,
    rank: usize,
    comm: &impl Communicator<Cuda>,
    cols: usize,
    quant: ActQuant,
) -> Vec<f32> {
    let delta = || device.floats_of(FloatType::Bf16, DELTA_ROWS, cols).unwrap();
    let (mut residual, mut deltas) = (device.floats(ROWS, cols).unwrap(), [delta(), delta()]);
    let mut out = device.acts(ROWS, cols).unwrap();
    let floats = [&residual, &deltas[0], &deltas[1]];
    comm.register(GroupBuffers { floats: &floats, acts: &[&out] }).unwrap();
    let norm = Norm {
        kind: NormKind::LayerNorm1p,
        weight: upload_floats(device, cols, &values(90, cols)).unwrap(),
        bias: Some(upload_floats(device, cols, &values(91, cols)).unwrap()),
        eps: 1e-5,
    };
    let codes: Vec<u8> = (0..OUTPUTS * cols).map(|i| (i * 37 % 2 * 128 + 16 + i * 101 % 83) as u8).collect();
    let data = MatrixData::Fp8 { codes: &codes, scales: &[1.0; OUTPUTS] };
    let shown = upload_matrix(device, HostMatrix { out: OUTPUTS, input: cols, data }).unwrap();
    let mut seen = device.floats(ROWS, OUTPUTS).unwrap();
    let mut product = PartProduct::new(device, ROWS, cols);
    let mut all = Vec::new();
    device.write(&values(50, ROWS * cols), &mut residual).unwrap();
    for turn in 0..3 {
        let delta = &mut deltas[turn % 2];
        product.run(device, comm, Part { seed: rank + 10 * turn, rows: ROWS, quant }, delta).unwrap();
        let update = ResidualUpdate { residual: &mut residual, delta };
        comm.reduce_norm(device, update, &norm, quant, &mut out).unwrap();
        device.linear(&out, &shown, &mut seen).unwrap();
        all.extend(device.read(&seen).unwrap());
    }
    product.run(device, comm, Part { seed: rank + 77, rows: ROWS, quant }, &mut deltas[1]).unwrap();
    let update = ResidualUpdate { residual: &mut residual, delta: &mut deltas[1] };
    comm.reduce_add(device, update).unwrap();
    all.extend(device.read(&residual).unwrap());
    all
}

#[test]
fn rows_over_a_cluster_have_the_bits_of_two_shot_and_of_threads() {
    for (count, cols) in [(2, 1040), (3, 4624)] {
        let quant = ActQuant::Fp8PerToken;
        let expected = on_group(dev::ranks(count), Local::group(count, TIMEOUT), |rank, device, comm| {
            sums(device, rank, &comm, cols, quant)
        });
        for one_shot in [0, ROWS] {
            let devices = dev::ranks(count);
            let largest = Message { float_type: FloatType::Bf16, rows: ROWS, cols };
            let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(one_shot)).unwrap();
            let got = on_group(devices, group, |rank, device, comm| sums(device, rank, &comm, cols, quant));
            assert!(got == expected, "{count} ranks, {cols} columns, one-shot up to {one_shot}");
        }
    }
}
