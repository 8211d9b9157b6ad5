//! Fairness, ageing and preemption: the bounds stated in `src/scheduler/fair_queue.rs` and
//! `src/scheduler/planner.rs`, under loads designed to break them.

use std::collections::HashMap;

use octant::request::{Request, Tenant};
use octant::scheduler::fair_queue::{Ahead, OUTPUT_COST, PROMPT_COST};
use octant::scheduler::step_plan::BLOCK_TOKENS;
use octant::scheduler::{Policy, SchedulerConfig};
use proptest::prelude::*;

use super::random::{Event, any_config, any_event};
use super::{Bench, prompt};
use crate::fake::{alone, config, request};

/// The same request, from a tenant.
fn by(name: &str, weight: u32, request: Request) -> Request {
    Request { tenant: Tenant { name: name.into(), weight }, ..request }
}

/// The service that each tenant has received, counted from the updates.
#[derive(Default)]
struct Served {
    /// Name, weight and prompt length, by request.
    tenant: HashMap<u64, (&'static str, u32, u64)>,
    started: HashMap<u64, bool>,
    by: HashMap<&'static str, f64>,
    /// Updates counted, by request.
    counted: HashMap<u64, usize>,
}

impl Served {
    fn add(&mut self, id: u64, name: &'static str, weight: u32, prompt: usize) {
        self.tenant.insert(id, (name, weight, prompt as u64));
    }

    /// Counts the updates since the last call. A prompt is counted with its first token, when its prefill has
    /// ended.
    fn count(&mut self, bench: &Bench) {
        for (id, (name, weight, prompt)) in &self.tenant {
            // Every update has one token.
            let tokens = bench.updates(*id).len();
            let before = self.counted.insert(*id, tokens).unwrap_or(0);
            let mut cost = OUTPUT_COST * (tokens - before) as u64;
            if tokens > 0 && self.started.insert(*id, true).is_none() {
                cost += PROMPT_COST * prompt;
            }
            *self.by.entry(name).or_default() += cost as f64 / f64::from(*weight);
        }
    }

    fn of(&self, name: &str) -> f64 {
        self.by.get(name).copied().unwrap_or(0.0)
    }
}

/// A long queue and no prefix cache, so that every prompt token is computed.
fn fair_config() -> SchedulerConfig {
    SchedulerConfig {
        max_queue_requests: 10_000,
        max_queue_tokens: 10_000_000,
        prefix_caching: false,
        reward_width: 0,
        ..config()
    }
}

/// The bound U: the larger cost of the longest prompt and of all tokens that the KV cache holds.
fn bound(config: &SchedulerConfig, longest_prompt: usize) -> f64 {
    let cache = config.num_blocks * BLOCK_TOKENS;
    (PROMPT_COST * longest_prompt as u64).max(OUTPUT_COST * cache as u64) as f64
}

#[test]
fn one_request_does_not_wait_for_another_tenants_hundred() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..fair_config() });
    let heavy: Vec<u64> =
        (0..100).map(|i| bench.submit(by("heavy", 1, request(prompt(i, 60), 10)))).collect();
    for _ in 0..15 {
        bench.step();
    }
    let light = bench.submit(by("light", 1, request(prompt(7, 60), 10)));
    while bench.finish(light).is_none() {
        bench.step();
    }
    let ended = heavy.iter().filter(|id| bench.finish(**id).is_some()).count();
    assert!(ended <= 3, "{ended} requests of the heavy tenant finished first");
}

