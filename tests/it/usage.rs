//! Costs of requests. They add up to the device's time, also when requests share blocks, wait, are preempted
//! or are aborted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octant::engine::{
    Clock, Engine, EngineCore, EngineError, EngineHandle, EngineMetrics, EngineOptions, Executor,
    KeyCounters, RequestId, Submission, SubmitOptions,
};
use octant::request::{Cost, Finish, Request, StopRules, Update};
use octant::scheduler::SchedulerConfig;
use octant::scheduler::step_plan::{StepOutput, StepPlan};
use prometheus::{Counter, IntCounter};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::fake::{FakeExecutor, FakeModel, alone, config, request};
use crate::scheduler::prompt;

/// New counters for one key, all 0.
pub fn key_counters() -> Arc<KeyCounters> {
    let counter = || Counter::new("seconds", "of a test").unwrap();
    let tokens = || IntCounter::new("tokens", "of a test").unwrap();
    Arc::new(KeyCounters {
        requests: tokens(),
        queue: counter(),
        prefill: counter(),
        decode: counter(),
        kv_block_seconds: counter(),
        prompt_tokens: tokens(),
        cached_tokens: tokens(),
        computed_tokens: tokens(),
        recomputed_tokens: tokens(),
        generated_tokens: tokens(),
    })
}

/// A device in virtual time. Steps run one after the other, and a step of n tokens takes `takes(n)`.
struct TimedExecutor {
    model: FakeModel,
    takes: fn(usize) -> Duration,
    clock: VirtualClock,
    in_flight: VecDeque<(StepOutput, Duration)>,
    /// Device time of the steps collected so far.
    busy: Duration,
}

impl TimedExecutor {
    fn new(config: &SchedulerConfig, takes: fn(usize) -> Duration, clock: VirtualClock) -> Self {
        let (model, busy) = (FakeModel::new(config), Duration::ZERO);
        Self { model, takes, clock, in_flight: VecDeque::new(), busy }
    }
}

impl Executor for TimedExecutor {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        let tokens = plan.rows.iter().map(|row| row.tokens.len()).sum();
        self.in_flight.push_back((self.model.step(plan), (self.takes)(tokens)));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let (output, took) = self.in_flight.pop_front().expect("a step was enqueued");
        self.clock.advance(took);
        self.busy += took;
        Ok(output)
    }
}

/// A clock that only [`VirtualClock::advance`] moves.
#[derive(Clone)]
struct VirtualClock {
    start: Instant,
    nanos: Arc<AtomicU64>,
}

impl VirtualClock {
    fn new() -> Self {
        Self { start: Instant::now(), nanos: Arc::default() }
    }

    fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// The options of an engine on this clock, with these metrics.
    fn options(&self, in_flight: usize, metrics: &EngineMetrics) -> EngineOptions {
        let (clock, metrics) = (self.clone(), metrics.clone());
        let clock = Clock::virtual_time(move || clock.now());
        EngineOptions { clock, metrics, ..EngineOptions::new(in_flight) }
    }
}

/// An engine in virtual time: a step takes 1 ms and 10 µs for each token.
struct Bench {
    core: EngineCore,
    executor: TimedExecutor,
    metrics: EngineMetrics,
    clock: VirtualClock,
    /// The updates of each request, and the last cost read from them.
    streams: HashMap<RequestId, (UnboundedReceiver<Update>, Cost)>,
    costs: Vec<(RequestId, Cost)>,
    /// Blocks used times seconds, from the scheduler's own counts.
    block_seconds: f64,
}

impl Bench {
    fn new(config: &SchedulerConfig, in_flight: usize) -> Self {
        let (clock, metrics) = (VirtualClock::new(), EngineMetrics::default());
        let takes = |tokens| Duration::from_millis(1) + Duration::from_micros(10 * tokens as u64);
        Self {
            core: EngineCore::new(config.clone(), clock.options(in_flight, &metrics)),
            executor: TimedExecutor::new(config, takes, clock.clone()),
            metrics,
            clock,
            streams: HashMap::new(),
            costs: Vec::new(),
            block_seconds: 0.0,
        }
    }

