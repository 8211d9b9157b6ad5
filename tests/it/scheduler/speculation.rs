//! Speculative decoding: when drafts are fed, how many, and what becomes of them.

use std::sync::Arc;

use octant::request::{Finish, SampledToken, SamplingParams};
use octant::scheduler::step_plan::{RowOutput, StepOutput, TokenSource};
use octant::scheduler::{
    ContextTime, PlannedStep, RequestId, Scheduler, SchedulerConfig, SchedulerError, StepTime, StepTimes,
};

use super::Bench;
use crate::fake::{REPETITIVE, alone, config, request};

/// A configuration with at most 4 drafts.
fn speculating() -> SchedulerConfig {
    SchedulerConfig { max_drafts: 4, ..config() }
}

/// A request whose answer repeats itself.
fn repetitive(first: u32, max_tokens: u32) -> octant::request::Request {
    let mut request = request((first..first + 10).collect(), max_tokens);
    request.sampling = Arc::new(SamplingParams { seed: REPETITIVE, ..SamplingParams::greedy() });
    request
}

/// Times of a step that takes `first` seconds and `each` more for each further row.
fn times(first: f64, each: f64) -> StepTimes {
    let time = |rows: usize| StepTime { rows, seconds: first + each * (rows - 1) as f64 };
    StepTimes::new([1, 2, 64].map(time).to_vec())
}

#[test]
fn drafts_save_steps_and_change_no_token() {
    let mut steps = Vec::new();
    for max_drafts in [0, 4] {
        let mut bench = Bench::new(SchedulerConfig { max_drafts, ..config() });
        let request = repetitive(0, 200);
        let id = bench.submit(request.clone());
        steps.push(bench.run(2));
        assert_eq!(bench.answer(id), Some(alone(&request, 100)));
        let counts = bench.scheduler.counts().speculation;
        assert_eq!(counts.rows > 0, max_drafts > 0);
        assert_eq!(counts.accepted[4..], [0; 12], "places of more than 4 drafts");
        assert!(counts.accepted.is_sorted_by(|one, other| one >= other), "{counts:?}");
        assert_eq!(counts.all_accepted() + steps[steps.len() - 1] as u64, 200, "each saves a step");
    }
    assert!(steps[1] * 2 < steps[0], "{steps:?} steps");
}

/// A configuration with at most 4 drafts of a draft model.
fn drafting() -> SchedulerConfig {
    SchedulerConfig { draft_model: true, ..speculating() }
}

/// Times of a step of [`times`], and of a draft model whose passes take `pass` seconds for one token and
/// `each_token` more for each further one.
fn times_with_model(each: f64, pass: f64, each_token: f64) -> StepTimes {
    let pass = |rows: usize| StepTime { rows, seconds: pass + each_token * (rows - 1) as f64 };
    times(1.0, each).with_draft_model([1, 64].map(pass).to_vec())
}

#[test]
fn a_draft_model_saves_steps_and_changes_no_token() {
    let mut steps = Vec::new();
    for max_drafts in [0, 4] {
        let mut bench = Bench::new(SchedulerConfig { max_drafts, draft_model: true, ..config() });
        let request = request(vec![50, 60, 70], 200);
        let id = bench.submit(request.clone());
        steps.push(bench.run(2));
        assert_eq!(bench.answer(id), Some(alone(&request, 100)));
        let counts = bench.scheduler.counts().speculation;
        assert_eq!(counts.all_accepted() + steps[steps.len() - 1] as u64, 200, "each saves a step");
        // The fake draft model ends early now and then.
        assert!(max_drafts == 0 || counts.drafts < counts.rows * 4, "{counts:?}");
    }
    assert!(steps[1] * 2 < steps[0], "{steps:?} steps");
}

#[test]
fn a_draft_model_that_takes_too_long_is_only_tried() {
    // (time of a pass of the draft model, whether its drafts pay)
    for (pass, pays) in [(0.1, true), (0.3, true), (2.0, false)] {
        let mut bench = Bench::new(SchedulerConfig { max_model_len: 4096, num_blocks: 64, ..drafting() });
        bench.scheduler.set_step_times(times_with_model(0.01, pass, 0.001));
        bench.submit(request(vec![50, 60, 70], 3000));
        let steps = bench.run(1);
        let counts = bench.scheduler.counts().speculation;
        match pays {
            true => assert!(steps < 1500, "{steps} steps with passes of {pass} s"),
            // A trial of two passes is made in about 1300 steps.
            false => assert!((1..=8).contains(&counts.drafts), "{counts:?} with passes of {pass} s"),
        }
    }
}

