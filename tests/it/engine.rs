//! The engine's thread: every request is answered exactly once, however the request or the engine ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::engine::{
    Engine, EngineError, EngineHandle, EngineOptions, Executor, OpenRequests, RequestId, Snapshot, Stats,
    SubmitOptions, UpdateStream,
};
use octant::request::{Cost, Finish, Reject, Request, SampledToken, Update};
use octant::scheduler::SchedulerConfig;
use octant::scheduler::step_plan::{StepOutput, StepPlan};

use crate::fake::{FakeExecutor, alone, config, request};
use crate::scheduler::prompt;

/// Waits until the engine's stats satisfy `wanted`.
async fn until(handle: &EngineHandle, wanted: impl Fn(&Stats) -> bool) -> Stats {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = handle.stats();
        if wanted(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "the stats did not get there: {stats:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn submit(handle: &EngineHandle, request: Request) -> UpdateStream {
    submit_group(handle, vec![request]).await.expect("a sound request is taken").remove(0)
}

async fn submit_group(handle: &EngineHandle, group: Vec<Request>) -> Result<Vec<UpdateStream>, Reject> {
    handle.enter(group.len())?.submit(group, SubmitOptions::default()).await
}

/// Reads an answer to its end.
async fn read(stream: &mut UpdateStream) -> (Vec<u32>, Finish) {
    let mut tokens = Vec::new();
    loop {
        let Update { tokens: new, finish, .. } = stream.next().await;
        tokens.extend(new.iter().map(|token| token.id));
        if let Some(finish) = finish {
            return (tokens, finish);
        }
    }
}

fn error(reason: &str) -> Finish {
    Finish::Error(reason.to_owned())
}

#[tokio::test]
async fn an_answer_has_the_tokens_of_the_model_and_one_finish() {
    for in_flight in [1, 2] {
        let (handle, _thread) =
            Engine::start(config(), in_flight, Box::new(FakeExecutor::new(&config()))).unwrap();
        let asked = request(prompt(0, 150), 20);
        let mut stream = submit(&handle, asked.clone()).await;
        assert_eq!(read(&mut stream).await, (alone(&asked, 100).tokens, Finish::Length));
    }
}

#[tokio::test]
#[should_panic(expected = "read after its finish")]
async fn reading_after_the_finish_panics() {
    let (handle, _thread) = Engine::start(config(), 1, Box::new(FakeExecutor::new(&config()))).unwrap();
    let mut stream = submit(&handle, request(vec![1], 1)).await;
    read(&mut stream).await;
    stream.next().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_at_once_get_their_own_answers() {
    let small = SchedulerConfig { num_blocks: 12, ..config() };
    let (handle, thread) = Engine::start(small.clone(), 2, Box::new(FakeExecutor::new(&small))).unwrap();
    let clients: Vec<_> = (0..64u32)
        .map(|i| {
            let handle = handle.clone();
            tokio::spawn(async move {
                let asked = request(prompt(i, 20 + 2 * i as usize), 5 + i % 40);
                let mut stream = submit(&handle, asked.clone()).await;
                (alone(&asked, 100).tokens, read(&mut stream).await)
            })
        })
        .collect();
    for client in clients {
        let (expected, got) = client.await.unwrap();
        assert_eq!(got, (expected, Finish::Length));
    }
    let stats = until(&handle, |stats| !stats.pending()).await;
    assert_eq!(stats.counts.blocks_used, 0);
    drop(handle);
    assert_eq!(thread.join(), Ok(()), "with all handles gone the engine ends");
}

#[tokio::test]
async fn the_stats_show_a_finish_before_it_is_read() {
    let (handle, _thread) = Engine::start(config(), 1, Box::new(FakeExecutor::new(&config()))).unwrap();
    for round in 1..200 {
        let mut stream = submit(&handle, request(prompt(0, 70), 3)).await;
        read(&mut stream).await;
        let counts = handle.stats().counts;
        assert_eq!((counts.running, counts.blocks_used, counts.generated_tokens), (0, 0, 3 * round));
    }
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks_within_the_step() {
    for in_flight in [1, 2] {
        let (executor, permits) = FakeExecutor::new(&config()).gated();
        let (handle, _thread) = Engine::start(config(), in_flight, Box::new(executor)).unwrap();
        let stream = submit(&handle, request(prompt(0, 150), 500)).await;
        until(&handle, |stats| stats.counts.blocks_used == 3).await;
        drop(stream);
        // The steps in flight, which were launched before the engine took the abort.
        (0..in_flight).for_each(|_| permits.send(()).unwrap());
        let stats = until(&handle, |stats| !stats.pending()).await;
        assert_eq!((stats.counts.blocks_used, stats.counts.steps), (0, in_flight as u64));
    }
}

#[tokio::test]
async fn a_submit_dropped_before_its_answer_is_aborted() {
    let (executor, permits) = FakeExecutor::new(&config()).gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor)).unwrap();
    let mut first = submit(&handle, request(vec![1], 2)).await;
    until(&handle, |stats| stats.in_flight == 1).await;
    // The engine waits for the step, so this submit cannot be answered before it is dropped.
    let second =
        tokio::time::timeout(Duration::from_millis(20), submit_group(&handle, vec![request(vec![2], 500)]))
            .await;
    assert!(second.is_err(), "the submit was still waiting");
    drop(permits);
    read(&mut first).await;
    let stats = until(&handle, |stats| !stats.pending()).await;
    assert_eq!(stats.counts.generated_tokens, 2, "tokens of the first request only");
}

#[tokio::test]
async fn a_permit_counts_its_requests_until_the_scheduler_does() {
    let narrow = SchedulerConfig { max_num_seqs: 1, max_queue_requests: 3, ..config() };
    let (executor, permits) = FakeExecutor::new(&narrow).gated();
    let (handle, _thread) = Engine::start(narrow, 1, Box::new(executor)).unwrap();
    let _running = submit(&handle, request(vec![1], 500)).await;
    until(&handle, |stats| stats.counts.running == 1).await;
    let full = |waiting| Some(Reject::QueueFull { waiting, limit: 3 });
    let pair = handle.enter(1).unwrap();
    let single = handle.enter(1).unwrap();
    let pair = pair.for_group(2).unwrap();
    assert_eq!(handle.enter(1).err(), full(3), "all places are taken, though nothing has been submitted");
    assert_eq!(single.for_group(2).err(), full(2), "a permit grows only where there is room");
    assert_eq!(handle.enter(2).err(), full(2), "a place given back is free, and no more than that");
    let group = vec![request(vec![2], 2), request(vec![3], 2)];
    let submitted = pair.submit(group, SubmitOptions::default());
    let (submitted, _sent) = tokio::join!(submitted, async { permits.send(()) });
    let _waiting = submitted.unwrap();
    assert_eq!(handle.enter(2).err(), full(2), "each waiting request is counted once");
    assert!(handle.enter(1).is_ok());
}

#[tokio::test]
async fn a_refusal_leaves_the_engine_alive() {
    let (handle, _thread) = Engine::start(config(), 1, Box::new(FakeExecutor::new(&config()))).unwrap();
    let refused = submit_group(&handle, vec![request(vec![1], 2), request(vec![100], 2)]).await.err();
    assert!(matches!(refused, Some(Reject::Invalid { field: "prompt", .. })), "{refused:?}");
    let refused = submit_group(&handle, vec![request(vec![1], 2000)]).await.err();
    assert!(matches!(refused, Some(Reject::TooLong { .. })), "{refused:?}");
    let mut stream = submit(&handle, request(vec![1], 2)).await;
    assert_eq!(read(&mut stream).await.1, Finish::Length);
}

#[tokio::test]
async fn a_failing_executor_ends_every_request_with_its_message() {
    for in_flight in [1, 2] {
        let executor = FakeExecutor::new(&config()).fail_at(3, "the device caught fire");
        let (executor, permits) = executor.gated();
        let (handle, thread) = Engine::start(config(), in_flight, Box::new(executor)).unwrap();
        let mut streams = submit_group(&handle, vec![request(prompt(0, 30), 50); 6]).await.unwrap();
        drop(permits);
        for stream in &mut streams {
            assert_eq!(read(stream).await.1, error("the device caught fire"));
        }
        let refused = submit_group(&handle, vec![request(vec![1], 2)]).await.err();
        assert_eq!(refused, Some(Reject::EngineDown("the device caught fire".to_owned())));
        assert_eq!(handle.stats().failed.as_deref(), Some("the device caught fire"));
        assert_eq!(thread.join(), Err(EngineError { message: "the device caught fire".to_owned() }));
    }
}

#[tokio::test]
async fn a_submit_in_the_channel_is_answered_when_the_executor_fails() {
    let (executor, permits) = FakeExecutor::new(&config()).fail_at(0, "out of memory").gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor)).unwrap();
    let _first = submit(&handle, request(vec![1], 2)).await;
    until(&handle, |stats| stats.in_flight == 1).await;
    // The engine waits for the step that will fail. The submit is sent, then the step is released.
    let late = submit_group(&handle, vec![request(vec![2], 2)]);
    let (late, ()) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(20), late), async { drop(permits) });
    assert_eq!(late.expect("it is answered").err(), Some(Reject::EngineDown("out of memory".to_owned())));
}

