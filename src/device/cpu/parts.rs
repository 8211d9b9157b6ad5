//! Shared mutable access of several threads to one buffer.

use std::ops::Range;

/// A buffer that the threads of one operation write in disjoint parts.
pub(super) struct Parts<T>(*mut T, usize);

// SAFETY: a `Parts` is a pointer and a length. The contract of `Parts::part` excludes data races.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    pub(super) fn new(buffer: &mut [T]) -> Self {
        Self(buffer.as_mut_ptr(), buffer.len())
    }

    /// Returns the elements in `range`.
    ///
    /// # Panics
    /// If `range` exceeds the buffer.
    ///
    /// # Safety
    /// No two threads may hold overlapping parts, and the buffer must outlive the part.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "{range:?} of {}", self.1);
        // SAFETY: the assertion keeps the part inside the buffer; the caller keeps it exclusive and alive.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }

    /// Sets one element.
    ///
    /// # Safety
    /// The contract of [`Parts::part`] holds for the element.
    pub(super) unsafe fn set(&self, index: usize, value: T) {
        // SAFETY: the caller fulfils the contract of `part`.
        let part = unsafe { self.part(index..index + 1) };
        part[0] = value;
    }
}
