//! Settings of speculative decoding.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::parsers::{got, whole};
use crate::hub::ModelName;
use crate::scheduler::MAX_DRAFTS;

/// Speculative decoding.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpeculationArgs {
    /// Speculative decoding: drafts of the next tokens are computed in one step where that is expected to be
    /// faster. It changes no token and no log-probability. `off`; `ngram`, text that the prompt or the answer
    /// repeats; or a draft model, a small model of the same tokenizer as a directory or a name like --model
    #[arg(
        long,
        env = "OCTANT_SPECULATE",
        value_name = "off|ngram|DIR|NAME",
        default_value = "off",
        value_parser = speculate(),
        aliases = [
            "speculative-algorithm",
            "spec-type",
            "speculative-model",
            "speculative-draft-model-path",
            "model-draft"
        ]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Speculate {
    /// No speculative decoding.
    Off,
    /// Text that the prompt or the answer repeats.
    Ngram,
    /// A draft model: its directory, or its name.
    Draft(PathBuf),
}

impl Speculate {
    /// The directory or the name of the draft model, if there is one.
    pub(crate) fn draft_model(&self) -> Option<&PathBuf> {
        match self {
            Self::Off | Self::Ngram => None,
            Self::Draft(path) => Some(path),
        }
    }
}

/// Reads a source of drafts. A word that is neither a method nor a directory is most likely a method that
/// another server has.
pub(super) fn speculate() -> impl TypedValueParser<Value = Speculate> {
    PathBufValueParser::new().try_map(|path| {
        let text = path.to_string_lossy().into_owned();
        match text.to_ascii_lowercase().as_str() {
            "off" => return Ok(Speculate::Off),
            "ngram" | "prompt_lookup" | "ngram-simple" => return Ok(Speculate::Ngram),
            _ => {}
        }
        if !text.contains('/') && !path.is_dir() {
            bail!("expected off, ngram, or the directory or name of a draft model, {}", got(&text));
        }
        match ModelName::from_path(&path) {
            Ok(_) => Ok(Speculate::Draft(path)),
            Err(message) => Err(anyhow!(message)),
        }
    })
}

impl SpeculationArgs {
    /// Default of `--speculative-tokens`.
    pub(crate) const TOKENS: usize = 8;

    /// The most drafts of a row; 0 without speculative decoding.
    pub(crate) fn max_drafts(&self) -> usize {
        match self.speculate {
            Speculate::Off => 0,
            Speculate::Ngram | Speculate::Draft(_) => self.speculative_tokens,
        }
    }
}
