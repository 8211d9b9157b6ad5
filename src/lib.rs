//! Octant serves the Nemotron-4 340B family in FP8 from one DGX H100: an OpenAI-compatible front end, a
//! continuous-batching scheduler, a paged KV cache, and a model generic over the device that runs it.
//!
//! The modules below stand in the order in which a request passes through them. [`generation`] and [`engine`] are
//! the two files to read first: the first is the path from text to tokens and back, the second is the step loop.
//!
//! # Invariants
//! - The engine speaks tokens only; text ends at [`generation`].
//! - The scheduler sees no GPU, clock, IO or randomness.
//! - Nothing below [`server`] knows the JSON of the wire.
//! - Nothing is allocated on the device after start-up.
//! - There is no global mutable state.
//! - Every request is answered exactly once.
//! - A request's tokens never depend on what else is in its batch.
//!
//! Which module may import which is a table in `tests/it/tidy.rs`, and a test.

/// HTTP: the only place that knows axum and OpenAI's JSON.
pub mod server;

/// The data path of one request as one function: template, tokens, engine, text.
pub mod generation;

/// Strings to tokens and back: chat template, tokenizer, incremental detokenizer, stop strings.
pub mod text;

/// What the engine is asked and what it answers: plain data.
pub mod request;

/// The step loop, the account of every open request, and the seam to whatever executes a step.
pub mod engine;

/// Which tokens run next, in which KV blocks: pure decisions.
pub mod scheduler;

/// Executes step plans: one thread per rank, each with a device, a model shard and a KV cache.
pub mod runner;

/// The decoder: configuration, weights, and a forward pass that reads like the paper's equations.
pub mod model;

/// Collective operations between the ranks of a tensor-parallel group.
pub mod comm;

/// The operations a decoder needs, and the devices that provide them.
pub mod device;

/// What a step takes on GPUs that need not be there: the roofline as arithmetic.
pub mod cost;

/// Simulated GPUs: an executor for the real engine, and the scheduler in virtual time.
pub mod simulator;

/// Checkpoints converted on disk: quantised, or imported from NVIDIA's own format.
pub mod offline;

/// Load client for servers with OpenAI's API: arrivals, requests, latencies, reports.
pub mod load;

/// Line charts, bands and cumulative distributions as SVG.
pub mod plot;

/// Random numbers that are a function of a seed.
pub mod random;

/// Mean, standard deviation and percentiles of values.
pub mod statistics;

/// Command line, environment and file to one validated configuration.
pub mod config;

/// The subcommands of the binary.
pub mod commands;
