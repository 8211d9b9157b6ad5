//! The rows of a step, the effect of its output, and events between a plan and its commit.

use std::sync::Arc;

use octant::request::{Finish, Request, SampledToken, SamplingParams};
use octant::scheduler::PlannedStep;
use octant::scheduler::SchedulerConfig;
use octant::scheduler::step_plan::{RowOutput, StepOutput, TokenSource};

use super::{Bench, prompt};
use crate::fake::{alone, config, request};

#[test]
fn a_long_prompt_is_computed_in_chunks_of_the_budget() {
    let mut bench = Bench::new(config());
    bench.submit(request(prompt(0, 150), 4));
    let chunks: Vec<_> = (0..3).map(|_| bench.step().rows[0].tokens.len()).collect();
    assert_eq!(chunks, [64, 64, 22]);
}

#[test]
fn only_the_last_chunk_samples() {
    let mut bench = Bench::new(config());
    bench.submit(request(prompt(0, 150), 4));
    let samples: Vec<_> = (0..3).map(|_| bench.step().rows[0].sample).collect();
    assert_eq!(samples, [false, false, true]);
}

#[test]
fn only_the_first_row_carries_a_slot_start() {
    let mut bench = Bench::new(config());
    bench.submit(request(prompt(0, 150), 4));
    let first = bench.step().rows.remove(0).start.expect("the first row carries a slot start");
    assert_eq!((first.prompt_len, first.tokens.clone()), (150, prompt(0, 150)));
    assert_eq!(bench.step().rows[0].start, None);
}

#[test]
fn decode_rows_come_first_and_prompts_get_the_rest_of_the_budget() {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    bench.submit(request(vec![2], 9));
    bench.step();
    bench.submit(request(prompt(0, 150), 4));
    let lengths: Vec<_> = bench.step().rows.iter().map(|row| row.tokens.len()).collect();
    assert_eq!(lengths, [1, 1, 62]);
}

/// Tokens of each row of the next step.
fn lengths(bench: &mut Bench) -> Vec<usize> {
    bench.step().rows.iter().map(|row| row.tokens.len()).collect()
}

#[test]
fn prompts_beside_a_stream_share_the_limit_on_their_tokens() {
    let mut bench = Bench::new(config());
    bench.prompt_tokens = Some(20);
    bench.submit(request(prompt(0, 50), 3));
    assert_eq!(lengths(&mut bench), [50], "no stream waits for this step");
    bench.submit(request(prompt(20, 30), 1));
    bench.submit(request(prompt(40, 60), 2));
    assert_eq!(lengths(&mut bench), [1, 20]);
    assert_eq!(lengths(&mut bench), [1, 10, 10]);
    assert_eq!(lengths(&mut bench), [50], "both streams have ended");
}

#[test]
fn a_step_in_flight_counts_its_sequence_as_a_stream() {
    let mut bench = Bench::new(config());
    bench.prompt_tokens = Some(8);
    bench.submit(request(prompt(0, 10), 1));
    assert_eq!(bench.plan().expect("a prompt waits").rows.len(), 1);
    bench.submit(request(prompt(20, 30), 2));
    let plan = bench.plan().expect("a prompt waits");
    assert_eq!(plan.rows[0].tokens.len(), 8, "the first request's token waits for this step");
}

#[test]
fn the_limit_does_not_hold_back_decode_rows_of_batches() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 16, num_blocks: 64, ..config() });
    bench.prompt_tokens = Some(8);
    (0..2).for_each(|i| _ = bench.submit(Request { batch: true, ..request(prompt(10 * i, 9), 9) }));
    bench.step();
    bench.submit(request(prompt(50, 10), 4));
    assert_eq!(lengths(&mut bench), [10, 1, 1], "no live stream runs, and the batches generate");
    bench.submit(request(prompt(70, 10), 4));
    assert_eq!(lengths(&mut bench), [1, 8, 1, 1]);
}

#[test]
fn decode_rows_may_leave_a_prompt_one_token_a_step() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 9, max_num_batched_tokens: 9, ..config() });
    (0..8).for_each(|i| _ = bench.submit(request(vec![i], 20)));
    bench.step();
    let id = bench.submit(request(prompt(20, 5), 4));
    for position in 0..5 {
        let rows = bench.step().rows;
        assert_eq!(rows.len(), 9);
        assert!(rows.iter().all(|row| row.tokens.len() == 1));
        assert_eq!((rows[8].position, rows[8].sample), (position, position == 4));
    }
    assert_eq!(bench.tokens(id).len(), 1);
}

#[test]
fn a_started_prompt_goes_before_a_waiting_higher_priority() {
    let mut bench = Bench::new(config());
    bench.submit(request(prompt(0, 150), 4));
    bench.step();
    bench.submit(Request { priority: -1, ..request(prompt(50, 150), 4) });
    assert_eq!(bench.step().rows.len(), 1, "the whole budget goes to the started prompt");
}

