//! The work that a search for faults may take.

/// Compilations that a search may still take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Budget {
    /// Schemas that may still be compiled.
    pub(super) schemas: usize,
    /// Bytes that these may have together.
    pub(super) bytes: usize,
}

impl Budget {
    /// Takes the compilation of a schema of `bytes` bytes. Returns whether it is allowed.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        match (self.schemas.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(schemas), Some(bytes)) => {
                *self = Self { schemas, bytes };
                true
            }
            _ => false,
        }
    }
}
