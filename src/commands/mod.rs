//! The commands of the binary, one file each: from arguments to calls. The measurements of `octant bench` are
//! in `src/bench`; only those that start an engine as `octant serve` does begin here.

pub mod batch;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod doctor;
pub mod drain;
pub mod eval;
pub mod plan;
pub mod serve;
pub mod simulate;
pub mod synth;
