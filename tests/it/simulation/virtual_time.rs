//! Simulations in virtual time: counts, step times, determinism, and changed settings.

use octant::cost::RowShape;
use octant::engine::recorder::Event;
use octant::engine::{Engine, Forecast, Recorder, SubmitOptions, TargetItl};
use octant::scheduler::{SchedulerConfig, StepTime, StepTimes};
use octant::simulator::replay::{replay, resimulate};
use octant::simulator::simulation_plot::target_itl_svg;
use octant::simulator::simulation_report::{SimulationReport, Slo};
use octant::simulator::trace::{Trace, TraceHeader, write_events, write_header};
use octant::simulator::virtual_time::{ScriptedRequest, StepOutcome, VirtualTime};
use octant::simulator::workload::{Spread, SyntheticWorkload, repeat_prompts};
use octant::simulator::{RequestOutcome, SimulatedModel, Simulator, SyntheticAnswers};

use super::{cost, draft_model, recorded};
use crate::fake::request;

const SLO: Slo = Slo { ttft: 0.5, itl: 0.05 };

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
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

fn synthetic(requests: usize, rate: f64, prompt: f64, answer: f64) -> SyntheticWorkload {
    let spread = |mean, cv| Spread { mean, cv };
    SyntheticWorkload {
        requests,
        interval: spread(1.0 / rate, 1.0),
        prompt: spread(prompt, 0.5),
        answer: spread(answer, 0.5),
        seed: 3,
    }
}

fn server(config: SchedulerConfig, work: &SyntheticWorkload) -> VirtualTime {
    let workload = work.generate(config.vocab_size, config.max_sequence_tokens());
    let mut server = VirtualTime::new(config, 2, SimulatedModel::scripted(cost()));
    for arrival in workload.arrivals {
        server.arrive(arrival.at, vec![arrival.request]);
    }
    server
}

fn report(server: &VirtualTime) -> SimulationReport {
    SimulationReport::new(&server.timelines(), server.samples(), SLO)
}

/// With few requests at once, steps of a large model take about as long with drafts as without.
#[test]
fn accepted_drafts_shorten_answers() {
    let work = synthetic(60, 1.0, 200.0, 120.0);
    let seconds = |max_drafts: usize, acceptance: f64| {
        let config = SchedulerConfig { max_drafts, vocab_size: 100_000, ..config() };
        let mut workload = work.generate(config.vocab_size, config.max_sequence_tokens()).arrivals;
        repeat_prompts(&mut workload, acceptance, 3);
        let mut server = VirtualTime::new(config, 2, SimulatedModel::scripted(cost()));
        let row = |tokens: u32| RowShape { tokens, position: 0, logits: tokens };
        let time = |rows: usize| StepTime { rows, seconds: cost().step([row(rows as u32)]).total() };
        server.set_step_times(StepTimes::new(StepTimes::rows_to_measure(64).map(time).collect()));
        for arrival in workload {
            server.arrive(arrival.at, vec![arrival.request]);
        }
        server.run().unwrap();
        let report = report(&server);
        assert_eq!(report.finished, 60);
        let counts = server.scheduler().counts().speculation;
        (report.latency.p50, counts.all_accepted() as f64 / counts.drafts.max(1) as f64)
    };
    let (plain, _) = seconds(0, 0.8);
    let (drafting, accepted) = seconds(8, 0.8);
    let (useless, _) = seconds(8, 0.0);
    assert!(drafting < 0.6 * plain, "{drafting} s with drafts, {plain} s without");
    // Of 8 drafts that are right with probability 0.8, 3.3 come before the first wrong one on average.
    assert!(accepted > 0.35, "{accepted} of the drafts were accepted");
    assert!(useless <= 1.001 * plain, "{useless} s with drafts that are never accepted, {plain} s without");
}

