//! `kernels/packet_norm.cu`.

use super::peers::{MAX_RANKS, Peers, PeersParams};
use super::reduce::Reduction;
use super::row::{self, Quantised};
use super::{Acts, Cuda, Floats, Launch, norm};
use crate::device::{ActQuant, DeviceError, Norm, ROW_SLICES};

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
    threads: u32,
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
        let slices = Slices::new(cols);
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
            threads: row::threads(cols),
        };
        let launch = Launch {
            kernel: "packet_norm",
            grid: [self.clusters(rows, ROW_SLICES) * ROW_SLICES, 1, 1],
            threads: slices.threads(),
            shared: slices.shared_bytes(norm.bias.is_some()),
        };
        // SAFETY: shapes have been checked and are the same on every rank; the group keeps the packets alive.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}

/// Threads of the largest block: `SLICE_THREADS` of `kernels/row_slices.cuh`.
const SLICE_THREADS: u32 = 640;
/// Bytes of shared memory in which the blocks of a cluster exchange results: `SliceExchange::BYTES` of
/// `kernels/row_slices.cuh`.
const EXCHANGE_BYTES: usize = 1984;
/// Elements of a slot.
const SLOT: usize = 8;

/// How the blocks of a cluster divide a row (`kernels/row_slices.cuh`). The columns alone decide it.
struct Slices {
    /// Threads of a block that computes a row alone, as many as one of the cluster's stands for.
    lanes: u32,
    /// Slots that each of them adds up.
    rounds: u32,
}

impl Slices {
    fn new(cols: usize) -> Self {
        let threads = row::threads(cols);
        let lanes = (threads / 32).div_ceil(ROW_SLICES as u32) * 32;
        let groups = cols.next_multiple_of(row::COLS) / SLOT;
        Self { lanes, rounds: (groups as u32).div_ceil(threads) }
    }

    /// Threads of a block: one per slot, up to the largest number.
    fn threads(&self) -> u32 {
        self.lanes * self.rounds.min(SLICE_THREADS / self.lanes)
    }

    /// Bytes of a block's shared memory: F32 elements of the row, weights and biases, and results of warps.
    fn shared_bytes(&self, biased: bool) -> usize {
        let slots = (self.lanes * self.rounds) as usize;
        EXCHANGE_BYTES + (2 + usize::from(biased)) * slots * SLOT * 4
    }
}
