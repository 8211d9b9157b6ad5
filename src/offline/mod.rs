//! Conversions of model directories on disk, without a device or a server: [`quantize`] writes an FP8
//! checkpoint from a Hugging Face one; [`import_nemo`] writes a Hugging Face checkpoint, FP8 or not, from
//! NVIDIA's NeMo files.
//!
//! Both list the weights to write (`output_weight.rs`). `shard_layout.rs` assigns them to files; the layout
//! depends on their names and sizes alone. `writer.rs` writes them in that order. Several threads read,
//! convert and write a weight in bands of rows (`bands.rs`), so memory does not grow with the model.
//!
//! A journal beside the shards lists the weights that are on disk. After an interruption the same command
//! continues from there, and the result has the same bytes as an uninterrupted run. `config.json` is written
//! last, so an unfinished directory is not a loadable model.

mod bands;
mod conversion;
mod granularity;
mod hugging_face;
mod identity;
mod journal;
mod nemo;
mod nemo_config;
mod output_weight;
mod quantization_report;
mod row_map;
pub mod sentencepiece;
mod shard_layout;
mod writer;
mod zarr;

pub use conversion::{Conversion, ConversionProgress, Converted};
pub use granularity::Granularity;
pub use hugging_face::quantize;
pub use nemo::import_nemo;
pub use quantization_report::TensorReport;
