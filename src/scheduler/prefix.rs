//! Prefix cache index: maps the contents of a full block, and everything before it, to a block id.
//!
//! A block's key is the SHA-256 of its parent's key and its own token ids. The root key is the hash of the
//! cache salt. Two blocks have equal keys only if the salt and every token up to the end of the block are
//! equal, so a client cannot craft a prompt that hits a block of another salt. Blocks without a handle keep
//! their contents until they are evicted, least recently used first.

use std::collections::{BTreeMap, HashMap};

use super::error::{SchedulerError, broken};
use sha2::{Digest, Sha256};

/// Identifies the contents of one full block and of all blocks before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// The parent key of a sequence's first block. No salt and an empty salt give different keys.
    pub fn root(salt: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update([u8::from(salt.is_some())]);
        hash.update(salt.unwrap_or_default());
        Self(hash.finalize().into())
    }

    /// The key of the block that holds `tokens` and follows the block with key `self`.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Key to block and block to key, and the order of eviction.
pub(super) struct PrefixIndex {
    blocks: HashMap<BlockKey, u32>,
    /// The key of each block id that has been added.
    keys: Vec<Option<BlockKey>>,
    /// Cached blocks without a handle, by the release number at which the last handle was dropped. The lowest
    /// number is evicted first.
    evictable: BTreeMap<u64, u32>,
    evictable_since: Vec<Option<u64>>,
    releases: u64,
}

impl PrefixIndex {
    /// Creates an empty index without block ids.
    pub fn new() -> Self {
        Self {
            blocks: HashMap::new(),
            keys: Vec::new(),
            evictable: BTreeMap::new(),
            evictable_since: Vec::new(),
            releases: 0,
        }
    }

    /// Adds the next block id, without contents.
    pub(super) fn add_block(&mut self) {
        self.keys.push(None);
        self.evictable_since.push(None);
    }

    /// The block with these contents.
    pub fn find(&self, key: &BlockKey) -> Option<u32> {
        self.blocks.get(key).copied()
    }

    /// The key of a block, if the block is cached.
    pub fn key(&self, block: u32) -> Option<&BlockKey> {
        self.keys[block as usize].as_ref()
    }

    /// Adds a block under its key. If another block already has this key, the index keeps that one.
    pub fn insert(&mut self, key: BlockKey, block: u32) {
        if self.key(block).is_none() && !self.blocks.contains_key(&key) {
            self.blocks.insert(key, block);
            self.keys[block as usize] = Some(key);
        }
    }

    /// Removes a block from the index.
    pub fn remove(&mut self, block: u32) {
        self.pin(block);
        if let Some(key) = self.keys[block as usize].take() {
            self.blocks.remove(&key);
        }
    }

    /// Marks a cached block as evictable. Called when its last handle is dropped.
    pub(crate) fn release(&mut self, block: u32) {
        self.pin(block);
        self.evictable.insert(self.releases, block);
        self.evictable_since[block as usize] = Some(self.releases);
        self.releases += 1;
    }

    /// Makes a block unevictable. Called when a handle to it is created.
    pub fn pin(&mut self, block: u32) {
        if let Some(time) = self.evictable_since[block as usize].take() {
            self.evictable.remove(&time);
        }
    }

    /// Removes the least recently used evictable block from the index and returns its id.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, &block) = self.evictable.first_key_value()?;
        self.remove(block);
        Some(block)
    }

    /// Number of evictable blocks: cached, without a handle.
    pub(crate) fn evictable(&self) -> usize {
        self.evictable.len()
    }

    /// Whether a block is evictable.
    pub(crate) fn is_evictable(&self, block: u32) -> bool {
        self.evictable_since.get(block as usize).is_some_and(Option::is_some)
    }

    /// Checks that both directions and the eviction order agree.
    ///
    /// # Errors
    /// Names the first block or count that does not.
    pub fn check(&self) -> Result<(), SchedulerError> {
        let keyed = self.keys.iter().flatten().count();
        if keyed != self.blocks.len() {
            return broken(format!("{keyed} blocks have a key, {} keys have a block", self.blocks.len()));
        }
        for (id, key) in (0u32..).zip(&self.keys) {
            if key.is_some_and(|key| self.find(&key) != Some(id)) {
                return broken(format!("block {id} is not found under its key"));
            }
            let time = self.evictable_since[id as usize];
            if time.is_some_and(|time| self.evictable.get(&time) != Some(&id) || key.is_none()) {
                return broken(format!("block {id} has a wrong place in the eviction order"));
            }
        }
        let evictable = self.evictable_since.iter().flatten().count();
        if evictable != self.evictable.len() {
            return broken(format!(
                "{evictable} blocks are evictable, the eviction order has {}",
                self.evictable.len()
            ));
        }
        Ok(())
    }
}
