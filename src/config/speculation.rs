//! Settings of speculative decoding.

use clap::{Args, ValueEnum};

use super::parsers::whole;
use crate::scheduler::MAX_DRAFTS;

/// Speculative decoding.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpeculationArgs {
    /// Speculative decoding: drafts of the next tokens are computed in one step where that is expected to be
    /// faster. It changes no token and no log-probability
    #[arg(
        long,
        env = "OCTANT_SPECULATE",
        value_name = "METHOD",
        default_value = "off",
        ignore_case = true,
        aliases = ["speculative-algorithm", "spec-type"]
    )]
    pub(crate) speculate: Speculate,
    /// Maximum drafts of a sequence in one step; fewer are fed where they are rejected too often
    #[arg(
        long,
        env = "OCTANT_SPECULATIVE_TOKENS",
        value_name = "N",
        default_value_t = Self::TOKENS,
        value_parser = whole::<usize>(1, MAX_DRAFTS as u64),
        aliases = [
            "num-speculative-tokens",
            "speculative-num-draft-tokens",
            "draft-max",
            "draft-n",
            "draft"
        ]
    )]
    pub(crate) speculative_tokens: usize,
}

/// The source of drafts for speculative decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculate {
    /// No speculative decoding.
    Off,
    /// Text that the prompt or the answer repeats.
    #[value(alias = "prompt_lookup", alias = "ngram-simple")]
    Ngram,
}

impl SpeculationArgs {
    /// Default of `--speculative-tokens`.
    pub(crate) const TOKENS: usize = 8;

    /// The most drafts of a row; 0 without speculative decoding.
    pub(crate) fn max_drafts(&self) -> usize {
        match self.speculate {
            Speculate::Off => 0,
            Speculate::Ngram => self.speculative_tokens,
        }
    }
}
