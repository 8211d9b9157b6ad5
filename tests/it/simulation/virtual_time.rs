//! Virtual time against the wall clock, and against what must hold of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use octant::engine::{Engine, Recorder, SubmitOptions};
use octant::scheduler::SchedulerConfig;
use octant::simulator::replay::{RecordedRequest, replay, resimulate};
use octant::simulator::report::{Report, Slo};
use octant::simulator::trace::{Header, Trace, write_events, write_header};
use octant::simulator::virtual_time::{Ask, Turn, VirtualTime};
use octant::simulator::workload::{Spread, Synthetic};
use octant::simulator::{Journey, Machine, Outcome, Sample, Simulator, Voice};

use super::{cost, recorded};
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
        policy: Default::default(),
    }
}

fn synthetic(requests: usize, rate: f64, prompt: f64, answer: f64) -> Synthetic {
    let spread = |mean, cv| Spread { mean, cv };
    Synthetic {
        requests,
        interval: spread(1.0 / rate, 1.0),
        prompt: spread(prompt, 0.5),
        answer: spread(answer, 0.5),
        seed: 3,
    }
}

fn server(config: SchedulerConfig, work: &Synthetic) -> VirtualTime {
    let (arrivals, _) = work.draw(config.vocab_size, config.max_sequence_tokens());
    let mut server = VirtualTime::new(config, 2, Machine::scripted(cost()));
    for arrival in arrivals {
        server.arrive(arrival.at, vec![arrival.ask]);
    }
    server
}

fn report(server: &VirtualTime) -> Report {
    let (journeys, samples) = server.history();
    Report::new(&journeys, samples, SLO)
}

