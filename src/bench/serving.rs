//! `octant bench serving`: load-tests any server with OpenAI's API.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::bench::load_client::arrivals::{Rate, Spacing};
use crate::bench::load_client::body::{Bodies, Endpoint};
use crate::bench::load_client::client::Client;
use crate::bench::load_client::drive::{self, LoadTestPlan, LoadTestProgress, Pace};
use crate::bench::load_client::measure::{Objectives, Summary};
use crate::bench::load_client::prompts::PromptSource;
use crate::bench::load_client::{load_plot, load_report};
use crate::config::{ArrivalName, BenchServingArgs, EndpointName};
use crate::http_client::Target;
use crate::stdio::results::print;
use crate::stdio::{Log, OutputFile, ProgressDisplay};

/// Number of requests if neither --requests nor --duration is given.
const DEFAULT_REQUESTS: u64 = 100;

/// Runs the benchmark and writes its reports. Exits with status 1 if no request succeeded.
pub fn run(args: &BenchServingArgs, log: &Log) -> anyhow::Result<ExitCode> {
    // A single thread: see the header of `load_client`.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args, log))
}

async fn measure(args: &BenchServingArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let json_file = OutputFile::open("--json", args.json.as_deref())?;
    let plot_file = OutputFile::open("--plot", args.plot.as_deref())?;
    let plan = plan(args).await?;
    tracing::info!("{}, model {}: {}", args.url, plan.bodies.model, describe(&plan));
    let mut display = RunDisplay::start(&plan, log);
    let stop = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler, the signal ends the process by itself.
            std::future::pending::<()>().await;
        }
    };
    let run = drive::run(&plan, stop, &mut |progress| display.update(progress)).await;
    display.display.finish();
    let objectives = Objectives {
        ttft_ms: args.slo_ttft,
        itl_ms: args.slo_itl,
        tpot_ms: args.slo_tpot,
        e2e_ms: args.slo_e2e,
    };
    let summary = Summary::of(&run, objectives);
    print(&load_report::text(&summary, plan.bodies.prompts.distinct()))?;
    if let Some(file) = json_file {
        let json = load_report::json(&summary, settings(args, &plan), &run);
        file.write(&serde_json::to_string_pretty(&json)?)?;
    }
    if let Some(file) = plot_file {
        file.write(&load_plot::svg(&run, &format!("{}: {}", plan.bodies.model, describe(&plan)))?)?;
    }
    Ok(if summary.ok > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn plan(args: &BenchServingArgs) -> anyhow::Result<LoadTestPlan> {
    let duration = args.duration.map(Duration::from_secs_f64);
    let timeout = Duration::from_secs_f64(args.timeout);
    let target = Target::parse(&args.url, args.api_key.as_deref())?;
    let prompts = match &args.prompts {
        Some(path) => PromptSource::from_file(path)?,
        None => PromptSource::Synthetic {
            tokens: args.prompt_tokens,
            shared_prefix: args.shared_prefix,
            seed: args.seed,
        },
    };
    let endpoint = match args.endpoint {
        EndpointName::Chat => Endpoint::Chat,
        EndpointName::Completions => Endpoint::Completions,
    };
    anyhow::ensure!(
        endpoint == Endpoint::Chat || !prompts.need_chat(),
        "the file has `messages`, which only --endpoint chat can send"
    );
    anyhow::ensure!(
        args.shared_prefix <= args.prompt_tokens,
        "--shared-prefix is longer than --prompt-tokens"
    );
    let extra: Map<String, Value> = match &args.extra_body {
        Some(text) => serde_json::from_str(text).context("--extra-body: expected a JSON object")?,
        None => Map::new(),
    };
    let pace = pace(args)?;
    let model = match &args.model {
        Some(name) => name.clone(),
        None => Client::new(target.clone(), timeout).first_model().await?,
    };
    Ok(LoadTestPlan {
        target,
        bodies: Bodies {
            prompts,
            endpoint,
            model,
            max_tokens: args.max_tokens,
            ignore_eos: args.ignore_eos,
            temperature: args.temperature,
            extra,
        },
        pace,
        requests: args.requests.or(duration.is_none().then_some(DEFAULT_REQUESTS)),
        duration,
        warm_up: args.warm_up,
        timeout,
        seed: args.seed,
    })
}

fn pace(args: &BenchServingArgs) -> anyhow::Result<Pace> {
    let spacing = match (args.arrivals, args.burstiness) {
        (ArrivalName::Gamma, burstiness) => Spacing::Gamma { burstiness: burstiness.unwrap_or(1.0) },
        (_, Some(_)) => anyhow::bail!("--burstiness: expected --arrivals gamma with it"),
        (ArrivalName::Poisson, None) => Spacing::Poisson,
        (ArrivalName::Constant, None) => Spacing::Constant,
    };
    match (args.rate, args.concurrency) {
        (Some(rate), most) => {
            anyhow::ensure!(
                rate.from == rate.to || args.duration.is_some(),
                "--rate: a changing rate needs --duration"
            );
            Ok(Pace::Open { rate: Rate { from: rate.from, to: rate.to }, spacing, max_concurrency: most })
        }
        (None, Some(concurrency)) => Ok(Pace::Closed { concurrency }),
        (None, None) => anyhow::bail!("--rate or --concurrency must be given"),
    }
}

/// The plan as one line of text.
fn describe(plan: &LoadTestPlan) -> String {
    let mut text = match plan.pace {
        Pace::Closed { concurrency } => format!("closed loop, {concurrency} at once"),
        Pace::Open { rate, spacing, max_concurrency: most } => {
            let spacing = match spacing {
                Spacing::Constant => "constant".to_owned(),
                Spacing::Poisson => "Poisson".to_owned(),
                Spacing::Gamma { burstiness } => format!("gamma, burstiness {burstiness}"),
            };
            let rate = match rate {
                Rate { from, to } if from == to => from.to_string(),
                Rate { from, to } => format!("{from} to {to}"),
            };
            let most = most.map_or(String::new(), |most| format!(", at most {most} at once"));
            format!("open loop, {rate} requests/s, {spacing}{most}")
        }
    };
    if let Some(requests) = plan.requests {
        text.push_str(&format!(", {requests} requests"));
    }
    if let Some(duration) = plan.duration {
        text.push_str(&format!(", {} s", duration.as_secs_f64()));
    }
    text
}

/// Settings for the JSON report, enough to repeat the run. Omits the API key.
fn settings(args: &BenchServingArgs, plan: &LoadTestPlan) -> Value {
    json!({
        "url": args.url,
        "endpoint": plan.bodies.endpoint.path(),
        "model": plan.bodies.model,
        "pace": describe(plan),
        "requests": plan.requests,
        "duration_s": args.duration,
        "warm_up": args.warm_up,
        "timeout_s": args.timeout,
        "seed": args.seed,
        "prompts": args.prompts,
        "prompt_tokens": args.prompts.is_none().then_some(args.prompt_tokens),
        "shared_prefix": args.prompts.is_none().then_some(args.shared_prefix),
        "max_tokens": args.max_tokens,
        "ignore_eos": args.ignore_eos,
        "temperature": args.temperature,
        "extra_body": plan.bodies.extra,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Shows the progress of a run.
struct RunDisplay {
    display: ProgressDisplay,
    requests: Option<u64>,
    /// Chunks and elapsed time at the last line, for the rate since then.
    before: (u64, Duration),
}

impl RunDisplay {
    fn start(plan: &LoadTestPlan, log: &Log) -> Self {
        let template = if plan.requests.is_some() { "{bar:32} {msg}" } else { "{spinner} {msg}" };
        let display = ProgressDisplay::start(&log.handle().bars, template);
        Self { display, requests: plan.requests, before: (0, Duration::ZERO) }
    }

    fn update(&mut self, progress: &LoadTestProgress) {
        self.display.set_position(if progress.warming_up { 0 } else { progress.ended }, self.requests);
        if progress.elapsed < self.before.1 {
            // The warm-up has ended and the measured run has begun.
            self.before = (0, Duration::ZERO);
        }
        if !self.display.is_due(Duration::from_secs(1)) {
            return;
        }
        let seconds = (progress.elapsed - self.before.1).as_secs_f64();
        let line = line(progress, progress.chunks.saturating_sub(self.before.0) as f64 / seconds.max(1e-9));
        self.before = (progress.chunks, progress.elapsed);
        self.display.show(&line, &line);
    }
}

/// One line of progress.
fn line(progress: &LoadTestProgress, chunks_per_second: f64) -> String {
    let LoadTestProgress { warming_up, elapsed, sent, ended, failed, .. } = progress;
    let phase = if *warming_up { "warming up, " } else { "" };
    format!(
        "{phase}{:.0} s: {ended} ended, {} out, {failed} failed, {chunks_per_second:.0} chunks/s",
        elapsed.as_secs_f64(),
        sent - ended
    )
}