/// The draft model would compute the whole prompt for one token.
#[test]
fn a_draft_model_does_not_begin_for_the_last_tokens_of_an_answer() {
    for (max_tokens, pays) in [(4, false), (200, true)] {
        let mut bench = Bench::new(SchedulerConfig { num_blocks: 64, ..drafting() });
        bench.scheduler.set_step_times(times_with_model(0.01, 0.2, 0.02));
        bench.submit(request((0..500).map(|i| i * 7 % 97).collect(), max_tokens));
        bench.run(1);
        let drafts = bench.scheduler.counts().speculation.drafts;
        assert_eq!(drafts > 0, pays, "{drafts} drafts of an answer of {max_tokens} tokens");
    }
}

/// Drafts pay for three sequences and not for four. The draft model would compute a prompt of 100 tokens for
/// each sequence that drafts begin for.
#[test]
fn a_draft_model_does_not_begin_while_fewer_sequences_run_than_usual() {
    let steps = [(1, 1.0), (4, 1.0), (5, 10.0), (64, 100.0)];
    let passes = [(1, 0.05), (64, 0.05 + 63.0 * 0.02)];
    let points = |of: &[(usize, f64)]| of.iter().map(|(rows, seconds)| time(*rows, *seconds)).collect();
    let times = StepTimes::new(points(&steps)).with_draft_model(points(&passes));
    let bench = |sequences: u32, tokens: u32| {
        let mut bench = Bench::new(SchedulerConfig { num_blocks: 64, ..drafting() });
        bench.scheduler.set_step_times(times.clone());
        for index in 0..sequences {
            bench.submit(long(index, tokens + 7 * index));
        }
        bench
    };
    // Another request arrives two steps after one has ended.
    let mut changing = bench(4, 100);
    let (mut next, mut gap) = (4, 0);
    for _ in 0..1000 {
        changing.step();
        gap = if changing.scheduler.counts().running < 4 { gap + 1 } else { 0 };
        if gap == 3 {
            changing.submit(long(next, 100 + 5 * (next % 9)));
            (next, gap) = (next + 1, 0);
        }
    }
    assert!(next > 20, "{next} requests");
    assert_eq!(changing.scheduler.counts().speculation.drafts, 0);
    let mut three = bench(3, 150);
    three.run(1);
    assert!(three.scheduler.counts().speculation.drafts > 20);
}

/// A request with a prompt of 100 tokens.
fn long(first: u32, max_tokens: u32) -> octant::request::Request {
    request((0..100).map(|i| (first * 31 + i * 7) % 97).collect(), max_tokens)
}

fn time(rows: usize, seconds: f64) -> StepTime {
    StepTime { rows, seconds }
}

#[test]
fn drafts_that_are_rejected_end_soon_and_are_tried_again() {
    let mut scheduler =
        Scheduler::new(SchedulerConfig { max_model_len: 8192, num_blocks: 128, ..drafting() });
    scheduler.set_step_times(times_with_model(0.01, 0.3, 0.0003));
    scheduler.submit(vec![(RequestId(0), request(vec![1, 2, 3], 6000))]).unwrap();
    let (mut fed, mut late) = (0, 0);
    for step in 0..5000 {
        let PlannedStep { plan, rows } = scheduler.plan(None).expect("a step can be planned");
        let proposals = plan.rows[0].proposals;
        let tokens = [SampledToken::new(5)].into_iter().collect();
        let row = RowOutput { tokens, drafts: vec![6; proposals], ..RowOutput::default() };
        scheduler.commit(rows, StepOutput { id: plan.id, rows: vec![row], ..Default::default() }).unwrap();
        fed += proposals;
        late += if step > 1000 { proposals } else { 0 };
    }
    assert!(fed - late > 0 && fed - late < 60, "{fed} drafts, {late} of them late");
    assert!((4..60).contains(&late), "{late} drafts after the first 1000 steps");
}

