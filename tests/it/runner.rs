//! The runner's threads: ready, failing and hanging ranks, and masks beside the forward pass.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octant::comm::{Communicator, GroupBuffers};
use octant::device::cpu::{Cpu, Floats};
use octant::device::{CacheSpec, DeviceError, KvDtype};
use octant::engine::Executor;
use octant::grammar::{GrammarMatcher, GrammarProgress};
use octant::model::Precision;
use octant::request::SamplingParams;
use octant::runner::{RankParts, Runner, RunnerOptions};
use octant::scheduler::step_plan::{Row, SlotStart, StepPlan, TokenSource};

use crate::HANG_GUARD;
use crate::device::grammars::{END, letters};
use crate::device::model::{fixture, load};

/// A group of one rank whose all-reduces the test controls: each waits for a result to return. Meeting can
/// fail too.
struct ControlledGroup {
    results: Mutex<Receiver<Result<(), String>>>,
    meeting_failure: Option<&'static str>,
}

impl Communicator<Cpu> for ControlledGroup {
    fn register(&self, _: GroupBuffers<'_, Cpu>) -> Result<(), DeviceError> {
        match self.meeting_failure {
            Some(message) => Err(DeviceError { op: "register", message: message.to_owned() }),
            None => Ok(()),
        }
    }

    fn all_reduce(&self, _: &Cpu, _: &mut Floats) -> Result<(), DeviceError> {
        let result = self.results.lock().unwrap().recv().unwrap_or(Ok(()));
        result.map_err(|message| DeviceError { op: "all_reduce", message })
    }

