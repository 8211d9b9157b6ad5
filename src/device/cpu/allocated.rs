//! What the device has allocated, which is what the memory plan says; and working memory that grows before any step.

use std::sync::atomic::Ordering;

use super::{Cpu, Matrix, ThreadScratch};

impl Cpu {
    /// Bytes of weights, buffers and caches that this device has made, threads' own working memory aside.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Counts a vector that was just made.
    pub(super) fn count<T>(&self, made: &Vec<T>) {
        self.count_bytes(made.capacity() * size_of::<T>());
    }

    /// Counts a matrix that was just made.
    pub(super) fn counted(&self, matrix: Matrix) -> Matrix {
        self.count_bytes(matrix.bytes());
        matrix
    }

    /// Makes room for attention's output of so many elements.
    pub(super) fn grow_stage(&self, size: usize) {
        let mut stage = self.stage();
        let before = stage.len();
        if size > before {
            stage.reserve_exact(size - before);
            stage.resize(size, 0.0);
            self.count_bytes((size - before) * size_of::<f32>());
        }
    }

    /// Counts memory that was just made.
    pub(super) fn count_bytes(&self, bytes: usize) {
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Makes one of each thread's buffers at least this long.
    pub(super) fn grow<T: Default + Clone>(
        &self,
        buffer: impl Fn(&mut ThreadScratch) -> &mut Vec<T>,
        len: usize,
    ) {
        for thread in 0..self.scratch.len() {
            let mut scratch = self.scratch(thread);
            let buffer = buffer(&mut scratch);
            let len = len.max(buffer.len());
            buffer.resize(len, T::default());
        }
    }
}
