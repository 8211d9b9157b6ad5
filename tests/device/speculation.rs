//! Drafts change no bit: rows with drafts yield the tokens and the log-probabilities that rows without any
//! yield one after the other.

use std::sync::Arc;

use octant::engine::Executor;
use octant::grammar::GrammarMatcher;
use octant::random::Random;
use octant::request::Request;
use octant::runner::Runner;
use octant::scheduler::step_plan::{BLOCK_TOKENS, Row, RowOutput, SlotStart, StepPlan, TokenSource};
use octant::scheduler::{MAX_DRAFTS, SchedulerConfig};

use super::determinism::{Answer, alone, answer, block_on, requests};
use super::model::{engine, engine_with_draft_model, fixture, request, runner, scheduler_config};
use crate::dev;

/// A sequence whose answer is known.
struct Known {
    request: Request,
    start: Arc<SlotStart>,
    answer: Answer,
    /// Tokens of the answer that have come.
    generated: usize,
    blocks: Vec<u32>,
}

impl Known {
    fn new(request: Request, answer: Answer, first_block: u32) -> Self {
        let grammar = request.sampling.grammar.clone();
        let start = SlotStart {
            sampling: Arc::clone(&request.sampling),
            prompt_len: request.prompt.len(),
            tokens: request.prompt.to_vec(),
            prompt_logprobs: None,
            grammar: grammar.map(|grammar| GrammarMatcher::new(grammar, Vec::new(), Vec::new())),
        };
        let most = request.prompt.len() + answer.len();
        let blocks = (first_block..).take(most.div_ceil(BLOCK_TOKENS)).collect();
        Self { request, start: Arc::new(start), answer, generated: 0, blocks }
    }

    fn row(&self, slot: usize, position: usize, fed: Vec<u32>, drafts: usize) -> Row {
        let blocks = (position + fed.len()).div_ceil(BLOCK_TOKENS);
        Row {
            slot: slot as u32,
            start: (position == 0).then(|| Arc::clone(&self.start)),
            tokens: TokenSource::Host(fed),
            position: position as u32,
            blocks: self.blocks[..blocks].into(),
            sample: true,
            drafts,
            proposals: 0,
            score: Vec::new(),
            score_from: 0,
            reward: false,
        }
    }

    fn prompt(&self, slot: usize) -> Row {
        self.row(slot, 0, self.request.prompt.to_vec(), 0)
    }

    /// A row with up to `count` drafts of the answer, of which number `wrong` is another token.
    fn next(&self, slot: usize, count: usize, wrong: usize) -> Row {
        let left = &self.answer[self.generated..];
        let mut fed = vec![self.answer[self.generated - 1].0];
        let drafts = count.min(left.len() - 1);
        fed.extend(left[..drafts].iter().map(|(token, _)| *token));
        if let Some(token) = fed.get_mut(wrong + 1) {
            *token = if *token == 8 { 9 } else { 8 };
        }
        self.row(slot, self.request.prompt.len() + self.generated - 1, fed, drafts)
    }

    /// Compares an output with the answer: all drafts before number `wrong` are accepted, and one more token
    /// is sampled.
    fn take(&mut self, output: &RowOutput, drafts: usize, wrong: usize, of: &str) {
        let got: Answer =
            output.tokens.iter().map(|token| (token.id, *token.logprob.clone().unwrap())).collect();
        let count = drafts.min(wrong) + 1;
        assert!(got == self.answer[self.generated..][..count], "{of}, from token {}", self.generated);
        self.generated += count;
    }
}

/// Runs the plans of all sequences at once, with drafts of which most are right, until the answers are
/// complete. Returns the number of accepted drafts.
fn run(runner: &mut Runner, all: &mut [Known], random: &mut Random, name: &str) -> usize {
    let (mut id, mut accepted) = (0, 0);
    loop {
        // (sequence, the wrong draft)
        let mut planned = Vec::new();
        let mut rows = Vec::new();
        for (slot, known) in all.iter().enumerate().filter(|(_, known)| known.generated < known.answer.len())
        {
            let (count, wrong) = (random.bits() as usize % 10, random.bits() as usize % 12);
            rows.push(if known.generated == 0 { known.prompt(slot) } else { known.next(slot, count, wrong) });
            planned.push((slot, wrong));
        }
        if rows.is_empty() {
            return accepted;
        }
        let plan = Arc::new(StepPlan { id, rows });
        runner.enqueue(&plan).unwrap();
        let output = runner.collect().unwrap();
        for (((slot, wrong), row), output) in planned.into_iter().zip(&plan.rows).zip(&output.rows) {
            all[slot].take(output, row.drafts, wrong, &format!("{name}, request {slot}, {row:?}"));
            accepted += row.drafts.min(wrong);
        }
        id += 1;
    }
}

