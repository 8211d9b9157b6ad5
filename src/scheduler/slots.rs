//! Slots as handles. A runner keeps a sequence's sampling state in its slot, so two sequences must never hold
//! the same slot. Dropping the handle frees the slot.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The free slots. Those from `fresh` on have never been held and take no memory.
pub struct Slots {
    count: usize,
    fresh: Cell<usize>,
    /// Free slots that have been held before.
    free: Rc<RefCell<BTreeSet<u32>>>,
}

/// A slot held by one sequence.
pub struct Slot {
    index: u32,
    free: Rc<RefCell<BTreeSet<u32>>>,
}

impl Slots {
    /// Creates the slots `0..count`, all free.
    pub fn new(count: usize) -> Self {
        Self { count, fresh: Cell::new(0), free: Rc::default() }
    }

    /// Takes the lowest free slot, or `None` if all are held.
    pub fn take(&self) -> Option<Slot> {
        let used_before = self.free.borrow_mut().pop_first();
        let index = match used_before {
            Some(index) => index,
            None => {
                let fresh = self.fresh.get();
                if fresh == self.count {
                    return None;
                }
                self.fresh.set(fresh + 1);
                fresh as u32
            }
        };
        Some(Slot { index, free: Rc::clone(&self.free) })
    }

    /// Number of free slots.
    pub fn free(&self) -> usize {
        self.free.borrow().len() + self.count - self.fresh.get()
    }
}

impl Slot {
    /// The index of the slot, below `max_num_seqs`.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.borrow_mut().insert(self.index);
    }
}
