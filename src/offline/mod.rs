//! Whole directories converted on disk, with no device and no server: [`quantize`] makes an FP8 checkpoint of a Hugging
//! Face one, [`import_nemo`] makes a Hugging Face checkpoint, FP8 or not, of NVIDIA's NeMo files.
//!
//! Both list what is to be written, an item a weight; `plan.rs` lays the items out in shards, which follows from
//! their names and sizes alone; `writer.rs` writes them in that order. A weight is read, converted and written in bands
//! of rows, by all cores, so that memory does not grow with the model. A journal beside the shards says which weights
//! are on disk. Whoever runs the same command again goes on from there, and gets the same bytes as if nothing had
//! happened; `config.json` comes last, so that nothing takes what is unfinished for a model.

mod bands;
mod hugging_face;
mod item;
mod journal;
mod nemo;
mod nemo_config;
mod plan;
mod report;
pub mod sentencepiece;
mod writer;
mod zarr;

use std::path::PathBuf;

pub use hugging_face::quantize;
pub use nemo::import_nemo;
pub use report::TensorReport;

use item::Item;

/// What of a weight has a scale of its own: amax / 448.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Each output row: `weight_scale` \[out, 1\].
    Channel,
    /// The whole weight: `weight_scale` \[1\].
    Tensor,
}

impl Granularity {
    /// As compressed-tensors calls it.
    fn strategy(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Tensor => "tensor",
        }
    }
}

/// A conversion: from where to where, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// The directory that is read.
    pub input: PathBuf,
    /// The directory that is written: absent, empty, or left unfinished by the same conversion.
    pub output: PathBuf,
    /// What has a scale; `None` leaves weights as they are stored.
    pub granularity: Option<Granularity>,
    /// Whether a SentencePiece model becomes `tokenizer.json` too, or the import ends where it cannot.
    pub tokenizer: bool,
    /// Bytes that a shard has at most, unless one weight has more.
    pub shard_size: u64,
    /// Threads that convert.
    pub threads: usize,
}

/// How far a conversion has got, in bytes of its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConversionProgress<'a> {
    /// Gone through, by this run and those before it.
    pub done: u64,
    /// Gone through by runs before this one.
    pub earlier: u64,
    /// All.
    pub total: u64,
    /// The tensor in work.
    pub tensor: &'a str,
}

/// Called by many threads.
pub type OnProgress<'a> = &'a (dyn Fn(ConversionProgress<'_>) + Sync);

/// What came of a conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Whether everything was there before.
    pub already: bool,
    /// Tensors written, scales not counted.
    pub tensors: usize,
    /// Bytes of the input's tensors.
    pub bytes: u64,
    /// How far quantised weights are from the stored ones, in the order of the files.
    pub reports: Vec<TensorReport>,
    /// Files of the input that are neither read nor copied.
    pub left_behind: Vec<String>,
}
