//! The prefix cache, and preemption when no block is left.

use std::sync::Arc;

use octant::request::Request;
use octant::scheduler::SchedulerConfig;

use super::{Bench, prompt};
use crate::fake::{alone, config, request};

#[test]
fn a_prefix_hit_covers_full_blocks_and_leaves_a_token_to_compute() {
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
fn a_prefix_hit_changes_no_token() {
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
fn generated_tokens_are_cached_for_later_prompts() {
    let mut bench = Bench::new(config());
    let id = bench.submit(request(prompt(0, 60), 80));
    bench.run(1);
    let turn = [prompt(0, 60), bench.tokens(id), vec![1, 2]].concat();
    let next = bench.submit(request(turn, 3));
    bench.run(1);
    assert_eq!(bench.cached(next), 128);
}

#[test]
fn running_sequences_share_prefix_blocks() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 300, ..config() });
    bench.submit(request(prompt(0, 130), 20));
    bench.step();
    bench.submit(request(prompt(0, 130), 20));
    let plan = bench.step();
    assert_eq!(plan.rows[0].blocks[..2], plan.rows[1].blocks[..2]);
    assert_eq!(bench.scheduler.counts().blocks_used, 4, "two shared blocks, and one of each sequence");
}

#[test]
fn only_requests_with_the_same_salt_share_blocks() {
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
fn a_scored_prompt_skips_the_prefix_cache() {
    let mut bench = Bench::new(config());
    let asked = request(prompt(0, 130), 2);
    bench.submit(asked.clone());
    bench.run(1);
    let id = bench.submit(Request { prompt_logprobs: Some(0), ..asked });
    bench.run(1);
    assert_eq!(bench.cached(id), 0);
}

#[test]
fn what_lies_before_the_scored_part_of_a_prompt_comes_from_the_prefix_cache() {
    let asked = request(prompt(0, 200), 2);
    // Scores begin with the logits of the position before the start.
    for (start, cached) in [(1, 0), (64, 0), (65, 64), (128, 64), (129, 128), (199, 192)] {
        let mut bench = Bench::new(config());
        bench.submit(asked.clone());
        bench.run(100);
        let scored = Request { prompt_logprobs: Some(0), prompt_logprobs_start: start, ..asked.clone() };
        let id = bench.submit(scored.clone());
        bench.run(100);
        assert_eq!(bench.cached(id), cached, "start {start}");
        assert_eq!(bench.answer(id), Some(alone(&scored, 100)), "start {start}");
    }
}

#[test]
fn nothing_is_shared_without_prefix_caching() {
    let mut bench = Bench::new(SchedulerConfig { prefix_caching: false, ..config() });
    bench.submit(request(prompt(0, 130), 2));
    bench.run(1);
    let id = bench.submit(request(prompt(0, 130), 2));
    bench.run(1);
    assert_eq!(bench.cached(id), 0);
    assert_eq!(bench.scheduler.counts().blocks_free, 16);
}

#[test]
fn a_request_waits_for_a_prefix_that_is_being_computed() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 300, ..config() });
    bench.submit(request(prompt(0, 130), 2));
    bench.plan();
    let early = bench.submit(request(prompt(0, 130), 2));
    let plan = bench.plan().expect("the first request decodes");
    assert_eq!(plan.rows.len(), 1, "the second waits for the prefix to be committed");
    bench.run(2);
    assert_eq!(bench.cached(early), 128);
}

#[test]
fn a_request_waits_for_the_uncommitted_chunk_of_its_prefix() {
    let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: 128, ..config() });
    bench.submit(request(prompt(0, 200), 2));
    bench.plan();
    bench.plan();
    bench.commit();
    let id = bench.submit(request(prompt(0, 200), 2));
    assert_eq!(bench.plan().map(|plan| plan.rows.len()), Some(1), "only the first request decodes");
    bench.run(2);
    assert_eq!(bench.cached(id), 192);
}

