//! Requests of batches run behind live ones.

use std::time::Instant;

use octant::engine::admission::{QueueSnapshot, UniformQueue};
use octant::engine::{EngineCore, EngineOptions, Forecast, QueueState, RequestId, Submission, SubmitOptions};
use octant::request::{Reject, Request};
use octant::scheduler::{Policy, SchedulerConfig};
use tokio::sync::mpsc::unbounded_channel;

use super::{Bench, prompt};
use crate::fake::{FakeExecutor, alone, config, request};

fn of_batch(request: Request) -> Request {
    Request { batch: true, ..request }
}

/// Prompts are short, so that each is fed in the step that starts it.
fn slots(max_num_seqs: usize) -> SchedulerConfig {
    SchedulerConfig { max_num_seqs, max_num_batched_tokens: 256, prefix_caching: false, ..config() }
}

#[test]
fn a_live_request_takes_the_slot_of_a_batch_in_the_next_step() {
    let mut bench = Bench::new(slots(1));
    let batch = bench.submit(of_batch(request(prompt(0, 10), 20)));
    bench.step();
    bench.step();
    let live = bench.submit(request(prompt(50, 10), 5));
    bench.step();
    assert_eq!(bench.tokens(live).len(), 1, "it has its first token after one step");
    bench.run(2);
    assert_eq!(bench.tokens(live), alone(&request(prompt(50, 10), 5), 100).tokens);
    assert_eq!(bench.tokens(batch), alone(&request(prompt(0, 10), 20), 100).tokens);
}

#[test]
fn a_live_request_takes_the_blocks_of_batches() {
    // The batch takes all four blocks.
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 4, ..slots(4) });
    let batch = bench.submit(of_batch(request(prompt(0, 200), 40)));
    bench.step();
    bench.step();
    let live = bench.submit(request(prompt(1, 150), 5));
    bench.step();
    assert_eq!(bench.tokens(live).len(), 1, "it has its first token after one step");
    assert_eq!(bench.scheduler.counts().batch_waiting, 1, "the batch was preempted");
    bench.run(2);
    assert_eq!(bench.tokens(batch), alone(&request(prompt(0, 200), 40), 100).tokens);
}

#[test]
fn growth_of_a_live_request_preempts_batches_and_no_live_request() {
    let policy = Policy { max_preemptions: 0, ..Policy::default() };
    for policy in [Policy::default(), policy] {
        let mut bench = Bench::new(SchedulerConfig { num_blocks: 8, policy, ..slots(4) });
        let first = bench.submit(request(prompt(1, 60), 120));
        let batches: Vec<u64> =
            (0..3).map(|i| bench.submit(of_batch(request(prompt(i * 7, 60), 100)))).collect();
        let second = bench.submit(request(prompt(2, 60), 120));
        bench.run(2);
        for (id, asked) in [(first, request(prompt(1, 60), 120)), (second, request(prompt(2, 60), 120))] {
            assert_eq!(bench.tokens(id), alone(&asked, 100).tokens);
        }
        for (i, id) in (0..).zip(batches) {
            assert_eq!(bench.tokens(id), alone(&request(prompt(i * 7, 60), 100), 100).tokens);
        }
    }
}

#[test]
fn batches_alone_have_one_step_in_flight() {
    let mut bench = Bench::new(slots(4));
    bench.submit(of_batch(request(prompt(0, 10), 20)));
    assert!(bench.plan().is_some());
    assert!(bench.plan().is_none(), "a live request would wait for the second one");
    bench.commit();
    bench.submit(request(prompt(0, 10), 20));
    assert!(bench.plan().is_some());
    assert!(bench.plan().is_some());
    bench.run(2);
}

#[test]
fn a_step_with_a_live_prompt_has_no_prompt_of_a_batch() {
    let mut bench = Bench::new(slots(8));
    for i in 0..3 {
        bench.submit(of_batch(request(prompt(i, 15), 20)));
    }
    bench.submit(request(prompt(9, 10), 20));
    assert_eq!(bench.step().rows.len(), 1, "the live prompt is alone");
    let plan = bench.step();
    let tokens: Vec<usize> = plan.rows.iter().map(|row| row.tokens.len()).collect();
    assert_eq!(tokens, [1, 15, 15, 2], "behind the live row, prompts of batches get an eighth of 256 tokens");
}

#[test]
fn a_batch_never_ages_and_keeps_its_order() {
    let policy = Policy { ageing_steps: 1, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { policy, ..slots(1) });
    let old = bench.submit(of_batch(Request { priority: -5, ..request(prompt(0, 10), 2) }));
    let live: Vec<u64> =
        (1..6).map(|i| bench.submit(Request { priority: 9, ..request(prompt(i, 10), 2) })).collect();
    let urgent = bench.submit(of_batch(Request { priority: -6, ..request(prompt(7, 10), 2) }));
    for id in live {
        while bench.finish(id).is_none() {
            bench.step();
        }
        assert!(bench.updates(old).is_empty() && bench.updates(urgent).is_empty());
    }
    while bench.finish(urgent).is_none() {
        bench.step();
    }
    assert!(bench.updates(old).is_empty(), "among batches the priority decides");
    bench.run(1);
}