    fn submit(&mut self, id: u64, request: Request) {
        let (updates, stream) = unbounded_channel();
        let id = RequestId(id);
        self.streams.insert(id, (stream, Cost::default()));
        let group = vec![Submission { id, request, updates }];
        self.core.submit(group, &SubmitOptions::default(), self.clock.now()).unwrap();
    }

    /// Runs one step. Returns `false` when nothing is left to run.
    fn turn(&mut self) -> bool {
        let collected_before = self.executor.busy.as_secs_f64();
        while let Some(step) = self.core.schedule() {
            self.core.launch(step, &mut self.executor).unwrap();
        }
        let published = self.core.publish();
        let measured = self.metrics.step.get_sample_sum();
        assert!((measured - collected_before).abs() < 1e-9, "{measured} {collected_before}");
        self.costs.extend(published.finished);
        self.read_costs();
        let counts = self.core.scheduler().counts();
        let held: f64 = self.core.scheduler().holdings().map(|(_, blocks)| blocks).sum();
        assert!((held - counts.blocks_used as f64).abs() < 1e-9, "parts of blocks add up to blocks");
        let Some(step) = self.core.collect(&mut self.executor).unwrap() else { return false };
        let took = self.busy() - collected_before;
        self.block_seconds += counts.blocks_used as f64 * took;
        self.core.commit(step).unwrap();
        true
    }

    /// Reads all updates, and asserts that no request's cost falls.
    fn read_costs(&mut self) {
        for (stream, last) in self.streams.values_mut() {
            while let Ok(update) = stream.try_recv() {
                let (before, now) = (*last, update.cost);
                assert!(now.prefill + now.decode >= before.prefill + before.decode, "{now:?} {before:?}");
                *last = now;
            }
        }
    }

    fn abort(&mut self, id: u64) {
        let cost = self.core.abort(RequestId(id));
        self.costs.push((RequestId(id), cost));
    }

    fn run(mut self) -> Self {
        while self.turn() {}
        self
    }

    fn busy(&self) -> f64 {
        self.executor.busy.as_secs_f64()
    }

    fn sum(&self) -> Cost {
        self.costs.iter().fold(Cost::default(), |sum, (_, cost)| sum.and(*cost))
    }

    fn of(&self, id: u64) -> Cost {
        self.costs.iter().find(|(of, _)| of.0 == id).expect("it has ended").1
    }
}

fn close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 0.01 * expected, "{what}: {got}, expected {expected} within 1 %");
}

/// A request that ends by a stop id: with two steps in flight, one row of it is computed and discarded.
fn stopping(id: u32) -> Request {
    let mut asked = request(prompt(id, 70 + id as usize), 200);
    let drawn = alone(&asked, 100).tokens;
    let stop_ids = vec![drawn[40 + (id as usize * 7) % 60]];
    asked.stop = StopRules { max_tokens: 200, stop_ids };
    asked
}

#[test]
fn costs_add_up_to_what_the_device_took() {
    for in_flight in [1, 2] {
        let small = SchedulerConfig { num_blocks: 7, ..config() };
        let mut bench = Bench::new(&small, in_flight);
        for id in 0..24 {
            bench.submit(id.into(), stopping(id % 20));
        }
        let bench = bench.run();
        let counts = bench.core.scheduler().counts();
        assert!(counts.preemptions > 0 && counts.prefix_hits > 0, "{counts:?}");
        let (sum, totals) = (bench.sum(), bench.core.device_totals());
        assert_eq!(bench.costs.len(), 24);
        close(totals.prefill + totals.decode, bench.busy(), "the device's time");
        close(sum.prefill, totals.prefill, "prefill");
        close(sum.decode, totals.decode, "decode");
        close(totals.kv_block_seconds, bench.block_seconds, "blocks");
        close(sum.kv_block_seconds, totals.kv_block_seconds, "blocks of requests");
        assert_eq!(sum.recomputed_tokens, totals.recomputed_tokens);
        assert!(sum.recomputed_tokens > 0, "some requests were preempted");
    }
}