#[test]
fn ten_thousand_requests_take_seconds() {
    let start = Instant::now();
    let work = synthetic(10_000, 30.0, 120.0, 12.0);
    let large = SchedulerConfig { max_num_seqs: 64, num_blocks: 4096, ..config() };
    let mut server = server(large, &work);
    server.run().unwrap();
    let report = report(&server);
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    assert_eq!((report.requests, report.finished, report.refused), (10_000, 10_000, 0));
    assert!(
        report.seconds > 300.0 && report.ttft.p50 > 0.0 && report.ttft.p50 <= report.ttft.p99,
        "{report:?}"
    );
    assert!(report.kv_max <= 1.0 && report.kv_mean <= report.kv_max, "{report:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_and_every_turn_is_sound() {
    let run = || {
        // So few blocks that sequences are preempted.
        let mut server =
            server(SchedulerConfig { num_blocks: 40, ..config() }, &synthetic(60, 20.0, 300.0, 200.0));
        while server.step().unwrap() != Turn::Done {
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
    let mut server = VirtualTime::new(config(), 2, Machine::scripted(cost()));
    let shape = |tokens, position| octant::cost::RowShape { tokens, position, logits: 1 };
    let id = server.arrive(5.0, vec![Ask::new(vec![1; 100].into(), vec![2; 3].into())])[0];
    server.run().unwrap();
    let journey = server.journey(id).unwrap();
    let step = |tokens, position| cost().step([shape(tokens, position)]).total();
    let first = 5.0 + step(100, 0);
    let expected = [first, first + step(1, 100), first + step(1, 100) + step(1, 101)];
    assert_eq!(journey.tokens.len(), 3);
    for (got, expected) in journey.tokens.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9, "{got} {expected}");
    }
    assert_eq!(journey.outcome, Outcome::Finished(journey.tokens[2]));
}

#[test]
fn who_leaves_and_who_is_refused_is_counted() {
    let mut server = VirtualTime::new(config(), 2, Machine::scripted(cost()));
    let long = || Ask::new(vec![1; 100].into(), vec![2; 1000].into());
    let id = server.arrive(0.0, vec![long()])[0];
    server.leave(1.0, id);
    server.arrive(0.5, vec![Ask::new(vec![1; 4000].into(), vec![2; 1000].into())]);
    server.arrive(2.0, vec![Ask::new(vec![1; 100].into(), vec![2; 5].into())]);
    server.run().unwrap();
    let report = report(&server);
    assert_eq!((report.requests, report.finished, report.refused, report.left), (3, 1, 1, 1));
    assert_eq!(server.scheduler().counts().blocks_used, 0);
}

/// Requests that each come in the middle of a step, and no two in the same: neither clock's jitter moves one over a step's
/// end, or before another.
fn short_trace() -> Vec<(f64, Ask)> {
    let (arrivals, _) = synthetic(6, 12.0, 600.0, 6.0).draw(1000, 4096);
    let mut planned: Vec<(f64, Ask)> = Vec::new();
    for arrival in arrivals {
        let mut server = VirtualTime::new(config(), 2, Machine::scripted(cost()));
        for (at, ask) in &planned {
            server.arrive(*at, vec![ask.clone()]);
        }
        server.run().unwrap();
        let (_, samples) = server.history();
        let after = planned.last().map_or(0.0, |(at, _)| arrival.at.max(*at));
        let mut middles = samples.windows(2).map(|pair| (pair[0].at + pair[1].at) / 2.0);
        let at = middles.find(|middle| *middle > after).unwrap_or(after);
        planned.push((at, arrival.ask));
    }
    planned
}

/// Steps on the wall clock are so much longer, so that a busy machine's waking half a step late is rare.
const PACE: f64 = 4.0;

/// The trace on the wall clock, at a slow pace but in the GPUs' seconds, through the real engine: when each request was sent, and with that what became of it.
/// Times are the sender's and the engine's own, so that it does not matter when somebody gets to read.
async fn on_the_wall_clock(trace: Vec<(f64, Ask)>) -> (Vec<f64>, Vec<Journey>, Vec<Sample>) {
    let voice = Voice::new((1..1000).collect(), vec![0], 1e9, 1000).unwrap();
    let simulator = Simulator::new(Machine::new(cost(), voice), PACE).unwrap();
    let (recorder, listener) = Recorder::new(1 << 20);
    let begin = tokio::time::Instant::now();
    let (handle, thread) = Engine::start_with(config(), Box::new(simulator), recorded(recorder));
    let client = |(at, ask): (f64, Ask)| {
        let handle = handle.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(begin + Duration::from_secs_f64(at * PACE)).await;
            let sent = begin.elapsed().as_secs_f64() / PACE;
            let asked = request(ask.request.prompt.to_vec(), ask.answer.len() as u32);
            let mut stream = handle
                .enter(1)
                .unwrap()
                .submit(vec![asked], SubmitOptions::default())
                .await
                .unwrap()
                .remove(0);
            while stream.next().await.finish.is_none() {}
            (stream.id(), sent)
        })
    };
    let clients: Vec<_> = trace.into_iter().map(client).collect();
    let mut sent = HashMap::new();
    for client in clients {
        let (id, at) = client.await.unwrap();
        sent.insert(id, at);
    }
    drop(handle);
    thread.join().unwrap();
    let mut file = Vec::new();
    write_header(&mut file, &Header { config: config(), in_flight: 2, about: Vec::new() }).unwrap();
    write_events(&mut file, &listener).unwrap();
    let replayed = replay(&Trace::parse(&file).unwrap()).unwrap();
    let scaled = |r: RecordedRequest| {
        let tokens: Vec<f64> = r.journey.tokens.iter().map(|at| at / PACE).collect();
        let outcome = Outcome::Finished(tokens[tokens.len() - 1]);
        Journey { arrived: sent[&r.id], tokens, outcome, ..r.journey }
    };
    let journeys: Vec<Journey> = replayed.groups.into_iter().flatten().map(scaled).collect();
    let samples = replayed.samples.into_iter().map(|sample| Sample { at: sample.at / PACE, ..sample });
    (journeys.iter().map(|journey| journey.arrived).collect(), journeys, samples.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn virtual_time_is_the_wall_clocks_within_two_percent() {
    let trace = short_trace();
    let (sent, journeys, samples) = on_the_wall_clock(trace.clone()).await;
    let measured = Report::new(&journeys.iter().collect::<Vec<_>>(), &samples, SLO);
    let mut server = VirtualTime::new(config(), 2, Machine::scripted(cost()));
    for (at, (_, ask)) in sent.into_iter().zip(trace) {
        server.arrive(at, vec![ask]);
    }
    server.run().unwrap();
    let expected = report(&server);
    assert_eq!((measured.finished, measured.steps), (6, expected.steps));
    for (what, measured, expected) in [
        ("seconds", measured.seconds, expected.seconds),
        ("time to first token", measured.ttft.mean, expected.ttft.mean),
        ("from token to token", measured.itl.mean, expected.itl.mean),
        ("latency", measured.latency.mean, expected.latency.mean),
    ] {
        let off = (measured / expected - 1.0).abs();
        println!("{what}: measured {measured:.5}, simulated {expected:.5}, {:.3} % apart", 100.0 * off);
        assert!(off < 0.02, "{what}: measured {measured}, simulated {expected}");
    }
}

#[tokio::test]
async fn a_setting_that_is_changed_in_a_replay_changes_the_report() {
    let (recorder, listener) = Recorder::new(1 << 20);
    let voice = Voice::new((1..1000).collect(), vec![0], 1e9, 1000).unwrap();
    let simulator = Simulator::new(Machine::new(cost(), voice), 0.0).unwrap();
    let (handle, thread) = Engine::start_with(config(), Box::new(simulator), recorded(recorder));
    let group = (0..8).map(|i| request((0..300).map(|t| (t * 7 + i) % 1000).collect(), 20 + i)).collect();
    let mut streams = handle.enter(8).unwrap().submit(group, SubmitOptions::default()).await.unwrap();
    for stream in &mut streams {
        while stream.next().await.finish.is_none() {}
    }
    drop((streams, handle));
    thread.join().unwrap();
    let mut file = Vec::new();
    write_header(&mut file, &Header { config: config(), in_flight: 2, about: Vec::new() }).unwrap();
    write_events(&mut file, &listener).unwrap();
    let replayed = replay(&Trace::parse(&file).unwrap()).unwrap();
    let again = |max_num_seqs| {
        let mut server =
            VirtualTime::new(SchedulerConfig { max_num_seqs, ..config() }, 2, Machine::scripted(cost()));
        resimulate(&replayed, &mut server);
        server.run().unwrap();
        report(&server)
    };
    let (eight, two) = (again(8), again(2));
    assert_eq!((eight.finished, eight.generated_tokens), (8, 188));
    assert_eq!((two.finished, two.generated_tokens), (8, 188), "the same answers");
    assert!(two.ttft.p99 > 2.0 * eight.ttft.p99, "{two:?} {eight:?}");
    assert!(two.goodput < eight.goodput);
    let answers: usize = replayed.groups.iter().flatten().map(|request| request.answer.len()).sum();
    assert_eq!(answers, 188);
}
