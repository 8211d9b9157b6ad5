//! `octant simulate`: the scheduler in virtual time, over requests drawn, read or recorded.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};

use super::simulated::{About, Changes, forecast, memory_of};
use crate::config::{MeanAndCv, PolicyArgs, SimulateArgs};
use crate::device::Layout;
use crate::engine::SchedulerConfig;
use crate::model::StepRoom;
use crate::runner::{MemoryNeeds, MemoryPlan};
use crate::scheduler::Policy;
use crate::simulator::replay::{self, Replayed};
use crate::simulator::simulation_plot::{self, PlottedRun};
use crate::simulator::simulation_report::{SimulationReport, Slo, predicted_and_actual_ttft, table};
use crate::simulator::trace::{Trace, TraceEnd};
use crate::simulator::virtual_time::VirtualTime;
use crate::simulator::workload::{self, Arrival, Spread, SyntheticWorkload, Workload};
use crate::simulator::{RequestTimeline, ServerSample, SimulatedModel};

/// As on GPUs.
const IN_FLIGHT: usize = 2;

/// A run that is over, under its name.
struct Past {
    name: &'static str,
    requests: Vec<RequestTimeline>,
    samples: Vec<ServerSample>,
}

/// Simulates and reports. Status 1 if a replay is not the same as what was recorded.
pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    args.policy.check()?;
    let pasts = match &args.replay {
        Some(path) => match recorded(args, path)? {
            Some(pasts) => pasts,
            None => return Ok(ExitCode::FAILURE),
        },
        None => vec![drawn(args)?],
    };
    report(args, &pasts)?;
    Ok(ExitCode::SUCCESS)
}

fn drawn(args: &SimulateArgs) -> anyhow::Result<Past> {
    let about = About::new(&changes(args), None)?;
    let config = scheduler(args, &about, None)?;
    let (vocab, limit) = (config.vocab_size, config.max_sequence_tokens());
    let arrivals = match &args.trace {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            workload::parse(&text, vocab, args.seed).with_context(|| path.display().to_string())?
        }
        None => {
            let Workload { arrivals, cut } = synthetic(args)?.generate(vocab, limit);
            if cut > 0 {
                eprintln!("{cut} requests were cut to {limit} tokens, --max-model-len");
            }
            arrivals
        }
    };
    let cost = about.cost()?;
    let forecast = forecast(&cost, &config, 1.0);
    let mut server = VirtualTime::new(config, IN_FLIGHT, SimulatedModel::scripted(cost));
    server.set_forecast(forecast);
    server.set_max_ttft(args.policy.max_ttft);
    for Arrival { at, request } in arrivals {
        server.arrive(at, vec![request]);
    }
    finish("simulated", server)
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

/// Prints; an error, rather than a panic, where nobody reads.
fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

/// Runs to the end, and says how much faster than time that was.
fn finish(name: &'static str, mut server: VirtualTime) -> anyhow::Result<Past> {
    let start = Instant::now();
    server.run()?;
    eprintln!("{name}: {:.1} s in {:.2} s", server.now(), start.elapsed().as_secs_f64());
    let requests = server.timelines().into_iter().cloned().collect();
    Ok(Past { name, requests, samples: server.samples().to_vec() })
}

/// The recording as it was, and where a setting is given, simulated as it was and as it would be; `None` if the replay is
/// not the same.
fn recorded(args: &SimulateArgs, path: &Path) -> anyhow::Result<Option<Vec<Past>>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let trace = Trace::parse(&bytes).with_context(|| path.display().to_string())?;
    match trace.end {
        TraceEnd::Complete => {}
        TraceEnd::Incomplete => eprintln!("the recording ends before the server did: its disk was too slow"),
        TraceEnd::Cut(at) => eprintln!("the recording is cut off at byte {at} of {}", bytes.len()),
    }
    let replayed = match replay::replay(&trace) {
        Ok(replayed) => replayed,
        Err(divergence) => {
            eprintln!("not the same: {divergence}");
            return Ok(None);
        }
    };
    say(&format!("{} plans, all equal\n", replayed.plans))?;
    let requests = replayed.groups.iter().flatten().map(|request| request.timeline.clone()).collect();
    let mut pasts = vec![Past { name: "recorded", requests, samples: replayed.samples.clone() }];
    if args.changes() {
        let (about, config) = (as_recorded(&trace)?, trace.header.config.clone());
        pasts.push(again("as recorded", (&trace, &replayed), &about, config, None)?);
        let about = About::new(&changes(args), Some(&trace.header.about))?;
        let config = scheduler(args, &about, Some(&trace.header.config))?;
        pasts.push(again("as changed", (&trace, &replayed), &about, config, args.policy.max_ttft)?);
    }
    Ok(Some(pasts))
}

/// What the recording says alone.
fn as_recorded(trace: &Trace) -> anyhow::Result<About> {
    About::new(&Changes::default(), Some(&trace.header.about))
}

fn again(
    name: &'static str,
    (trace, replayed): (&Trace, &Replayed),
    about: &About,
    config: SchedulerConfig,
    max_ttft: Option<f64>,
) -> anyhow::Result<Past> {
    let cost = about.cost()?;
    let forecast = forecast(&cost, &config, 1.0);
    let mut server = VirtualTime::new(config, trace.header.in_flight, SimulatedModel::scripted(cost));
    server.set_forecast(forecast);
    server.set_max_ttft(max_ttft);
    replay::resimulate(replayed, &mut server);
    finish(name, server)
}

