//! The prefix cache: which block holds which 64 tokens after which prefix.
//!
//! A block's key is the SHA-256 of its parent's key and its own token ids; the first parent is made of the salt.
//! Two blocks have the same key only if everything up to their last token is the same, salt included: nobody can
//! craft a prompt that hits another's block. A block that nobody holds keeps its contents until it is needed for
//! something else, the least recently used first.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::error::IntegrityError;

/// Names the contents of a full block and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// What the first block of a sequence follows. No salt and an empty salt are different.
    pub fn root(salt: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update([u8::from(salt.is_some())]);
        hash.update(salt.unwrap_or_default());
        Self(hash.finalize().into())
    }

    /// The key of the block that holds `tokens` and follows the one named by `self`.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Both directions between keys and blocks, and the order in which parked blocks are given up.
pub struct PrefixIndex {
    blocks: HashMap<BlockKey, u32>,
    keys: Vec<Option<BlockKey>>,
    /// Blocks that nobody holds, by the time since when: the first goes first.
    parked: BTreeMap<u64, u32>,
    parked_at: Vec<Option<u64>>,
    clock: u64,
}

impl PrefixIndex {
    /// For block ids below `blocks`.
    pub fn new(blocks: usize) -> Self {
        Self {
            blocks: HashMap::new(),
            keys: vec![None; blocks],
            parked: BTreeMap::new(),
            parked_at: vec![None; blocks],
            clock: 0,
        }
    }

    /// The block with these contents.
    pub fn find(&self, key: &BlockKey) -> Option<u32> {
        self.blocks.get(key).copied()
    }

    /// The key of a block, if it is cached.
    pub fn key(&self, block: u32) -> Option<&BlockKey> {
        self.keys[block as usize].as_ref()
    }

    /// Caches a block. If another block already has the same contents, that one stays the cached one.
    pub fn insert(&mut self, key: BlockKey, block: u32) {
        if self.key(block).is_none() && !self.blocks.contains_key(&key) {
            self.blocks.insert(key, block);
            self.keys[block as usize] = Some(key);
        }
    }

    /// Forgets the contents of a block.
    pub fn remove(&mut self, block: u32) {
        self.unpark(block);
        if let Some(key) = self.keys[block as usize].take() {
            self.blocks.remove(&key);
        }
    }

    /// Nobody holds this cached block any longer.
    pub fn park(&mut self, block: u32) {
        self.unpark(block);
        self.parked.insert(self.clock, block);
        self.parked_at[block as usize] = Some(self.clock);
        self.clock += 1;
    }

    /// Somebody holds this block again.
    pub fn unpark(&mut self, block: u32) {
        if let Some(time) = self.parked_at[block as usize].take() {
            self.parked.remove(&time);
        }
    }

    /// Gives up the block that nobody has held for longest.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, &block) = self.parked.first_key_value()?;
        self.remove(block);
        Some(block)
    }

    /// Blocks that are cached and held by nobody.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Whether a block is cached and held by nobody.
    pub fn is_parked(&self, block: u32) -> bool {
        self.parked_at[block as usize].is_some()
    }

    /// Checks that both directions agree; the error says where they do not.
    pub fn check(&self) -> Result<(), IntegrityError> {
        let keyed = self.keys.iter().flatten().count();
        if keyed != self.blocks.len() {
            return Err(IntegrityError(format!(
                "{keyed} blocks have a key, {} keys have a block",
                self.blocks.len()
            )));
        }
        for (id, key) in (0u32..).zip(&self.keys) {
            if key.is_some_and(|key| self.find(&key) != Some(id)) {
                return Err(IntegrityError(format!("block {id} is not found under its key")));
            }
            let time = self.parked_at[id as usize];
            if time.is_some_and(|time| self.parked.get(&time) != Some(&id) || key.is_none()) {
                return Err(IntegrityError(format!("block {id} is parked wrongly")));
            }
        }
        let parked = self.parked_at.iter().flatten().count();
        if parked != self.parked.len() {
            return Err(IntegrityError(format!(
                "{parked} blocks are parked, {} in the queue",
                self.parked.len()
            )));
        }
        Ok(())
    }
}
