//! Requests for the values of a reward head: what is refused, which rows compute it, and shared prefixes.

use octant::request::{Finish, Reject, Request};
use octant::scheduler::SchedulerConfig;
use octant::scheduler::step_plan::{Row, RowOutput, StepOutput};
use octant::scheduler::{PlannedStep, RequestId, Scheduler};

use super::{Bench, prompt};
use crate::fake::{REWARDS, alone, config, request};

fn scoring() -> SchedulerConfig {
    SchedulerConfig { reward_width: REWARDS, ..config() }
}

fn scored(prompt: Vec<u32>) -> Request {
    Request { reward: true, ..request(prompt, 0) }
}

/// The field and the message of the refusal of a request.
fn refusal(config: SchedulerConfig, request: Request) -> (&'static str, String) {
    match Bench::new(config).submit_group(vec![request]) {
        Err(Reject::Invalid { field, message }) => (field, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_either_scores_or_generates() {
    let (field, message) = refusal(config(), scored(vec![1]));
    assert_eq!((field, &*message), ("reward", "expected false, got true: the model has no reward head"));
    let (field, message) = refusal(scoring(), request(vec![1], 4));
    assert_eq!(field, "reward");
    assert_eq!(message, "expected true, got false: the model has a reward head and does not generate");
    let (field, message) = refusal(scoring(), Request { reward: true, ..request(vec![1], 4) });
    assert_eq!((field, &*message), ("max_tokens", "expected 0 with a reward head, got 4"));
    let logprobs = Request { prompt_logprobs: Some(0), ..scored(vec![1]) };
    assert_eq!(refusal(scoring(), logprobs).0, "prompt_logprobs");
    assert_eq!(refusal(scoring(), scored(vec![])).0, "prompt");
}

#[test]
fn a_prompt_that_is_too_long_is_refused_and_not_cut() {
    let small = SchedulerConfig { max_model_len: 100, ..scoring() };
    assert!(Bench::new(small.clone()).submit_group(vec![scored(prompt(0, 100))]).is_ok());
    let rejected = Bench::new(small).submit_group(vec![scored(prompt(0, 101))]).unwrap_err();
    assert_eq!(rejected, Reject::TooLong { prompt: 101, max_tokens: 0, limit: 100 });
}

#[test]
fn the_row_with_the_last_prompt_token_computes_the_head_and_ends_the_request() {
    for (len, steps) in [(1, 1), (64, 1), (65, 2), (150, 3)] {
        for in_flight in [1, 2] {
            let mut bench = Bench::new(scoring());
            let asked = scored(prompt(0, len));
            let id = bench.submit(asked.clone());
            assert_eq!(bench.run(in_flight), steps, "steps of {len} tokens");
            assert_eq!(bench.answer(id), Some(alone(&asked, 100)), "{len} tokens");
            assert_eq!(bench.updates(id).len(), 1);
            assert_eq!(bench.scheduler.counts().running, 0);
        }
    }
    let mut bench = Bench::new(scoring());
    bench.submit(scored(prompt(0, 150)));
    let asks = |row: &Row| (row.reward, row.sample, row.tokens.len());
    let rows: Vec<_> = (0..3).flat_map(|_| bench.step().rows).collect();
    assert_eq!(
        rows.iter().map(asks).collect::<Vec<_>>(),
        [(false, false, 64), (false, false, 64), (true, false, 22)]
    );
}

/// `max_num_seqs` limits the prompts that are computed at once. A score leaves with its last prompt token.
#[test]
fn a_score_runs_until_its_last_prompt_token_and_is_never_decoded() {
    for (seqs, steps) in [(1, 12), (2, 6), (12, 3)] {
        let config = SchedulerConfig { max_num_seqs: seqs, prefix_caching: false, ..scoring() };
        let mut bench = Bench::new(config);
        // A step has 64 tokens: four prompts.
        let all: Vec<Request> = (0..12).map(|i| scored(prompt(i, 16))).collect();
        let ids = bench.submit_group(all.clone()).unwrap();
        let mut waiting = 12;
        for _ in 0..steps {
            let plan = bench.step();
            let whole = |row: &Row| row.reward && !row.sample && row.tokens.len() == 16;
            assert!(plan.rows.iter().all(whole), "{seqs} sequences");
            waiting -= plan.rows.len();
            let counts = bench.scheduler.counts();
            assert_eq!((counts.running, counts.waiting), (0, waiting), "{seqs} sequences");
        }
        assert!(bench.scheduler.is_idle());
        for (id, asked) in ids.iter().zip(&all) {
            assert_eq!(bench.answer(*id), Some(alone(asked, 100)));
        }
    }
}

#[test]
fn a_prefix_hit_leaves_the_last_token_to_compute() {
    let mut bench = Bench::new(scoring());
    for (len, cached) in [(128, 0), (128, 64), (129, 128), (128, 64)] {
        let asked = scored(prompt(0, len));
        let id = bench.submit(asked.clone());
        bench.run(1);
        assert_eq!((bench.cached(id), bench.answer(id)), (cached, Some(alone(&asked, 100))), "{len} tokens");
    }
}

/// Several answers to one prompt that arrive together compute the prompt once.
#[test]
fn scores_that_arrive_together_share_their_prompt() {
    let roomy =
        SchedulerConfig { max_num_seqs: 16, max_num_batched_tokens: 512, num_blocks: 64, ..scoring() };
    let mut bench = Bench::new(roomy);
    let answers: Vec<Request> =
        (0..8).map(|i| scored([prompt(0, 256), prompt(50 + i, 10)].concat())).collect();
    let ids = bench.submit_group(answers.clone()).unwrap();
    bench.run(2);
    for (id, asked) in ids.iter().zip(&answers) {
        assert_eq!(bench.answer(*id), Some(alone(asked, 100)));
    }
    assert_eq!(bench.scheduler.counts().prefix_hits, 7 * 256);
}

/// Eight answers of 60 tokens to a prompt of 1,000, in steps of 512 tokens. The first computes the prompt,
/// and the others wait for its 15 full blocks: 1,760 tokens in place of 8,480.
#[test]
fn answers_to_a_long_prompt_take_five_steps_and_not_seventeen() {
    for (prefix_caching, steps, hits) in [(true, 5, 7 * 960), (false, 17, 0)] {
        let config = SchedulerConfig {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_model_len: 1060,
            num_blocks: 200,
            prefix_caching,
            ..scoring()
        };
        let mut bench = Bench::new(config);
        let answers: Vec<Request> =
            (0..8).map(|i| scored([prompt(0, 1000), prompt(50 + i, 60)].concat())).collect();
        let ids = bench.submit_group(answers.clone()).unwrap();
        assert_eq!(bench.run(2), steps, "prefix caching: {prefix_caching}");
        assert_eq!(bench.scheduler.counts().prefix_hits, hits);
        for (id, asked) in ids.iter().zip(&answers) {
            assert_eq!(bench.answer(*id), Some(alone(asked, 100)));
        }
    }
}

#[test]
fn a_request_of_a_batch_gives_way_and_keeps_its_score() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 3, prefix_caching: false, ..scoring() });
    let (late, live) = (scored(prompt(0, 150)), scored(prompt(3, 170)));
    let of_batch = bench.submit(Request { batch: true, ..late.clone() });
    bench.step();
    let first = bench.submit(live.clone());
    bench.run(2);
    assert!(bench.scheduler.counts().preemptions > 0);
    assert_eq!(bench.answer(of_batch), Some(alone(&late, 100)));
    assert_eq!(bench.answer(first), Some(alone(&live, 100)));
}

