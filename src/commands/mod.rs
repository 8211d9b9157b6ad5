//! The commands of the binary other than `octant bench`, one file each: from arguments to calls.

pub mod batch;
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
