//! Drafts change no bit: rows with drafts yield the tokens and the log-probabilities that rows without any
//! yield one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use octant::engine::{Engine, EngineError, Executor};
use octant::grammar::{GrammarMatcher, TokenMask};
use octant::random::Random;
use octant::request::{Request, SamplingParams};
use octant::runner::Runner;
use octant::scheduler::step_plan::{
    BLOCK_TOKENS, Row, RowOutput, SlotStart, StepOutput, StepPlan, TokenSource,
};
use octant::scheduler::{MAX_DRAFTS, SchedulerConfig};

use super::determinism::{Answer, alone, alone_of, answer, block_on, few_tokens, requests};
use super::model::{
    engine, engine_with_draft_model, fixture, request, runner, runner_with, scheduler_config,
};
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
            assert!(counts.drafts > 0, "{of}: no draft was fed");
            // Drafts of the same model obey the same grammars and rules, so all are accepted.
            match name == draft {
                true => assert_eq!(counts.all_accepted(), counts.drafts, "{of}: {counts:?}"),
                false => assert!(counts.all_accepted() * 4 < counts.drafts, "{of}: {counts:?}"),
            }
        }
    }
}

/// A runner whose plans and outputs are watched: it must feed no draft that the grammar of its row refuses.
struct Watched {
    runner: Runner,
    plans: VecDeque<Arc<StepPlan>>,
    /// The sequence of each slot, and a matcher of its own.
    slots: BTreeMap<u32, (Arc<SlotStart>, Option<GrammarMatcher>)>,
    seen: Arc<Mutex<Seen>>,
}

/// Drafts of rows with a grammar.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    fed: usize,
    accepted: usize,
    /// Drafts of the plan that the runner left out.
    left_out: usize,
}

impl Watched {
    fn check(&mut self, row: &Row, output: &RowOutput) {
        if let Some(start) = &row.start {
            let before = start.tokens[start.prompt_len..].to_vec();
            let grammar = start.sampling.grammar.clone();
            let matcher = grammar.map(|grammar| GrammarMatcher::new(grammar, Vec::new(), before));
            self.slots.insert(row.slot, (Arc::clone(start), matcher));
        }
        let (start, Some(matcher)) = &self.slots[&row.slot] else { return };
        if !row.sample {
            return;
        }
        let index = row.position as usize + row.tokens.len() - row.drafts - start.prompt_len;
        let masks = matcher.masks(index, &output.drafts);
        let allows = |(mask, draft): (&TokenMask, &u32)| mask[*draft as usize / 32] >> (draft % 32) & 1 == 1;
        let allowed = masks.iter().zip(&output.drafts).take_while(|pair| allows(*pair)).count();
        assert_eq!(allowed, output.drafts.len(), "a refused draft was fed: {row:?}, {output:?}");
        let tokens: Vec<u32> = output.tokens.iter().map(|token| token.id).collect();
        matcher.accept(index, &tokens);
        let mut seen = self.seen.lock().unwrap();
        seen.fed += output.drafts.len();
        seen.accepted += output.tokens.len().saturating_sub(1);
        seen.left_out += row.drafts.saturating_sub(output.drafts.len());
    }
}

impl Executor for Watched {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        self.plans.push_back(Arc::clone(plan));
        self.runner.enqueue(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let output = self.runner.collect()?;
        let plan = self.plans.pop_front().expect("a plan was enqueued");
        plan.rows.iter().zip(&output.rows).for_each(|(row, output)| self.check(row, output));
        Ok(output)
    }
}

/// Requests whose prompts have many runs of the tokens of [`few_tokens`], also such as it forbids.
fn quoting() -> Vec<Request> {
    let mut random = Random::new(3);
    let mut ask = |seed: u64| {
        let prompt: Vec<u32> = (0..90).map(|_| 3 + random.bits() as u32 % 4).collect();
        let mut request = request(&prompt, dev::GENERATED, 1.0, seed);
        let sampling = SamplingParams { seed, logprobs: Some(1), ..SamplingParams::greedy() };
        request.sampling =
            Arc::new(SamplingParams { grammar: Some(few_tokens()), temperature: 1.0, ..sampling });
        request
    };
    (0..4).map(&mut ask).collect()
}

/// The requests of [`watched`].
fn asked() -> Vec<Request> {
    if dev::FAST { [requests(), quoting()].concat() } else { quoting() }
}

/// The drafts that an engine feeds for requests with grammars, beside requests without. The answers have the
/// bits of answers without drafts, `expected`.
fn watched(name: &str, draft: Option<&str>, expected: &[Answer]) -> Seen {
    let dir = fixture(name);
    let config = SchedulerConfig { max_drafts: 6, draft_model: draft.is_some(), ..scheduler_config(&dir) };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let runner = runner_with(&dir, draft.map(fixture).as_deref(), &config);
    let watched = Watched { runner, plans: VecDeque::new(), slots: BTreeMap::new(), seen: Arc::clone(&seen) };
    let (handle, _thread) = Engine::start(config, 2, Box::new(watched)).unwrap();
    let answers = block_on(async {
        let all = asked().into_iter().map(|request| answer(&handle, request));
        futures_util::future::join_all(all).await
    });
    assert!(answers == expected, "{name} with {draft:?}");
    *seen.lock().unwrap()
}

#[test]
fn no_draft_is_fed_that_a_grammar_refuses() {
    // A draft model draws under the masks: its copy agrees in everything.
    let expected = alone_of(&fixture("nemotron"), asked());
    let copy = watched("nemotron", Some("nemotron"), &expected);
    assert!(copy.fed > 5 && copy.accepted == copy.fed, "{copy:?}");
    if dev::FAST {
        let lookup = watched("nemotron", None, &expected);
        assert!(lookup.fed > 0 && lookup.left_out > 10, "{lookup:?}");
        let other = watched("llama", Some("nemotron"), &alone_of(&fixture("llama"), asked()));
        assert!(other.fed > 0 && other.accepted < other.fed, "{other:?}");
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
