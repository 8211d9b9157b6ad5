//! The part of a weight that shares one scale.

/// The part of a weight that has a scale of its own. A scale is the part's largest magnitude divided by 448.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Each output row: `weight_scale` \[out, 1\].
    Channel,
    /// The whole weight: `weight_scale` \[1\].
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
