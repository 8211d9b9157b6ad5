//! Steps as two batches (`src/model/two_batches.rs`): one is computed while the ranks add the parts of the
//! other.

use super::{CostModel, F32_BYTES, Product, ProductTime, StepTime};
use crate::device::product_tiles::{BESIDE_BLOCKS, PARTS};
use crate::model::batch_rows;

/// Seconds in which a multiprocessor runs the instructions of a sum and its norm for one element of the rows
/// of its rank: 12,300 clocks for a row of 18,432 (`kernels/README.md`), at 1.755 GHz.
const ELEMENT_SECONDS: f64 = 12_300.0 / 18_432.0 / 1.755e9;

/// Layers over which the schedule becomes regular.
const LAYERS: usize = 8;

/// A layer of two batches: seconds of its two halves, up to the parts of attention output and of MLP down,
/// for each batch, and of the sums after them.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    halves: [[f64; 2]; 2],
    sums: [[f64; 2]; 2],
    /// Seconds from the end of an operation to the start of one in the other stream that waits for it.
    handover: f64,
}

impl Schedule {
    /// Seconds per layer in which the first stream waits for sums. Halves run in the order of their batches,
    /// and so do sums.
    fn waiting(&self) -> f64 {
        let (mut now, mut sums_end, mut ready) = (0.0_f64, 0.0_f64, [0.0_f64; 2]);
        let mut before_last = 0.0;
        for _ in 0..LAYERS {
            before_last = now;
            for (halves, sums) in self.halves.iter().zip(&self.sums) {
                for batch in 0..2 {
                    now = now.max(ready[batch]) + halves[batch];
                    sums_end = sums_end.max(now + self.handover) + sums[batch];
                    ready[batch] = sums_end + self.handover;
                }
            }
        }
        now - before_last - self.halves.as_flattened().iter().sum::<f64>()
    }
}

impl CostModel {
    /// The rows of each batch; `None` if one batch computes a step of `rows` rows, of which `decodes` are of
    /// one token each.
    pub(super) fn two_batch_rows(&self, rows: usize, decodes: usize) -> Option<[usize; 2]> {
        self.two_batch_tokens.filter(|least| rows >= *least).and_then(|_| batch_rows(rows, decodes))
    }

    /// The time of a step as two batches, from that of one batch. Small kernels and launches are counted
    /// twice, with those of the sums, although these run beside the rest.
    pub(super) fn as_two_batches(&self, one: StepTime, rows: [usize; 2]) -> StepTime {
        let layers = self.share.layers as f64;
        let products = self.products.each_ref().map(Product::beside_sum);
        let times = rows.map(|rows| self.product_times(&products, rows));
        let linear: ProductTime = times.into_iter().flatten().sum();
        let all = rows.iter().sum::<usize>() as f64;
        let overhead = self.hardware.layer_overhead;
        let half = |half: usize, batch: usize| {
            let [first, part] = [2 * half, 2 * half + 1].map(|index| times[batch][index].total / layers);
            let attention = if half == 0 { one.kv.max(one.attention) / layers } else { 0.0 };
            let others = (attention + one.activations / layers / 2.0) * rows[batch] as f64 / all;
            first + part + others + overhead / 2.0
        };
        let sum = |half: usize, batch: usize| self.sum_beside(&products[2 * half + 1], rows[batch]);
        let table = |of: &dyn Fn(usize, usize) -> f64| [[of(0, 0), of(0, 1)], [of(1, 0), of(1, 1)]];
        let schedule = Schedule { halves: table(&half), sums: table(&sum), handover: self.hardware.launch };
        StepTime {
            weights: linear.weights,
            staging: linear.staging,
            products: linear.products,
            cuts: linear.cuts(),
            reduce: self.reduce_seconds(rows.iter().sum(), schedule.waiting()),
            overhead: one.overhead + layers * overhead,
            ..one
        }
    }

    /// Seconds of a sum of parts of `product` on few multiprocessors: what does not pass while the product
    /// runs, or what these need, whichever is longer. A rank reads the parts of its share of the rows and the
    /// residual stream, and writes the residual stream and every rank's results. Each multiprocessor has one
    /// block, so that none computes while another reads.
    fn sum_beside(&self, product: &Product, rows: usize) -> f64 {
        let ranks = self.ranks as f64;
        let elements = (rows.div_ceil(self.ranks) * self.share.hidden) as f64;
        let bytes = elements * (ranks * (self.bytes.result + self.bytes.input) + 2.0 * F32_BYTES);
        let rate = self.hardware.l2 * BESIDE_BLOCKS as f64 / PARTS as f64;
        let instructions = elements * ELEMENT_SECONDS / BESIDE_BLOCKS as f64;
        self.two_shot_seconds(product, rows).max(bytes / rate + instructions)
    }
}
