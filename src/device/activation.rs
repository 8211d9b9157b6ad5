//! The nonlinearity of the MLP.

use super::ActQuant;

/// The nonlinearity between the two products of the MLP. Like norms, activations cannot be compared.
#[derive(Debug, Clone, Copy)]
pub enum Activation {
    /// relu(x)²; input \[rows, ffn\].
    SquaredRelu,
    /// silu(gate) × up; input \[rows, 2 × ffn\], gate first.
    SwiGlu,
}

impl Activation {
    /// Whether the input has a gate in front of each row, and the MLP a product for it.
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