/// When such a request ends, its last committed row is its prompt, and its row in flight is a decode row. The
/// two steps may take different times.
#[test]
fn an_answer_of_one_token_is_charged_for_a_decode_row_in_flight_not_for_its_prompt_again() {
    // Three cases: each step has both prompts and decode rows that are discarded; steps alternate between the
    // two; one request runs at a time.
    for (max_num_seqs, together) in [(8, 4), (4, 4), (1, 1)] {
        let config = SchedulerConfig { max_num_seqs, max_num_batched_tokens: 100, ..config() };
        let mut bench = Bench::new(&config, 2);
        for id in 0..1000 {
            let tokens = (0..20).map(|i| (id * 7 + i * (1 + id / 100)) % 100).collect();
            let mut asked = request(tokens, 2);
            asked.stop.stop_ids = vec![alone(&asked, 100).tokens[0]];
            bench.submit(id.into(), asked);
            // Submits as many requests as can start, so that none waits.
            while (id + 1) % together == 0 && bench.core.scheduler().counts().waiting > 0 {
                assert!(bench.turn());
            }
        }
        let bench = bench.run();
        let (sum, totals) = (bench.sum(), bench.core.device_totals());
        assert_eq!(bench.costs.len(), 1000);
        assert!(totals.decode > 0.04 * totals.prefill, "discarded rows were in flight: {totals:?}");
        close(totals.prefill + totals.decode, bench.busy(), "the device's time");
        close(sum.prefill, totals.prefill, "prefill");
        close(sum.decode, totals.decode, "decode");
        close(sum.kv_block_seconds, totals.kv_block_seconds, "blocks of requests");
    }
}

#[test]
fn a_request_alone_is_charged_the_whole_device_time_and_all_tokens() {
    let mut bench = Bench::new(&config(), 1);
    bench.submit(1, request(prompt(0, 100), 5));
    let bench = bench.run();
    let cost = bench.of(1);
    // Prefill rows of 64 and 36 tokens, then 4 decode rows; the last one samples the fifth token.
    assert!((cost.prefill - 0.003).abs() < 1e-9, "{cost:?}");
    assert!((cost.decode - 0.00404).abs() < 1e-9, "{cost:?}");
    assert!((cost.kv_block_seconds - 2.0 * 0.00704).abs() < 1e-9, "two blocks: {cost:?}");
    assert_eq!((cost.cached_tokens, cost.computed_tokens, cost.recomputed_tokens), (0, 104, 0));
    assert_eq!(cost.queue, 0.0);
}

#[test]
fn cached_tokens_are_not_computed_and_shared_blocks_are_divided() {
    let mut bench = Bench::new(&config(), 1);
    bench.submit(1, request(prompt(0, 130), 40));
    (0..4).for_each(|_| assert!(bench.turn()));
    bench.submit(2, request(prompt(0, 130), 40));
    let bench = bench.run();
    let (first, second) = (bench.of(1), bench.of(2));
    assert_eq!((first.cached_tokens, second.cached_tokens), (0, 128));
    assert_eq!((first.computed_tokens, second.computed_tokens), (169, 41));
    assert!(first.kv_block_seconds > second.kv_block_seconds, "{first:?} {second:?}");
    // The second request holds three blocks, and shares two of them while the first runs.
    assert!(second.kv_block_seconds < 2.0 * bench.busy(), "{second:?} {}", bench.busy());
    close(bench.sum().kv_block_seconds, bench.block_seconds, "blocks");
}