    fn all_gather(&self, _: &Cpu, _: &Floats, _: &mut Floats) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A plan with a row whose answer follows the expression, and the row's sequence.
fn constrained_plan(regex: &str) -> (StepPlan, Arc<SlotStart>) {
    let grammar = GrammarMatcher::new(letters(regex), vec![END], Vec::new());
    let sampling = SamplingParams::greedy().into();
    let (tokens, prompt_logprobs) = (vec![5, 6], None);
    let start = SlotStart { sampling, prompt_len: 2, tokens, prompt_logprobs, grammar: Some(grammar) };
    let start = Arc::new(start);
    (step(0, Some(Arc::clone(&start)), 0, &[5, 6], true), start)
}

fn runner(step_timeout: Duration) -> (Runner, Sender<Result<(), String>>) {
    runner_with(RunnerOptions { step_timeout, mask_threads: 0 }, None)
}

fn runner_with(
    options: RunnerOptions,
    failure: Option<&'static str>,
) -> (Runner, Sender<Result<(), String>>) {
    let (control, results) = channel();
    let (config, device, model) = load(&fixture("llama"), Precision::Fp8).unwrap();
    let parts = RankParts {
        device,
        comm: ControlledGroup { results: Mutex::new(results), meeting_failure: failure },
        processors: Vec::new(),
        model,
        cache: CacheSpec { layers: config.layers, blocks: 2, heads: config.heads, dtype: KvDtype::Fp8 },
        draft: None,
        max_num_seqs: 1,
        max_num_batched_tokens: 8,
        two_batch_tokens: None,
        vocab: config.vocab,
    };
    (Runner::start(vec![parts], options), control)
}

fn start(sampling: SamplingParams, prompt: &[u32]) -> Option<Arc<SlotStart>> {
    let (prompt_len, tokens) = (prompt.len(), prompt.to_vec());
    Some(Arc::new(SlotStart {
        sampling: sampling.into(),
        prompt_len,
        tokens,
        prompt_logprobs: None,
        grammar: None,
    }))
}

fn step(id: u64, start: Option<Arc<SlotStart>>, position: u32, tokens: &[u32], sample: bool) -> StepPlan {
    let tokens = TokenSource::Host(tokens.to_vec());
    let (blocks, score) = ([0].into(), Vec::new());
    let (drafts, proposals, score_from, reward) = (0, 0, 0, false);
    let row = Row {
        slot: 0,
        start,
        tokens,
        position,
        blocks,
        sample,
        drafts,
        proposals,
        score,
        score_from,
        reward,
    };
    StepPlan { id, rows: vec![row] }
}

fn plan() -> StepPlan {
    step(0, start(SamplingParams::greedy(), &[5, 6]), 0, &[5, 6], true)
}

#[test]
fn a_reused_slot_forgets_its_previous_sequence() {
    // With this penalty a token that counts as generated before is always generated again.
    let sticky = SamplingParams { frequency_penalty: -1000.0, ..SamplingParams::greedy() };
    let (mut runner, control) = runner(Duration::from_secs(60));
    drop(control);
    let mut run = |plans: &[StepPlan]| -> Vec<Option<u32>> {
        plans.iter().for_each(|plan| runner.enqueue(&Arc::new(plan.clone())).unwrap());
        plans.iter().map(|_| runner.collect().unwrap().rows[0].tokens.first().map(|token| token.id)).collect()
    };
    let alone = [step(1, start(sticky.clone(), &[9, 10]), 0, &[9], false), step(2, None, 1, &[10], true)];
    let expected = run(&alone);
    let [first, second] = alone;
    let after = run(&[step(0, start(sticky, &[5, 6]), 0, &[5, 6], true), first, second]);
    assert_ne!(
        after[0], expected[1],
        "the two sequences must generate different tokens for this test to show anything"
    );
    assert_eq!(after[1..], expected);
}

#[test]
fn a_rank_that_fails_says_where() {
    let (mut runner, strings) = runner(Duration::from_secs(60));
    strings.send(Ok(())).unwrap();
    strings.send(Err("the link is down".to_owned())).unwrap();
    runner.enqueue(&Arc::new(plan())).unwrap();
    assert_eq!(runner.collect().unwrap_err().message, "rank 0 failed: all_reduce: the link is down");
    // A later step fails too, with another message.
    assert!(runner.enqueue(&Arc::new(plan())).and_then(|()| runner.collect().map(|_| ())).is_err());
}

#[test]
fn a_hanging_rank_is_abandoned_after_the_step_timeout() {
    let (mut runner, control) = runner(Duration::from_millis(200));
    let begun = Instant::now();
    runner.enqueue(&Arc::new(plan())).unwrap();
    assert_eq!(runner.collect().unwrap_err().message, "rank 0 failed: a step did not end within 0.2 s");
    drop(runner);
    assert!(begun.elapsed() < HANG_GUARD);
    drop(control);
}

#[test]
fn ranks_report_that_they_are_ready_or_why_not() {
    let (mut ready, _control) = runner(Duration::from_secs(20));
    assert_eq!(ready.prepared(), Ok(()));
    let options = RunnerOptions { step_timeout: Duration::from_secs(20), mask_threads: 0 };
    let (mut broken, _control) = runner_with(options, Some("no peer"));
    let error = broken.prepared().expect_err("the rank is not ready");
    assert!(error.message.contains("rank 0 failed") && error.message.contains("no peer"), "{error}");
}

/// The forward pass cannot end before the mask is computed, since the test holds it until then.
#[test]
fn masks_are_computed_beside_the_forward_pass() {
    let options = RunnerOptions { step_timeout: HANG_GUARD, mask_threads: 1 };
    let (mut runner, control) = runner_with(options, None);
    runner.prepared().unwrap();
    let (plan, start) = constrained_plan("[x-z]");
    runner.enqueue(&Arc::new(plan)).unwrap();
    let begun = Instant::now();
    while !start.grammar.as_ref().unwrap().is_ready(0, &[]) {
        assert!(begun.elapsed() < HANG_GUARD, "the mask is not computed before the pass ends");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(control);
    let output = runner.collect().unwrap();
    assert_eq!(output.mask_wait, Duration::ZERO);
    assert_eq!(output.rows[0].grammar, GrammarProgress::Complete);
}

/// Without threads the rank computes the mask itself, the device waits, and the answer is the same.
#[test]
fn a_late_mask_is_counted_and_changes_no_answer() {
    let answer = |mask_threads: usize| {
        let options = RunnerOptions { step_timeout: HANG_GUARD, mask_threads };
        let (mut runner, control) = runner_with(options, None);
        drop(control);
        runner.enqueue(&Arc::new(constrained_plan("[x-z]").0)).unwrap();
        let output = runner.collect().unwrap();
        (output.mask_wait, output.rows)
    };
    let (wait, late) = answer(0);
    assert!(wait > Duration::ZERO);
    assert_eq!(late, answer(3).1);
    // A step of an answer without a grammar waits for nothing.
    let (mut runner, control) = runner(HANG_GUARD);
    drop(control);
    runner.enqueue(&Arc::new(plan())).unwrap();
    assert_eq!(runner.collect().unwrap().mask_wait, Duration::ZERO);
}
