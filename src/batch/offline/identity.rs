//! Ids and seeds that are computed from the input file and a line's `custom_id`.

use sha2::{Digest, Sha256};

use crate::batch::lines::OfflineLine;

/// SHA-256 of the input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHash([u8; 32]);

/// Ids and seed of a line, its record and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineIdentity {
    /// Id of the record.
    pub(super) id: String,
    pub(super) line: OfflineLine,
}

impl FileHash {
    pub(super) fn new(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The identity of the line with this `custom_id`.
    pub(super) fn line(&self, custom_id: &str) -> LineIdentity {
        self.derive(b"octant batch custom_id\n", custom_id.as_bytes())
    }

    /// The id in the error record of an invalid line, from the line's number.
    pub(super) fn refused(&self, number: u64) -> String {
        self.derive(b"octant batch line\n", number.to_string().as_bytes()).id
    }

    fn derive(&self, kind: &[u8], name: &[u8]) -> LineIdentity {
        let digest: [u8; 32] =
            Sha256::new().chain_update(kind).chain_update(self.0).chain_update(name).finalize().into();
        let word = |i: usize| digest[8 * i..8 * (i + 1)].iter().fold(0, |word, b| word << 8 | u64::from(*b));
        let id = [word(0), word(1)];
        // Other servers take seeds of 64 bits with a sign.
        let line = OfflineLine { id, seed: word(2) >> 1 };
        LineIdentity { id: format!("batch_req_{:016x}{:016x}", id[0], id[1]), line }
    }
}

/// 128 bits of the SHA-256 of a `custom_id`. Texts with the same key cannot be found in practice, so a key
/// stands for its text.
pub(super) fn key(custom_id: &str) -> u128 {
    let digest: [u8; 32] = Sha256::digest(custom_id.as_bytes()).into();
    digest[..16].iter().fold(0, |key, byte| key << 8 | u128::from(*byte))
}