#[test]
fn batches_are_invisible_to_the_queues_limits_and_counts() {
    let mut bench = Bench::new(SchedulerConfig { max_queue_requests: 1, max_queue_tokens: 20, ..slots(1) });
    for i in 0..50 {
        bench.submit(of_batch(request(prompt(i, 10), 2)));
    }
    let counts = bench.scheduler.counts();
    assert_eq!((counts.waiting, counts.waiting_tokens, counts.batch_waiting), (0, 0, 50));
    assert_eq!(bench.scheduler.ahead(&Default::default(), 0).requests, 0);
    bench.submit(request(prompt(0, 10), 2));
    let refused = bench.submit_group(vec![request(prompt(0, 10), 2)]);
    assert_eq!(refused, Err(Reject::QueueFull { waiting: 1, limit: 1 }));
    bench.submit(of_batch(request(prompt(0, 10), 2)));
    bench.run(2);
}

#[test]
fn one_slot_in_sixteen_is_kept_for_live_requests() {
    let mut bench = Bench::new(slots(8));
    for i in 0..9 {
        bench.submit(of_batch(request(prompt(i, 4), 30)));
    }
    bench.step();
    assert_eq!(bench.scheduler.counts().batch_running, 7);
    let live = bench.submit(request(prompt(50, 4), 30));
    // It is in the next step, although the slots of batches have rows in flight.
    bench.step();
    assert_eq!(bench.tokens(live).len(), 1);
    bench.plan();
    let second = bench.submit(request(prompt(60, 4), 30));
    let plan = bench.plan().expect("a second step may be in flight");
    assert!(plan.rows.iter().any(|row| row.start.is_some()), "it takes the spare slot at once");
    bench.run(2);
    assert_eq!(bench.tokens(second), alone(&request(prompt(60, 4), 30), 100).tokens);
}

#[test]
fn a_batch_alone_can_use_every_block() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 4, ..slots(4) });
    let id = bench.submit(of_batch(request(prompt(0, 100), 156)));
    let other = bench.submit(of_batch(request(prompt(3, 100), 156)));
    bench.run(2);
    assert_eq!(bench.tokens(id).len(), 156);
    assert_eq!(bench.tokens(other).len(), 156);
}

/// An engine whose live requests are the same with and without batches.
struct Core {
    core: EngineCore,
    executor: FakeExecutor,
    next_id: u64,
}

impl Core {
    fn new(config: &SchedulerConfig) -> Self {
        let core = EngineCore::new(config.clone(), EngineOptions::new(1));
        Self { core, executor: FakeExecutor::new(config), next_id: 0 }
    }

    fn submit(&mut self, request: Request) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let group = vec![Submission { id, request, updates: unbounded_channel().0 }];
        self.core.submit(group, &SubmitOptions::default(), Instant::now()).expect("there is room");
    }

    fn step(&mut self) {
        self.core.step(&mut self.executor).expect("the executor does not fail");
    }

    /// All that a prediction of a wait reads but the time of steps.
    fn seen_by(&self, request: &Request) -> (QueueState, Option<UniformQueue>, QueueState, f64) {
        let snapshot = QueueSnapshot::new(self.core.scheduler(), 1, &Forecast::default());
        (
            self.core.queue_state(request),
            snapshot.uniform,
            snapshot.shortest,
            self.core.forecast().answer_tokens(),
        )
    }
}

#[test]
fn forecasts_do_not_see_batches_that_wait_or_run() {
    // Live requests have room beside each other in one case, and wait for slots in the other.
    for (seqs, blocks) in [(8, 64), (2, 8)] {
        let config = SchedulerConfig { num_blocks: blocks, max_num_batched_tokens: 64, ..slots(seqs) };
        let (mut without, mut with) = (Core::new(&config), Core::new(&config));
        (0..20).for_each(|i| with.submit(of_batch(request(prompt(i, 30), 25))));
        let (mut batches_ran, mut live_waited) = (false, false);
        for round in 0..60 {
            if round % 4 == 0 && round < 40 {
                let asked = request(prompt(round, 20), 6 + round % 9);
                without.submit(asked.clone());
                with.submit(asked);
            }
            let probe = request(prompt(3, 40), 5);
            assert_eq!(with.seen_by(&probe), without.seen_by(&probe), "round {round}, {seqs} slots");
            let counts = with.core.scheduler().counts();
            // Two slots are both taken by live requests.
            batches_ran |= counts.batch_running > 0 && (counts.running > 0 || seqs == 2);
            live_waited |= counts.waiting > 0;
            without.step();
            with.step();
        }
        let usual = Forecast::default().answer_tokens();
        assert!(without.core.is_idle() && without.core.forecast().answer_tokens() < usual);
        assert!(batches_ran && (live_waited || seqs == 8), "{seqs}: {batches_ran} {live_waited}");
    }
}
