//! Which requests the scheduler accepts, why it rejects others, and the order of starts.

use std::sync::Arc;

use octant::grammar::GrammarSource;
use octant::request::{Finish, Reject, Request, SamplingParams};
use octant::scheduler::SchedulerConfig;

use super::{Bench, prompt};
use crate::fake::{config, request};

/// The field for which a request is rejected.
fn rejected_field(request: Request) -> &'static str {
    match Bench::new(config()).submit_group(vec![request]) {
        Err(Reject::Invalid { field, message }) => {
            assert!(
                message.contains("got") || message.contains("at least one"),
                "the message must say what it got: {message}"
            );
            field
        }
        other => panic!("expected Reject::Invalid, got {other:?}"),
    }
}

fn sampling(change: impl FnOnce(&mut SamplingParams)) -> Request {
    let mut sampling = SamplingParams::greedy();
    change(&mut sampling);
    Request { sampling: Arc::new(sampling), ..request(vec![1], 4) }
}

#[test]
fn token_ids_beyond_the_vocabulary_are_rejected_in_every_field() {
    assert_eq!(rejected_field(request(vec![1, 100], 4)), "prompt");
    assert_eq!(rejected_field(sampling(|s| s.logit_bias = vec![(100, 1.0)])), "logit_bias");
    assert_eq!(rejected_field(sampling(|s| s.barred = vec![u32::MAX])), "stop_token_ids");
    // This grammar has more than 256 ids.
    let grammar = crate::grammar::bytes().compile(&GrammarSource::Regex("a".to_owned())).unwrap();
    assert_eq!(rejected_field(sampling(|s| s.grammar = Some(grammar))), "structured_outputs");
    let mut stop = request(vec![1], 4);
    stop.stop.stop_ids = vec![100];
    assert_eq!(rejected_field(stop), "stop_token_ids");
}

#[test]
fn the_highest_token_id_is_accepted() {
    let mut request = sampling(|s| {
        s.logit_bias = vec![(99, -100.0)];
        s.barred = vec![99];
    });
    request.prompt = vec![99].into();
    request.stop.stop_ids = vec![99];
    assert!(Bench::new(config()).submit_group(vec![request]).is_ok());
}

#[test]
fn out_of_range_floats_are_rejected_by_field() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        assert_eq!(rejected_field(sampling(|s| s.temperature = bad)), "temperature", "{bad}");
        assert_eq!(rejected_field(sampling(|s| s.top_p = bad)), "top_p", "{bad}");
        assert_eq!(rejected_field(sampling(|s| s.min_p = bad)), "min_p", "{bad}");
        assert_eq!(rejected_field(sampling(|s| s.repetition_penalty = bad)), "repetition_penalty", "{bad}");
    }
    for bad in [f32::NAN, f32::INFINITY, 2.5, -2.5] {
        assert_eq!(rejected_field(sampling(|s| s.presence_penalty = bad)), "presence_penalty", "{bad}");
        assert_eq!(rejected_field(sampling(|s| s.frequency_penalty = bad)), "frequency_penalty", "{bad}");
    }
    for bad in [f32::NAN, f32::INFINITY, 101.0, -101.0] {
        assert_eq!(rejected_field(sampling(|s| s.logit_bias = vec![(1, bad)])), "logit_bias", "{bad}");
    }
    assert_eq!(rejected_field(sampling(|s| s.top_p = 0.0)), "top_p");
    assert_eq!(rejected_field(sampling(|s| s.repetition_penalty = 0.0)), "repetition_penalty");
}

#[test]
fn invalid_lengths_are_rejected_by_field() {
    assert_eq!(rejected_field(request(vec![], 4)), "prompt");
    assert_eq!(rejected_field(request(vec![1], 0)), "max_tokens");
    assert_eq!(rejected_field(sampling(|s| s.min_tokens = 5)), "min_tokens");
    assert_eq!(rejected_field(sampling(|s| s.logprobs = Some(101))), "logprobs");
    let scored = Request { prompt_logprobs: Some(101), ..request(vec![1], 4) };
    assert_eq!(rejected_field(scored), "prompt_logprobs");
    let from = |prompt_logprobs, start| Request {
        prompt_logprobs,
        prompt_logprobs_start: start,
        ..request(vec![1, 2], 4)
    };
    assert_eq!(rejected_field(from(Some(0), 2)), "prompt_logprobs_start");
    assert_eq!(rejected_field(from(None, 1)), "prompt_logprobs_start");
}