#[test]
fn service_by_weight_stays_within_the_bound() {
    for (weights, in_flight) in [([1, 1], 1), ([1, 3], 2), ([5, 2], 1)] {
        let config = SchedulerConfig { num_blocks: 8, ..fair_config() };
        let mut bench = Bench::new(config.clone());
        let mut served = Served::default();
        // One tenant sends many short requests. The other comes later with long ones that fill the KV cache.
        // If requests started in order of arrival, only the first tenant would be served.
        for (name, weight, len, answer, count) in
            [("short", weights[0], 20, 5, 1200), ("long", weights[1], 300, 60, 100)]
        {
            for i in 0..count {
                let id = bench.submit(by(name, weight, request(prompt(i * 13, len), answer)));
                served.add(id, name, weight, len);
            }
        }
        let least = f64::from(*weights.iter().min().unwrap());
        let allowed = 2.0 * bound(&config, 300) / least;
        let mut most: f64 = 0.0;
        for _ in 0..1000 {
            while bench.in_flight() < in_flight && bench.plan().is_some() {}
            bench.commit();
            served.count(&bench);
            most = most.max((served.of("short") - served.of("long")).abs());
        }
        let waiting =
            |name: &str| bench.scheduler.ahead(&Tenant { name: name.into(), weight: 1 }, 0).requests;
        assert!(waiting("short") > 2 && waiting("long") > 2, "both must still have waiting requests");
        assert!(most <= allowed, "{weights:?}: the service differs by {most}, expected at most {allowed}");
        // The bound would also hold if one of them had received nothing.
        assert!(served.of("short") > allowed && served.of("long") > allowed, "{:?}, {allowed}", served.by);
    }
}

#[test]
fn an_idle_tenant_earns_no_credit() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..fair_config() });
    let ask = |name: &str, i: u32| by(name, 1, request(prompt(i, 60), 10));
    for i in 0..60 {
        bench.submit(ask("busy", i));
    }
    for _ in 0..300 {
        bench.step();
    }
    let late: Vec<u64> = (0..20).map(|i| bench.submit(ask("late", i))).collect();
    let ended = |bench: &Bench, ids: &[u64]| ids.iter().filter(|id| bench.finish(**id).is_some()).count();
    let busy: Vec<u64> = (0..60).collect();
    let before = ended(&bench, &busy);
    while ended(&bench, &late) < 8 {
        bench.step();
    }
    let meanwhile = ended(&bench, &busy) - before;
    assert!(
        (7..=10).contains(&meanwhile),
        "{meanwhile} of the busy tenant's for 8 of the idle one's: they must alternate"
    );
}

/// The largest difference in service between two waiting tenants, as a fraction of what is allowed.
fn apart(bench: &mut Bench, served: &mut Served, steps: usize, allowed: f64) -> f64 {
    served.count(bench);
    let start = served.of("late") - served.of("busy");
    let mut most: f64 = 0.0;
    for _ in 0..steps {
        bench.step();
        served.count(bench);
        most = most.max((served.of("late") - served.of("busy") - start).abs());
    }
    most / allowed
}

#[test]
fn a_preempted_sequence_earns_no_credit_for_its_tenant() {
    let policy = Policy { max_preemptions: 100, ..Policy::default() };
    let config = SchedulerConfig { num_blocks: 12, policy, ..fair_config() };
    let mut bench = Bench::new(config.clone());
    let mut served = Served::default();
    let ask = |bench: &mut Bench, served: &mut Served, name, i, (len, answer)| {
        let id = bench.submit(by(name, 1, request(prompt(i, len), answer)));
        served.add(id, name, 1, len);
        id
    };
    (0..2).for_each(|i| _ = ask(&mut bench, &mut served, "busy", i, (10, 300)));
    (0..1000).for_each(|i| _ = ask(&mut bench, &mut served, "busy", i * 13, (60, 1)));
    (0..20).for_each(|_| _ = bench.step());
    ask(&mut bench, &mut served, "late", 5, (10, 300));
    while bench.scheduler.counts().preemptions == 0 {
        bench.step();
    }
    (0..200).for_each(|i| _ = ask(&mut bench, &mut served, "late", i * 13, (60, 1)));
    let most = apart(&mut bench, &mut served, 150, 2.0 * bound(&config, 60));
    assert!(most <= 1.0, "the difference is {most} times what is allowed");
}

