//! Virtual time against the wall clock: the same requests through the real engine on simulated GPUs that
//! wait, and through `VirtualTime`. Prints the ratio of both for the duration of the run, TTFT, inter-token
//! latency and latency. Exits with status 1 if a ratio is more than 2 % from 1. Run it on an idle machine.
//!
//!     cargo bench --bench virtual_time

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use octant::cost::{CostModel, Hardware};
use octant::device::KvDtype;
use octant::engine::{Engine, EngineOptions, Recorder, SubmitOptions};
use octant::model::{ModelConfig, Precision};
use octant::scheduler::SchedulerConfig;
use octant::simulator::replay::{RecordedRequest, replay};
use octant::simulator::simulation_report::{SimulationReport, Slo};
use octant::simulator::trace::{Trace, TraceHeader, write_events, write_header};
use octant::simulator::virtual_time::{ScriptedRequest, VirtualTime};
use octant::simulator::workload::{Arrival, Spread, SyntheticWorkload};
use octant::simulator::{
    RequestOutcome, RequestTimeline, ServerSample, SimulatedModel, Simulator, SyntheticAnswers,
};

const REQUESTS: usize = 6;

/// Largest accepted difference of a ratio from 1.
const TOLERANCE: f64 = 0.02;

/// Factor on step times on the wall clock. It makes it rare that a busy machine wakes a thread half a step
/// late.
const PACE: f64 = 4.0;

/// Objective of the reports; this comparison does not use it.
const SLO: Slo = Slo { ttft: 0.5, itl: 0.05 };

fn main() -> ExitCode {
    let arrivals = arrivals_within_steps();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the runtime starts");
    let (sent, measured) = runtime.block_on(on_the_wall_clock(&arrivals));
    let simulated =
        in_virtual_time(sent.into_iter().zip(arrivals.into_iter().map(|arrival| arrival.request)));
    assert_eq!((measured.finished, measured.steps), (REQUESTS, simulated.steps), "finished requests, steps");
    let mut good = true;
    for (name, measured, simulated) in [
        ("duration", measured.seconds, simulated.seconds),
        ("mean TTFT", measured.ttft.mean, simulated.ttft.mean),
        ("mean inter-token latency", measured.itl.mean, simulated.itl.mean),
        ("mean latency", measured.latency.mean, simulated.latency.mean),
    ] {
        let ratio = measured / simulated;
        println!("{name:26} wall clock {measured:9.5} s, virtual {simulated:9.5} s, ratio {ratio:.4}");
        good &= (ratio - 1.0).abs() < TOLERANCE;
    }
    if good {
        return ExitCode::SUCCESS;
    }
    eprintln!("a ratio differs from 1 by more than {TOLERANCE}");
    ExitCode::FAILURE
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 512,
        max_model_len: 4096,
        num_blocks: 400,
        vocab_size: 1000,
        max_queue_requests: 20_000,
        max_queue_tokens: 100_000_000,
        prefix_caching: true,
        reward_width: 0,
        max_drafts: 0,
        draft_model: false,
        policy: Default::default(),
    }
}

/// Cost model of the 340B on 8 H100s in FP8.
fn cost() -> CostModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
    let model = ModelConfig::from_dir(&dir).expect("the model's configuration");
    let hardware = Hardware::named("h100-80gb").expect("a known GPU");
    CostModel::new(&model, 8, Precision::Fp8, KvDtype::Fp8, hardware).expect("8 ranks")
}

/// Runs requests at times in seconds to their ends in virtual time.
fn run(requests: impl IntoIterator<Item = (f64, ScriptedRequest)>) -> VirtualTime {
    let mut server = VirtualTime::new(config(), 2, SimulatedModel::scripted(cost()));
    for (at, request) in requests {
        server.arrive(at, vec![request]);
    }
    server.run().expect("a sound scheduler");
    server
}

fn in_virtual_time(requests: impl IntoIterator<Item = (f64, ScriptedRequest)>) -> SimulationReport {
    let server = run(requests);
    SimulationReport::new(&server.timelines(), server.samples(), SLO)
}