#[test]
fn more_drafts_than_were_asked_for_fail_the_request() {
    for (more, fails) in [(0, false), (1, true)] {
        let mut scheduler = Scheduler::new(drafting());
        scheduler.submit(vec![(RequestId(0), request(vec![1, 2, 3], 50))]).unwrap();
        let finish = loop {
            let PlannedStep { plan, rows } = scheduler.plan(None).expect("a step can be planned");
            let proposals = plan.rows[0].proposals;
            let drafts = if proposals > 0 { vec![6; proposals + more] } else { Vec::new() };
            let tokens = [SampledToken::new(5)].into_iter().collect();
            let row = RowOutput { tokens, drafts, ..RowOutput::default() };
            let output = StepOutput { id: plan.id, rows: vec![row], ..Default::default() };
            let updates = scheduler.commit(rows, output).unwrap();
            if proposals > 0 {
                break updates[0].1.finish.clone();
            }
        };
        let error = Finish::Error("the executor fed 5 drafts, expected at most 4".to_owned());
        assert_eq!(finish, fails.then_some(error));
    }
}

#[test]
fn one_step_is_in_flight_while_drafts_are() {
    let mut bench = Bench::new(speculating());
    // The second sequence never repeats anything.
    bench.submit(repetitive(0, 200));
    bench.submit(request(vec![50, 60, 70], 200));
    let (mut alone, mut overlapped) = (0, 0);
    while !bench.scheduler.is_idle() {
        let first = bench.plan().expect("a step can be planned");
        let second = bench.plan();
        let has_drafts =
            |plan: &octant::scheduler::step_plan::StepPlan| plan.rows.iter().any(|r| r.drafts > 0);
        if has_drafts(&first) {
            assert!(second.is_none(), "a step beside drafts");
            alone += 1;
        }
        if let Some(second) = second {
            assert!(!has_drafts(&second), "drafts beside a step");
            overlapped += 1;
            bench.commit();
        }
        bench.commit();
    }
    assert!(alone > 10 && overlapped > 10, "{alone} steps with drafts, {overlapped} pairs of steps");
}

#[test]
fn drafts_are_fed_where_the_times_of_steps_say_that_they_pay() {
    // (time of one row, time of each further row, whether drafts pay)
    for (first, each, pays) in [(1.0, 0.0, true), (1.0, 0.2, true), (1.0, 1.0, false), (0.2, 1.0, false)] {
        let mut bench = Bench::new(speculating());
        bench.scheduler.set_step_times(times(first, each));
        bench.submit(repetitive(0, 200));
        bench.run(2);
        let drafts = bench.scheduler.counts().speculation.drafts;
        assert_eq!(drafts > 0, pays, "{drafts} drafts with {first} s and {each} s for each further row");
    }
}

/// Up to 8 rows a step takes the same time, so a draft pays with few sequences and not with many.
#[test]
fn a_large_batch_feeds_no_drafts() {
    let step_times = StepTimes::new(
        [(1, 1.0), (8, 1.0), (9, 2.0), (64, 20.0)].map(|(rows, seconds)| StepTime { rows, seconds }).to_vec(),
    );
    for (sequences, pays) in [(1, true), (8, false)] {
        let sizes = SchedulerConfig { max_num_seqs: 8, num_blocks: 64, ..speculating() };
        let mut bench = Bench::new(sizes);
        bench.scheduler.set_step_times(step_times.clone());
        (0..sequences).for_each(|first| _ = bench.submit(repetitive(first, 60)));
        // All end in the same step, so the batch is never smaller.
        bench.run(1);
        let drafts = bench.scheduler.counts().speculation.drafts;
        assert_eq!(drafts > 0, pays, "{drafts} drafts of {sequences} sequences");
    }
}

