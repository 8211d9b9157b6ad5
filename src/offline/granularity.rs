//! The part of a weight that shares one scale.

/// The part of a weight that has its own scale. The scale is the largest magnitude in the part divided by
/// 448.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Each output row has a scale: `weight_scale` is \[out, 1\].
    Channel,
    /// The whole weight has one scale: `weight_scale` is \[1\].
    Tensor,
}

impl Granularity {
    /// Returns the name that compressed-tensors uses in `strategy`.
    pub(super) fn strategy(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Tensor => "tensor",
        }
    }
}