#[test]
fn waiting_costs_queue_time_and_nothing_else() {
    let mut bench = Bench::new(&SchedulerConfig { max_num_seqs: 1, ..config() }, 1);
    bench.submit(1, request(prompt(0, 10), 20));
    bench.submit(2, request(prompt(30, 10), 1));
    bench.submit(3, request(prompt(60, 10), 1));
    (0..5).for_each(|_| assert!(bench.turn()));
    bench.abort(3);
    let bench = bench.run();
    let left = bench.of(3);
    assert_eq!(Cost { queue: 0.0, ..left }, Cost::default(), "a request that never ran has no other cost");
    assert!((left.queue - 0.00514).abs() < 1e-9, "{left:?}");
    assert!((bench.of(2).queue - 0.02029).abs() < 1e-9, "{:?}", bench.of(2));
}

#[test]
fn an_aborted_request_is_charged_for_its_row_in_flight() {
    let mut bench = Bench::new(&config(), 2);
    bench.submit(1, request(prompt(0, 60), 300));
    bench.submit(2, request(prompt(50, 60), 300));
    (0..100).for_each(|_| assert!(bench.turn()));
    bench.abort(1);
    let bench = bench.run();
    let (sum, totals) = (bench.sum(), bench.core.device_totals());
    close(sum.prefill + sum.decode, totals.prefill + totals.decode, "the device's time");
    close(sum.kv_block_seconds, bench.block_seconds, "blocks");
}

#[test]
fn a_request_that_leaves_after_a_step_is_charged_for_it_once() {
    for in_flight in [1, 2] {
        let (clock, metrics) = (VirtualClock::new(), EngineMetrics::default());
        let mut core = EngineCore::new(config(), clock.options(in_flight, &metrics));
        let mut executor = TimedExecutor::new(&config(), |_| Duration::from_millis(10), clock.clone());
        let (id, (updates, _stream)) = (RequestId(1), unbounded_channel());
        let group = vec![Submission { id, request: request(prompt(0, 100), 300), updates }];
        core.submit(group, &SubmitOptions::default(), clock.now()).unwrap();
        (0..5).for_each(|_| assert!(core.step(&mut executor).unwrap().committed));
        let cost = core.abort(id);
        while core.step(&mut executor).unwrap().committed {}
        let steps = (4 + in_flight) as f64;
        assert!((metrics.prefill.get() + metrics.decode.get() - 0.01 * steps).abs() < 1e-9);
        close(cost.prefill + cost.decode, 0.01 * steps, "the device's time");
        close(cost.kv_block_seconds, 2.0 * 0.01 * steps, "two blocks");
    }
}

/// The executor gets its next steps before a client gets an update of the step before.
#[test]
fn the_next_step_is_launched_before_updates_are_published() {
    struct Watched {
        inner: TimedExecutor,
        stream: UnboundedReceiver<Update>,
        launched: usize,
        read: usize,
    }
    impl Executor for Watched {
        fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
            self.launched += 1;
            assert!(self.stream.is_empty(), "step {} is launched after updates", plan.id);
            self.inner.enqueue(plan)
        }

        fn collect(&mut self) -> Result<StepOutput, EngineError> {
            let output = self.inner.collect()?;
            // All updates of earlier steps have been published. Each step had one update of one token.
            self.read += std::iter::from_fn(|| self.stream.try_recv().ok()).count();
            assert_eq!(self.read as u64, output.id, "updates read in step {}", output.id);
            Ok(output)
        }
    }
    for in_flight in [1, 2] {
        let (clock, (updates, stream)) = (VirtualClock::new(), unbounded_channel());
        let inner = TimedExecutor::new(&config(), |_| Duration::from_millis(1), clock.clone());
        let mut executor = Watched { inner, stream, launched: 0, read: 0 };
        let mut core = EngineCore::new(config(), clock.options(in_flight, &EngineMetrics::default()));
        let group = vec![Submission { id: RequestId(1), request: request(vec![1], 20), updates }];
        core.submit(group, &SubmitOptions::default(), clock.now()).unwrap();
        while core.step(&mut executor).unwrap().committed {}
        assert_eq!((executor.launched, executor.stream.len()), (20, 1), "the last update has the finish");
    }
}

/// Options that charge these counters.
fn charged_to(counters: &Arc<KeyCounters>) -> SubmitOptions {
    SubmitOptions { counters: Some(Arc::clone(counters)), ..SubmitOptions::default() }
}