#[test]
fn a_starving_lower_class_gives_a_new_tenant_no_credit() {
    let config = SchedulerConfig { num_blocks: 12, ..fair_config() };
    let mut bench = Bench::new(config.clone());
    let mut served = Served::default();
    for i in 0..1000 {
        let id = bench.submit(by("busy", 1, request(prompt(i * 13, 60), 1)));
        served.add(id, "busy", 1, 60);
    }
    bench.step();
    bench.submit(Request { priority: 5, ..by("low", 1, request(prompt(3, 60), 1)) });
    (0..300).for_each(|_| _ = bench.step());
    for i in 0..200 {
        let id = bench.submit(by("late", 1, request(prompt(i * 13, 60), 1)));
        served.add(id, "late", 1, 60);
    }
    let most = apart(&mut bench, &mut served, 150, 2.0 * bound(&config, 60));
    assert!(most <= 1.0, "the difference is {most} times what is allowed");
}

#[test]
fn a_low_priority_is_served_within_the_ageing_bound() {
    const AGEING: u64 = 20;
    for priority in [1, 3, 7] {
        let policy = Policy { ageing_steps: AGEING, ..Policy::default() };
        let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..fair_config() });
        let low = bench.submit(Request { priority, ..by("low", 1, request(prompt(0, 30), 2)) });
        let (mut came_before, mut steps) = (Vec::new(), 0u64);
        let mut endless = 0;
        while bench.finish(low).is_none() {
            // Keep requests of the highest class waiting.
            if bench.scheduler.counts().waiting < 3 {
                let id = bench.submit(by("high", 1, request(prompt(endless, 30), 4)));
                endless += 1;
                came_before.push(id);
            }
            bench.step();
            steps += 1;
            assert!(steps < 10_000, "priority {priority} starves");
        }
        // Now it is in the first class and no counter is lower than its own; one other request may just have
        // started.
        let lifted = AGEING * priority as u64;
        assert!(steps >= lifted, "priority {priority}: {steps} steps are too few for ageing to matter");
        assert!(steps <= lifted + 4 + 2 + 1, "priority {priority}: {steps} steps, bound {}", lifted + 7);
    }
}

#[test]
fn without_ageing_a_low_priority_starves() {
    let policy = Policy { ageing_steps: 0, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..fair_config() });
    let low = bench.submit(Request { priority: 1, ..request(prompt(0, 30), 2) });
    for i in 0..2000 {
        if bench.scheduler.counts().waiting < 3 {
            bench.submit(request(prompt(i, 30), 4));
        }
        bench.step();
    }
    assert_eq!(bench.tokens(low).len(), 0);
}

#[test]
fn ageing_gives_a_long_queue_no_advantage() {
    let policy = Policy { ageing_steps: 1, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..fair_config() });
    for i in 0..100 {
        bench.submit(Request { priority: 5, ..by("heavy", 1, request(prompt(i, 60), 10)) });
    }
    for _ in 0..50 {
        bench.step();
    }
    let light = bench.submit(Request { priority: 5, ..by("light", 1, request(prompt(7, 60), 10)) });
    let steps = (0..).find(|_| {
        bench.step();
        bench.finish(light).is_some()
    });
    assert!(steps.unwrap() <= 3 * 10, "{steps:?}");
}

#[test]
fn requests_ahead_are_counted_by_alternating_tenants() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..fair_config() });
    bench.submit(request(prompt(0, 10), 50));
    bench.step();
    for i in 0..5 {
        bench.submit(by("heavy", 1, request(prompt(i, 10), 5)));
    }
    bench.submit(Request { priority: -1, ..by("urgent", 1, request(prompt(9, 20), 5)) });
    let ahead =
        |name: &str, priority| bench.scheduler.ahead(&Tenant { name: name.into(), weight: 1 }, priority);
    assert_eq!(ahead("heavy", 0), Ahead { requests: 6, tokens: 70 });
    assert_eq!(
        ahead("new", 0),
        Ahead { requests: 2, tokens: 30 },
        "the urgent request, and one of the heavy tenant's"
    );
    assert_eq!(ahead("new", -2), Ahead::default());
    assert_eq!(ahead("new", 1).requests, 6);
}