#[test]
fn eviction_is_lru_and_starts_at_the_end_of_a_prefix() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 6, ..config() });
    let [a, b] = [prompt(0, 129), prompt(40, 129)];
    for tokens in [&a, &b, &a] {
        bench.submit(request(tokens.clone(), 1));
        bench.run(1);
    }
    // Two blocks each of a and b are cached. The next prompt needs three blocks, of which two are free.
    bench.submit(request(prompt(80, 150), 1));
    bench.run(1);
    let ids = [&a, &b].map(|tokens| {
        let id = bench.submit(request(tokens.clone(), 1));
        bench.run(1);
        id
    });
    assert_eq!(ids.map(|id| bench.cached(id)), [128, 64]);
}

/// Three blocks: two sequences of one block each that soon need a second one must preempt.
fn three_blocks() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 3, max_num_batched_tokens: 256, ..config() }
}

#[test]
fn the_latest_request_is_preempted() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(three_blocks());
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
fn the_earliest_request_finishes_first() {
    let mut bench = Bench::new(three_blocks());
    let [first, second] = [0, 30].map(|start| bench.submit(request(prompt(start, 60), 60)));
    while bench.finish(first).is_none() {
        bench.step();
    }
    assert!(bench.finish(second).is_none());
}

#[test]
fn no_more_sequences_are_preempted_than_necessary() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(SchedulerConfig { num_blocks: 4, ..three_blocks() });
        bench.submit(request(prompt(0, 60), 60));
        bench.submit(request(prompt(20, 60), 60));
        bench.submit(request(prompt(40, 100), 60));
        bench.run(in_flight);
        assert_eq!(
            bench.scheduler.counts().preemptions,
            1,
            "the two blocks of the third are enough for both others"
        );
    }
}

#[test]
fn a_lower_priority_is_preempted_although_it_came_first() {
    let mut bench = Bench::new(three_blocks());
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
fn a_preempted_sequence_restarts_with_all_its_tokens() {
    let mut bench = Bench::new(three_blocks());
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
    assert!(known.len() > 60, "it had generated tokens before");
}

#[test]
fn prompt_scores_are_not_repeated_after_a_preemption() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(three_blocks());
        bench.submit(request(prompt(0, 60), 60));
        let scored = Request { prompt_logprobs: Some(0), ..request(prompt(30, 60), 60) };
        let id = bench.submit(scored.clone());
        bench.run(in_flight);
        assert_eq!(bench.scheduler.counts().preemptions, 1);
        assert_eq!(bench.answer(id), Some(alone(&scored, 100)));
    }
}

#[test]
fn a_preempted_sequence_keeps_its_blocks_until_its_row_is_committed() {
    let mut bench = Bench::new(three_blocks());
    bench.submit(request(prompt(0, 60), 60));
    let second = bench.submit(request(prompt(30, 60), 60));
    while bench.scheduler.counts().preemptions == 0 {
        if bench.in_flight() == 2 {
            bench.commit();
        }
        bench.plan();
    }
    let received = bench.tokens(second).len();
    assert_eq!(bench.scheduler.counts().waiting, 0, "the sequence is leaving and does not wait yet");
    while bench.in_flight() > 0 {
        bench.commit();
    }
    assert_eq!(bench.scheduler.counts().waiting, 1);
    assert_eq!(bench.tokens(second).len(), received + 1, "the token in flight is not lost");
}

#[test]
fn aborting_a_sequence_during_its_preemption_is_final() {
    let mut bench = Bench::new(three_blocks());
    bench.submit(request(prompt(0, 60), 60));
    let second = bench.submit(request(prompt(30, 60), 60));
    while bench.scheduler.counts().preemptions == 0 {
        if bench.in_flight() == 2 {
            bench.commit();
        }
        bench.plan();
    }
    bench.abort(second);
    let received = bench.tokens(second).len();
    while bench.in_flight() > 0 {
        bench.commit();
    }
    assert_eq!((bench.scheduler.counts().waiting, bench.tokens(second).len()), (0, received));
}
