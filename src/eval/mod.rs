//! Measures of a served model: RewardBench for its scores, IFEval for its answers, perplexity for its
//! log-probabilities. They speak to any server with OpenAI's API, and to `/v1/reward` for scores.
//!
//! Each evaluation reads JSON Lines, sends its requests at once within a limit, and returns a report that has
//! a table and a JSON form. Neither depends on the order in which the server answers.

mod client;
mod error;
mod request_error;
mod rows;
mod table;

/// IFEval: 25 rules on the form of an answer, checked by programs.
pub(crate) mod ifeval;
/// Perplexity of texts over rolling windows.
pub(crate) mod perplexity;
/// RewardBench, versions 1 and 2: whether a reward model prefers the better answer.
pub(crate) mod reward_bench;

pub(crate) use client::EvalClient;
pub(crate) use request_error::RequestError;

/// Called with the number of requests that have ended and the number of all.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(usize, usize);