/// An executor that panics.
struct Panicking;

impl octant::engine::Executor for Panicking {
    fn enqueue(
        &mut self,
        _: &Arc<octant::scheduler::step_plan::StepPlan>,
    ) -> Result<(), octant::engine::EngineError> {
        panic!("index out of bounds")
    }

    fn collect(&mut self) -> Result<octant::scheduler::step_plan::StepOutput, octant::engine::EngineError> {
        panic!("nothing was enqueued")
    }
}

#[tokio::test]
async fn a_panic_ends_every_request_with_its_message() {
    let (handle, thread) = Engine::start(config(), 1, Box::new(Panicking)).unwrap();
    let mut stream = submit(&handle, request(vec![1], 2)).await;
    let reason = "the engine panicked: index out of bounds";
    assert_eq!(read(&mut stream).await.1, error(reason));
    assert_eq!(thread.join(), Err(EngineError { message: reason.to_owned() }));
    assert_eq!(handle.stats().failed.as_deref(), Some(reason));
}

#[tokio::test]
async fn a_request_with_nan_logits_fails_alone() {
    let executor = FakeExecutor::new(&config()).poison(99);
    let (handle, _thread) = Engine::start(config(), 2, Box::new(executor)).unwrap();
    let good = request(vec![1], 4);
    let mut bad_stream = submit(&handle, request(vec![99], 4)).await;
    let mut good_stream = submit(&handle, good.clone()).await;
    assert!(matches!(read(&mut bad_stream).await.1, Finish::Error(_)));
    assert_eq!(read(&mut good_stream).await, (alone(&good, 100).tokens, Finish::Length));
}