#[test]
fn running_sequences_are_limited_to_the_slots() {
    let mut bench = Bench::new(config());
    (0..6).for_each(|i| _ = bench.submit(request(vec![i], 9)));
    assert_eq!(bench.step().rows.len(), 4);
    assert_eq!((bench.scheduler.counts().running, bench.scheduler.counts().waiting), (4, 2));
}

#[test]
fn a_stop_id_ends_the_answer_and_is_its_last_token() {
    let mut bench = Bench::new(config());
    let free = alone(&request(vec![1], 9), 100);
    let mut stopped = request(vec![1], 9);
    stopped.stop.stop_ids = vec![free.tokens[4]];
    let id = bench.submit(stopped);
    bench.run(1);
    assert_eq!(bench.finish(id), Some(Finish::Stop(free.tokens[4])));
    assert_eq!(bench.tokens(id), free.tokens[..5]);
}

#[test]
fn stop_ids_are_ignored_before_min_tokens() {
    let mut bench = Bench::new(config());
    let free = alone(&request(vec![1], 9), 100);
    let mut stopped = request(vec![1], 9);
    stopped.stop.stop_ids = vec![free.tokens[2]];
    stopped.sampling = Arc::new(SamplingParams { min_tokens: 9, ..SamplingParams::greedy() });
    let id = bench.submit(stopped);
    bench.run(1);
    assert_eq!((bench.finish(id), bench.tokens(id)), (Some(Finish::Length), free.tokens));
}

#[test]
fn prompt_scores_cover_each_token_but_the_first_once() {
    let mut bench = Bench::new(config());
    let scored = Request { prompt_logprobs: Some(0), ..request(prompt(0, 150), 4) };
    let id = bench.submit(scored.clone());
    bench.run(1);
    assert_eq!(bench.answer(id), Some(alone(&scored, 100)));
}

#[test]
fn with_max_tokens_zero_a_prompt_is_scored_and_nothing_sampled() {
    for len in [1, 150] {
        let mut bench = Bench::new(config());
        let scored = Request { prompt_logprobs: Some(2), ..request(prompt(0, len), 0) };
        let id = bench.submit(scored.clone());
        bench.run(2);
        assert_eq!(bench.answer(id), Some(alone(&scored, 100)), "prompt of {len}");
    }
}

#[test]
fn with_one_step_in_flight_every_token_comes_from_the_host() {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    while !bench.scheduler.is_idle() {
        assert!(matches!(bench.step().rows[0].tokens, TokenSource::Host(_)));
    }
}

#[test]
fn with_two_steps_in_flight_a_decode_row_feeds_the_token_not_yet_known() {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    bench.plan();
    let row = bench.plan().unwrap().rows.remove(0);
    assert_eq!((row.tokens, row.position), (TokenSource::LastSampled, 1));
}

#[test]
fn a_third_step_is_not_planned_before_the_first_is_committed() {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    bench.plan();
    bench.plan();
    assert!(bench.plan().is_none());
}

#[test]
fn nothing_is_planned_beyond_max_tokens() {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 2));
    assert!(bench.plan().is_some() && bench.plan().is_some());
    bench.commit();
    assert!(bench.plan().is_none(), "the second and last token is already in flight");
}

#[test]
fn a_row_in_flight_after_a_stop_is_discarded_and_keeps_its_slot() {
    let mut bench = Bench::new(SchedulerConfig { max_num_seqs: 1, prefix_caching: false, ..config() });
    let first = alone(&request(vec![1], 9), 100).tokens[0];
    let mut stopped = request(vec![1], 9);
    stopped.stop.stop_ids = vec![first];
    let id = bench.submit(stopped);
    bench.submit(request(vec![2], 9));
    bench.plan();
    bench.plan();
    bench.commit();
    assert_eq!(bench.finish(id), Some(Finish::Stop(first)));
    assert!(bench.plan().is_none(), "the only slot is not free yet");
    assert_eq!(bench.scheduler.counts().blocks_used, 1);
    bench.commit();
    assert_eq!(bench.scheduler.counts().blocks_used, 0);
    assert_eq!(bench.plan().unwrap().rows[0].slot, 0);
}

#[test]
fn an_abort_without_a_row_in_flight_frees_blocks_at_once() {
    let mut bench = Bench::new(SchedulerConfig { prefix_caching: false, ..config() });
    let id = bench.submit(request(prompt(0, 150), 9));
    bench.step();
    assert_eq!(bench.scheduler.counts().blocks_used, 3);
    bench.abort(id);
    assert_eq!(bench.scheduler.counts().blocks_free, 16);
}

#[test]
fn an_abort_with_a_row_in_flight_frees_blocks_at_its_commit() {
    let mut bench = Bench::new(SchedulerConfig { prefix_caching: false, ..config() });
    let id = bench.submit(request(prompt(0, 150), 9));
    bench.plan();
    bench.abort(id);
    assert_eq!(bench.scheduler.counts().blocks_used, 3);
    bench.commit();
    assert_eq!(bench.scheduler.counts().blocks_free, 16);
    assert!(bench.updates(id).is_empty(), "no update follows an abort");
}