/// A draft model whose drafts are never accepted is tried now and then, and costs nearly nothing.
#[test]
fn accepted_drafts_of_a_draft_model_shorten_answers() {
    let work = synthetic(60, 1.0, 200.0, 120.0);
    let seconds = |max_drafts: usize, acceptance: f64| {
        let config = SchedulerConfig { max_drafts, draft_model: true, vocab_size: 100_000, ..config() };
        let draft = draft_model(acceptance);
        let model = SimulatedModel::scripted(cost()).with_draft_model(Some(draft.clone()));
        let workload = work.generate(config.vocab_size, config.max_sequence_tokens()).arrivals;
        let mut server = VirtualTime::new(config, 2, model);
        let row = |tokens: u32| RowShape { tokens, position: 0, logits: tokens };
        let time = |rows: usize| StepTime { rows, seconds: cost().step([row(rows as u32)]).total() };
        let pass = |rows: usize| StepTime { rows, seconds: draft.cost.step([row(rows as u32)]).total() };
        let times = StepTimes::new(StepTimes::rows_to_measure(64).map(time).collect());
        server.set_step_times(times.with_draft_model([1, 8, 64].map(pass).to_vec()));
        for arrival in workload {
            server.arrive(arrival.at, vec![arrival.request]);
        }
        server.run().unwrap();
        let report = report(&server);
        assert_eq!(report.finished, 60);
        (report.latency.p50, server.scheduler().counts().speculation)
    };
    let (plain, _) = seconds(0, 0.8);
    let (drafting, counts) = seconds(8, 0.8);
    assert!(drafting < 0.6 * plain, "{drafting} s with drafts, {plain} s without");
    assert!(counts.all_accepted() as f64 > 0.35 * counts.drafts as f64, "{counts:?}");
    let (useless, counts) = seconds(8, 0.0);
    assert!(useless <= 1.01 * plain, "{useless} s with drafts that are never accepted, {plain} s without");
    assert!(counts.drafts > 0 && counts.all_accepted() == 0, "{counts:?}");
}

#[test]
fn ten_thousand_requests_are_all_answered() {
    let work = synthetic(10_000, 30.0, 120.0, 12.0);
    let large = SchedulerConfig { max_num_seqs: 64, num_blocks: 4096, ..config() };
    let mut server = server(large, &work);
    server.run().unwrap();
    let report = report(&server);
    assert_eq!((report.requests, report.finished, report.refused), (10_000, 10_000, 0));
    assert!(
        report.seconds > 300.0 && report.ttft.p50 > 0.0 && report.ttft.p50 <= report.ttft.p99,
        "{report:?}"
    );
    assert!(report.kv_max <= 1.0 && report.kv_mean <= report.kv_max, "{report:?}");
}

/// Streams with prompts that arrive beside them: a request a second of 1,500 tokens, answered by 200.
fn with_target(target: TargetItl) -> SimulationReport {
    let config = SchedulerConfig { max_num_batched_tokens: 2048, max_num_seqs: 64, ..config() };
    let config = SchedulerConfig { num_blocks: 4096, ..config };
    let mut server = server(config, &synthetic(200, 1.0, 1500.0, 200.0));
    let step = |tokens| (tokens as usize, cost().step([RowShape { tokens, position: 0, logits: 1 }]).total());
    server.set_forecast(Forecast::new(&[1, 1024, 2048].map(step)).with_target_itl(target));
    server.run().unwrap();
    report(&server)
}

#[test]
fn a_target_shortens_the_wait_between_tokens() {
    let [off, auto, seconds] = [TargetItl::Off, TargetItl::Auto, TargetItl::Seconds(0.06)].map(with_target);
    println!("off {:?}, auto {:?}, 60 ms {:?}", off.itl, auto.itl, seconds.itl);
    assert!(off.itl.p99 > 0.15, "{:?}", off.itl);
    assert!(auto.itl.p99 < 0.6 * off.itl.p99, "{:?} {:?}", auto.itl, off.itl);
    // The time of a step is not exactly a line over its tokens, as the forecast takes it to be.
    assert!(seconds.itl.p99 < 1.2 * 0.06, "{:?}", seconds.itl);
    for limited in [&auto, &seconds] {
        let share = limited.generated_tokens_per_second / off.generated_tokens_per_second;
        assert!(share > 0.95, "{share} of the throughput");
        assert!(limited.ttft.p50 < 4.0 * off.ttft.p50, "{:?} {:?}", limited.ttft, off.ttft);
    }
    let svg = target_itl_svg(&[("off", &off), ("auto", &auto), ("0.06", &seconds)]).unwrap();
    assert!(svg.matches("<circle").count() >= 6 && svg.contains("one point for each target"), "{svg}");
}

#[test]
fn the_same_seed_gives_the_same_run_and_every_step_keeps_integrity() {
    let run = || {
        // Few enough blocks that sequences are preempted.
        let mut server =
            server(SchedulerConfig { num_blocks: 40, ..config() }, &synthetic(60, 20.0, 300.0, 200.0));
        while server.step().unwrap() != StepOutcome::Done {
            server.scheduler().check_integrity().unwrap();
        }
        report(&server)
    };
    let first = run();
    assert!(first.preemptions > 0, "{first:?}");
    assert_eq!(first, run());
}

