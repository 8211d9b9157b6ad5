//! Pages of a list.

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PageQuery {
    /// The most entries.
    pub(crate) limit: usize,
    /// The page begins after this id.
    pub(crate) after: Option<String>,
    /// Oldest first instead of newest first.
    pub(crate) ascending: bool,
}

impl PageQuery {
    /// The page of entries, each given with its order and its id, and whether there are more. `None` if no
    /// entry has the id `after`.
    pub(super) fn take<T: Clone>(&self, mut entries: Vec<(u64, &String, &T)>) -> Option<(Vec<T>, bool)> {
        entries.sort_by_key(|(order, ..)| if self.ascending { *order } else { u64::MAX - *order });
        let first = match &self.after {
            None => 0,
            Some(after) => 1 + entries.iter().position(|(_, id, _)| *id == after)?,
        };
        let rest = &entries[first..];
        let taken = rest.iter().take(self.limit).map(|(.., entry)| (*entry).clone()).collect();
        Some((taken, rest.len() > self.limit))
    }
}
