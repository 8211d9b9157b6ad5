//! What is found in the prefix cache, and who gives up blocks when none is left.

use std::sync::Arc;

use octant::request::Request;
use octant::scheduler::SchedulerConfig;

use super::{Bench, prompt};
use crate::fake::{alone, config, request};

#[test]
fn a_hit_covers_full_blocks_and_leaves_a_token_to_compute() {
    for (len, expected) in [(63, 0), (64, 0), (65, 64), (128, 64), (129, 128), (130, 128)] {
        let mut bench = Bench::new(config());
        bench.submit(request(prompt(0, 200), 1));
        bench.run(1);
        let id = bench.submit(request(prompt(0, len), 3));
        bench.run(1);
        assert_eq!(bench.cached(id), expected, "prompt of {len}");
    }
}

#[test]
fn a_hit_changes_no_token() {
    let mut bench = Bench::new(config());
    let asked = request(prompt(0, 200), 30);
    let first = bench.submit(asked.clone());
    bench.run(1);
    let second = bench.submit(asked.clone());
    bench.run(1);
    assert_eq!(bench.tokens(first), alone(&asked, 100).tokens);
    assert_eq!(bench.tokens(second), alone(&asked, 100).tokens);
}

#[test]
fn generated_tokens_are_found_as_a_later_prompt() {
    let mut bench = Bench::new(config());
    let id = bench.submit(request(prompt(0, 60), 80));
    bench.run(1);
    let turn = [prompt(0, 60), bench.tokens(id), vec![1, 2]].concat();
    let next = bench.submit(request(turn, 3));
    bench.run(1);
    assert_eq!(bench.cached(next), 128);
}

#[test]
fn blocks_are_shared_while_both_run() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 300, ..config() });
    bench.submit(request(prompt(0, 130), 20));
    bench.step();
    bench.submit(request(prompt(0, 130), 20));
    let plan = bench.step();
    assert_eq!(plan.rows[0].blocks[..2], plan.rows[1].blocks[..2]);
    assert_eq!(bench.scheduler.counts().blocks_used, 4, "two shared, one each");
}

#[test]
fn only_requests_of_the_same_salt_share() {
    let salted =
        |salt: Option<&str>| Request { cache_salt: salt.map(Arc::from), ..request(prompt(0, 130), 2) };
    let mut bench = Bench::new(config());
    bench.submit(salted(Some("a")));
    bench.run(1);
    let others = [Some("b"), Some(""), None].map(|salt| bench.submit(salted(salt)));
    let same = bench.submit(salted(Some("a")));
    bench.run(1);
    assert_eq!(others.map(|id| bench.cached(id)), [0, 0, 0]);
    assert_eq!(bench.cached(same), 128);
}

#[test]
fn a_prompt_to_be_scored_is_not_looked_up() {
    let mut bench = Bench::new(config());
    let asked = request(prompt(0, 130), 2);
    bench.submit(asked.clone());
    bench.run(1);
    let id = bench.submit(Request { prompt_logprobs: Some(0), ..asked });
    bench.run(1);
    assert_eq!(bench.cached(id), 0);
}

#[test]
fn nothing_is_shared_with_the_cache_off() {
    let mut bench = Bench::new(SchedulerConfig { prefix_caching: false, ..config() });
    bench.submit(request(prompt(0, 130), 2));
    bench.run(1);
    let id = bench.submit(request(prompt(0, 130), 2));
    bench.run(1);
    assert_eq!(bench.cached(id), 0);
    assert_eq!(bench.scheduler.counts().blocks_free, 16);
}

#[test]
fn blocks_are_waited_for_and_found_once_their_step_is_committed() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 300, ..config() });
    bench.submit(request(prompt(0, 130), 2));
    bench.plan();
    let early = bench.submit(request(prompt(0, 130), 2));
    let plan = bench.plan().expect("the first generates");
    assert_eq!(plan.rows.len(), 1, "the second waits: what it would share is not there yet");
    bench.run(2);
    assert_eq!(bench.cached(early), 128);
}

#[test]
fn of_two_chunks_in_flight_the_uncommitted_one_is_waited_for() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 128, ..config() });
    bench.submit(request(prompt(0, 200), 2));
    bench.plan();
    bench.plan();
    bench.commit();
    let id = bench.submit(request(prompt(0, 200), 2));
    assert_eq!(bench.plan().map(|plan| plan.rows.len()), Some(1), "the first alone, generating");
    bench.run(2);
    assert_eq!(bench.cached(id), 192);
}

#[test]
fn the_least_recently_used_prefix_is_evicted_its_tail_first() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 6, ..config() });
    let [a, b] = [prompt(0, 129), prompt(40, 129)];
    for tokens in [&a, &b, &a] {
        bench.submit(request(tokens.clone(), 1));
        bench.run(1);
    }
    // Two blocks each of a and b are cached; three are wanted, two are free.
    bench.submit(request(prompt(80, 150), 1));
    bench.run(1);
    let ids = [&a, &b].map(|tokens| {
        let id = bench.submit(request(tokens.clone(), 1));
        bench.run(1);
        id
    });
    assert_eq!(ids.map(|id| bench.cached(id)), [128, 64]);
}

