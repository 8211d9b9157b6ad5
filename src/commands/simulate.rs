//! `octant simulate`: runs the scheduler in virtual time over random, read or recorded requests.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::config::{
    AdmissionArgs, MeanAndCv, PolicyArgs, SchedulingArgs, SimulateArgs, Speculate, SpeculationArgs,
    TwoBatches, target_itl,
};
use crate::device::Layout;
use crate::engine::{SchedulerConfig, TargetItl};
use crate::hub::{self, Part};
use crate::launch::cost_inputs::{CostInputs, Overrides, forecast, step_times};
use crate::launch::devices::GPU_IN_FLIGHT;
use crate::launch::draft::shown_needs;
use crate::launch::simulated::usable_memory;
use crate::model::StepRoom;
use crate::runner::{MemoryNeeds, MemoryPlan};
use crate::scheduler::Policy;
use crate::simulator::replay::{self, Replayed};
use crate::simulator::simulation_plot::{self, PlottedRun};
use crate::simulator::simulation_report::{SimulationReport, Slo, predicted_and_actual_ttft, table};
use crate::simulator::trace::{Trace, TraceEnd};
use crate::simulator::virtual_time::VirtualTime;
use crate::simulator::workload::{self, Arrival, Spread, SyntheticWorkload, Workload};
use crate::simulator::{RequestTimeline, ServerSample, SimulatedDraftModel, SimulatedModel};
use crate::stdio::results::print;
use crate::stdio::{Log, OutputFile};

/// A finished run.
struct FinishedRun {
    name: String,
    timelines: Vec<RequestTimeline>,
    samples: Vec<ServerSample>,
}

/// Simulates and reports. Exits with status 1 if a replay differs from its recording.
pub fn run(mut args: SimulateArgs, log: &Log) -> anyhow::Result<ExitCode> {
    args.policy.check()?;
    if args.replay.is_none() {
        check_speculation(&args, None)?;
    }
    if let Some(config) = &mut args.config {
        *config = hub::directory(config, Part::Configuration, &log.handle().bars)?;
    }
    if let Some(Speculate::Draft(draft)) = &mut args.speculate {
        *draft = hub::directory(draft, Part::Configuration, &log.handle().bars).context("--speculate")?;
    }
    let args = &args;
    let files = ReportFiles::open(args)?;
    let runs = match &args.replay {
        Some(path) => match recorded(args, path)? {
            Some(runs) => runs,
            None => return Ok(ExitCode::FAILURE),
        },
        None => simulated(args)?,
    };
    report(args, &runs, files)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs once for each target for the inter-token latency.
fn simulated(args: &SimulateArgs) -> anyhow::Result<Vec<FinishedRun>> {
    let inputs = CostInputs::new(&overrides(args), None)?;
    let config = scheduler_config(args, &inputs, None)?;
    let (vocab, limit) = (config.vocab_size, config.max_sequence_tokens());
    let mut arrivals = match &args.trace {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            workload::parse(&text, vocab, args.seed).with_context(|| path.display().to_string())?
        }
        None => {
            let Workload { arrivals, cut } = synthetic(args)?.generate(vocab, limit);
            if cut > 0 {
                tracing::warn!("{cut} requests were shortened to {limit} tokens (--max-model-len)");
            }
            arrivals
        }
    };
    if let Some(acceptance) = args.acceptance.filter(|_| inputs.draft.is_none()) {
        workload::repeat_prompts(&mut arrivals, acceptance.into(), args.seed);
    }
    let cost = inputs.cost()?;
    let draft = inputs.draft_model(acceptance(args))?;
    let (forecast, step_times) = (forecast(&cost, &config, 1.0), step_times(&cost, draft.as_ref(), &config));
    let run = |name: String, target: TargetItl| {
        let model = SimulatedModel::scripted(cost.clone()).with_draft_model(draft.clone());
        let mut server = VirtualTime::new(config.clone(), GPU_IN_FLIGHT, model);
        server.set_forecast(forecast.clone().with_target_itl(target));
        server.set_step_times(step_times.clone());
        server.set_max_ttft(args.policy.max_ttft);
        for Arrival { at, request } in &arrivals {
            server.arrive(*at, vec![request.clone()]);
        }
        finish(name, server)
    };
    match args.target_itl[..] {
        [] => Ok(vec![run("simulated".to_owned(), TargetItl::default())?]),
        [target] => Ok(vec![run("simulated".to_owned(), target)?]),
        ref targets => targets.iter().map(|target| run(format!("target ITL {target}"), *target)).collect(),
    }
}

