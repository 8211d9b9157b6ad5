//! `kernels/reduce_norm.cu`.

use super::backend::MAX_SHARED;
use super::peers::{MAX_RANKS, Peers, PeersParams};
use super::reduce::{ReduceMode, Reduction};
use super::row::{self, Quantised};
use super::{Acts, Cuda, Launch, norm};
use crate::device::{ActQuant, DeviceError, Norm};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceNormParams {
    peers: PeersParams,
    deltas: [u64; MAX_RANKS],
    residual: u64,
    weight: u64,
    bias: u64,
    out: [Quantised; MAX_RANKS],
    cols: u32,
    layer_norm: u32,
    first: u32,
    last: u32,
    two_shot: u32,
    eps: f32,
    delta_bf16: u32,
    copied: u32,
}
const _: () = assert!(size_of::<ReduceNormParams>() == 464);

impl Peers {
    /// residual += Σ over ranks of delta; out = quant(norm(residual)), all rows on every rank. `out` is
    /// shared.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn reduce_norm(
        &self,
        cuda: &Cuda,
        reduction: Reduction<'_>,
        norm: &Norm<Cuda>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let Reduction { residual, delta, mode } = reduction;
        let (rows, cols) = (residual.rows, residual.cols);
        assert_eq!((delta.rows, delta.cols), (rows, cols), "shape of the delta");
        norm::check_shapes(norm, cols, out);
        assert!(cols.is_multiple_of(16), "rows of {cols} elements");
        let two_shot = mode == ReduceMode::TwoShot;
        let own = if two_shot { self.own_share(rows) } else { 0..rows };
        let (values, scales) = (self.addresses(out.values.address()), self.addresses(out.scales.address()));
        let target = out.target(rows, quant);
        if !two_shot && self.sends_packets(delta) {
            return self.packet_norm(cuda, Reduction { residual, delta, mode }, norm, quant, out);
        }
        // With many rows, a block reads the weights once for several of them.
        let weights = if two_shot { 0 } else { weight_bytes(norm, cols) };
        let more = if two_shot { 2 * cols.next_multiple_of(row::COLS) } else { weights };
        let params = ReduceNormParams {
            peers: self.params(),
            deltas: self.part_addresses(delta, mode),
            residual: residual.data.f32().address(),
            weight: norm.weight.data.f32().address(),
            bias: norm.bias.as_ref().map_or(0, |bias| bias.data.f32().address()),
            out: std::array::from_fn(|rank| target.at(values[rank], scales[rank])),
            cols: cols as u32,
            layer_norm: norm::layer_norm(norm.kind),
            first: own.start as u32,
            last: own.end as u32,
            two_shot: u32::from(two_shot),
            eps: norm.eps,
            delta_bf16: delta.is_bf16(),
            copied: u32::from(weights > 0),
        };
        let launch = Launch {
            kernel: "reduce_norm",
            grid: [cuda.sum_blocks(self.blocks(own.len())), 1, 1],
            threads: row::threads(cols),
            shared: 4 * cols + more,
        };
        // SAFETY: shapes have been checked and are the same on every rank; the group keeps shared buffers
        // alive.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}

/// Bytes of shared memory for the weights and biases of a norm beside a row; 0 if they do not fit.
fn weight_bytes(norm: &Norm<Cuda>, cols: usize) -> usize {
    let bytes = if norm.bias.is_some() { 8 * cols } else { 4 * cols };
    if 4 * cols + bytes <= MAX_SHARED { bytes } else { 0 }
}
