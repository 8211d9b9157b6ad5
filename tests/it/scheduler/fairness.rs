//! Shares, ages and preemptions: the bounds that `src/scheduler/fair_queue.rs` and `src/scheduler/planner.rs` state, under loads
//! that are made to break them.

use std::collections::HashMap;

use octant::request::{Request, Tenant};
use octant::scheduler::fair_queue::{Ahead, OUTPUT_COST, PROMPT_COST};
use octant::scheduler::step_plan::BLOCK_TOKENS;
use octant::scheduler::{Policy, SchedulerConfig};
use proptest::prelude::*;

use super::random::{Event, any_config, any_event};
use super::{Bench, prompt};
use crate::fake::{alone, config, request};

fn of(name: &str, weight: u32, request: Request) -> Request {
    Request { tenant: Tenant { name: name.into(), weight }, ..request }
}

/// What each tenant has been served, counted from outside: prompts as they first start, tokens as they are heard.
#[derive(Default)]
struct Served {
    tenant: HashMap<u64, (&'static str, u32, u64)>,
    started: HashMap<u64, bool>,
    by: HashMap<&'static str, f64>,
    heard: HashMap<u64, usize>,
}

impl Served {
    fn add(&mut self, id: u64, name: &'static str, weight: u32, prompt: usize) {
        self.tenant.insert(id, (name, weight, prompt as u64));
    }

    /// Counts what has happened since the last call. A prompt counts with its first token, which is when its steps end.
    fn count(&mut self, bench: &Bench) {
        for (id, (name, weight, prompt)) in &self.tenant {
            // Each update has a token.
            let tokens = bench.updates(*id).len();
            let before = self.heard.insert(*id, tokens).unwrap_or(0);
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

fn shared() -> SchedulerConfig {
    SchedulerConfig {
        max_queue_requests: 10_000,
        max_queue_tokens: 10_000_000,
        prefix_caching: false,
        ..config()
    }
}

/// The stated U: the longest prompt, or all tokens that the cache holds, at their cost.
fn bound(config: &SchedulerConfig, longest_prompt: usize) -> f64 {
    let cache = config.num_blocks * BLOCK_TOKENS;
    (PROMPT_COST * longest_prompt as u64).max(OUTPUT_COST * cache as u64) as f64
}

#[test]
fn a_tenant_with_one_request_does_not_wait_for_anothers_hundred() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..shared() });
    let heavy: Vec<u64> =
        (0..100).map(|i| bench.submit(of("heavy", 1, request(prompt(i, 60), 10)))).collect();
    for _ in 0..15 {
        bench.step();
    }
    let light = bench.submit(of("light", 1, request(prompt(7, 60), 10)));
    while bench.finish(light).is_none() {
        bench.step();
    }
    let ended = heavy.iter().filter(|id| bench.finish(**id).is_some()).count();
    assert!(ended <= 3, "{ended} of the heavy tenant's went first");
}

#[test]
fn shares_stay_within_the_bound_whatever_the_lengths_and_by_weight() {
    for (weights, in_flight) in [([1, 1], 1), ([1, 3], 2), ([5, 2], 1)] {
        let config = SchedulerConfig { num_blocks: 8, ..shared() };
        let mut bench = Bench::new(config.clone());
        let mut served = Served::default();
        // One sends many short requests, the other comes later with long ones that hold the cache: by arrival the first
        // would be served alone.
        for (name, weight, len, answer, count) in
            [("short", weights[0], 20, 5, 1200), ("long", weights[1], 300, 60, 100)]
        {
            for i in 0..count {
                let id = bench.submit(of(name, weight, request(prompt(i * 13, len), answer)));
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
        assert!(waiting("short") > 2 && waiting("long") > 2, "both still have requests waiting");
        assert!(most <= allowed, "{weights:?}: {most} apart, at most {allowed}");
        // Or it would have held of one that got nothing.
        assert!(served.of("short") > allowed && served.of("long") > allowed, "{:?}, {allowed}", served.by);
    }
}

#[test]
fn who_was_idle_saved_nothing_up() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..shared() });
    let ask = |name: &str, i: u32| of(name, 1, request(prompt(i, 60), 10));
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
        "{meanwhile} while 8 of the one that was idle: turns, and no more"
    );
}

