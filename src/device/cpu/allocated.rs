//! Counts the bytes that the device has allocated, which equal the memory plan, and grows scratch memory
//! before the first step.

use std::sync::atomic::Ordering;

use super::{Cpu, Matrix, ThreadScratch};

impl Cpu {
    /// Bytes of the weights, buffers and caches that this device has allocated, without the threads' scratch
    /// memory. Memory that was freed still counts.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Adds the capacity of a new vector to the count.
    pub(super) fn count<T>(&self, vector: &Vec<T>) {
        self.count_bytes(vector.capacity() * size_of::<T>());
    }

    /// Adds the bytes of a new matrix to the count, and returns the matrix.
    pub(super) fn counted(&self, matrix: Matrix) -> Matrix {
        self.count_bytes(matrix.bytes());
        matrix
    }

    /// Grows the buffer of attention's output to at least `size` elements.
    pub(super) fn grow_stage(&self, size: usize) {
        let mut stage = self.stage();
        let before = stage.len();
        if size > before {
            stage.reserve_exact(size - before);
            stage.resize(size, 0.0);
            self.count_bytes((size - before) * size_of::<f32>());
        }
    }

    /// Adds newly allocated bytes to the count.
    pub(super) fn count_bytes(&self, bytes: usize) {
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Grows one scratch buffer of every thread to at least `len` elements.
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
