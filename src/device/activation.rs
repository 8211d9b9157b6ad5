//! The nonlinearity of the MLP.

use super::ActQuant;

/// The nonlinearity between the two products of the MLP. Like norms, activations cannot be compared.
#[derive(Debug, Clone, Copy)]
pub enum Activation {
    /// relu(x)²; input \[rows, ffn\].
    SquaredRelu,
    /// silu(gate) × up; input \[rows, 2 × ffn\] in the order of [`GatedRows`].
    SwiGlu,
}

/// The outputs of the gate and of the values that it multiplies, in one matrix \[2 × ffn, in\]: eight of the
/// gate, then the eight values that they multiply, and so on. So a thread of a product kernel has both of a
/// pair. If ffn is no multiple of eight, the last group of each is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedRows {
    /// Outputs of the gate.
    Gate,
    /// Values that the gate multiplies.
    Up,
}

impl GatedRows {
    /// Consecutive outputs of each kind.
    pub(crate) const GROUP: usize = 8;

    /// The row of the matrix that has output `index` of this kind, of `ffn`.
    pub fn row(self, index: usize, ffn: usize) -> usize {
        let group = index / Self::GROUP * Self::GROUP;
        let before = match self {
            Self::Gate => 0,
            Self::Up => Self::GROUP.min(ffn - group),
        };
        2 * group + before + index % Self::GROUP
    }
}

impl Activation {
    /// Whether the input has a gate for each value, and the MLP a product for it.
    pub fn is_gated(self) -> bool {
        match self {
            Self::SquaredRelu => false,
            Self::SwiGlu => true,
        }
    }
}

/// An activation, and the element type of its output.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedActivation {
    /// The nonlinearity.
    pub kind: Activation,
    /// Element type of the output.
    pub quant: ActQuant,
}
