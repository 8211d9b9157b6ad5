//! Where the figures of a GPU come from, and the shares of its rates that kernels reach.

use serde::{Deserialize, Serialize};

/// Where a figure comes from, from the most to the least certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Octant measured it on such a GPU.
    Measured,
    /// Others published it: a data sheet, or a measurement of a similar kernel.
    Published,
    /// Derived by arithmetic or from experience.
    Estimated,
}

/// The source of a figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The kind of source.
    pub origin: Origin,
    /// The document, the measurement or the derivation.
    pub from: String,
}

/// A group of kernels whose shares of a rate are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// `kernels/linear.cu`: products of the layers, and the LM head.
    Linear,
    /// The library's products, with `--deterministic false`.
    Cublaslt,
    /// `kernels/attention_decode.cu` and `kernels/attention_prefill.cu`.
    Attention,
    /// Kernels that read and write rows: norms, activations, `unpack`, `rescale`.
    Rows,
}

/// A rate of a GPU of which kernels reach a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// `read` of [`Hardware`](super::Hardware).
    Memory,
    /// `l2`.
    L2,
    /// `products`, or `attention` for the attention kernels.
    Arithmetic,
}

/// The share of a rate that a kernel reaches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Efficiency {
    /// The kernel.
    pub kernel: Kernel,
    /// The rate.
    pub limit: Limit,
    /// Launches of at most this many rows. The last entry of a kernel and limit is for any number.
    #[serde(default)]
    pub rows: Option<usize>,
    /// Fraction of the rate.
    pub share: f64,
    /// The kind of source.
    pub origin: Origin,
    /// The document, the measurement or the derivation.
    pub from: String,
}

/// A figure of a GPU as `octant plan` lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Its key in the file of the GPU, or the kernel and limit of an efficiency.
    pub name: String,
    /// Its value in the unit of the file; `None` for a table.
    pub value: Option<f64>,
    /// The kind of source.
    pub origin: Origin,
    /// The document, the measurement or the derivation.
    pub from: String,
}

/// A term of a step's time and the weakest source of its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct TermOrigin {
    /// Name of the term in [`StepTime`](super::StepTime).
    pub(crate) term: &'static str,
    /// The weakest kind of source of the figures in its formula.
    pub(crate) origin: Origin,
}
