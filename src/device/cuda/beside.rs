//! Sums of one batch beside the products of another, on multiprocessors of their own.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::Cuda;
use crate::device::DeviceError;
use crate::device::product_tiles::BESIDE_BLOCKS;

/// Operations on the second stream.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Whether operations are being enqueued there.
    enqueues: AtomicBool,
    /// The batches whose operations have not been joined, one bit each.
    open: AtomicU8,
}

impl Cuda {
    pub(super) fn run_beside(
        &self,
        number: usize,
        operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.beside.open.fetch_or(1 << number, Ordering::Relaxed);
        self.beside.enqueues.store(true, Ordering::Relaxed);
        let outcome = self.driver.backend().beside(number, operations);
        self.beside.enqueues.store(false, Ordering::Relaxed);
        outcome
    }

    pub(super) fn join_batch(&self, number: usize) -> Result<(), DeviceError> {
        match self.beside.open.fetch_and(!(1 << number), Ordering::Relaxed) & 1 << number {
            0 => Ok(()),
            _ => self.driver.backend().join(number),
        }
    }

    /// The most blocks of a sum that is enqueued now, of `blocks`.
    pub(super) fn sum_blocks(&self, blocks: usize) -> usize {
        if self.beside.enqueues.load(Ordering::Relaxed) { blocks.min(BESIDE_BLOCKS) } else { blocks }
    }

    /// Multiprocessors that a product which is enqueued now leaves to sums.
    pub(super) fn left_to_sums(&self) -> usize {
        if self.beside.open.load(Ordering::Relaxed) == 0 { 0 } else { BESIDE_BLOCKS }
    }
}
