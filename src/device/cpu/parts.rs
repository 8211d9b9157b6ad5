//! One buffer for all threads of an operation.

use std::ops::Range;

/// A buffer that the threads of one operation write in disjoint parts.
pub(super) struct Parts<T>(*mut T, usize);

// SAFETY: it is only a pointer; `Parts::part` states what its users must keep to.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    pub(super) fn new(buffer: &mut [T]) -> Self {
        Self(buffer.as_mut_ptr(), buffer.len())
    }

    /// A part of the buffer.
    ///
    /// # Safety
    /// No two threads may hold overlapping parts, and the buffer must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "{range:?} of {}", self.1);
        // SAFETY: inside the buffer by the assertion; disjoint and alive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }

    /// Sets one element.
    ///
    /// # Safety
    /// As for [`Parts::part`].
    pub(super) unsafe fn set(&self, index: usize, value: T) {
        // SAFETY: by this function's contract.
        let part = unsafe { self.part(index..index + 1) };
        part[0] = value;
    }
}
