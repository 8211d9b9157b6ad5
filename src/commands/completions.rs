//! `octant completions`: the script with which a shell completes commands and flags.

use std::process::ExitCode;

use crate::config::{CompletionsArgs, command};
use crate::stdio::results::print;

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "octant", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
