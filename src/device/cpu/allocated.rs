//! Allocates the device's memory and counts its bytes, which equal the memory plan. A failed allocation is an
//! error that says how many bytes were asked for. Scratch memory grows here too, before the first step.

use std::sync::atomic::Ordering;

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;

use super::{Cpu, Matrix, ThreadScratch};
use crate::device::DeviceError;

/// Allocates zeros. The operating system provides the pages on first use, so a large buffer takes no memory
/// until it is written.
///
/// # Errors
/// The system has no memory for it.
pub(crate) fn zeros<T: Zeroable>(len: usize) -> Result<Vec<T>, DeviceError> {
    try_zeroed_vec(len).map_err(|()| no_memory::<T>(len))
}

/// The error of a failed allocation.
fn no_memory<T>(len: usize) -> DeviceError {
    let bytes = len.saturating_mul(size_of::<T>());
    DeviceError { op: "cpu", message: format!("cannot allocate {bytes} bytes") }
}

/// Lets the C library allocate from one arena. It would reserve 64 MiB of address space for each thread,
/// which count against `ulimit -v`, although this program's own memory comes from another allocator.
pub(crate) fn use_one_malloc_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call changes a setting of the C library's allocator, which is allowed at any time.
    let _refused = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Makes the buffer `len` elements long. New elements are 0.
///
/// # Errors
/// The system has no memory for it.
pub(crate) fn resize<T: Zeroable + Clone>(buffer: &mut Vec<T>, len: usize) -> Result<(), DeviceError> {
    let more = len.saturating_sub(buffer.len());
    buffer.try_reserve_exact(more).map_err(|_| no_memory::<T>(len))?;
    buffer.resize(len, T::zeroed());
    Ok(())
}

/// Makes the buffer at least `len` elements long.
fn lengthen<T: Zeroable + Clone>(buffer: &mut Vec<T>, len: usize) -> Result<(), DeviceError> {
    resize(buffer, len.max(buffer.len()))
}

impl Cpu {
    /// Bytes of the weights, buffers and caches that this device has allocated, without the threads' scratch
    /// memory. Memory that was freed still counts.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Allocates and counts zeros.
    pub(super) fn zeros<T: Zeroable>(&self, len: usize) -> Result<Vec<T>, DeviceError> {
        let vector = zeros(len)?;
        self.count_bytes(size_of_val(&vector[..]));
        Ok(vector)
    }

    /// Allocates and counts an empty vector with room for `len` elements.
    pub(super) fn room<T>(&self, len: usize) -> Result<Vec<T>, DeviceError> {
        let mut vector = Vec::new();
        vector.try_reserve_exact(len).map_err(|_| no_memory::<T>(len))?;
        self.count_bytes(vector.capacity() * size_of::<T>());
        Ok(vector)
    }

    /// Adds the bytes of a new matrix to the count, and returns the matrix.
    pub(super) fn counted(&self, matrix: Matrix) -> Matrix {
        self.count_bytes(matrix.bytes());
        matrix
    }

    /// Grows the buffer of attention's output to at least `size` elements.
    pub(super) fn grow_stage(&self, size: usize) -> Result<(), DeviceError> {
        let mut stage = self.stage();
        let before = stage.len();
        lengthen(&mut stage, size)?;
        self.count_bytes((stage.len() - before) * size_of::<f32>());
        Ok(())
    }

    /// Adds newly allocated bytes to the count.
    pub(super) fn count_bytes(&self, bytes: usize) {
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Grows one scratch buffer of every thread to at least `len` elements.
    pub(super) fn grow<T: Zeroable + Clone>(
        &self,
        buffer: impl Fn(&mut ThreadScratch) -> &mut Vec<T>,
        len: usize,
    ) -> Result<(), DeviceError> {
        (0..self.scratch.len()).try_for_each(|thread| lengthen(buffer(&mut self.scratch(thread)), len))
    }

    /// Reserves room for the candidates of a vocabulary in every thread, which sampling would otherwise
    /// allocate during a step.
    pub(super) fn reserve_candidates(&self, vocab: usize) -> Result<(), DeviceError> {
        (0..self.scratch.len()).try_for_each(|thread| {
            let candidates = &mut self.scratch(thread).candidates;
            let more = vocab.saturating_sub(candidates.len());
            candidates.try_reserve_exact(more).map_err(|_| no_memory::<(f32, u32)>(vocab))
        })
    }
}

/// Returns memory that this thread has freed to the system. Reading a tokenizer takes several times the
/// memory of the tokenizer, which an idle server would otherwise keep until its next requests. Without effect
/// if another allocator than mimalloc is in use.
pub(crate) fn release_freed_memory() {
    // SAFETY: a call without conditions; it frees no memory that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
