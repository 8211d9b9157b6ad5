//! Sums of bytes that do not wrap.

/// `count` rounded up to a multiple, with the limit of [`product`].
pub(super) fn padded(count: usize, multiple: usize) -> usize {
    count.checked_next_multiple_of(multiple).unwrap_or(usize::MAX)
}

/// Bytes of `count` things of `each` bytes. The counts of a command line may be too large to fit in memory,
/// so the largest number stands for every product above it.
pub(super) fn product(count: usize, each: usize) -> u64 {
    (count as u64).saturating_mul(each as u64)
}

/// The sum, with the same limit as [`product`].
pub(super) fn sum<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}
