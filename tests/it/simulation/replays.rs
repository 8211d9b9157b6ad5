//! Recordings: replays are equal bit for bit, and damage is located.

use std::time::Instant;

use octant::engine::{
    Engine, EngineCore, EngineOptions, Forecast, Recorder, RequestId, Submission, SubmitOptions, TargetItl,
};
use octant::scheduler::SchedulerConfig;
use octant::simulator::replay::replay;
use octant::simulator::trace::{Trace, TraceEnd, TraceHeader, write_events, write_header};
use proptest::prelude::*;

use super::recorded;
use crate::fake::{FakeExecutor, config, request};
use crate::scheduler::prompt;
use crate::scheduler::random::{Event, any_config, any_event, scored};

/// Applies events to a recorded pipeline; returns the recording and the number of plans.
fn record(config: &SchedulerConfig, events: Vec<Event>, in_flight: usize) -> (Vec<u8>, u64) {
    let (recorder, listener) = Recorder::new(1 << 20);
    // Steps that take 1 ms per token: the limit on prompt tokens depends on the load.
    let forecast = Forecast::new(&[(1, 0.101), (100, 0.2)]).with_target_itl(TargetItl::Seconds(0.17));
    let options = EngineOptions { recorder: Some(recorder), forecast, ..EngineOptions::new(in_flight) };
    let mut core = EngineCore::new(config.clone(), options);
    let mut executor = FakeExecutor::new(config);
    let (mut ids, mut plans) = (0, 0);
    let mut events = events.into_iter();
    loop {
        match events.next() {
            Some(Event::Submit(group)) => {
                let group = group.into_iter().map(|request| {
                    ids += 1;
                    let updates = tokio::sync::mpsc::unbounded_channel().0;
                    Submission { id: RequestId(ids), request, updates }
                });
                core.submit(group.collect(), &SubmitOptions::default(), Instant::now()).unwrap();
            }
            Some(Event::Abort(i)) => abort(&mut core, i as u64, ids),
            Some(Event::Nothing) => {}
            None if core.is_idle() => break,
            None => {}
        }
        plans += core.step(&mut executor).unwrap().launched as u64;
    }
    drop(core);
    let mut file = Vec::new();
    let about = vec![("gpu".to_owned(), "none".to_owned())];
    write_header(&mut file, &TraceHeader { config: config.clone(), in_flight, about }).unwrap();
    assert_eq!(write_events(&mut file, &listener).unwrap(), TraceEnd::Complete);
    (file, plans)
}

/// Aborts one of the requests submitted so far, if any: the engine never aborts an unknown request.
fn abort(core: &mut EngineCore, i: u64, ids: u64) {
    if ids > 0 {
        core.abort(RequestId(1 + i % ids));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn replayed_plans_are_equal_bit_for_bit(
        config in any_config(),
        events in prop::collection::vec(any_event(), 1..60),
        in_flight in 1..3usize,
    ) {
        let (file, plans) = record(&config, events, in_flight);
        let trace = Trace::parse(&file).unwrap();
        prop_assert_eq!((&trace.header.config, trace.header.in_flight), (&config, in_flight));
        prop_assert_eq!(trace.end, TraceEnd::Complete);
        let replayed = replay(&trace).unwrap();
        prop_assert_eq!(replayed.plans, plans);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn replayed_plans_of_scores_are_equal_bit_for_bit(
        config in any_config(),
        events in prop::collection::vec(any_event(), 1..60),
        in_flight in 1..3usize,
    ) {
        let (config, events) = scored(config, events);
        let (file, plans) = record(&config, events, in_flight);
        let replayed = replay(&Trace::parse(&file).unwrap()).unwrap();
        prop_assert_eq!(replayed.plans, plans);
    }
}

/// A recording with preemptions.
fn sample() -> Vec<u8> {
    let group = |i| Event::Submit(vec![request(prompt(i, 100 + 9 * i as usize), 150)]);
    record(&SchedulerConfig { num_blocks: 9, ..config() }, (0..5).map(group).collect(), 2).0
}

#[test]
fn a_replay_reports_the_first_plan_that_differs() {
    let mut trace = Trace::parse(&sample()).unwrap();
    assert!(replay(&trace).unwrap().samples.last().unwrap().preemptions > 0);
    trace.header.config.num_blocks = 8;
    let divergence = replay(&trace).unwrap_err();
    assert!(divergence.event > 0 && divergence.message.contains("plan"), "{divergence}");
}

#[test]
fn a_cut_recording_is_replayed_up_to_its_last_whole_frame() {
    let file = sample();
    let whole = Trace::parse(&file).unwrap();
    let mut events = 0;
    for length in (8..file.len()).step_by(97) {
        match Trace::parse(&file[..length]) {
            Ok(trace) => {
                assert!(matches!(trace.end, TraceEnd::Cut(at) if at <= length));
                assert!(trace.events.len() >= events && whole.events.starts_with(&trace.events));
                events = trace.events.len();
                replay(&trace).unwrap();
            }
            Err(error) => assert!(error.message.contains("header"), "{error}"),
        }
    }
}

#[test]
fn damage_is_detected_and_located() {
    let file = sample();
    for at in (0..file.len()).step_by(53) {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let error = Trace::parse(&damaged).expect_err("a bit was changed");
        assert!(error.offset <= at, "byte {at}: {error}");
    }
    let error = Trace::parse(b"no such thing").unwrap_err();
    assert_eq!(error.offset, 0);
    assert!(error.to_string().contains("at byte 0"), "{error}");
    let old = Trace::parse(&[b"OCTREC02", &file[8..]].concat()).unwrap_err();
    let text = old.to_string();
    assert!(text.contains("version 02") && text.contains("version 09"), "{text}");
    let longer = [&file[..], b"more"].concat();
    assert_eq!(Trace::parse(&longer).unwrap_err().offset, file.len());
}

#[tokio::test]
async fn a_slow_disk_ends_the_recording_and_not_the_engine() {
    let (recorder, listener) = Recorder::new(5);
    let executor = Box::new(FakeExecutor::new(&config()));
    let (handle, thread) = Engine::start_with(config(), executor, recorded(recorder)).unwrap();
    let mut stream = handle
        .enter(1)
        .unwrap()
        .submit(vec![request(prompt(0, 50), 30)], SubmitOptions::default())
        .await
        .unwrap()
        .remove(0);
    while stream.next().await.finish.is_none() {}
    drop((stream, handle));
    thread.join().unwrap();
    let mut file = Vec::new();
    write_header(&mut file, &TraceHeader { config: config(), in_flight: 2, about: Vec::new() }).unwrap();
    assert_eq!(write_events(&mut file, &listener).unwrap(), TraceEnd::Incomplete);
    let trace = Trace::parse(&file).unwrap();
    assert_eq!((trace.events.len(), trace.end), (5, TraceEnd::Incomplete));
    assert!(replay(&trace).is_ok());
}
