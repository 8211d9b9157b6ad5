//! `kernels/reduce_norm.cu`.

use super::peers::{MOST_RANKS, Peers, PeersParams};
use super::reduce::Rows;
use super::row::{self, Quantised};
use super::{Acts, Buffer, Cuda, Floats, Launch};
use crate::device::{ActQuant, DeviceError, Norm, NormKind};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceNormParams {
    peers: PeersParams,
    deltas: [u64; MOST_RANKS],
    residual: u64,
    weight: u64,
    bias: u64,
    out: [Quantised; MOST_RANKS],
    cols: u32,
    layer_norm: u32,
    first: u32,
    last: u32,
    shared_out: u32,
    eps: f32,
}
const _: () = assert!(size_of::<ReduceNormParams>() == 392);

/// What is added up and normalised.
#[derive(Debug)]
pub struct Reduction<'a> {
    /// This rank's; in its own rows if they are shared out.
    pub residual: &'a mut Floats,
    /// This rank's part, which was offered. Unless rows are shared out, two reductions in a row have different ones: the
    /// others may still read the one before.
    pub delta: &'a Floats,
    /// Who has which rows of the residual.
    pub rows: Rows,
}

impl Peers {
    /// residual += Σ over ranks of delta; out = quant(norm(residual)), all rows of it on every rank. `out` was offered.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn reduce_norm(
        &self,
        cuda: &Cuda,
        reduction: Reduction<'_>,
        norm: &Norm<Buffer<f32>>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let Reduction { residual, delta, rows: lie } = reduction;
        let (rows, cols) = (residual.rows, residual.cols);
        assert_eq!((delta.rows, delta.cols), (rows, cols), "shape of what is added to the residual");
        assert_eq!((norm.weight.len(), out.cols), (cols, cols), "weights and output of a norm over {cols}");
        assert_eq!(norm.bias.as_ref().map_or(cols, Buffer::len), cols, "biases of a norm over {cols}");
        assert!(cols.is_multiple_of(16), "rows of {cols} elements");
        let shared_out = lie == Rows::SharedOut;
        let own = if shared_out { self.share(rows) } else { 0..rows };
        let (values, scales) = (self.addresses(&out.values), self.addresses(&out.scales));
        let form = out.target(rows, quant);
        let params = ReduceNormParams {
            peers: self.params(),
            deltas: self.addresses(&delta.data),
            residual: residual.data.address(),
            weight: norm.weight.address(),
            bias: norm.bias.as_ref().map_or(0, Buffer::address),
            out: std::array::from_fn(|rank| form.at(values[rank], scales[rank])),
            cols: cols as u32,
            layer_norm: u32::from(norm.kind == NormKind::LayerNorm1p),
            first: own.start as u32,
            last: own.end as u32,
            shared_out: u32::from(shared_out),
            eps: norm.eps,
        };
        let launch = Launch {
            kernel: "reduce_norm",
            grid: [self.blocks(own.len()), 1, 1],
            threads: row::threads(cols),
            shared: if shared_out { 6 * cols } else { 4 * cols },
        };
        // SAFETY: the shapes have been compared, and are the same on every rank; the group keeps what was offered.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}