/// A step that computes a prompt of 60 tokens takes long, and a draft still costs as much as it does without.
/// It would bring less than a later step of all sequences does.
#[test]
fn drafts_do_not_pay_because_a_prompt_makes_the_step_longer() {
    for (each, pays) in [(0.01, true), (1.0, false)] {
        let sizes = SchedulerConfig { max_num_seqs: 8, num_blocks: 64, ..speculating() };
        let mut bench = Bench::new(sizes);
        bench.scheduler.set_step_times(times(1.0, each));
        (0..7).for_each(|first| _ = bench.submit(repetitive(first, 400)));
        let mut with_prompt = 0;
        for round in 0..50 {
            if round > 10 && round % 4 == 0 {
                bench.submit(request((0..57).map(|i| (i * 7 + round) % 90).collect(), 1));
            }
            let plan = bench.step();
            let has_prompt = plan.rows.iter().any(|row| row.tokens.len() > 20);
            let drafts: usize = plan.rows.iter().map(|row| row.drafts).sum();
            with_prompt += if has_prompt { drafts } else { 0 };
        }
        assert_eq!(with_prompt > 0, pays, "{with_prompt} drafts beside prompts, {each} s for each row");
    }
}

/// After a long context a further row costs as much as the first one.
#[test]
fn a_long_context_makes_drafts_cost_more() {
    for (further_row, pays) in [(0.0, true), (0.01, false)] {
        let mut bench = Bench::new(speculating());
        let mut step_times = times(0.1, 0.01);
        (step_times.first_row, step_times.further_row) = (0.01, further_row);
        bench.scheduler.set_step_times(step_times);
        let mut request = repetitive(0, 60);
        request.prompt = (0..600).map(|i| i % 90).collect();
        bench.submit(request);
        bench.run(2);
        let drafts = bench.scheduler.counts().speculation.drafts;
        assert_eq!(drafts > 0, pays, "{drafts} drafts with {further_row} s for each position");
    }
}

/// After its first token an answer of `max_tokens` 3 needs one draft at most.
#[test]
fn no_draft_is_fed_beyond_max_tokens_or_the_budget() {
    for budget in [1, 2, 3, 64] {
        let mut bench = Bench::new(SchedulerConfig { max_num_batched_tokens: budget, ..speculating() });
        let request = repetitive(0, 90);
        let id = bench.submit(request.clone());
        while !bench.scheduler.is_idle() {
            let left = 90 - bench.tokens(id).len();
            let plan = bench.step();
            // The fake model checks the tokens of the step.
            assert!(
                plan.rows.iter().all(|row| row.drafts < left.min(budget)),
                "{left} tokens left: {plan:?}"
            );
        }
        assert_eq!(bench.answer(id), Some(alone(&request, 100)));
        assert_eq!(bench.scheduler.counts().speculation.drafts > 0, budget > 1);
    }
}

#[test]
fn a_stop_token_among_accepted_drafts_ends_the_answer_there() {
    let mut ended_by_draft = 0;
    for stop in 0..100 {
        let mut bench = Bench::new(speculating());
        let mut request = repetitive(0, 200);
        request.stop.stop_ids = vec![stop];
        let id = bench.submit(request.clone());
        bench.run(2);
        let expected = alone(&request, 100);
        assert_eq!(bench.answer(id), Some(expected.clone()), "stop token {stop}");
        let last = bench.updates(id).last().unwrap();
        ended_by_draft += usize::from(last.tokens.len() > 1 && expected.finish == Finish::Stop(stop));
    }
    assert!(ended_by_draft > 0, "no answer ended with several tokens");
}

/// The output of a step of one row.
fn output(plan: &octant::scheduler::step_plan::StepPlan, drafts: &[u32], tokens: &[u32]) -> StepOutput {
    let tokens = tokens.iter().map(|id| SampledToken::new(*id)).collect();
    let row = RowOutput { tokens, drafts: drafts.to_vec(), ..RowOutput::default() };
    StepOutput { id: plan.id, rows: vec![row], ..Default::default() }
}

/// Runs a sequence until it feeds drafts, and answers that row with the tokens that `answer` makes of them.
/// Returns how the request ends.
fn answered(answer: impl Fn(&[u32]) -> Vec<u32>) -> Result<Option<Finish>, SchedulerError> {
    answered_after(|drafts| drafts.to_vec(), answer)
}