#[test]
fn a_request_longer_than_the_context_is_rejected() {
    let small = SchedulerConfig { max_model_len: 100, ..config() };
    let rejected = Bench::new(small.clone()).submit_group(vec![request(prompt(0, 90), 11)]);
    assert_eq!(rejected.unwrap_err(), Reject::TooLong { prompt: 90, max_tokens: 11, limit: 100 });
    assert!(Bench::new(small).submit_group(vec![request(prompt(0, 90), 10)]).is_ok());
}

#[test]
fn a_request_longer_than_the_kv_cache_is_rejected() {
    let small = SchedulerConfig { num_blocks: 2, ..config() };
    let rejected = Bench::new(small.clone()).submit_group(vec![request(prompt(0, 64), 65)]);
    assert_eq!(rejected.unwrap_err(), Reject::TooLong { prompt: 64, max_tokens: 65, limit: 128 });
    let mut bench = Bench::new(small);
    let id = bench.submit(request(prompt(0, 64), 64));
    bench.run(1);
    assert_eq!(bench.finish(id), Some(Finish::Length), "a request that fits exactly runs to its end");
}

#[test]
fn a_max_tokens_near_the_integer_limit_does_not_overflow() {
    let rejected = Bench::new(config()).submit_group(vec![request(prompt(0, 64), u32::MAX)]);
    assert_eq!(rejected.unwrap_err(), Reject::TooLong { prompt: 64, max_tokens: u32::MAX, limit: 1024 });
}

#[test]
fn the_queue_is_bounded_in_requests() {
    let mut bench = Bench::new(SchedulerConfig { max_queue_requests: 2, ..config() });
    bench.submit(request(vec![1], 4));
    bench.submit(request(vec![2], 4));
    let rejected = bench.submit_group(vec![request(vec![3], 4)]);
    assert_eq!(rejected.unwrap_err(), Reject::QueueFull { waiting: 2, limit: 2 });
    bench.step();
    assert!(
        bench.submit_group(vec![request(vec![3], 4)]).is_ok(),
        "running requests do not count as waiting"
    );
}

#[test]
fn the_queue_is_bounded_in_prompt_tokens() {
    let mut bench = Bench::new(SchedulerConfig { max_queue_tokens: 100, ..config() });
    bench.submit(request(prompt(0, 70), 4));
    let rejected = bench.submit_group(vec![request(prompt(0, 31), 4)]);
    assert_eq!(rejected.unwrap_err(), Reject::QueueTokensFull { waiting: 70, limit: 100 });
    assert!(bench.submit_group(vec![request(prompt(0, 30), 4)]).is_ok());
}

#[test]
fn an_empty_queue_accepts_a_group_of_any_size() {
    let mut bench = Bench::new(SchedulerConfig { max_queue_requests: 1, max_queue_tokens: 10, ..config() });
    let ids = bench.submit_group(vec![request(prompt(0, 70), 4); 3]).unwrap();
    bench.run(1);
    assert!(ids.iter().all(|&id| bench.finish(id) == Some(Finish::Length)));
}

#[test]
fn a_group_is_accepted_whole_or_not_at_all() {
    let mut bench = Bench::new(SchedulerConfig { max_queue_requests: 3, ..config() });
    bench.submit(request(vec![1], 4));
    assert!(bench.submit_group(vec![request(vec![2], 4); 3]).is_err());
    assert!(bench.submit_group(vec![request(vec![2], 4), request(vec![100], 4)]).is_err());
    assert_eq!(bench.scheduler.counts().waiting, 1);
}

#[test]
fn requests_start_by_priority_then_by_arrival() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, ..config() });
    let ids = [5, 0, -1, 0].map(|priority| bench.submit(Request { priority, ..request(vec![1], 1) }));
    let mut order = Vec::new();
    while !bench.scheduler.is_idle() {
        bench.step();
        order.extend(
            ids.iter()
                .filter(|&&id| bench.finish(id).is_some() && !order.contains(&id))
                .copied()
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(order, [ids[2], ids[1], ids[3], ids[0]]);
}

#[test]
fn a_request_that_does_not_fit_blocks_those_behind_it() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 4, max_num_batched_tokens: 256, ..config() });
    let running = bench.submit(request(prompt(0, 100), 20));
    bench.step();
    bench.submit(request(prompt(1, 180), 20));
    bench.submit(request(prompt(2, 10), 20));
    assert_eq!(bench.step().rows.len(), 1);
    bench.abort(running);
    assert_eq!(bench.step().rows.len(), 2, "both start now");
}
