//! KV cache blocks as reference-counted handles. A sequence holds a [`Block`] for each block that it uses,
//! clones the handle to share the block, and drops it to return the block.
//!
//! A block is in one of three states: free (no handle, no contents), used (at least one handle), or cached
//! (no handle, but the prefix index still names its contents). Dropping the last handle moves a block from
//! used to free or cached. The reference count is the number of handles, so the two cannot disagree.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::error::{SchedulerError, broken};
use super::prefix::{BlockKey, PrefixIndex};
use super::step_plan::BLOCK_TOKENS;

/// All KV cache blocks of a rank group.
pub struct Pool {
    state: Rc<RefCell<PoolState>>,
}

struct PoolState {
    /// Number of blocks.
    total: usize,
    /// Free block ids that have been used before. `take` pops from the end.
    free: Vec<u32>,
    /// One weak handle per block id that has been used, in order of ids. It upgrades exactly while the block
    /// is used. The ids behind them are free too, and take no memory.
    handles: Vec<Weak<BlockRef>>,
    used: usize,
    index: PrefixIndex,
}

/// A handle to one block. Clones share the block.
#[derive(Clone)]
pub struct Block(Rc<BlockRef>);

struct BlockRef {
    id: u32,
    state: Rc<RefCell<PoolState>>,
}

impl PoolState {
    /// The lowest id that has never been used.
    fn fresh(&mut self) -> Option<u32> {
        let id = self.handles.len();
        if id == self.total {
            return None;
        }
        self.handles.push(Weak::new());
        self.index.add_block();
        Some(id as u32)
    }

    /// Number of free blocks.
    fn free(&self) -> usize {
        self.free.len() + self.total - self.handles.len()
    }
}

impl Drop for BlockRef {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.used -= 1;
        if state.index.key(self.id).is_some() {
            state.index.release(self.id);
        } else {
            state.free.push(self.id);
        }
    }
}

impl Block {
    /// The block id that devices use.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// Number of handles to this block, including this one.
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.0)
    }
}

impl Pool {
    /// Creates a pool of the ids `0..blocks`, all free.
    pub fn new(blocks: usize) -> Self {
        let state = PoolState {
            total: blocks,
            free: Vec::new(),
            handles: Vec::new(),
            used: 0,
            index: PrefixIndex::new(),
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Takes a block for exclusive use: a free one if possible, otherwise the least recently used cached one,
    /// which is evicted. `None` if every block is used.
    pub fn take(&self) -> Option<Block> {
        let mut state = self.state.borrow_mut();
        let id = match state.free.pop() {
            Some(id) => id,
            None => match state.fresh() {
                Some(id) => id,
                None => state.index.evict()?,
            },
        };
        Some(self.hand_out(&mut state, id))
    }

    /// Returns a handle to the block with these contents, if it is used or cached.
    pub fn find(&self, key: &BlockKey) -> Option<Block> {
        let mut state = self.state.borrow_mut();
        let id = state.index.find(key)?;
        if let Some(handle) = state.handles[id as usize].upgrade() {
            return Some(Block(handle));
        }
        state.index.pin(id);
        Some(self.hand_out(&mut state, id))
    }

    fn hand_out(&self, state: &mut PoolState, id: u32) -> Block {
        let handle = Rc::new(BlockRef { id, state: Rc::clone(&self.state) });
        state.handles[id as usize] = Rc::downgrade(&handle);
        state.used += 1;
        Block(handle)
    }

    /// Adds a block to the prefix cache. All of its [`BLOCK_TOKENS`] tokens must have been computed.
    pub fn publish(&self, key: BlockKey, block: &Block) {
        self.state.borrow_mut().index.insert(key, block.id());
    }

    /// Removes a block from the prefix cache. Existing handles stay valid.
    pub fn forget(&self, block: &Block) {
        self.state.borrow_mut().index.remove(block.id());
    }

    /// Number of free blocks.
    pub fn free(&self) -> usize {
        self.state.borrow().free()
    }

    /// Number of used blocks.
    pub fn used(&self) -> usize {
        self.state.borrow().used
    }

    /// Number of cached blocks that have no handle.
    pub fn cached(&self) -> usize {
        self.state.borrow().index.evictable()
    }

    /// Number of blocks that `take` can return: free and cached ones.
    pub fn available(&self) -> usize {
        self.free() + self.cached()
    }

    /// Number of blocks in all states.
    pub fn total(&self) -> usize {
        self.state.borrow().total
    }

    /// Recounts all blocks. `held[id]` is the number of handles that the caller knows of.
    ///
    /// # Errors
    /// Names the first block or sum that does not agree.
    pub fn check(&self, held: &[usize]) -> Result<(), SchedulerError> {
        let state = self.state.borrow();
        state.index.check()?;
        let mut free = vec![0usize; held.len()];
        for id in state.free.iter().map(|id| *id as usize).chain(state.handles.len()..held.len()) {
            free[id] += 1;
        }
        for (id, &expected) in (0u32..).zip(held) {
            let holders = state.handles.get(id as usize).map_or(0, Weak::strong_count);
            if holders != expected {
                return broken(format!("block {id} has {holders} handles, but sequences hold {expected}"));
            }
            let evictable = usize::from(state.index.is_evictable(id));
            if free[id as usize] + evictable + usize::from(holders > 0) != 1 {
                return broken(format!("block {id} is not in exactly one of free, used and cached"));
            }
        }
        let used = held.iter().filter(|&&holders| holders > 0).count();
        let sum = state.free() + state.used + state.index.evictable();
        if used != state.used || sum != held.len() {
            return broken(format!(
                "{used} blocks are used, the total is {}; all states together have {sum} of {} blocks",
                state.used,
                held.len()
            ));
        }
        Ok(())
    }
}

/// The blocks of one sequence, in order of position.
#[derive(Default)]
pub struct BlockTable {
    blocks: Vec<Block>,
    /// The ids of `blocks`, stored separately so that a plan can copy them.
    ids: Vec<u32>,
}

impl BlockTable {
    /// Appends the block of the next [`BLOCK_TOKENS`] positions.
    pub fn push(&mut self, block: Block) {
        self.ids.push(block.id());
        self.blocks.push(block);
    }

    /// The handles, in order of position.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Ids of the blocks that hold the positions `0..tokens`.
    pub fn ids(&self, tokens: usize) -> &[u32] {
        &self.ids[..tokens.div_ceil(BLOCK_TOKENS)]
    }

    /// Id of the last block, or `None` if the table is empty.
    pub(crate) fn last_id(&self) -> Option<u32> {
        self.ids.last().copied()
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the table has no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Drops all handles, last block first, so that the start of a prefix is evicted after its continuation.
    /// The start is worth more: more requests can share it.
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
