//! Slots as handles. A runner keeps a sequence's sampling state in its slot, so two sequences must never hold
//! the same slot. Dropping the handle frees the slot.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The free slots.
pub struct Slots {
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
        let count = u32::try_from(count).expect("slot indices fit in 32 bits");
        Self { free: Rc::new(RefCell::new((0..count).collect())) }
    }

    /// Takes the lowest free slot, or `None` if all are held.
    pub fn take(&self) -> Option<Slot> {
        let index = self.free.borrow_mut().pop_first()?;
        Some(Slot { index, free: Rc::clone(&self.free) })
    }

    /// Number of free slots.
    pub fn free(&self) -> usize {
        self.free.borrow().len()
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
