//! Synthetic data: choices that need no model, data sets for trainers, and the report.

mod back_off;
mod decontaminate;
mod dedup;
mod exports;
mod pairs;
pub mod pipeline;
mod report;