/// How far two tenants come apart while both wait, of what they may.
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
fn one_that_is_preempted_has_saved_nothing_up_for_its_tenant() {
    let policy = Policy { max_preemptions: 100, ..Policy::default() };
    let config = SchedulerConfig { num_blocks: 12, policy, ..shared() };
    let mut bench = Bench::new(config.clone());
    let mut served = Served::default();
    let ask = |bench: &mut Bench, served: &mut Served, name, i, (len, answer)| {
        let id = bench.submit(of(name, 1, request(prompt(i, len), answer)));
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
    assert!(most <= 1.0, "{most} of what is allowed");
}

#[test]
fn who_comes_is_not_put_before_its_class_by_one_that_starves_in_another() {
    let config = SchedulerConfig { num_blocks: 12, ..shared() };
    let mut bench = Bench::new(config.clone());
    let mut served = Served::default();
    for i in 0..1000 {
        let id = bench.submit(of("busy", 1, request(prompt(i * 13, 60), 1)));
        served.add(id, "busy", 1, 60);
    }
    bench.step();
    bench.submit(Request { priority: 5, ..of("low", 1, request(prompt(3, 60), 1)) });
    (0..300).for_each(|_| _ = bench.step());
    for i in 0..200 {
        let id = bench.submit(of("late", 1, request(prompt(i * 13, 60), 1)));
        served.add(id, "late", 1, 60);
    }
    let most = apart(&mut bench, &mut served, 150, 2.0 * bound(&config, 60));
    assert!(most <= 1.0, "{most} of what is allowed");
}

#[test]
fn the_lowest_priority_is_served_in_the_stated_time_among_endless_higher_ones() {
    const AGEING: u64 = 20;
    for priority in [1, 3, 7] {
        let policy = Policy { ageing_steps: AGEING, ..Policy::default() };
        let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..shared() });
        let low = bench.submit(Request { priority, ..of("low", 1, request(prompt(0, 30), 2)) });
        let (mut came_before, mut steps) = (Vec::new(), 0u64);
        let mut endless = 0;
        while bench.finish(low).is_none() {
            // There is always one of the highest class that waits.
            if bench.scheduler.counts().waiting < 3 {
                let id = bench.submit(of("high", 1, request(prompt(endless, 30), 4)));
                endless += 1;
                came_before.push(id);
            }
            bench.step();
            steps += 1;
            assert!(steps < 10_000, "priority {priority} starves");
        }
        // From then on it is of the first class, with a counter that nobody's is below; one may just have started.
        let lifted = AGEING * priority as u64;
        assert!(steps >= lifted, "priority {priority}: {steps} steps are too few to mean anything");
        assert!(steps <= lifted + 4 + 2 + 1, "priority {priority}: {steps} steps, bound {}", lifted + 7);
    }
}

#[test]
fn without_ageing_it_would_starve() {
    let policy = Policy { ageing_steps: 0, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..shared() });
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
fn age_does_not_let_a_long_queue_pass_a_short_one() {
    let policy = Policy { ageing_steps: 1, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, policy, ..shared() });
    for i in 0..100 {
        bench.submit(Request { priority: 5, ..of("heavy", 1, request(prompt(i, 60), 10)) });
    }
    for _ in 0..50 {
        bench.step();
    }
    let light = bench.submit(Request { priority: 5, ..of("light", 1, request(prompt(7, 60), 10)) });
    let steps = (0..).find(|_| {
        bench.step();
        bench.finish(light).is_some()
    });
    assert!(steps.unwrap() <= 3 * 10, "{steps:?}");
}

#[test]
fn what_is_ahead_is_counted_in_the_order_of_turns() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..shared() });
    bench.submit(request(prompt(0, 10), 50));
    bench.step();
    for i in 0..5 {
        bench.submit(of("heavy", 1, request(prompt(i, 10), 5)));
    }
    bench.submit(Request { priority: -1, ..of("urgent", 1, request(prompt(9, 20), 5)) });
    let ahead =
        |name: &str, priority| bench.scheduler.ahead(&Tenant { name: name.into(), weight: 1 }, priority);
    assert_eq!(ahead("heavy", 0), Ahead { requests: 6, tokens: 70 });
    assert_eq!(ahead("new", 0), Ahead { requests: 2, tokens: 30 }, "the urgent one, and one turn");
    assert_eq!(ahead("new", -2), Ahead::default());
    assert_eq!(ahead("new", 1).requests, 6);
}

/// Gives each request of a trace one of three tenants.
fn with_tenants(events: Vec<Event>) -> Vec<Event> {
    let mut count = 0u32;
    let mut name = |request: Request| {
        count += 1;
        of(["a", "b", "c"][(count % 3) as usize], 1 + count % 2, request)
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
    fn preemptions_are_bounded_and_everyone_ends_as_if_alone(
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
        prop_assert!(preemptions <= u64::from(max_preemptions) * all.len() as u64, "{preemptions} of {}", all.len());
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

/// Long answers in few blocks, where everyone is in everyone's way.
fn thrashing(policy: Policy) -> (u64, usize) {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 8, policy, ..shared() });
    let asked: Vec<Request> = (0..12).map(|i| request(prompt(i * 5, 60), 300)).collect();
    let ids: Vec<u64> = asked.iter().map(|asked| bench.submit(asked.clone())).collect();
    let steps = bench.run(2);
    for (id, asked) in ids.iter().zip(&asked) {
        assert_eq!(bench.tokens(*id), alone(asked, 100).tokens);
    }
    (bench.scheduler.counts().preemptions, steps)
}

#[test]
fn the_bound_on_preemptions_is_what_bounds_them() {
    let with = |max_preemptions| thrashing(Policy { max_preemptions, ..Policy::default() });
    let (free, _) = with(1000);
    let (three, _) = with(3);
    let (none, _) = with(0);
    assert!(free > 12, "{free}: this load is made to thrash");
    assert!(three <= 36 && none == 0, "{three} {none}");
    let (reserved, _) = thrashing(Policy { kv_reserve: 1.0, ..Policy::default() });
    assert_eq!(reserved, 0);
}

#[test]
fn what_is_reserved_is_part_of_what_is_available() {
    let policy = Policy { kv_reserve: 0.5, ..Policy::default() };
    let mut bench = Bench::new(SchedulerConfig { policy, ..shared() });
    bench.submit(request(prompt(0, 64), 257));
    bench.step();
    let counts = bench.scheduler.counts();
    // 320 positions are 5 blocks; one is held, half of the four others is kept.
    assert_eq!((counts.blocks_used, counts.blocks_reserved, counts.blocks_free), (1, 2, 15));
    bench.step();
    let counts = bench.scheduler.counts();
    assert_eq!((counts.blocks_used, counts.blocks_reserved), (2, 1), "its own is taken first");
}
