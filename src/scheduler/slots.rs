//! Slots as handles: a runner keeps a sequence's sampling state in its slot, so that no two sequences may have the
//! same one; dropping the handle returns it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// All slots.
pub struct Slots {
    free: Rc<RefCell<BTreeSet<u32>>>,
}

/// One slot, held.
pub struct Slot {
    index: u32,
    free: Rc<RefCell<BTreeSet<u32>>>,
}

impl Slots {
    /// Indices 0..`count`, all free.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("slot indices fit in 32 bits");
        Self { free: Rc::new(RefCell::new((0..count).collect())) }
    }

    /// The lowest free slot.
    pub fn take(&self) -> Option<Slot> {
        let index = self.free.borrow_mut().pop_first()?;
        Some(Slot { index, free: Rc::clone(&self.free) })
    }

    /// Free slots.
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }
}

impl Slot {
    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.borrow_mut().insert(self.index);
    }
}
