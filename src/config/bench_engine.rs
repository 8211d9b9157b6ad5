//! Arguments of `octant bench throughput` and `octant bench latency`: their own, named as in vLLM, and those
//! settings of `octant serve` that are not about a server.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command as Clap, FromArgMatches};

use super::batch;
use super::parsers::{at_least_0, at_least_1, position_count};
use super::{ConfigError, ServeArgs};

/// A benchmark's own arguments, and the settings of the engine that it starts.
#[derive(Debug, Clone)]
pub struct WithEngine<A> {
    /// The benchmark's own arguments.
    pub(crate) run: A,
    /// The model and its settings.
    pub(crate) model: ServeArgs,
}

/// Own arguments of `octant bench throughput`.
#[derive(Debug, Clone, Args)]
pub struct BenchThroughputArgs {
    /// Requests, all submitted at once
    #[arg(long, value_name = "N", default_value = "1000", value_parser = at_least_1)]
    pub(crate) num_prompts: usize,
    /// Prompt tokens of each request, drawn at random, so that no two prompts share a prefix
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = position_count())]
    pub(crate) input_len: usize,
    /// Generated tokens and output file.
    #[command(flatten)]
    pub(crate) lengths: RequestLengths,
}

/// Own arguments of `octant bench latency`.
#[derive(Debug, Clone, Args)]
pub struct BenchLatencyArgs {
    /// Requests of a batch, submitted together; at most --max-num-seqs
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_1)]
    pub(crate) batch_size: usize,
    /// Timed batches
    #[arg(long, value_name = "N", default_value = "30", value_parser = at_least_1)]
    pub(crate) num_iters: usize,
    /// Untimed batches before them
    #[arg(long, value_name = "N", default_value = "10", value_parser = at_least_0::<usize>)]
    pub(crate) num_iters_warmup: usize,
    /// Prompt tokens of each request, drawn at random, so that no two prompts share a prefix
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = position_count())]
    pub(crate) input_len: usize,
    /// Generated tokens and output file.
    #[command(flatten)]
    pub(crate) lengths: RequestLengths,
}

/// Generated tokens of each request, and where the figures go.
#[derive(Debug, Clone, Args)]
pub(crate) struct RequestLengths {
    /// Generated tokens of each request; no token ends an answer
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = position_count())]
    pub(crate) output_len: usize,
    /// Seed of the prompts
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// Also write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) output_json: Option<PathBuf>,
}

impl<A> WithEngine<A> {
    /// Checks rules that involve more than one setting. `typed` says whether an argument was given on the
    /// command line, `given` whether it was given in any way.
    pub(super) fn check(
        &self,
        typed: impl Fn(&str) -> bool,
        given: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        let settings = batch::server_settings();
        let mut about_server = settings.get_arguments().filter(|arg| batch::is_about_server(arg));
        if let Some(arg) = about_server.find(|arg| typed(arg.get_id().as_str())) {
            let flag = batch::flag(arg.get_id().as_str());
            return Err(ConfigError::new(
                flag,
                "octant bench has no such setting here, since it is no server",
            ));
        }
        self.model.check(given)
    }
}

impl<A: FromArgMatches> FromArgMatches for WithEngine<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { run: A::from_arg_matches(matches)?, model: ServeArgs::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<A: Args> Args for WithEngine<A> {
    fn augment_args(command: Clap) -> Clap {
        ServeArgs::augment_args(A::augment_args(command)).mut_args(|arg| {
            let hidden = batch::is_about_server(&arg);
            arg.hide(hidden)
        })
    }

    fn augment_args_for_update(command: Clap) -> Clap {
        Self::augment_args(command)
    }
}