/// The share of a draft model's drafts that are accepted.
fn acceptance(args: &SimulateArgs) -> f64 {
    args.acceptance.map_or(SimulatedDraftModel::ACCEPTANCE, f64::from)
}

fn synthetic(args: &SimulateArgs) -> anyhow::Result<SyntheticWorkload> {
    let rate = args.poisson.context("--poisson: missing")?;
    let spread = |MeanAndCv { mean, cv }| Spread { mean, cv };
    Ok(SyntheticWorkload {
        requests: args.requests,
        interval: Spread { mean: 1.0 / rate.mean, cv: rate.cv },
        prompt: spread(args.prompt_tokens),
        answer: spread(args.answer_tokens),
        seed: args.seed,
    })
}

/// Runs to the end, and prints the virtual and the real time.
fn finish(name: String, mut server: VirtualTime) -> anyhow::Result<FinishedRun> {
    let start = Instant::now();
    server.run()?;
    tracing::info!("{name}: {:.1} s in {:.2} s", server.now(), start.elapsed().as_secs_f64());
    let timelines = server.timelines().into_iter().cloned().collect();
    Ok(FinishedRun { name, timelines, samples: server.samples().to_vec() })
}

/// Replays the recording. If a setting is given, also simulates its requests with the recorded settings and
/// with the given ones. `None` if the replay differs from the recording.
fn recorded(args: &SimulateArgs, path: &Path) -> anyhow::Result<Option<Vec<FinishedRun>>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let trace = Trace::parse(&bytes).with_context(|| path.display().to_string())?;
    match trace.end {
        TraceEnd::Complete => {}
        TraceEnd::Incomplete => {
            tracing::warn!("the recording ends before the server did: its disk was too slow")
        }
        TraceEnd::Cut(at) => tracing::warn!("the recording is cut off at byte {at} of {}", bytes.len()),
    }
    check_speculation(args, Some(&trace.header.config))?;
    let replayed = match replay::replay(&trace) {
        Ok(replayed) => replayed,
        Err(divergence) => {
            tracing::error!("the replay differs: {divergence}");
            return Ok(None);
        }
    };
    print(&format!("{} plans, all equal\n", replayed.plans))?;
    let timelines = replayed.groups.iter().flatten().map(|request| request.timeline.clone()).collect();
    let mut runs =
        vec![FinishedRun { name: "recorded".to_owned(), timelines, samples: replayed.samples.clone() }];
    if args.has_overrides() {
        ensure!(args.target_itl.len() <= 1, "--target-itl: expected one target with --replay");
        let recorded_target = recorded_target_itl(&trace.header.about)?;
        let about = Some(trace.header.about.as_slice());
        let as_recorded = Resimulation {
            name: "as recorded",
            inputs: CostInputs::new(&Overrides::default(), about)?,
            config: trace.header.config.clone(),
            max_ttft: None,
            target_itl: recorded_target,
            acceptance: acceptance(args),
        };
        let inputs = CostInputs::new(&overrides(args), about)?;
        let config = scheduler_config(args, &inputs, Some(&trace.header.config))?;
        let as_changed = Resimulation {
            name: "as changed",
            inputs,
            config,
            max_ttft: args.policy.max_ttft,
            target_itl: args.target_itl.first().copied().unwrap_or(recorded_target),
            acceptance: acceptance(args),
        };
        for resimulation in [as_recorded, as_changed] {
            runs.push(resimulation.run(&replayed, trace.header.in_flight)?);
        }
    }
    Ok(Some(runs))
}