#[tokio::test]
async fn draining_refuses_new_requests_and_completes_old_ones() {
    let (executor, permits) = FakeExecutor::new(&config()).gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor)).unwrap();
    let mut stream = submit(&handle, request(vec![1], 9)).await;
    handle.drain();
    assert_eq!(submit_group(&handle, vec![request(vec![1], 2)]).await.err(), Some(Reject::Draining));
    drop(permits);
    assert_eq!(read(&mut stream).await.1, Finish::Length);
}

#[tokio::test]
async fn stopping_ends_every_request_and_refuses_later_ones() {
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(2));
    let (handle, thread) = Engine::start(config(), 2, Box::new(executor)).unwrap();
    let mut stream = submit(&handle, request(vec![1], 900)).await;
    handle.stop();
    assert_eq!(read(&mut stream).await.1, error("the server is shutting down"));
    assert_eq!(thread.join(), Ok(()));
    let refused = submit_group(&handle, vec![request(vec![1], 2)]).await.err();
    assert_eq!(refused, Some(Reject::EngineDown("the server is shutting down".to_owned())));
    let stats = handle.stats();
    assert_eq!(stats.failed, None, "a stop is not a failure");
    assert!(!stats.pending(), "no work is pending after a stop: {stats:?}");
    assert_eq!((stats.counts.running, stats.counts.blocks_used), (0, 0));
    assert_eq!(handle.heartbeat().snapshot().pending_since, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_during_a_stop_are_all_answered() {
    for _ in 0..30 {
        let (handle, _thread) = Engine::start(config(), 1, Box::new(FakeExecutor::new(&config()))).unwrap();
        let client = |i| {
            let handle = handle.clone();
            tokio::spawn(async move {
                match submit_group(&handle, vec![request(vec![i], 3)]).await {
                    Ok(mut streams) => read(&mut streams[0]).await.1,
                    Err(reject) => error(&reject.to_string()),
                }
            })
        };
        let clients: Vec<_> = (0..8).map(client).collect();
        handle.stop();
        for client in clients {
            let answer = tokio::time::timeout(Duration::from_secs(20), client).await;
            answer.expect("every submit is answered").unwrap();
        }
    }
}

#[tokio::test]
async fn stats_show_a_step_that_hangs() {
    let (executor, permits) = FakeExecutor::new(&config()).gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor)).unwrap();
    assert!(!handle.stats().pending());
    let mut stream = submit(&handle, request(vec![1], 2)).await;
    let stats = until(&handle, |stats| stats.in_flight == 1).await;
    assert!(stats.pending() && stats.last_step.is_none());
    permits.send(()).unwrap();
    stream.next().await;
    assert!(handle.stats().last_step.is_some());
}

