//! Arguments of `octant batch`: its own and the settings of `octant serve`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command as Clap, FromArgMatches};

use super::parsers::{at_least_1, at_least_1_second, seconds};
use super::{ConfigError, ServeArgs};
use crate::tools::ToolFormat;

/// Headings of settings of the server around the engine.
const SERVER_HEADINGS: [&str; 4] = ["Network", "Admission", "Batches", "Timeouts and shutdown"];

/// Makes [`KeptSettings`] and the list of their names.
macro_rules! kept_settings {
    ($( $group:ident.$name:ident: $kind:ty, )*) => {
        /// Settings under [`SERVER_HEADINGS`] that the server's state has in a run with a model too. The code
        /// that makes the state names every field, so no setting can be accepted here and ignored there.
        pub(crate) struct KeptSettings {
            $( pub(crate) $name: $kind, )*
        }

        /// The names of [`KeptSettings`].
        const KEPT: &[&str] = &[$( stringify!($name) ),*];

        impl KeptSettings {
            /// Copies the settings.
            pub(crate) fn of(config: &ServeArgs) -> Self {
                Self { $( $name: config.$group.$name, )* }
            }
        }
    };
}

kept_settings! {
    network.tool_call_parser: Option<ToolFormat>,
    network.reject_unknown_fields: bool,
}

/// Settings under these headings that `launch` reads, which starts the engine with and without a server.
const READ_BY_LAUNCH: [&str; 1] = ["step_timeout"];

/// Settings that this command has with `--endpoint`.
const WITH_ENDPOINT: [&str; 1] = ["api_key"];
/// Settings that this command has only with `--endpoint`.
const ONLY_WITH_ENDPOINT: [&str; 3] = ["api_key", "request_timeout", "give_up"];
/// The argument that is the model without a flag.
const DIRECTORY: &str = "directory";

/// Arguments of `octant batch`.
#[derive(Debug, Clone)]
pub struct BatchFileArgs {
    /// Files, and servers if there are any.
    pub(crate) run: BatchRunArgs,
    /// The model and its settings; `None` with `--endpoint`.
    pub(crate) model: Option<Box<ServeArgs>>,
    /// API key of the servers.
    pub(crate) api_key: Option<String>,
}

/// Arguments of `octant batch` that `octant serve` does not have.
#[derive(Debug, Clone, Args)]
pub(crate) struct BatchRunArgs {
    /// Requests, one a line, as in OpenAI's Batch API: custom_id, method, url and body
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// File to which the answers of requests that succeeded are appended
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// File to which the errors of all other requests are appended. If it is deleted, the next run repeats
    /// these requests [default: OUT with .errors before its ending]
    #[arg(long, value_name = "FILE")]
    pub(crate) errors: Option<PathBuf>,
    /// Maximum requests in flight; with --endpoint, for each server [default: twice --max-num-seqs; with
    /// --endpoint, 64]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub(crate) concurrency: Option<usize>,
    /// Base URL of a running server that answers the requests, with or without /v1; no model is loaded then.
    /// It can be given several times: the servers share the file. For https, SSL_CERT_FILE can name a file of
    /// root certificates
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Vec<String>,
    /// Maximum seconds of a request to a server
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = at_least_1_second)]
    pub(crate) request_timeout: Duration,
    /// Seconds without an answer of any server after which the run ends
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub(crate) give_up: Duration,
}

impl BatchRunArgs {
    /// The error file.
    pub(crate) fn errors(&self) -> PathBuf {
        self.errors.clone().unwrap_or_else(|| {
            let mut name = OsString::from(self.output.file_stem().unwrap_or_default());
            name.push(".errors");
            if let Some(ending) = self.output.extension() {
                name.push(".");
                name.push(ending);
            }
            self.output.with_file_name(name)
        })
    }
}

impl BatchFileArgs {
    /// Checks rules that involve more than one setting. `typed` says whether an argument was given on the
    /// command line, `given` whether it was given in any way.
    pub(super) fn check(
        &self,
        typed: impl Fn(&str) -> bool,
        given: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        let with_servers = !self.run.endpoint.is_empty();
        let wrong = |setting: String, message: &str| Err(ConfigError::new(setting, message));
        for arg in server_settings().get_arguments().filter(|arg| typed(arg.get_id().as_str())) {
            let id = arg.get_id().as_str();
            if with_servers && !WITH_ENDPOINT.contains(&id) {
                return wrong(flag(id), "expected no setting of a model here with --endpoint");
            }
            if !has_effect(arg) {
                return wrong(flag(id), "octant batch has no such setting, since it is no server");
            }
        }
        if with_servers && typed(DIRECTORY) {
            return wrong("MODEL".to_owned(), "expected no model with --endpoint");
        }
        if let Some(id) = ONLY_WITH_ENDPOINT.into_iter().find(|id| !with_servers && typed(id)) {
            return wrong(flag(id), "needs --endpoint");
        }
        self.model.as_ref().map_or(Ok(()), |model| model.check(given))
    }
}

pub(super) fn flag(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

/// Whether `octant batch` has a setting of the server.
fn has_effect(arg: &Arg) -> bool {
    let id = arg.get_id().as_str();
    !is_about_server(arg) || KEPT.contains(&id) || WITH_ENDPOINT.contains(&id)
}

/// Whether a setting is about the server above the engine, so that it has no effect without one.
pub(super) fn is_about_server(arg: &Arg) -> bool {
    let of_server = arg.get_help_heading().is_some_and(|heading| SERVER_HEADINGS.contains(&heading));
    of_server && !READ_BY_LAUNCH.contains(&arg.get_id().as_str())
}

/// The settings of `octant serve`.
pub(super) fn server_settings() -> Clap {
    ServeArgs::augment_args(Clap::new("serve"))
}

impl FromArgMatches for BatchFileArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let run = BatchRunArgs::from_arg_matches(matches)?;
        let api_key = matches.get_one::<String>("api_key").cloned();
        let has_model = run.endpoint.is_empty() && matches.contains_id("model");
        let model = if has_model { Some(Box::new(ServeArgs::from_arg_matches(matches)?)) } else { None };
        Ok(Self { run, model, api_key })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for BatchFileArgs {
    fn augment_args(command: Clap) -> Clap {
        let command = ServeArgs::augment_args(BatchRunArgs::augment_args(command));
        let command = command.mut_args(|arg| {
            let hidden = !has_effect(&arg);
            arg.hide(hidden)
        });
        command
            .mut_arg("api_key", |key| key.help("API key of the servers of --endpoint"))
            .mut_arg("model", |model| model.required(false))
    }

    fn augment_args_for_update(command: Clap) -> Clap {
        Self::augment_args(command)
    }
}
