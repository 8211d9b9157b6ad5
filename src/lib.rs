//! Octant serves the Nemotron-4 340B family in FP8 from one DGX H100: an OpenAI-compatible front end, a
//! continuous-batching scheduler, a paged KV cache, and a model generic over the device that runs it.
//!
//! The modules below are in the order in which a request passes through them. Read [`generation`] and
//! [`engine`] first: the former is the path from text to tokens and back, the latter is the step loop.
//!
//! # Invariants
//! - The engine handles tokens only; text ends at [`generation`].
//! - The scheduler uses no GPU, clock, IO or randomness.
//! - No module below [`server`] knows OpenAI's JSON.
//! - All device memory is allocated at start-up.
//! - The crate has no global mutable state.
//! - Every request is answered exactly once.
//! - A request's tokens do not depend on the other requests in its batch.
//!
//! A test enforces the table of allowed imports in `tests/it/tidy.rs`.

/// The HTTP server: the only module that knows axum and OpenAI's JSON.
pub mod server;

/// Files and batches on disk, and what runs their lines.
pub mod batch;

/// The data path of one request: chat template, tokenizer, engine, detokenizer.
pub mod generation;

/// Strings to tokens and back: chat template, tokenizer, incremental detokenizer, stop strings.
pub mod text;

/// Grammars that constrain answers: structured output.
pub mod grammar;

/// Tools that a model can call: formats, parser, grammar.
pub mod tools;

/// Requests to the engine and updates from it, as plain data.
pub mod request;

/// The step loop, the usage of every open request, and the trait that an executor of steps implements.
pub mod engine;

/// Decides which tokens run next and in which KV blocks. Pure functions of the requests.
pub mod scheduler;

/// Executes step plans with one thread per rank; each has a device, a shard of the model and a KV cache.
pub mod runner;

/// The decoder: configuration, weights and forward pass.
pub mod model;

/// Collective operations between the ranks of a tensor-parallel group.
pub mod comm;

/// The operations a decoder needs, and the devices that provide them.
pub mod device;

/// The cost model: predicts the time of a step on a GPU from its roofline.
pub mod cost;

/// Simulated GPUs: an executor whose steps take the predicted time, and simulations in virtual time.
pub mod simulator;

/// Conversion of checkpoints on disk: quantisation, and import of NVIDIA's NeMo format.
pub mod offline;

/// Line charts, bands and cumulative distributions as SVG.
pub mod plot;

/// Random numbers as a function of a seed.
pub mod random;

/// Mean, standard deviation and percentiles of values.
pub mod statistics;

/// Regular expressions as Python's `re` reads them.
pub mod python_regex;

/// CPU cores and available memory of this machine.
pub mod machine;

/// HTTP client for servers with OpenAI's API.
pub mod http_client;

/// Measures of a served model: RewardBench, IFEval, perplexity.
pub mod eval;

/// The log on standard error, and results on standard output.
pub mod stdio;

/// Models by name from the Hugging Face hub, and the cache that they are stored in.
pub mod hub;

/// Settings from the command line, the environment and a file.
pub mod config;

/// Synthetic data: the stages of a recipe, and the data sets for trainers.
pub mod synth;

/// Opens the devices, plans the memory, loads the weights and starts the engine.
pub mod launch;

/// The benchmarks of the binary.
pub mod bench;

/// The other commands of the binary.
pub mod commands;