#[tokio::test]
async fn a_stream_interval_buffers_tokens_unless_every_token_is_flushed() {
    for (each, held) in [(false, true), (true, false)] {
        let (executor, permits) = FakeExecutor::new(&config()).gated();
        let options = EngineOptions { stream_interval: 100, ..EngineOptions::new(1) };
        let (handle, _thread) = Engine::start_with(config(), Box::new(executor), options).unwrap();
        let options = SubmitOptions { flush_every_token: each, ..SubmitOptions::default() };
        let group = vec![request(vec![1], 9)];
        let mut stream = handle.enter(1).unwrap().submit(group, options).await.unwrap().remove(0);
        for tokens in 1..=4 {
            permits.send(()).unwrap();
            until(&handle, |stats| stats.counts.generated_tokens == tokens).await;
        }
        assert!(!stream.next().await.tokens.is_empty(), "the first token is sent at once");
        // Stats are published before updates are sent, so the last update may still be on its way.
        let next = tokio::time::timeout(Duration::from_secs(if held { 0 } else { 20 }), stream.next()).await;
        assert_eq!(next.is_err(), held, "each: {each}");
        (0..5).for_each(|_| permits.send(()).unwrap());
        assert_eq!(read(&mut stream).await.1, Finish::Length);
    }
}

#[test]
fn a_finish_closes_an_open_request() {
    let mut requests = OpenRequests::new(1);
    let (sender, mut updates) = tokio::sync::mpsc::unbounded_channel();
    requests.open(RequestId(7), sender, false);
    post(&mut requests, Some(1), None);
    assert_eq!(requests.len(), 1);
    post(&mut requests, None, Some(Finish::Length));
    assert!(requests.is_empty());
    assert!(updates.try_recv().is_ok() && updates.try_recv().is_ok());
    assert_eq!(updates.try_recv().err(), Some(tokio::sync::mpsc::error::TryRecvError::Disconnected));
}

fn post(requests: &mut OpenRequests, token: Option<u32>, finish: Option<Finish>) {
    let tokens = token.map(SampledToken::new).into_iter().collect();
    requests.send(RequestId(7), Update { tokens, finish, ..Update::default() });
}

/// The first token of an update.
fn first_token(update: &Update) -> Option<u32> {
    update.tokens.first().map(|token| token.id)
}

#[test]
fn updates_are_sent_at_intervals_and_none_is_lost() {
    for interval in 1..6 {
        for len in 1..20 {
            let mut requests = OpenRequests::new(interval);
            let (sender, mut updates) = tokio::sync::mpsc::unbounded_channel();
            requests.open(RequestId(7), sender, false);
            let mut sent = Vec::new();
            for token in 0..len {
                post(&mut requests, Some(token), None);
                let new: Vec<_> = std::iter::from_fn(|| first_token(&updates.try_recv().ok()?)).collect();
                // The first token is sent at once, later ones in groups of `interval`.
                let wanted = match token as usize {
                    0 => 1,
                    later if later % interval == 0 => interval,
                    _ => 0,
                };
                assert_eq!(new.len(), wanted, "interval {interval}, token {token}");
                sent.extend(new);
            }
            post(&mut requests, None, Some(Finish::Length));
            let rest: Vec<Update> = std::iter::from_fn(|| updates.try_recv().ok()).collect();
            sent.extend(rest.iter().filter_map(first_token));
            assert_eq!(sent, (0..len).collect::<Vec<_>>(), "interval {interval}");
            assert!(rest.iter().rev().skip(1).all(|update| update.finish.is_none()));
            assert_eq!(rest.last().unwrap().finish, Some(Finish::Length));
        }
    }
}

#[test]
fn no_update_is_buffered_for_more_steps_than_the_interval() {
    for interval in 2..6 {
        let mut requests = OpenRequests::new(interval);
        let (sender, mut updates) = tokio::sync::mpsc::unbounded_channel();
        requests.open(RequestId(7), sender, false);
        for token in 0..2 {
            post(&mut requests, Some(token), None);
            requests.end_step();
        }
        assert_eq!(first_token(&updates.try_recv().unwrap()), Some(0));
        // Its sequence is preempted now, while others run.
        for _ in 1..interval - 1 {
            requests.end_step();
            assert!(updates.try_recv().is_err(), "interval {interval}: sent early");
        }
        requests.end_step();
        assert_eq!(updates.try_recv().map(|update| first_token(&update)), Ok(Some(1)), "interval {interval}");
        // The same again when the sequence goes on.
        post(&mut requests, Some(2), None);
        (1..interval).for_each(|_| requests.end_step());
        assert!(updates.try_recv().is_err(), "interval {interval}: sent early");
        requests.end_step();
        assert_eq!(updates.try_recv().map(|update| first_token(&update)), Ok(Some(2)), "interval {interval}");
    }
}