/// Assigns the requests of a trace to three tenants. None is of a batch: live requests preempt those without
/// bound.
fn with_tenants(events: Vec<Event>) -> Vec<Event> {
    let mut count = 0u32;
    let mut name = |request: Request| {
        count += 1;
        by(["a", "b", "c"][(count % 3) as usize], 1 + count % 2, Request { batch: false, ..request })
    };
    let mut one = |event| match event {
        Event::Submit(group) => Event::Submit(group.into_iter().map(&mut name).collect()),
        other => other,
    };
    events.into_iter().map(&mut one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn preemptions_are_bounded_and_change_no_answer(
        config in any_config(),
        events in prop::collection::vec(any_event(), 1..50),
        in_flight in 1..3usize,
        max_preemptions in 0..3u32,
        kv_reserve in prop_oneof![Just(0.0f32), Just(0.5), Just(1.0)],
        ageing_steps in prop_oneof![Just(0u64), Just(3), Just(1000)],
    ) {
        let policy = Policy { ageing_steps, max_preemptions, kv_reserve };
        let mut bench = Bench::new(SchedulerConfig { policy, ..config });
        let mut all = Vec::new();
        let mut events = with_tenants(events).into_iter();
        loop {
            match events.next() {
                Some(Event::Submit(group)) => {
                    let ids = bench.submit_group(group.clone()).unwrap();
                    all.extend(ids.into_iter().zip(group));
                }
                Some(_) => {}
                None if bench.scheduler.is_idle() => break,
                None => {}
            }
            while bench.in_flight() < in_flight && bench.plan().is_some() {}
            if bench.in_flight() > 0 {
                bench.commit();
            }
        }
        let preemptions = bench.scheduler.counts().preemptions;
        let most = u64::from(max_preemptions) * all.len() as u64;
        prop_assert!(preemptions <= most, "{preemptions} of {}", all.len());
        if kv_reserve == 1.0 {
            prop_assert_eq!(preemptions, 0);
        }
        for (id, request) in &all {
            prop_assert_eq!(bench.answer(*id), Some(alone(request, 30)), "request {}", id);
        }
        let counts = bench.scheduler.counts();
        prop_assert_eq!((counts.blocks_used, counts.blocks_reserved), (0, 0));
    }
}

/// Runs long answers in few blocks, so that sequences keep preempting each other. Returns preemptions and
/// steps.
fn thrashing(policy: Policy) -> (u64, usize) {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 8, policy, ..fair_config() });
    let asked: Vec<Request> = (0..12).map(|i| request(prompt(i * 5, 60), 300)).collect();
    let ids: Vec<u64> = asked.iter().map(|asked| bench.submit(asked.clone())).collect();
    let steps = bench.run(2);
    for (id, asked) in ids.iter().zip(&asked) {
        assert_eq!(bench.tokens(*id), alone(asked, 100).tokens);
    }
    (bench.scheduler.counts().preemptions, steps)
}

#[test]
fn max_preemptions_limits_preemptions_under_thrashing() {
    let with = |max_preemptions| thrashing(Policy { max_preemptions, ..Policy::default() });
    let (free, _) = with(1000);
    let (three, _) = with(3);
    let (none, _) = with(0);
    assert!(free > 12, "{free}: this load must thrash");
    assert!(three <= 36 && none == 0, "{three} {none}");
    let (reserved, _) = thrashing(Policy { kv_reserve: 1.0, ..Policy::default() });
    assert_eq!(reserved, 0);
}

#[test]
fn reserved_blocks_are_counted_as_available() {
    let policy = Policy { kv_reserve: 0.5, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { policy, ..fair_config() });
    bench.submit(request(prompt(0, 64), 257));
    bench.step();
    let counts = bench.scheduler.counts();
    // 320 positions need 5 blocks. One is held, and half of the other four are reserved.
    assert_eq!((counts.blocks_used, counts.blocks_reserved, counts.blocks_free), (1, 2, 15));
    bench.step();
    let counts = bench.scheduler.counts();
    assert_eq!(
        (counts.blocks_used, counts.blocks_reserved),
        (2, 1),
        "the sequence takes from its reservation first"
    );
}
