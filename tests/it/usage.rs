//! Who pays for what: the sums of all costs are what the device took, whatever shares, waits, is preempted or leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::engine::usage::StepCosts;
use octant::engine::{
    Engine, EngineCore, EngineHandle, EngineMetrics, Forecast, KeyCounters, Pipeline, RequestId, StepClock,
    StepEvent, Submission,
};
use octant::request::{Cost, Finish, Request, StopRules, Update};
use octant::scheduler::SchedulerConfig;
use prometheus::{Counter, IntCounter};

use crate::fake::{FakeExecutor, FakeModel, alone, config, request};
use crate::scheduler::prompt;

/// Somebody's counters.
pub fn payer() -> Arc<KeyCounters> {
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

/// The engine's turn on a clock of its own: a step takes a millisecond and what its tokens take.
struct Bench {
    pipeline: Pipeline,
    model: FakeModel,
    account: StepCosts,
    forecast: Forecast,
    now: Instant,
    /// Of each step in flight, what it yields, its tokens, and what it takes.
    outputs: std::collections::VecDeque<(octant::scheduler::step_plan::StepOutput, usize, Duration)>,
    costs: Vec<(RequestId, Cost)>,
    /// Blocks used times seconds, from the scheduler's own counts.
    block_seconds: f64,
    busy: f64,
}

impl Bench {
    fn new(config: &SchedulerConfig, in_flight: usize) -> Self {
        Self {
            pipeline: Pipeline::new(config.clone(), in_flight, None),
            model: FakeModel::new(config),
            account: StepCosts::default(),
            forecast: Forecast::default(),
            now: Instant::now(),
            outputs: std::collections::VecDeque::new(),
            costs: Vec::new(),
            block_seconds: 0.0,
            busy: 0.0,
        }
    }

    fn submit(&mut self, id: u64, request: Request) {
        let id = RequestId(id);
        self.account.open(id, request.prompt.len(), self.now, None);
        self.pipeline.submit(vec![(id, request)]).unwrap();
    }

    /// One turn; `false` when nothing is left.
    fn turn(&mut self) -> bool {
        while let Some(plan) = self.pipeline.start() {
            let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
            let expected = self.forecast.step_takes(tokens);
            self.account.launched(&plan, self.pipeline.scheduler().owners(), self.now, expected);
            let took = Duration::from_millis(1) + Duration::from_micros(10 * tokens as u64);
            self.outputs.push_back((self.model.step(&plan), tokens, took));
        }
        let counts = self.pipeline.scheduler().counts();
        let held: f64 = self.pipeline.scheduler().holdings().map(|(_, blocks)| blocks).sum();
        assert!((held - counts.blocks_used as f64).abs() < 1e-9, "parts of blocks add up to blocks");
        self.account.hold(self.pipeline.scheduler().holdings(), self.now);
        let Some((output, tokens, took)) = self.outputs.pop_front() else { return false };
        self.now += took;
        self.busy += took.as_secs_f64();
        self.block_seconds += counts.blocks_used as f64 * took.as_secs_f64();
        let measured = self.account.results(self.now);
        self.forecast.step(tokens, measured);
        assert!((measured - took.as_secs_f64()).abs() < 1e-9, "{measured} {took:?}");
        for (id, update) in self.pipeline.commit(&output).unwrap() {
            let so_far = self.account.cost(id, update.token.is_some());
            if update.finish.is_some() {
                let cost = self.account.close(id, self.now);
                assert!(cost.prefill + cost.decode >= so_far.prefill + so_far.decode);
                self.costs.push((id, cost));
            }
        }
        true
    }

    fn abort(&mut self, id: u64) {
        self.pipeline.abort(RequestId(id));
        let cost = self.account.close(RequestId(id), self.now);
        self.costs.push((RequestId(id), cost));
    }

    fn run(mut self) -> Self {
        while self.turn() {}
        self
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

/// Ends by a stop id, so that with two steps in flight a row of it is computed for nobody.
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
        let counts = bench.pipeline.scheduler().counts();
        assert!(counts.preemptions > 0 && counts.prefix_hits > 0, "{counts:?}");
        let (sum, totals) = (bench.sum(), bench.account.totals());
        assert_eq!(bench.costs.len(), 24);
        close(totals.prefill + totals.decode, bench.busy, "the device's time");
        close(sum.prefill, totals.prefill, "prefill");
        close(sum.decode, totals.decode, "decode");
        close(totals.kv_block_seconds, bench.block_seconds, "blocks");
        close(sum.kv_block_seconds, totals.kv_block_seconds, "blocks of requests");
        assert_eq!(sum.recomputed_tokens, totals.recomputed_tokens);
        assert!(sum.recomputed_tokens > 0, "somebody was preempted");
    }
}

/// Their last row was their prompt, and the one in flight is a token, in a step that may take longer or less long.
#[test]
fn answers_of_one_token_pay_for_a_token_in_flight_and_not_for_their_prompt_again() {
    // Each step has some prompts and tokens for nobody; or they take turns; or there is one request at a time.
    for (max_num_seqs, together) in [(8, 4), (4, 4), (1, 1)] {
        let config = SchedulerConfig { max_num_seqs, max_num_batched_tokens: 100, ..config() };
        let mut bench = Bench::new(&config, 2);
        for id in 0..1000 {
            let tokens = (0..20).map(|i| (id * 7 + i * (1 + id / 100)) % 100).collect();
            let mut asked = request(tokens, 2);
            asked.stop.stop_ids = vec![alone(&asked, 100).tokens[0]];
            bench.submit(id.into(), asked);
            // As many come as may start, so that none waits.
            while (id + 1) % together == 0 && bench.pipeline.scheduler().counts().waiting > 0 {
                assert!(bench.turn());
            }
        }
        let bench = bench.run();
        let (sum, totals) = (bench.sum(), bench.account.totals());
        assert_eq!(bench.costs.len(), 1000);
        assert!(totals.decode > 0.04 * totals.prefill, "rows were in flight for nobody: {totals:?}");
        close(totals.prefill + totals.decode, bench.busy, "the device's time");
        close(sum.prefill, totals.prefill, "prefill");
        close(sum.decode, totals.decode, "decode");
        close(sum.kv_block_seconds, totals.kv_block_seconds, "blocks of requests");
    }
}

#[test]
fn a_request_alone_pays_for_all_and_counts_its_tokens() {
    let mut bench = Bench::new(&config(), 1);
    bench.submit(1, request(prompt(0, 100), 5));
    let bench = bench.run();
    let cost = bench.of(1);
    // 64 tokens, 36 tokens, then four tokens of which the last is drawn by the fourth.
    assert!((cost.prefill - 0.003).abs() < 1e-9, "{cost:?}");
    assert!((cost.decode - 0.00404).abs() < 1e-9, "{cost:?}");
    assert!((cost.kv_block_seconds - 2.0 * 0.00704).abs() < 1e-9, "two blocks: {cost:?}");
    assert_eq!((cost.cached_tokens, cost.computed_tokens, cost.recomputed_tokens), (0, 104, 0));
    assert_eq!(cost.queue, 0.0);
}

#[test]
fn what_is_cached_is_not_computed_and_a_shared_block_is_divided() {
    let mut bench = Bench::new(&config(), 1);
    bench.submit(1, request(prompt(0, 130), 40));
    (0..4).for_each(|_| assert!(bench.turn()));
    bench.submit(2, request(prompt(0, 130), 40));
    let bench = bench.run();
    let (first, second) = (bench.of(1), bench.of(2));
    assert_eq!((first.cached_tokens, second.cached_tokens), (0, 128));
    assert_eq!((first.computed_tokens, second.computed_tokens), (169, 41));
    assert!(first.kv_block_seconds > second.kv_block_seconds, "{first:?} {second:?}");
    // It holds three, of which two are shared as long as the other runs.
    assert!(second.kv_block_seconds < 2.0 * bench.busy, "{second:?} {}", bench.busy);
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
    assert_eq!(Cost { queue: 0.0, ..left }, Cost::default(), "who never ran has used nothing");
    assert!((left.queue - 0.00514).abs() < 1e-9, "{left:?}");
    assert!((bench.of(2).queue - 0.02029).abs() < 1e-9, "{:?}", bench.of(2));
}

#[test]
fn whoever_leaves_pays_for_what_is_in_flight() {
    let mut bench = Bench::new(&config(), 2);
    bench.submit(1, request(prompt(0, 60), 300));
    bench.submit(2, request(prompt(50, 60), 300));
    (0..100).for_each(|_| assert!(bench.turn()));
    bench.abort(1);
    let bench = bench.run();
    let (sum, totals) = (bench.sum(), bench.account.totals());
    close(sum.prefill + sum.decode, totals.prefill + totals.decode, "the device's time");
    close(sum.kv_block_seconds, bench.block_seconds, "blocks");
}

/// The engine's own clock, told the time: a step takes ten milliseconds.
#[test]
fn whoever_leaves_when_a_step_has_ended_pays_for_it_once() {
    for in_flight in [1, 2] {
        let (meters, mut now) = (EngineMetrics::default(), Instant::now());
        let mut watch = StepClock::new(Forecast::default(), (Duration::ZERO, Duration::MAX), meters.clone());
        let mut turns = EngineCore::new(Pipeline::new(config(), in_flight, None), 1);
        let mut executor = FakeExecutor::new(&config());
        let (id, (updates, _inbox)) = (RequestId(1), tokio::sync::mpsc::unbounded_channel());
        let asked = request(prompt(0, 100), 300);
        turns.submit(vec![Submission { id, request: asked, updates, each: true }]).unwrap();
        watch.open(id, 100, now, None);
        let mut turn = |turns: &mut EngineCore, watch: &mut StepClock| {
            let see = &mut |pipeline: &Pipeline, moment: StepEvent<'_>| {
                now += Duration::from_millis(if matches!(moment, StepEvent::Results) { 10 } else { 0 });
                watch.see(pipeline, moment, now);
            };
            (turns.turn(&mut executor, see).unwrap(), now)
        };
        let left = (0..5).map(|_| turn(&mut turns, &mut watch).1).last().unwrap();
        turns.abort(id, Cost::default());
        let cost = watch.close(id, left);
        while turn(&mut turns, &mut watch).0 {}
        let steps = (4 + in_flight) as f64;
        assert!((meters.prefill.get() + meters.decode.get() - 0.01 * steps).abs() < 1e-9);
        close(cost.prefill + cost.decode, 0.01 * steps, "the device's time");
        close(cost.kv_block_seconds, 2.0 * 0.01 * steps, "two blocks");
    }
}