#[test]
fn values_that_are_not_finite_fail_their_request_alone() {
    let mut bench = Bench::new(scoring());
    bench.model.poison(99);
    let (bad, good) = (bench.submit(scored(vec![5, 99, 6])), bench.submit(scored(vec![5, 6])));
    bench.run(2);
    assert!(matches!(bench.finish(bad), Some(Finish::Error(reason)) if reason.contains("NaN or infinity")));
    assert_eq!(bench.updates(bad)[0].reward, None);
    assert_eq!(bench.answer(good), Some(alone(&scored(vec![5, 6]), 100)));
}

#[test]
fn an_executor_that_returns_too_few_values_fails_the_request() {
    for got in [None, Some([1.0, 2.0].into())] {
        let mut scheduler = Scheduler::new(scoring());
        scheduler.submit(vec![(RequestId(1), scored(vec![4]))]).unwrap();
        let PlannedStep { plan, rows } = scheduler.plan(None).unwrap();
        let count = if got.is_some() { 2 } else { 0 };
        let row = RowOutput { reward: got, ..RowOutput::default() };
        let output = StepOutput { id: plan.id, rows: vec![row], ..StepOutput::default() };
        let (_, update) = scheduler.commit(rows, output).unwrap().remove(0);
        let reason = format!("the executor returned {count} values of a reward head, expected 3");
        assert_eq!(update.finish, Some(Finish::Error(reason)));
    }
}
