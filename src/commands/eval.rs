//! `octant eval`: measures of a served model.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::config::{EvalCommand, EvalIfEvalArgs, EvalPerplexityArgs, EvalRewardBenchArgs, EvalServerArgs};
use crate::eval::ifeval::{self, Answerer};
use crate::eval::perplexity::{self, PerplexitySettings};
use crate::eval::reward_bench::{self, RewardBenchSettings};
use crate::eval::{EvalClient, RequestError};
use crate::http_client::Target;
use crate::stdio::results::print;
use crate::stdio::{Log, OutputFile, ProgressDisplay};

/// Interval of the figures beside the bar.
const REFRESH: Duration = Duration::from_millis(200);

/// Runs an evaluation, prints its table and writes its JSON file.
pub fn run(command: &EvalCommand, log: &Log) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = OutputFile::open("--output", command.output())?;
    let (table, json) = match command {
        EvalCommand::RewardBench(args) => {
            let report = runtime.block_on(reward_bench(args, log))?;
            (report.table, report.json)
        }
        EvalCommand::IfEval(args) => {
            let report = match &args.responses {
                Some(responses) => ifeval::score_given(&args.file, responses)?,
                None => runtime.block_on(ifeval(args, log))?,
            };
            (report.table, report.json)
        }
        EvalCommand::Perplexity(args) => {
            let report = runtime.block_on(perplexity(args, log))?;
            (report.table, report.json)
        }
    };
    print(&table)?;
    if let Some(file) = output {
        file.write(&(serde_json::to_string_pretty(&json)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn reward_bench(
    args: &EvalRewardBenchArgs,
    log: &Log,
) -> anyhow::Result<reward_bench::RewardBenchReport> {
    let (client, model) = connect(&args.server).await?;
    let settings = RewardBenchSettings { model: &model, weights: args.weights.as_ref() };
    let mut progress = EvalProgress::start(log, "rows");
    let mut on_progress = |done, all| progress.set(done, all);
    let report = reward_bench::run(&args.file, &settings, &client, &mut on_progress).await;
    progress.display.finish();
    Ok(report?)
}

async fn ifeval(args: &EvalIfEvalArgs, log: &Log) -> anyhow::Result<ifeval::IfEvalReport> {
    let (client, model) = connect(&args.server).await?;
    let answerer = Answerer { client: &client, model: &model, max_tokens: args.max_tokens };
    let mut progress = EvalProgress::start(log, "answers");
    let report = ifeval::generate(&args.file, &answerer, &mut |done, all| progress.set(done, all)).await;
    progress.display.finish();
    Ok(report?)
}

async fn perplexity(args: &EvalPerplexityArgs, log: &Log) -> anyhow::Result<perplexity::PerplexityReport> {
    let (client, model) = connect(&args.server).await?;
    let settings =
        PerplexitySettings { model: &model, max_length: args.max_length, prefix: args.prefix_token };
    let mut progress = EvalProgress::start(log, "windows");
    let mut on_progress = |done, all| progress.set(done, all);
    let report = perplexity::run(&args.file, &settings, &client, &mut on_progress).await;
    progress.display.finish();
    Ok(report?)
}

/// The client of a server, and the name of its model.
async fn connect(args: &EvalServerArgs) -> anyhow::Result<(EvalClient, String)> {
    let key = args.api_key.as_deref().filter(|key| !key.is_empty());
    let target = Target::parse(&args.url, key)?;
    let client = EvalClient::new(target, Duration::from_secs_f64(args.timeout), args.concurrency);
    let model = match &args.model {
        Some(name) => Ok(name.clone()),
        None => client.first_model().await,
    };
    let model = model.map_err(|error: RequestError| anyhow::Error::new(error));
    Ok((client, model.with_context(|| format!("no model from {}", args.url))?))
}

/// Shows the number of requests that have ended.
struct EvalProgress {
    display: ProgressDisplay,
    /// Name of the requests.
    unit: &'static str,
}

impl EvalProgress {
    fn start(log: &Log, unit: &'static str) -> Self {
        Self { display: ProgressDisplay::start(&log.handle().bars, "{bar:32} {msg}"), unit }
    }

    fn set(&mut self, done: usize, all: usize) {
        self.display.set_position(done as u64, Some(all as u64));
        if self.display.is_due(REFRESH) {
            let line = format!("{done} of {all} {}", self.unit);
            self.display.show(&line, &line);
        }
    }
}