/// The same with an executor that feeds those drafts that `feed` leaves.
fn answered_after(
    feed: impl Fn(&[u32]) -> Vec<u32>,
    answer: impl Fn(&[u32]) -> Vec<u32>,
) -> Result<Option<Finish>, SchedulerError> {
    let mut scheduler = Scheduler::new(speculating());
    scheduler.submit(vec![(RequestId(0), request(vec![1, 2, 3, 1, 2, 3], 50))]).unwrap();
    let mut token = 0;
    loop {
        let PlannedStep { plan, rows } = scheduler.plan(None).expect("a step can be planned");
        let TokenSource::Host(fed) = &plan.rows[0].tokens else { panic!("one step is in flight") };
        let drafts = &fed[fed.len() - plan.rows[0].drafts..];
        if !drafts.is_empty() {
            let updates = scheduler.commit(rows, output(&plan, &feed(drafts), &answer(drafts)))?;
            assert_eq!(scheduler.counts().speculation.drafts, feed(drafts).len() as u64);
            return Ok(updates[0].1.finish.clone());
        }
        token = token % 3 + 1;
        scheduler.commit(rows, output(&plan, &[], &[token]))?;
    }
}

#[test]
fn an_executor_that_accepts_another_draft_fails_the_request() {
    assert_eq!(answered(|drafts| drafts.to_vec()), Ok(None));
    assert_eq!(answered(|drafts| [drafts, &[7]].concat()), Ok(None));
    assert_eq!(answered(|_| vec![7]), Ok(None));
    let error = |text: &str| Ok(Some(Finish::Error(text.to_owned())));
    assert_eq!(
        answered(|drafts| vec![drafts[0], 99, 98]),
        error("the executor accepted the draft 3, but sampled the token 99")
    );
    let most = "the executor sampled 6 tokens, expected 1 to 5";
    assert_eq!(answered(|drafts| [drafts, &[7, 7]].concat()), error(most));
    assert_eq!(answered(|_| Vec::new()), error("the executor sampled 0 tokens, expected 1 to 5"));
}

#[test]
fn an_executor_may_leave_out_the_last_drafts_and_no_others() {
    assert_eq!(answered_after(|drafts| drafts[..2].to_vec(), |drafts| drafts[..3].to_vec()), Ok(None));
    assert_eq!(answered_after(|_| Vec::new(), |_| vec![7]), Ok(None));
    let error = |text: &str| Ok(Some(Finish::Error(text.to_owned())));
    assert_eq!(
        answered_after(|drafts| drafts[..2].to_vec(), |drafts| drafts.to_vec()),
        error("the executor sampled 4 tokens, expected 1 to 3")
    );
    let other = answered_after(|drafts| drafts[1..].to_vec(), |_| vec![7]);
    let Ok(Some(Finish::Error(text))) = other else { panic!("{other:?}") };
    assert!(text.starts_with("the executor fed the drafts ["), "{text}");
}

#[test]
fn step_times_between_and_after_the_measured_ones() {
    let time = |(rows, seconds)| StepTime { rows, seconds };
    // 4 rows were measured as faster than 2, and one time is not a number.
    let points = [(8, 6.0), (2, 3.0), (4, 2.5), (1, 2.0), (3, f64::NAN)].map(time).to_vec();
    let times = StepTimes::new(points);
    let seconds = [1, 2, 3, 4, 6, 8, 12].map(|rows| times.seconds(rows));
    assert_eq!(seconds, [2.0, 2.5, 2.5, 2.5, 4.25, 6.0, 9.5]);
    assert_eq!([1, 100].map(|rows| StepTimes::default().seconds(rows)), [1.0, 1.0]);
    assert_eq!([1, 100].map(|rows| StepTimes::new(vec![time((4, 0.5))]).seconds(rows)), [0.5, 0.5]);
    assert!(StepTimes::rows_to_measure(20).eq([1, 2, 3, 4, 5, 6, 8, 12, 16]));
    // After 100 positions, one row takes 1 s longer and four take 1.6 s longer.
    let after = |rows, seconds| ContextTime { context: 100, time: time((rows, seconds)) };
    let times = times.with_context([after(1, 3.0), after(4, 4.1)]);
    assert!((times.first_row - 0.01).abs() < 1e-9 && (times.further_row - 0.002).abs() < 1e-9, "{times:?}");
}