#[test]
fn one_request_takes_the_sum_of_its_steps() {
    let mut server = VirtualTime::new(config(), 2, SimulatedModel::scripted(cost()));
    let shape = |tokens, position| octant::cost::RowShape { tokens, position, logits: 1 };
    let id = server.arrive(5.0, vec![ScriptedRequest::new(vec![1; 100].into(), vec![2; 3].into())])[0];
    server.run().unwrap();
    let timeline = server.timeline(id).unwrap();
    let step = |tokens, position| cost().step([shape(tokens, position)]).total();
    let first = 5.0 + step(100, 0);
    let expected = [first, first + step(1, 100), first + step(1, 100) + step(1, 101)];
    assert_eq!(timeline.tokens.len(), 3);
    for (got, expected) in timeline.tokens.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9, "{got} {expected}");
    }
    assert_eq!(timeline.outcome, RequestOutcome::Finished(timeline.tokens[2]));
}

#[test]
fn disconnects_and_refusals_are_counted() {
    let mut server = VirtualTime::new(config(), 2, SimulatedModel::scripted(cost()));
    let long = || ScriptedRequest::new(vec![1; 100].into(), vec![2; 1000].into());
    let id = server.arrive(0.0, vec![long()])[0];
    server.leave(1.0, id);
    server.arrive(0.5, vec![ScriptedRequest::new(vec![1; 4000].into(), vec![2; 1000].into())]);
    server.arrive(2.0, vec![ScriptedRequest::new(vec![1; 100].into(), vec![2; 5].into())]);
    server.run().unwrap();
    let report = report(&server);
    assert_eq!((report.requests, report.finished, report.refused, report.left), (3, 1, 1, 1));
    assert_eq!(server.scheduler().counts().blocks_used, 0);
}

#[tokio::test]
async fn a_replay_with_fewer_slots_has_the_same_answers_later() {
    replays_with_fewer_slots(config()).await;
}

/// The recording has the drafts, on whose acceptance the plans depend.
#[tokio::test]
async fn a_replay_repeats_the_plans_of_a_server_with_a_draft_model() {
    replays_with_fewer_slots(SchedulerConfig { max_drafts: 4, draft_model: true, ..config() }).await;
}

async fn replays_with_fewer_slots(config: SchedulerConfig) {
    let (recorder, listener) = Recorder::new(1 << 20);
    let answers = SyntheticAnswers::new((1..1000).collect(), vec![0], 1e9, 1000).unwrap();
    let draft = config.draft_model.then(|| draft_model(0.7));
    let model = SimulatedModel::new(cost(), answers).with_draft_model(draft.clone());
    let simulator = Simulator::new(model, 0.0).unwrap();
    let (handle, thread) =
        Engine::start_with(config.clone(), Box::new(simulator), recorded(recorder)).unwrap();
    let group = (0..8).map(|i| request((0..300).map(|t| (t * 7 + i) % 1000).collect(), 20 + i)).collect();
    let mut streams = handle.enter(8).unwrap().submit(group, SubmitOptions::default()).await.unwrap();
    for stream in &mut streams {
        while stream.next().await.finish.is_none() {}
    }
    drop((streams, handle));
    thread.join().unwrap();
    let mut file = Vec::new();
    write_header(&mut file, &TraceHeader { config: config.clone(), in_flight: 2, about: Vec::new() })
        .unwrap();
    write_events(&mut file, &listener).unwrap();
    let trace = Trace::parse(&file).unwrap();
    let drafted = |event: &Event| match event {
        Event::Commit { rows, .. } => rows.iter().any(|row| !row.drafts.is_empty()),
        _ => false,
    };
    assert_eq!(trace.events.iter().any(|(_, event)| drafted(event)), config.draft_model);
    let replayed = replay(&trace).unwrap();
    let again = |max_num_seqs| {
        let mut server = VirtualTime::new(
            SchedulerConfig { max_num_seqs, ..config.clone() },
            2,
            SimulatedModel::scripted(cost()).with_draft_model(draft.clone()),
        );
        resimulate(&replayed, &mut server);
        server.run().unwrap();
        report(&server)
    };
    let (eight, two) = (again(8), again(2));
    assert_eq!((eight.finished, eight.generated_tokens), (8, 188));
    assert_eq!((two.finished, two.generated_tokens), (8, 188), "the same answers");
    assert!(two.ttft.p99 > 2.0 * eight.ttft.p99, "{two:?} {eight:?}");
    assert!(two.goodput < eight.goodput);
    let tokens: usize = replayed.groups.iter().flatten().map(|request| request.answer.len()).sum();
    assert_eq!(tokens, 188);
}