/// A simulation of recorded requests.
struct Resimulation {
    name: &'static str,
    inputs: CostInputs,
    config: SchedulerConfig,
    max_ttft: Option<f64>,
    target_itl: TargetItl,
    /// The share of a draft model's drafts that are accepted.
    acceptance: f64,
}

impl Resimulation {
    fn run(self, replayed: &Replayed, in_flight: usize) -> anyhow::Result<FinishedRun> {
        let cost = self.inputs.cost()?;
        let forecast = forecast(&cost, &self.config, 1.0).with_target_itl(self.target_itl);
        let draft = self.inputs.draft_model(self.acceptance)?;
        let step_times = step_times(&cost, draft.as_ref(), &self.config);
        let model =
            SimulatedModel::scripted(cost).with_reward_head(self.config.reward_width).with_draft_model(draft);
        let mut server = VirtualTime::new(self.config, in_flight, model);
        server.set_forecast(forecast);
        server.set_step_times(step_times);
        server.set_max_ttft(self.max_ttft);
        replay::resimulate(replayed, &mut server);
        finish(self.name.to_owned(), server)
    }
}

/// The target of a recorded server.
fn recorded_target_itl(about: &[(String, String)]) -> anyhow::Result<TargetItl> {
    let text = about.iter().find(|(name, _)| name == "target_itl").map(|(_, value)| value.as_str());
    text.map_or(Ok(TargetItl::default()), |text| {
        target_itl(text).with_context(|| format!("the recording's target_itl: {text}"))
    })
}

/// Arguments that override a recording, or the defaults of the cost model.
fn overrides(args: &SimulateArgs) -> Overrides {
    Overrides {
        config: args.config.clone(),
        speculate: args.speculate.clone(),
        gpu: args.gpu.clone(),
        ranks: args.tp,
        precision: args.quantization,
        head: args.lm_head_dtype,
        kv: args.kv_cache_dtype,
        deterministic: args.deterministic,
        two_batch_tokens: args.two_batch_tokens,
    }
}

