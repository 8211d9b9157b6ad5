//! The settings, progress and result of a conversion.

use std::path::PathBuf;

use super::granularity::Granularity;
use super::quantization_report::TensorReport;

/// The settings of a conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// The directory to read.
    pub input: PathBuf,
    /// The directory to write: absent, empty, or left unfinished by the same conversion.
    pub output: PathBuf,
    /// The granularity of weight scales; `None` writes the weights as they are stored.
    pub granularity: Option<Granularity>,
    /// Whether to convert a SentencePiece model to `tokenizer.json` too; the import fails if it cannot be
    /// converted.
    pub tokenizer: bool,
    /// Most bytes of tensors in a shard; a larger weight gets a shard of its own.
    pub shard_size: u64,
    /// Number of threads that convert.
    pub threads: usize,
}

/// Progress of a conversion, in bytes of its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConversionProgress<'a> {
    /// Bytes converted by this run and earlier ones.
    pub done: u64,
    /// Bytes converted by earlier runs.
    pub earlier: u64,
    /// Bytes of the whole input.
    pub total: u64,
    /// The tensor that is being converted.
    pub tensor: &'a str,
}

/// Callback for progress; several threads call it.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(ConversionProgress<'_>) + Sync);

/// The result of a conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Whether the output was complete before this run.
    pub already_complete: bool,
    /// Number of tensors written, without scales.
    pub tensors: usize,
    /// Bytes of the input's tensors.
    pub bytes: u64,
    /// Quantisation error of each quantised weight, in the order of the files.
    pub reports: Vec<TensorReport>,
    /// Names of the input's files that are neither read nor copied.
    pub not_copied: Vec<String>,
}