async fn run(handle: &EngineHandle, group: Vec<Request>, counters: &Arc<KeyCounters>) -> Vec<Cost> {
    let permit = handle.enter(group.len()).unwrap();
    let mut costs = Vec::new();
    for mut stream in permit.submit(group, charged_to(counters)).await.unwrap() {
        loop {
            let Update { finish, cost, .. } = stream.next().await;
            if let Some(finish) = finish {
                assert_eq!(finish, Finish::Length);
                costs.push(cost);
                break;
            }
        }
    }
    costs
}

/// The costs in updates, the key's counters and the device's totals have the same sums. Runs on the system's
/// clock.
#[tokio::test]
async fn costs_key_counters_and_engine_metrics_have_the_same_sums() {
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(1));
    let (handle, _thread) = Engine::start(config(), 2, Box::new(executor)).unwrap();
    let counters = key_counters();
    let group = (0..4).map(|i| request(prompt(i, 100), 20)).collect();
    let costs = run(&handle, group, &counters).await;
    let sum = costs.iter().fold(Cost::default(), |sum, cost| sum.and(*cost));
    let metrics = handle.metrics();
    close(sum.prefill, metrics.prefill.get(), "prefill");
    close(sum.decode, metrics.decode.get(), "decode");
    close(sum.kv_block_seconds, metrics.kv_block_seconds.get(), "blocks");
    assert!(sum.prefill + sum.decode > 0.02, "steps of a millisecond: {sum:?}");
    let tokens = counters.generated_tokens.get();
    assert_eq!((counters.requests.get(), counters.prompt_tokens.get(), tokens), (4, 400, 80));
    close(counters.prefill.get() + counters.decode.get(), sum.prefill + sum.decode, "the key's");
    let steps = handle.stats().counts.steps;
    assert_eq!((metrics.step.get_sample_count(), metrics.idle.get_sample_count()), (steps, steps));
    // The executor predicts no step times, so each step is compared with a prediction from earlier steps. The
    // first step is charged when the third is in flight, so the first three have no prediction.
    assert_eq!(metrics.ratio.get_sample_count(), steps - 3);
    assert_eq!(metrics.tokens.get_sample_sum(), (sum.computed_tokens + sum.recomputed_tokens) as f64);
    assert!(metrics.host.get_sample_count() > 10);
}

#[tokio::test]
async fn an_aborted_request_is_charged_to_its_key() {
    let (executor, permits) = FakeExecutor::new(&config()).gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor)).unwrap();
    let counters = key_counters();
    let group = vec![request(prompt(0, 100), 500)];
    let stream = handle.enter(1).unwrap().submit(group, charged_to(&counters)).await.unwrap();
    (0..3).for_each(|_| permits.send(()).unwrap());
    while handle.stats().counts.steps < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(stream);
    drop(permits);
    while counters.requests.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(counters.prefill.get() > 0.0 && counters.computed_tokens.get() > 100);
}

/// An executor whose masks are late in every third step, by 2 ms.
struct LateMasks(FakeExecutor);

impl Executor for LateMasks {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        self.0.enqueue(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let output = self.0.collect()?;
        let mask_wait = if output.id.is_multiple_of(3) { Duration::from_millis(2) } else { Duration::ZERO };
        Ok(StepOutput { mask_wait, ..output })
    }
}

#[tokio::test]
async fn late_masks_are_counted() {
    let executor = Box::new(LateMasks(FakeExecutor::new(&config())));
    let (handle, thread) = Engine::start(config(), 2, executor).unwrap();
    run(&handle, vec![request(prompt(1, 10), 20)], &key_counters()).await;
    handle.stop();
    thread.join().unwrap();
    let (metrics, late) = (handle.metrics(), handle.stats().counts.steps.div_ceil(3));
    assert_eq!(metrics.late_masks.get(), late);
    close(metrics.mask_wait.get(), late as f64 * 0.002, "wait");
}