/// What the arguments say of the model and the GPUs.
fn changes(args: &SimulateArgs) -> Changes {
    Changes {
        config: args.config.clone(),
        gpu: args.gpu.clone(),
        ranks: args.tp,
        quantization: args.quantization,
        kv_cache_dtype: args.kv_cache_dtype,
        deterministic: args.deterministic,
    }
}

/// The limits that the arguments give, or else the recording, or else the defaults of `octant serve`.
fn scheduler(
    args: &SimulateArgs,
    about: &About,
    recorded: Option<&SchedulerConfig>,
) -> anyhow::Result<SchedulerConfig> {
    let pick = |flag: &str, given: Option<usize>, then: Option<usize>, default: usize| {
        ensure!(given != Some(0), "{flag}: expected at least 1, got 0");
        Ok(given.or(then).unwrap_or(default))
    };
    let r = recorded;
    let model = &about.model;
    let max_num_seqs = pick("--max-num-seqs", args.max_num_seqs, r.map(|c| c.max_num_seqs), 32)?;
    let max_num_batched_tokens = pick(
        "--max-num-batched-tokens",
        args.max_num_batched_tokens,
        r.map(|c| c.max_num_batched_tokens),
        512,
    )?;
    let limit = model.max_positions;
    let max_model_len = pick("--max-model-len", args.max_model_len, r.map(|c| c.max_model_len), limit)?;
    ensure!(
        max_model_len <= limit,
        "--max-model-len: expected at most the model's {limit}, got {max_model_len}"
    );
    // Blocks are as recorded unless what they are made of, or their number, is said anew.
    let resized = args.kv_cache_memory.is_some() || args.tp.is_some() || args.gpu.is_some();
    let resized = resized || args.kv_cache_dtype.is_some() || args.quantization.is_some();
    let num_blocks = match r.filter(|_| !resized && args.config.is_none()) {
        Some(recorded) => recorded.num_blocks,
        None => {
            let share = model.share(about.ranks).map_err(anyhow::Error::msg).context("--tp")?;
            let room = StepRoom {
                ranks: about.ranks,
                rows: max_num_batched_tokens,
                slots: max_num_seqs,
                deterministic: about.deterministic,
            };
            let needs = MemoryNeeds::new(&share, &Layout::CUDA, (about.precision, about.kv), &room);
            let memory = memory_of(&about.hardware);
            let kv = args.kv_cache_memory.map(|size| size.0);
            MemoryPlan::new(needs, memory, kv, max_model_len, max_num_seqs)?.blocks
        }
    };
    Ok(SchedulerConfig {
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        num_blocks,
        vocab_size: r.map_or(model.vocab, |c| c.vocab_size),
        max_queue_requests: args.max_queue_requests.or(r.map(|c| c.max_queue_requests)).unwrap_or(1024),
        max_queue_tokens: args.max_queue_tokens.or(r.map(|c| c.max_queue_tokens)).unwrap_or(1 << 20),
        prefix_caching: args.enable_prefix_caching.or(r.map(|c| c.prefix_caching)).unwrap_or(true),
        policy: policy(&args.policy, r.map(|c| c.policy.clone()).unwrap_or_default()),
    })
}

/// Who waits for whom: as given, else as it was.
fn policy(args: &PolicyArgs, was: Policy) -> Policy {
    Policy {
        ageing_steps: args.ageing_steps.unwrap_or(was.ageing_steps),
        max_preemptions: args.max_preemptions.unwrap_or(was.max_preemptions),
        kv_reserve: args.kv_reserve.unwrap_or(was.kv_reserve),
    }
}

fn report(args: &SimulateArgs, pasts: &[Past]) -> anyhow::Result<()> {
    let slo = Slo { ttft: args.slo_ttft, itl: args.slo_itl };
    let requests: Vec<Vec<&RequestTimeline>> =
        pasts.iter().map(|past| past.requests.iter().collect()).collect();
    let report = |(past, requests): (&Past, &Vec<&RequestTimeline>)| {
        SimulationReport::new(requests, &past.samples, slo)
    };
    let reports: Vec<SimulationReport> = pasts.iter().zip(&requests).map(report).collect();
    let named: Vec<(&str, &SimulationReport)> = pasts.iter().map(|past| past.name).zip(&reports).collect();
    say(&table(&named))?;
    if let Some(path) = &args.json {
        let all: serde_json::Map<_, _> = named
            .iter()
            .map(|(name, report)| Ok((name.replace(' ', "_"), serde_json::to_value(report)?)))
            .collect::<serde_json::Result<_>>()?;
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let (Some(path), Some(requests)) = (&args.forecast_svg, requests.first()) {
        let svg = simulation_plot::forecast_svg(&predicted_and_actual_ttft(requests))?;
        std::fs::write(path, svg).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.svg {
        let runs: Vec<PlottedRun<'_>> = pasts
            .iter()
            .zip(&requests)
            .map(|(past, requests)| PlottedRun { name: past.name, requests, samples: &past.samples })
            .collect();
        let svg = simulation_plot::svg(&runs)?;
        std::fs::write(path, svg).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