#[test]
fn aborting_a_waiting_request_removes_it_from_the_queue() {
    let mut bench = Bench::new(config());
    let id = bench.submit(request(vec![1], 9));
    bench.abort(id);
    assert_eq!((bench.scheduler.counts().waiting, bench.scheduler.counts().waiting_tokens), (0, 0));
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_row_of_nan_fails_its_request_and_no_other() {
    let mut bench = Bench::new(config());
    bench.model.poison(99);
    let bad = bench.submit(request([prompt(0, 70), vec![99]].concat(), 9));
    let good = request(prompt(1, 70), 9);
    let id = bench.submit(good.clone());
    bench.run(2);
    assert!(matches!(bench.finish(bad), Some(Finish::Error(_))));
    assert!(bench.tokens(bad).is_empty());
    assert_eq!(bench.answer(id).map(|answer| answer.tokens), Some(alone(&good, 100).tokens));
}

#[test]
fn blocks_of_a_failed_request_leave_the_prefix_cache() {
    let mut bench = Bench::new(config());
    bench.model.poison(99);
    bench.submit(request([vec![99], prompt(0, 200)].concat(), 9));
    bench.run(1);
    assert_eq!(bench.scheduler.counts().blocks_free, 16);
}

/// Commits a step with a given output for its only row. Returns the finish of the update.
fn outcome_of(output: RowOutput) -> Option<Finish> {
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    let PlannedStep { plan, rows } = bench.scheduler.plan(None).expect("a request waits");
    let output = StepOutput { id: plan.id, rows: vec![output], ..StepOutput::default() };
    let updates = bench.scheduler.commit(rows, output).expect("the output fits its plan");
    updates[0].1.finish.clone()
}

/// The output of a row that sampled this token.
fn sampled(token: u32) -> RowOutput {
    RowOutput { tokens: [SampledToken::new(token)].into_iter().collect(), ..RowOutput::default() }
}

#[test]
fn an_executor_that_breaks_its_contract_fails_the_request_it_broke() {
    let beyond = sampled(100);
    assert!(matches!(outcome_of(beyond), Some(Finish::Error(_))), "a token beyond the vocabulary");
    assert!(matches!(outcome_of(RowOutput::default()), Some(Finish::Error(_))), "no token");
    assert_eq!(outcome_of(sampled(99)), None);
}

#[test]
fn an_output_that_fits_no_plan_is_refused() {
    // A step can be committed once only: `commit` consumes its planned rows.
    let commit = |change: fn(&mut StepOutput)| {
        let mut bench = Bench::new(config());
        bench.submit(request(vec![1], 9));
        let PlannedStep { plan, rows } = bench.scheduler.plan(None).unwrap();
        let mut output = StepOutput { id: plan.id, rows: vec![sampled(1)], ..StepOutput::default() };
        change(&mut output);
        bench.scheduler.commit(rows, output)
    };
    assert!(commit(|output| output.rows.clear()).is_err(), "too few rows");
    assert!(commit(|output| output.id += 1).is_err(), "a later id");
    assert!(commit(|_| ()).is_ok());
    let mut bench = Bench::new(config());
    bench.submit(request(vec![1], 9));
    let (first, second) = (bench.scheduler.plan(None).unwrap(), bench.scheduler.plan(None).unwrap());
    let output =
        |step: &PlannedStep| StepOutput { id: step.plan.id, rows: vec![sampled(1)], ..StepOutput::default() };
    let outputs = [output(&first), output(&second)];
    assert!(bench.scheduler.commit(second.rows, outputs[1].clone()).is_err(), "not the earliest step");
    assert!(bench.scheduler.commit(first.rows, outputs[0].clone()).is_ok());
}

#[test]
fn totals_count_prompts_once_and_every_token() {
    let mut bench = Bench::new(config());
    bench.submit(request(prompt(0, 150), 9));
    bench.submit(request(vec![1], 3));
    bench.run(2);
    let counts = bench.scheduler.counts();
    assert_eq!((counts.prompt_tokens, counts.generated_tokens), (151, 12));
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    for in_flight in [1, 2] {
        let mut bench = Bench::new(config());
        let asked = request(prompt(0, 130), 4);
        let ids = bench.submit_group(vec![asked.clone(); 3]).unwrap();
        let other = bench.submit(request(prompt(50, 20), 4));
        bench.run(in_flight);
        for id in ids {
            assert_eq!(bench.answer(id), Some(alone(&asked, 100)));
            assert_eq!(bench.cached(id), if id == 0 { 0 } else { 128 });
        }
        assert_eq!(bench.tokens(other).len(), 4);
        let counts = bench.scheduler.counts();
        assert_eq!(counts.prefix_hits, 2 * 128);
    }
}

#[test]
fn a_request_continues_if_the_one_computing_its_prefix_is_aborted() {
    let mut bench = Bench::new(config());
    let asked = request(prompt(0, 130), 4);
    let ids = bench.submit_group(vec![asked.clone(); 2]).unwrap();
    // One step computes the first chunk of 64 tokens. The second request waits for the next block of the
    // first one.
    bench.step();
    bench.abort(ids[0]);
    bench.run(1);
    assert_eq!(bench.answer(ids[1]), Some(alone(&asked, 100)));
}