/// Two sequences of one block each that soon need a second, and three blocks.
fn crowded() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 3, max_num_batched_tokens: 256, ..config() }
}

#[test]
fn the_last_to_come_gives_up_its_blocks() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(crowded());
        let asked = [request(prompt(0, 60), 60), request(prompt(30, 60), 60)];
        let ids = asked.clone().map(|request| bench.submit(request));
        bench.run(in_flight);
        assert_eq!(bench.scheduler.counts().preemptions, 1, "{in_flight} in flight");
        for (id, request) in ids.iter().zip(&asked) {
            assert_eq!(bench.tokens(*id), alone(request, 100).tokens, "{in_flight} in flight");
        }
    }
}

#[test]
fn the_first_to_come_ends_first() {
    let mut bench = Bench::new(crowded());
    let [first, second] = [0, 30].map(|start| bench.submit(request(prompt(start, 60), 60)));
    while bench.finish(first).is_none() {
        bench.step();
    }
    assert!(bench.finish(second).is_none());
}

#[test]
fn no_more_give_up_their_blocks_than_must() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(SchedulerConfig { num_blocks: 4, ..crowded() });
        bench.submit(request(prompt(0, 60), 60));
        bench.submit(request(prompt(20, 60), 60));
        bench.submit(request(prompt(40, 100), 60));
        bench.run(in_flight);
        assert_eq!(bench.scheduler.counts().preemptions, 1, "the third's two blocks were enough for both");
    }
}

#[test]
fn the_larger_priority_gives_up_its_blocks_though_it_came_first() {
    let mut bench = Bench::new(crowded());
    let late = bench.submit(Request { priority: 1, ..request(prompt(0, 60), 60) });
    bench.submit(request(prompt(30, 60), 60));
    while bench.scheduler.counts().preemptions == 0 {
        bench.step();
    }
    let before = bench.tokens(late).len();
    (0..5).for_each(|_| _ = bench.step());
    assert_eq!(bench.tokens(late).len(), before);
}

#[test]
fn a_preempted_sequence_starts_again_with_all_its_tokens() {
    let mut bench = Bench::new(crowded());
    let asked = [request(prompt(0, 60), 60), request(prompt(30, 60), 60)];
    let ids = asked.clone().map(|request| bench.submit(request));
    while bench.scheduler.counts().preemptions == 0 {
        bench.step();
    }
    let known = [prompt(30, 60), bench.tokens(ids[1])].concat();
    let start = loop {
        if let Some(start) = bench.step().rows.into_iter().find_map(|row| row.start) {
            break start;
        }
    };
    assert_eq!((start.prompt_len, &start.tokens), (60, &known));
    assert!(known.len() > 60, "it had generated something");
}

#[test]
fn scores_are_not_said_again_after_a_preemption() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(crowded());
        bench.submit(request(prompt(0, 60), 60));
        let scored = Request { prompt_logprobs: Some(0), ..request(prompt(30, 60), 60) };
        let id = bench.submit(scored.clone());
        bench.run(in_flight);
        assert_eq!(bench.scheduler.counts().preemptions, 1);
        assert_eq!(bench.answer(id), Some(alone(&scored, 100)));
    }
}

#[test]
fn a_preempted_sequence_with_a_row_in_flight_keeps_its_blocks_until_that_is_committed() {
    let mut bench = Bench::new(crowded());
    bench.submit(request(prompt(0, 60), 60));
    let second = bench.submit(request(prompt(30, 60), 60));
    while bench.scheduler.counts().preemptions == 0 {
        if bench.in_flight() == 2 {
            bench.commit();
        }
        bench.plan();
    }
    let heard = bench.tokens(second).len();
    assert_eq!(bench.scheduler.counts().waiting, 0, "it leaves, and does not wait yet");
    while bench.in_flight() > 0 {
        bench.commit();
    }
    assert_eq!(bench.scheduler.counts().waiting, 1);
    assert_eq!(bench.tokens(second).len(), heard + 1, "the token in flight is not lost");
}

#[test]
fn an_abort_of_one_that_is_being_preempted_is_final() {
    let mut bench = Bench::new(crowded());
    bench.submit(request(prompt(0, 60), 60));
    let second = bench.submit(request(prompt(30, 60), 60));
    while bench.scheduler.counts().preemptions == 0 {
        if bench.in_flight() == 2 {
            bench.commit();
        }
        bench.plan();
    }
    bench.abort(second);
    let heard = bench.tokens(second).len();
    while bench.in_flight() > 0 {
        bench.commit();
    }
    assert_eq!((bench.scheduler.counts().waiting, bench.tokens(second).len()), (0, heard));
}
