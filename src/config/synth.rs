//! Arguments of `octant synth`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `octant synth`.
#[derive(Debug, Clone, Args)]
pub struct SynthArgs {
    /// The recipe, a TOML file such as deploy/synth.toml
    #[arg(value_name = "RECIPE.toml")]
    pub(crate) recipe: PathBuf,
    /// Folder of the stages' files, the exports and the report; absent, empty, or left by an interrupted run
    /// [default: the recipe's path without its ending]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Estimate requests, tokens and time, and send nothing. The time needs `tokens_per_second` and
    /// `prompt_tokens_per_second` of each role in the recipe
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Make stages whose settings have changed again, and those after them
    #[arg(long)]
    pub(crate) restart: bool,
}
