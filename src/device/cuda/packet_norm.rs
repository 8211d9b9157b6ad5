//! `kernels/packet_norm.cu`.

use super::peers::{MAX_RANKS, Peers, PeersParams};
use super::reduce::Reduction;
use super::row::{self, Quantised};
use super::{Acts, Cuda, Floats, Launch, norm, reduce_norm};
use crate::device::{ActQuant, DeviceError, Norm};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PacketNormParams {
    peers: PeersParams,
    packets: [u64; MAX_RANKS],
    delta: u64,
    residual: u64,
    weight: u64,
    bias: u64,
    out: Quantised,
    rows: u32,
    cols: u32,
    layer_norm: u32,
    eps: f32,
    capacity: u32,
    copied: u32,
}
const _: () = assert!(size_of::<PacketNormParams>() == 240);

impl Peers {
    /// Whether sums of this part go by packets.
    pub(super) fn sends_packets(&self, delta: &Floats) -> bool {
        delta.is_bf16() == 1 && delta.rows * delta.cols / 8 <= self.packets().capacity
    }

    /// residual += Σ over ranks of delta; out = quant(norm(residual)), all rows on every rank, by packets.
    /// Shapes have been checked.
    pub(super) fn packet_norm(
        &self,
        cuda: &Cuda,
        reduction: Reduction<'_>,
        norm: &Norm<Cuda>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let Reduction { residual, delta, .. } = reduction;
        let (rows, cols, packets) = (residual.rows, residual.cols, self.packets());
        let weights = reduce_norm::weight_bytes(norm, cols);
        let params = PacketNormParams {
            peers: self.params(),
            packets: packets.addresses(),
            delta: delta.data.address(),
            residual: residual.data.f32().address(),
            weight: norm.weight.data.f32().address(),
            bias: norm.bias.as_ref().map_or(0, |bias| bias.data.f32().address()),
            out: out.target(rows, quant),
            rows: rows as u32,
            cols: cols as u32,
            layer_norm: norm::layer_norm(norm.kind),
            eps: norm.eps,
            capacity: packets.capacity as u32,
            copied: u32::from(weights > 0),
        };
        let launch = Launch {
            kernel: "packet_norm",
            grid: [self.blocks(rows), 1, 1],
            threads: row::threads(cols),
            shared: 4 * cols + weights,
        };
        // SAFETY: shapes have been checked and are the same on every rank; the group keeps the packets alive.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}