/// Takes each limit from the arguments, else from the recording, else the default of `octant serve`.
fn scheduler_config(
    args: &SimulateArgs,
    inputs: &CostInputs,
    recorded: Option<&SchedulerConfig>,
) -> anyhow::Result<SchedulerConfig> {
    let r = recorded;
    let model = &inputs.model;
    let max_num_seqs = args.max_num_seqs.or(r.map(|c| c.max_num_seqs));
    let max_num_seqs = max_num_seqs.unwrap_or(SchedulingArgs::MAX_NUM_SEQS);
    let max_num_batched_tokens = args.max_num_batched_tokens.or(r.map(|c| c.max_num_batched_tokens));
    let max_num_batched_tokens = max_num_batched_tokens.unwrap_or(SchedulingArgs::MAX_NUM_BATCHED_TOKENS);
    if let Some(tokens) = args.two_batch_tokens {
        let CostInputs { ranks, deterministic, .. } = *inputs;
        let two_batches =
            TwoBatches { tokens, ranks, ranks_option: "--tp", deterministic, max_num_batched_tokens };
        two_batches.check().map_err(|e| anyhow::anyhow!("{}: {e}", TwoBatches::OPTION))?;
    }
    let limit = model.max_positions;
    let max_model_len = args.max_model_len.or(r.map(|c| c.max_model_len)).unwrap_or(limit);
    ensure!(
        max_model_len <= limit,
        "--max-model-len: expected at most the model's {limit}, got {max_model_len}"
    );
    // The number of blocks is the recorded one unless an argument changes the size or the memory of the
    // cache.
    let resized = args.config.is_some()
        || args.kv_cache_memory.is_some()
        || args.tp.is_some()
        || args.gpu.is_some()
        || args.kv_cache_dtype.is_some()
        || args.quantization.is_some()
        || args.lm_head_dtype.is_some()
        || args.two_batch_tokens.is_some()
        || matches!(args.speculate, Some(Speculate::Draft(_)));
    let num_blocks = match r.filter(|_| !resized) {
        Some(recorded) => recorded.num_blocks,
        None => {
            let room = StepRoom {
                ranks: inputs.ranks,
                rows: max_num_batched_tokens,
                slots: max_num_seqs,
                deterministic: inputs.deterministic,
                two_batch_tokens: inputs.two_batch_tokens,
            };
            blocks(args, inputs, &room, max_model_len)?
        }
    };
    let requests = args.max_queue_requests.or(r.map(|c| c.max_queue_requests));
    let tokens = args.max_queue_tokens.or(r.map(|c| c.max_queue_tokens));
    let prefix_caching = args.enable_prefix_caching.or(r.map(|c| c.prefix_caching));
    Ok(SchedulerConfig {
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        num_blocks,
        vocab_size: r.map_or(model.vocab, |c| c.vocab_size),
        max_queue_requests: requests.unwrap_or(AdmissionArgs::MAX_QUEUE_REQUESTS),
        max_queue_tokens: tokens.unwrap_or(AdmissionArgs::MAX_QUEUE_TOKENS),
        prefix_caching: prefix_caching.unwrap_or(SchedulingArgs::PREFIX_CACHING),
        // Workloads generate; a recording may be of a model with a reward head.
        reward_width: r.map_or(0, |c| c.reward_width),
        policy: policy(&args.policy, r.map(|c| c.policy.clone()).unwrap_or_default()),
        max_drafts: max_drafts(args, r),
        draft_model: inputs.draft.is_some(),
    })
}

/// KV blocks that fit beside the model and the draft model.
///
/// # Errors
/// The models do not fit.
fn blocks(
    args: &SimulateArgs,
    inputs: &CostInputs,
    room: &StepRoom,
    max_model_len: usize,
) -> anyhow::Result<usize> {
    let share = inputs.model.share(inputs.ranks).map_err(anyhow::Error::msg).context("--tp")?;
    let (layout, precision, kv) = (&Layout::CUDA, inputs.precision, inputs.kv);
    let needs = MemoryNeeds::new(&share, layout, precision, kv, room);
    let memory = usable_memory(&inputs.hardware);
    let kv_memory = args.kv_cache_memory.map(|size| size.0);
    let plan = |needs| MemoryPlan::new(needs, memory, kv_memory, max_model_len, room.slots);
    let Some(draft) = &inputs.draft else { return Ok(plan(needs)?.blocks) };
    let share = draft.share(inputs.ranks).map_err(anyhow::Error::msg).context("--speculate")?;
    let draft = MemoryNeeds::of_draft(&share, layout, precision, kv, room);
    let plan = plan(needs.beside(&draft)).with_context(|| {
        let given = args.speculate.as_ref().and_then(Speculate::draft_model);
        let name = given.map_or("of the recording".into(), |dir| dir.to_string_lossy());
        shown_needs(&name, &draft)
    });
    Ok(plan.context("--speculate")?.blocks)
}

/// The most drafts of a row: from the arguments, else from the recording, else none.
fn max_drafts(args: &SimulateArgs, recorded: Option<&SchedulerConfig>) -> usize {
    let recorded = recorded.map_or(0, |config| config.max_drafts);
    let speculates = args.speculate.as_ref().map_or(recorded > 0, |method| *method != Speculate::Off);
    let usual = if recorded > 0 { recorded } else { SpeculationArgs::TOKENS };
    if speculates { args.speculative_tokens.unwrap_or(usual) } else { 0 }
}

