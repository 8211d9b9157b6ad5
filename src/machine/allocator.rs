//! Memory that the process has freed and its allocator keeps.

/// Returns memory that this thread has freed to the system. Reading a tokenizer takes several times the memory
/// of the tokenizer, which an idle server would otherwise keep until its next requests. Without effect if
/// another allocator is in use.
#[allow(unsafe_code)]
pub(crate) fn release_freed_memory() {
    // SAFETY: a call without conditions; it frees no memory that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
