//! Synthetic data: a recipe's stages from topics to preference pairs, and the files that trainers read.
//!
//! A model writes prompts and answers, a reward model scores them, and scores or ground truth choose pairs.
//! Each stage reads the records of the stages before it and writes a JSONL file that a person can read
//! ([`records`]). Models are reached through OpenAI's API alone; a local one is a child process.
//!
//! | module | what it does |
//! |---|---|
//! | `recipe` | the TOML file, its checks, and the templates of prompts |
//! | `records` | the lines of all files, and the ids that lead from a topic to a pair |
//! | `journal` | files of a stage: append, resume, finish in a stable order |
//! | `endpoint`, `limiter`, `back_off` | requests, attempts, pauses of a full server, requests at once |
//! | `servers` | local models as child processes |
//! | `stages` | the stages |
//! | `run` | a whole run and its summary |
//! | `choice`, `pairs`, `dedup`, `decontaminate` | choices that need no model |
//! | `export`, `report` | files for trainers and for people |

pub mod back_off;
mod checker;
mod choice;
pub mod decontaminate;
pub mod dedup;
mod endpoint;
mod error;
mod estimate;
pub mod export;
mod journal;
mod limiter;
mod list;
mod outputs;
pub mod pairs;
pub mod recipe;
mod records;
pub mod report;
mod run;
mod samples;
mod servers;
mod stages;
mod templates;
mod words;
mod workers;

pub use error::SynthError;
pub use run::{RunOptions, run};
pub use servers::Stop;