/// Refuses settings of speculative decoding that would change nothing.
fn check_speculation(args: &SimulateArgs, recorded: Option<&SchedulerConfig>) -> anyhow::Result<()> {
    let speculates = max_drafts(args, recorded) > 0;
    let methods = "expected --speculate ngram or --speculate DIR with it";
    ensure!(args.speculative_tokens.is_none() || speculates, "--speculative-tokens: {methods}");
    if args.acceptance.is_none() {
        return Ok(());
    }
    let Some(recorded) = recorded else {
        ensure!(speculates, "--acceptance: {methods}");
        return Ok(());
    };
    let draft_model = recorded.draft_model || matches!(args.speculate, Some(Speculate::Draft(_)));
    ensure!(
        draft_model,
        "--acceptance: expected --speculate DIR with it, because --replay has the answers that drafts of \
         ngram are compared with"
    );
    Ok(())
}

/// Returns `base` with the policy settings that the command line gives.
fn policy(args: &PolicyArgs, base: Policy) -> Policy {
    Policy {
        ageing_steps: args.ageing_steps.unwrap_or(base.ageing_steps),
        max_preemptions: args.max_preemptions.unwrap_or(base.max_preemptions),
        kv_reserve: args.kv_reserve.unwrap_or(base.kv_reserve),
    }
}

/// The files of the reports that are asked for.
struct ReportFiles {
    json: Option<OutputFile>,
    svg: Option<OutputFile>,
    target_itl_svg: Option<OutputFile>,
    forecast_svg: Option<OutputFile>,
}

impl ReportFiles {
    fn open(args: &SimulateArgs) -> anyhow::Result<Self> {
        Ok(Self {
            json: OutputFile::open("--json", args.json.as_deref())?,
            svg: OutputFile::open("--svg", args.svg.as_deref())?,
            target_itl_svg: OutputFile::open("--target-itl-svg", args.target_itl_svg.as_deref())?,
            forecast_svg: OutputFile::open("--forecast-svg", args.forecast_svg.as_deref())?,
        })
    }
}

fn report(args: &SimulateArgs, runs: &[FinishedRun], files: ReportFiles) -> anyhow::Result<()> {
    let slo = Slo { ttft: args.slo_ttft, itl: args.slo_itl };
    let timelines: Vec<Vec<&RequestTimeline>> =
        runs.iter().map(|run| run.timelines.iter().collect()).collect();
    let report = |(run, timelines): (&FinishedRun, &Vec<&RequestTimeline>)| {
        SimulationReport::new(timelines, &run.samples, slo)
    };
    let reports: Vec<SimulationReport> = runs.iter().zip(&timelines).map(report).collect();
    let names = runs.iter().map(|run| run.name.as_str());
    let named: Vec<(&str, &SimulationReport)> = names.zip(&reports).collect();
    print(&table(&named))?;
    if let Some(file) = files.json {
        let all: serde_json::Map<_, _> = named
            .iter()
            .map(|(name, report)| Ok((name.replace(' ', "_"), serde_json::to_value(report)?)))
            .collect::<serde_json::Result<_>>()?;
        file.write(&(serde_json::to_string_pretty(&all)? + "\n"))?;
    }
    if let (Some(file), Some(requests)) = (files.forecast_svg, timelines.first()) {
        file.write(&simulation_plot::forecast_svg(&predicted_and_actual_ttft(requests))?)?;
    }
    if let Some(file) = files.target_itl_svg {
        file.write(&simulation_plot::target_itl_svg(&named)?)?;
    }
    if let Some(file) = files.svg {
        let runs = runs.iter().zip(&timelines);
        let runs = runs.map(|(run, timelines)| PlottedRun {
            name: &run.name,
            requests: timelines,
            samples: &run.samples,
        });
        file.write(&simulation_plot::svg(&runs.collect::<Vec<_>>())?)?;
    }
    Ok(())
}
