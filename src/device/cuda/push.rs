//! Products whose rows are stored in the memory of the ranks that sum them, by `kernels/linear.cu`.

use super::peers::{MAX_RANKS, Peers};
use super::{Acts, Cuda, Floats, Matrix, ReduceMode, linear};
use crate::device::DeviceError;

impl Peers {
    /// delta = this rank's part x · wᵀ of a sum, each row of which is stored in the memory of the rank that
    /// sums it. `delta` is shared; afterwards it is for [`ReduceMode::TwoShot`] only. The kernel of this
    /// crate computes the product, also where a library is faster.
    ///
    /// # Errors
    /// If the launch is refused.
    ///
    /// # Panics
    /// If the buffer of the delta has no memory for the parts of all ranks.
    pub(crate) fn push_product(
        &self,
        cuda: &Cuda,
        x: &Acts,
        w: &Matrix,
        delta: &mut Floats,
    ) -> Result<(), DeviceError> {
        let (size, rows) = (self.size(), x.rows);
        assert!(
            rows.next_multiple_of(size) <= delta.max_rows,
            "{rows} rows of {size} ranks exceed the buffer's {}",
            delta.max_rows
        );
        delta.set_rows(rows);
        let addresses = self.addresses(delta.data.address());
        let to = |rank| linear::RowsOfRank {
            base: self.part_address(addresses[rank], delta, rank, self.rank()),
            end: self.share_of(rank, rows).end,
        };
        linear::run_to(cuda, x, w, &linear::Target::of_ranks(delta, (0..size).map(to)))
    }

    /// The addresses of the parts that a reduction of `delta` adds: element i of rank r's part is at address
    /// r plus i elements.
    ///
    /// In two-shot mode the parts are in this rank's memory, and only the rows of its share are there:
    /// \[ranks, rows of the share, cols\]. Their addresses are those that row 0 would have, which may lie
    /// before the memory.
    pub(super) fn part_addresses(&self, delta: &Floats, mode: ReduceMode) -> [u64; MAX_RANKS] {
        let own = delta.data.address();
        match mode {
            ReduceMode::OneShot => self.addresses(own),
            ReduceMode::TwoShot => std::array::from_fn(|rank| match rank < self.size() {
                true => self.part_address(own, delta, self.rank(), rank),
                false => 0,
            }),
        }
    }

    /// The address that row 0 of rank `from`'s part would have in the delta of rank `to`, which is at
    /// `address`, if the delta had all rows of the part.
    fn part_address(&self, address: u64, delta: &Floats, to: usize, from: usize) -> u64 {
        let (row, share) = (delta.row_bytes(), self.share_of(to, delta.rows));
        address + (from * share.len() * row) as u64 - (share.start * row) as u64
    }
}
