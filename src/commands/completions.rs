//! `octant completions`: the script with which a shell completes commands and flags.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::{CompletionsArgs, command};

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "octant", &mut script);
    std::io::stdout().write_all(&script).context("cannot write the script")?;
    Ok(ExitCode::SUCCESS)
}
