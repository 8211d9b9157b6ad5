//! KV blocks as handles: whoever needs a block holds a [`Block`], clones it to share it, and drops it to return it.
//! A block is free (holds nothing), used (somebody has a handle), or cached (nobody has, but its contents may be
//! wanted again); the last handle's drop takes it from used to one of the others. The number of handles is the
//! reference count, so that the two cannot disagree.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::error::IntegrityError;
use super::prefix::{BlockKey, PrefixIndex};
use super::step_plan::BLOCK_TOKENS;

/// All KV blocks of a cache.
pub struct BlockPool {
    state: Rc<RefCell<PoolState>>,
}

struct PoolState {
    /// Taken from the end, so that low ids are used first.
    free: Vec<u32>,
    /// Upgrades exactly while a block is used.
    handles: Vec<Weak<Lease>>,
    used: usize,
    index: PrefixIndex,
}

/// A share of one block.
#[derive(Clone)]
pub struct Block(Rc<Lease>);

struct Lease {
    id: u32,
    state: Rc<RefCell<PoolState>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.used -= 1;
        if state.index.key(self.id).is_some() {
            state.index.park(self.id);
        } else {
            state.free.push(self.id);
        }
    }
}

impl Block {
    /// The id by which a device knows it.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// Handles on it, this one among them.
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.0)
    }
}

impl BlockPool {
    /// Ids 0..`blocks`, all free.
    pub fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("block ids fit in 32 bits");
        let state = PoolState {
            free: (0..count).rev().collect(),
            handles: (0..count).map(|_| Weak::new()).collect(),
            used: 0,
            index: PrefixIndex::new(blocks),
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// A block of one's own: a free one, else the cached one that nobody has held for longest.
    pub fn take(&self) -> Option<Block> {
        let mut state = self.state.borrow_mut();
        let id = match state.free.pop() {
            Some(id) => id,
            None => state.index.evict()?,
        };
        Some(self.lease(&mut state, id))
    }

    /// A share of the block with these contents, if it is cached.
    pub fn find(&self, key: &BlockKey) -> Option<Block> {
        let mut state = self.state.borrow_mut();
        let id = state.index.find(key)?;
        if let Some(lease) = state.handles[id as usize].upgrade() {
            return Some(Block(lease));
        }
        state.index.unpark(id);
        Some(self.lease(&mut state, id))
    }

    fn lease(&self, state: &mut PoolState, id: u32) -> Block {
        let lease = Rc::new(Lease { id, state: Rc::clone(&self.state) });
        state.handles[id as usize] = Rc::downgrade(&lease);
        state.used += 1;
        Block(lease)
    }

    /// Caches a block whose 64 tokens have all been computed.
    pub fn publish(&self, key: BlockKey, block: &Block) {
        self.state.borrow_mut().index.insert(key, block.id());
    }

    /// Forgets what a block holds; its holders keep it.
    pub fn forget(&self, block: &Block) {
        self.state.borrow_mut().index.remove(block.id());
    }

    /// Blocks that hold nothing.
    pub fn free(&self) -> usize {
        self.state.borrow().free.len()
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> usize {
        self.state.borrow().used
    }

    /// Blocks that are cached and held by nobody.
    pub fn cached(&self) -> usize {
        self.state.borrow().index.parked()
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.free() + self.cached()
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.state.borrow().handles.len()
    }

    /// Recounts all blocks. `held[id]` is how many handles the caller knows of; the error says what does not agree.
    pub fn check(&self, held: &[usize]) -> Result<(), IntegrityError> {
        let state = self.state.borrow();
        state.index.check()?;
        let mut free = vec![0usize; held.len()];
        for &id in &state.free {
            free[id as usize] += 1;
        }
        for (id, &expected) in (0u32..).zip(held) {
            let holders = state.handles[id as usize].strong_count();
            if holders != expected {
                return Err(IntegrityError(format!(
                    "block {id} has {holders} handles, sequences hold {expected}"
                )));
            }
            let parked = usize::from(state.index.is_parked(id));
            if free[id as usize] + parked + usize::from(holders > 0) != 1 {
                return Err(IntegrityError(format!(
                    "block {id} is not in exactly one of free, used and cached"
                )));
            }
        }
        let used = held.iter().filter(|&&holders| holders > 0).count();
        let sum = state.free.len() + state.used + state.index.parked();
        if used != state.used || sum != held.len() {
            return Err(IntegrityError(format!(
                "{used} blocks used, counted {}; {sum} in all of {}",
                state.used,
                held.len()
            )));
        }
        Ok(())
    }
}

/// The blocks of one sequence, in order of position.
#[derive(Default)]
pub struct BlockTable {
    blocks: Vec<Block>,
    /// The same as ids, ready to be copied into plans.
    ids: Vec<u32>,
}

impl BlockTable {
    /// Adds the block of the next 64 positions.
    pub fn push(&mut self, block: Block) {
        self.ids.push(block.id());
        self.blocks.push(block);
    }

    /// The handles.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The ids of the blocks that hold positions `0..tokens`.
    pub fn ids(&self, tokens: usize) -> &[u32] {
        &self.ids[..tokens.div_ceil(BLOCK_TOKENS)]
    }

    /// Id of the block of the last positions.
    pub fn last_id(&self) -> Option<u32> {
        self.ids.last().copied()
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it has no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns all blocks, the last first: a prefix is worth more than what follows it, so it is evicted later.
    pub fn clear(&mut self) {
        self.ids.clear();
        while self.blocks.pop().is_some() {}
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear();
    }
}
