//! Numbers that a count is compared with.

/// How a count relates to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    LessThan,
    AtLeast,
}

/// A number and how a count has to relate to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threshold {
    pub(super) relation: Relation,
    pub(super) number: u64,
}

impl Threshold {
    pub(super) fn allows(self, count: usize) -> bool {
        match self.relation {
            Relation::LessThan => (count as u64) < self.number,
            Relation::AtLeast => count as u64 >= self.number,
        }
    }
}