#[test]
fn buffered_updates_are_sent_before_a_failure() {
    let mut requests = OpenRequests::new(8);
    let (sender, mut updates) = tokio::sync::mpsc::unbounded_channel();
    requests.open(RequestId(7), sender, false);
    (0..4).for_each(|token| post(&mut requests, Some(token), None));
    requests.fail_all("broken", |_| Cost::default());
    let all: Vec<Update> = std::iter::from_fn(|| updates.try_recv().ok()).collect();
    assert_eq!(all.iter().filter_map(first_token).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(all.last().unwrap().finish, Some(error("broken")));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "request 7 was answered after it was closed")]
fn closing_a_request_twice_panics() {
    let mut requests = OpenRequests::new(1);
    requests.open(RequestId(7), tokio::sync::mpsc::unbounded_channel().0, false);
    post(&mut requests, None, Some(Finish::Length));
    post(&mut requests, None, Some(Finish::Length));
}

/// An executor that predicts steps of hours.
struct Slow(flume::Receiver<()>);

impl Executor for Slow {
    fn enqueue(&mut self, _plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let _freed = self.0.recv();
        Err(EngineError { message: "slow".to_owned() })
    }

    fn predict(&self, _plan: &StepPlan) -> Option<Duration> {
        Some(Duration::from_secs(10_000))
    }
}

#[tokio::test]
async fn the_expected_step_time_is_bounded() {
    for (longest, expected) in [(7, 7), (100_000, 10_000)] {
        let (free, slow) = flume::bounded::<()>(0);
        let longest_step = Duration::from_secs(longest);
        let options = EngineOptions { longest_step, ..EngineOptions::new(1) };
        let (handle, thread) = Engine::start_with(config(), Box::new(Slow(slow)), options).unwrap();
        let mut stream = submit(&handle, request(vec![1], 2)).await;
        until(&handle, |stats| stats.in_flight == 1).await;
        assert_eq!(handle.heartbeat().snapshot().expected_step, Duration::from_secs(expected));
        drop(free);
        assert_eq!(read(&mut stream).await.1, error("slow"));
        assert!(thread.join().is_err());
    }
}

/// An executor that hangs in its first `enqueue`.
struct Stuck(flume::Receiver<()>);

impl Executor for Stuck {
    fn enqueue(&mut self, _plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        let _freed = self.0.recv();
        Err(EngineError { message: "stuck".to_owned() })
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        unreachable!("nothing was enqueued")
    }
}

#[tokio::test]
async fn work_is_pending_as_soon_as_it_is_sent() {
    let (free, stuck) = flume::bounded::<()>(0);
    let (handle, thread) = Engine::start(config(), 1, Box::new(Stuck(stuck))).unwrap();
    let heartbeat = Arc::clone(handle.heartbeat());
    assert_eq!(heartbeat.snapshot(), Snapshot::default(), "no request was sent");
    let before = Instant::now();
    let mut stream = submit(&handle, request(vec![1], 2)).await;
    // The engine hangs in `enqueue` and takes no further command.
    while heartbeat.snapshot().pending_since.is_none() {
        assert!(before.elapsed() < crate::HANG_GUARD, "the heartbeat does not show it");
        tokio::task::yield_now().await;
    }
    let since = heartbeat.snapshot().pending_since;
    assert!(since >= Some(before) && heartbeat.snapshot().last_step.is_none());
    let untaken = handle.enter(1).unwrap().submit(vec![request(vec![2], 2)], SubmitOptions::default());
    let waited = tokio::time::timeout(Duration::from_millis(50), untaken).await;
    assert!(waited.is_err(), "the engine did not take it");
    assert_eq!(heartbeat.snapshot().pending_since, since, "later requests do not change it");
    drop(free);
    assert!(matches!(stream.next().await.finish, Some(Finish::Error(_))));
    assert!(tokio::task::spawn_blocking(|| thread.join()).await.unwrap().is_err());
    assert_eq!(heartbeat.snapshot().failed.as_deref(), Some("stuck"));
}