/// Random requests. Each arrives in the middle of a step, and no two arrive in the same step. Timing
/// jitter then cannot move an arrival to another step.
fn arrivals_within_steps() -> Vec<Arrival> {
    let spread = |mean, cv| Spread { mean, cv };
    let workload = SyntheticWorkload {
        requests: REQUESTS,
        interval: spread(1.0 / 12.0, 1.0),
        prompt: spread(600.0, 0.5),
        answer: spread(6.0, 0.5),
        seed: 3,
    };
    let mut placed: Vec<Arrival> = Vec::new();
    for arrival in workload.generate(config().vocab_size, config().max_model_len).arrivals {
        let server = run(placed.iter().map(|placed| (placed.at, placed.request.clone())));
        let after = placed.last().map_or(0.0, |placed| arrival.at.max(placed.at));
        let mut middles = server.samples().windows(2).map(|pair| (pair[0].at + pair[1].at) / 2.0);
        let at = middles.find(|middle| *middle > after).unwrap_or(after);
        placed.push(Arrival { at, ..arrival });
    }
    placed
}

/// Sends requests to the real engine on the wall clock. Returns the times of sending and the report, both in
/// seconds divided by the pace. Times of tokens are the engine's own, so that delays of the clients do not
/// matter.
async fn on_the_wall_clock(arrivals: &[Arrival]) -> (Vec<f64>, SimulationReport) {
    let answers = SyntheticAnswers::new((1..1000).collect(), vec![0], 1e9, 1000).expect("a vocabulary");
    let simulator = Simulator::new(SimulatedModel::new(cost(), answers), PACE).expect("a pace");
    let (recorder, listener) = Recorder::new(1 << 20);
    let begin = tokio::time::Instant::now();
    let start = EngineOptions { recorder: Some(recorder), ..EngineOptions::new(2) };
    let (handle, thread) =
        Engine::start_with(config(), Box::new(simulator), start).expect("the engine starts");
    let client = |arrival: Arrival| {
        let handle = handle.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(begin + Duration::from_secs_f64(arrival.at * PACE)).await;
            let sent = begin.elapsed().as_secs_f64() / PACE;
            let permit = handle.enter(1).expect("room in the queue");
            let mut streams = permit
                .submit(vec![arrival.request.request], SubmitOptions::default())
                .await
                .expect("it can run");
            while streams[0].next().await.finish.is_none() {}
            (streams[0].id(), sent)
        })
    };
    let clients: Vec<_> = arrivals.iter().cloned().map(client).collect();
    let mut sent = HashMap::new();
    for client in clients {
        let (id, at) = client.await.expect("a client ends");
        sent.insert(id, at);
    }
    drop(handle);
    thread.join().expect("the engine ends");
    let mut file = Vec::new();
    let header = TraceHeader { config: config(), in_flight: 2, about: Vec::new() };
    write_header(&mut file, &header).expect("memory");
    write_events(&mut file, &listener).expect("memory");
    let replayed = replay(&Trace::parse(&file).expect("a recording")).expect("equal plans");
    let scaled = |recorded: RecordedRequest| {
        let tokens: Vec<f64> = recorded.timeline.tokens.iter().map(|at| at / PACE).collect();
        let outcome = RequestOutcome::Finished(tokens[tokens.len() - 1]);
        RequestTimeline { arrived: sent[&recorded.id], tokens, outcome, ..recorded.timeline }
    };
    let timelines: Vec<RequestTimeline> = replayed.groups.into_iter().flatten().map(scaled).collect();
    let samples = replayed.samples.into_iter().map(|sample| ServerSample { at: sample.at / PACE, ..sample });
    let samples: Vec<ServerSample> = samples.collect();
    let report = SimulationReport::new(&timelines.iter().collect::<Vec<_>>(), &samples, SLO);
    (timelines.iter().map(|timeline| timeline.arrived).collect(), report)
}