#[test]
fn rows_with_drafts_have_the_bits_of_rows_without() {
    for name in ["nemotron", "llama"] {
        let dir = fixture(name);
        let expected = alone(&dir);
        // The first step has all prompts.
        let config = SchedulerConfig { max_num_batched_tokens: 1024, ..scheduler_config(&dir) };
        let mut runner = runner(&dir, &config);
        let mut random = Random::new(7);
        let known = |(index, (request, answer))| Known::new(request, answer, index as u32 * 4);
        let all = requests().into_iter().zip(expected).enumerate().map(known);
        let mut all: Vec<Known> = all.collect();
        let accepted = run(&mut runner, &mut all, &mut random, name);
        assert!(accepted > all.len(), "{name}: {accepted} accepted drafts show little");
    }
}

/// The engine finds the drafts itself, also while it preempts sequences and divides prompts.
#[test]
fn an_engine_that_speculates_has_the_bits_of_one_that_does_not() {
    for name in ["nemotron", "llama"] {
        let dir = fixture(name);
        let expected = alone(&dir);
        for (blocks, tokens, in_flight) in [(64, 512, 2), (*dev::SCARCE.end(), 512, 1), (64, 24, 1)] {
            let (handle, _thread) = engine(
                &dir,
                |config| {
                    config.max_drafts = MAX_DRAFTS;
                    (config.num_blocks, config.max_num_batched_tokens) = (blocks, tokens);
                },
                in_flight,
            );
            let answers = block_on(async {
                let all = requests().into_iter().map(|request| answer(&handle, request));
                futures_util::future::join_all(all).await
            });
            assert!(answers == expected, "{name} with {blocks} blocks and {tokens} tokens per step");
            let counts = handle.stats().counts.speculation;
            // With few tokens an answer hardly repeats anything.
            if dev::GENERATED > 20 {
                assert!(counts.all_accepted() > 0, "{name}: {counts:?}");
                assert!(counts.all_accepted() < counts.drafts, "{name}: {counts:?}");
            }
        }
    }
}

/// A draft model proposes the drafts. The two fixtures have nothing in common, so as a draft model for one
/// another their drafts are rejected.
#[test]
fn an_engine_with_a_draft_model_has_the_bits_of_one_without() {
    let scarce = *dev::SCARCE.end();
    let all = [(scarce, 512, 2), (64, 512, 2), (64, 24, 1)];
    let configurations = if dev::FAST { &all[..] } else { &all[..1] };
    for (name, draft) in [("nemotron", "nemotron"), ("llama", "nemotron")] {
        let dir = fixture(name);
        let expected = alone(&dir);
        for &(blocks, tokens, in_flight) in configurations {
            let (handle, _thread) = engine_with_draft_model(
                &dir,
                &fixture(draft),
                |config| {
                    config.max_drafts = 5;
                    (config.num_blocks, config.max_num_batched_tokens) = (blocks, tokens);
                },
                in_flight,
            );
            let of = format!("{name} with {draft}, {blocks} blocks and {tokens} tokens per step");
            for round in 0..2 {
                // The second round finds the prompts in the prefix cache.
                let answers = block_on(async {
                    let all = requests().into_iter().map(|request| answer(&handle, request));
                    futures_util::future::join_all(all).await
                });
                assert!(answers == expected, "{of}, round {round}");
            }
            let counts = handle.stats().counts.speculation;
            // Drafts of the same model are rejected where a grammar or a rule forbids them.
            let accepted = counts.all_accepted() as f64 / counts.drafts as f64;
            assert!(counts.drafts > 0, "{of}: no draft was fed");
            assert!(if name == draft { accepted > 0.25 } else { accepted < 0.1 }, "{of}: {counts:?}");
        }
    }
}

/// A model accepts all drafts of its own copy: the copy has computed what it has missed, and draws by the
/// same random numbers and penalties.
#[test]
fn a_model_accepts_all_drafts_of_its_copy() {
    for name in ["nemotron", "llama"] {
        let dir = fixture(name);
        let (handle, _thread) =
            engine_with_draft_model(&dir, &dir, |config| config.max_drafts = MAX_DRAFTS, 2);
        let prompt: Vec<u32> = (0..130).map(|i| 3 + i * 37 % 380).collect();
        // The last prompt is found in the prefix cache as far as the first one reaches.
        for (len, temperature) in [(100, 1.0), (5, 0.0), (130, 1.0), (130, 0.7)] {
            let answered = block_on(answer(&handle, request(&prompt[..len], dev::GENERATED, temperature, 3)));
            assert_eq!(answered.len(), dev::GENERATED as usize);
            let counts = handle.stats().counts.speculation;
            assert!(counts.drafts > 0, "{name}: {counts:?}");
            assert_eq!(counts.all_accepted(), counts.drafts, "{name}, prompt of {len}: {counts:?}");
        }
    }
}