async fn run(handle: &EngineHandle, group: Vec<Request>, payer: &Arc<KeyCounters>) -> Vec<Cost> {
    let mut place = handle.enter(group.len()).unwrap();
    place.bill_to(Arc::clone(payer));
    let mut costs = Vec::new();
    for mut stream in place.submit(group).await.unwrap() {
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

/// The engine's own clock: the answers' costs, the payer's counters and the device's totals are one sum.
#[tokio::test]
async fn the_engine_tells_each_request_its_cost_and_its_payer_too() {
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(1));
    let (handle, _thread) = Engine::start(config(), 2, Box::new(executor));
    let payer = payer();
    let group = (0..4).map(|i| request(prompt(i, 100), 20)).collect();
    let costs = run(&handle, group, &payer).await;
    let sum = costs.iter().fold(Cost::default(), |sum, cost| sum.and(*cost));
    let meters = handle.metrics();
    close(sum.prefill, meters.prefill.get(), "prefill");
    close(sum.decode, meters.decode.get(), "decode");
    close(sum.kv_block_seconds, meters.kv_block_seconds.get(), "blocks");
    assert!(sum.prefill + sum.decode > 0.02, "steps of a millisecond: {sum:?}");
    let (tokens, device) = (payer.generated_tokens.get(), payer.prefill.get() + payer.decode.get());
    assert_eq!((payer.requests.get(), payer.prompt_tokens.get(), tokens), (4, 400, 80));
    close(device, sum.prefill + sum.decode, "the payer's");
    let steps = handle.stats().counts.steps;
    assert_eq!((meters.step.get_sample_count(), meters.idle.get_sample_count()), (steps, steps));
    // The executor cannot tell what a step takes: they are compared with those before them, once the first has been
    // accounted for, which is when the third is on its way.
    assert_eq!(meters.ratio.get_sample_count(), steps - 3);
    assert_eq!(meters.tokens.get_sample_sum(), (sum.computed_tokens + sum.recomputed_tokens) as f64);
    assert!(meters.host.get_sample_count() > 10);
}

#[tokio::test]
async fn a_client_that_leaves_is_billed_all_the_same() {
    let (executor, permits) = FakeExecutor::new(&config()).gated();
    let (handle, _thread) = Engine::start(config(), 1, Box::new(executor));
    let payer = payer();
    let mut place = handle.enter(1).unwrap();
    place.bill_to(Arc::clone(&payer));
    let stream = place.submit(vec![request(prompt(0, 100), 500)]).await.unwrap();
    (0..3).for_each(|_| permits.send(()).unwrap());
    while handle.stats().counts.steps < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(stream);
    drop(permits);
    while payer.requests.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(payer.prefill.get() > 0.0 && payer.computed_tokens.get() > 100);
}
