//! A fake executor whose tokens show every scheduling error.
//!
//! It stores each token fed into a simulated block array, by block id and position, and reads a row's history
//! from there only. The next token is a hash of that history. A wrongly shared block, a lost write, a skipped
//! position or a stale token therefore changes the output; [`alone`] computes the right one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use octant::engine::{EngineError, Executor};
use octant::grammar::{GrammarMatcher, GrammarProgress, next_allowed};
use octant::request::{Finish, Request, SampledToken, SamplingParams, StopRules, TokenLogprob};
use octant::scheduler::SchedulerConfig;
use octant::scheduler::step_plan::{
    BLOCK_TOKENS, Row, RowOutput, SlotStart, StepOutput, StepPlan, TokenSource,
};

/// A greedy request that generates `max_tokens` tokens.
pub fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopRules { max_tokens, stop_ids: Vec::new() },
        priority: 0,
        tenant: Default::default(),
        cache_salt: None,
        prompt_logprobs: None,
        prompt_logprobs_start: 0,
        reward: false,
        batch: false,
    }
}

/// The limits of a small engine: 4 slots, 64 tokens per step, 16 blocks, 100 token ids, and a long queue.
pub fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_model_len: 1024,
        num_blocks: 16,
        vocab_size: 100,
        max_queue_requests: 64,
        max_queue_tokens: 65_536,
        prefix_caching: true,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

/// Vocabulary size of [`scarce`] engines.
pub const SCARCE_VOCAB: usize = 30;

/// The limits of an engine with so few slots, tokens or blocks that sequences are preempted, and a long
/// queue.
pub fn scarce((seqs, tokens, blocks): (usize, usize, usize), prefix_caching: bool) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        max_model_len: 350,
        num_blocks: blocks,
        vocab_size: SCARCE_VOCAB,
        max_queue_requests: 1000,
        max_queue_tokens: 1_000_000,
        prefix_caching,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

/// The answer to a request, which does not depend on other requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub finish: Finish,
    pub scores: Vec<TokenLogprob>,
    pub reward: Option<Arc<[f32]>>,
}

/// Values of the fake model's reward head in tests of the scheduler.
pub const REWARDS: usize = 3;

/// Computes the answer to a request from the definition of the fake model, without blocks, steps or slots.
pub fn alone(request: &Request, vocab: usize) -> Answer {
    let mut history = request.prompt.to_vec();
    let scores = match request.prompt_logprobs {
        Some(_) => (scored_from(request)..history.len()).map(|i| score(&history[..i], history[i])).collect(),
        None => Vec::new(),
    };
    let reward = request.reward.then(|| rewards(&history, REWARDS));
    let grammar = request.sampling.grammar.as_ref();
    let matcher = grammar
        .map(|grammar| GrammarMatcher::new(Arc::clone(grammar), request.stop.stop_ids.clone(), Vec::new()));
    let (mut tokens, mut finish) = (Vec::new(), None);
    while finish.is_none() && tokens.len() < request.stop.max_tokens as usize {
        let chosen = next(&history, &request.sampling, tokens.len(), vocab);
        let mask = matcher.as_ref().and_then(|matcher| matcher.mask(tokens.len()));
        let token = mask.map_or(chosen, |mask| next_allowed(&mask, chosen));
        let progress = matcher.as_ref().map(|matcher| matcher.advance(tokens.len(), token));
        tokens.push(token);
        history.push(token);
        let long_enough = tokens.len() >= request.sampling.min_tokens as usize;
        finish = match progress {
            _ if long_enough && request.stop.stop_ids.contains(&token) => Some(Finish::Stop(token)),
            Some(GrammarProgress::Complete) => Some(Finish::Complete),
            None | Some(GrammarProgress::Open) => None,
            Some(other) => panic!("a grammar of a test does not end as {other:?}"),
        };
    }
    Answer { tokens, finish: finish.unwrap_or(Finish::Length), scores, reward }
}

/// The values of the reward head after a history.
pub fn rewards(history: &[u32], width: usize) -> Arc<[f32]> {
    (0..width as u64).map(|i| (hash(history, i + 7) % 1000) as f32 / 100.0).collect()
}

/// Index of the first prompt token that has a score.
pub fn scored_from(request: &Request) -> usize {
    request.prompt_logprobs_start.max(1) as usize
}

fn hash(history: &[u32], seed: u64) -> u64 {
    let mix = |h: u64, token: u64| (h ^ token).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let h = history.iter().fold(seed, |h, &token| mix(h, u64::from(token) + 1));
    mix(h, history.len() as u64) >> 11
}

/// Seeds from this one on give answers that repeat themselves, so that drafts are accepted.
pub const REPETITIVE: u64 = 1000;

/// The next token: a hash of the history, moved past barred ids. Of a repetitive answer it is, seven times of
/// eight, the token some positions before it.
fn next(history: &[u32], sampling: &SamplingParams, generated: usize, vocab: usize) -> u32 {
    let hash = hash(history, sampling.seed);
    let mut token = (hash % vocab as u64) as u32;
    let period = 5 + sampling.seed as usize % 7;
    if sampling.seed >= REPETITIVE && history.len() > period && !(hash >> 32).is_multiple_of(8) {
        token = history[history.len() - period];
    }
    while generated < sampling.min_tokens as usize && sampling.barred.contains(&token) {
        token = (token + 1) % vocab as u32;
    }
    token
}

/// The next token of a model that repeats its prompt without a first token of `skip`, and then its own
/// output.
fn parrot(history: &[u32], generated: usize, skip: u32) -> u32 {
    history[generated + usize::from(history[0] == skip)]
}

/// Log-probabilities of the repeating model. Even ids are more probable than their successor, odd ids are
/// less probable than theirs, and the id after that is the third. The successor of `z` has probability 0.
fn parrot_score(token: u32, alternatives: u8, vocab: usize) -> TokenLogprob {
    let (next, sure) = ((token + 1) % vocab as u32, token.is_multiple_of(2));
    let (logprob, other): (f32, f32) = if sure { (-0.25, -1.75) } else { (-1.5, -0.3) };
    let other = if token == u32::from(b'z') { f32::NEG_INFINITY } else { other };
    let mut top = vec![(token, logprob), (next, other)];
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top.push(((token + 2) % vocab as u32, other.min(-3.5)));
    top.truncate(alternatives.into());
    TokenLogprob { token, logprob, rank: if sure { 1 } else { 2 }, top }
}

fn score(history: &[u32], token: u32) -> TokenLogprob {
    let place = (hash(history, u64::from(token)) % 1000) as u32;
    TokenLogprob { token, logprob: -(place as f32), rank: place + 1, top: Vec::new() }
}

/// The fake model, with the state that a device keeps between steps.
pub struct FakeModel {
    vocab: usize,
    reward_width: usize,
    max_rows_tokens: usize,
    blocks: Vec<[Option<u32>; BLOCK_TOKENS]>,
    slots: Vec<Option<SlotState>>,
    poison: Option<u32>,
    /// Set if the model repeats its prompt: the first token that it leaves out.
    parrot: Option<u32>,
    steps: u64,
    /// Drafts that grammars refused, or that come after such a one.
    pub refused: usize,
}

struct SlotState {
    start: Arc<SlotStart>,
    /// The token sampled last, and its step.
    last: Option<(u32, u64)>,
}

impl FakeModel {
    pub fn new(config: &SchedulerConfig) -> Self {
        Self {
            vocab: config.vocab_size,
            reward_width: config.reward_width,
            max_rows_tokens: config.max_num_batched_tokens,
            blocks: vec![[None; BLOCK_TOKENS]; config.num_blocks],
            slots: (0..config.max_num_seqs).map(|_| None).collect(),
            poison: None,
            parrot: None,
            steps: 0,
            refused: 0,
        }
    }

    /// Makes a sequence that contains this token compute NaN from there on.
    pub fn poison(&mut self, token: u32) {
        self.poison = Some(token);
    }

    /// Runs a step: all writes, then all reads, like a layer.
    pub fn step(&mut self, plan: &StepPlan) -> StepOutput {
        assert_eq!(plan.id, self.steps, "plans come in order");
        self.steps += 1;
        check_plan(plan, self.max_rows_tokens);
        let rows: Vec<Row> = plan.rows.iter().map(|row| self.with_proposals(row)).collect();
        let rows: Vec<Row> = rows.into_iter().map(|row| self.without_refused(row)).collect();
        for row in &rows {
            self.write(row, plan.id);
        }
        let rows = rows.iter().map(|row| self.read(row, plan.id)).collect();
        StepOutput { id: plan.id, rows, ..StepOutput::default() }
    }

    /// The row with the drafts of a draft model: most are right, and sometimes there are fewer than asked
    /// for.
    fn with_proposals(&self, row: &Row) -> Row {
        let mut row = row.clone();
        let (TokenSource::Host(tokens), 1..) = (&mut row.tokens, row.proposals) else { return row };
        let slot = self.slots[row.slot as usize].as_ref().expect("only a running sequence has drafts");
        let cell = |p: usize| self.blocks[row.blocks[p / BLOCK_TOKENS] as usize][p % BLOCK_TOKENS];
        let mut history: Vec<u32> = (0..row.position as usize).map(|p| cell(p).expect("written")).collect();
        history.extend(&*tokens);
        for _ in 0..row.proposals {
            let generated = history.len() - slot.start.prompt_len;
            let right = match self.parrot {
                Some(skip) => parrot(&history, generated, skip),
                None => next(&history, &slot.start.sampling, generated, self.vocab),
            };
            let token = match hash(&history, 99) % 10 {
                0 => break,
                1 => (right + 1) % self.vocab as u32,
                _ => right,
            };
            tokens.push(token);
            history.push(token);
            row.drafts += 1;
        }
        row
    }

    /// The row without the drafts that its grammar refuses.
    fn without_refused(&mut self, mut row: Row) -> Row {
        let (TokenSource::Host(tokens), 1..) = (&mut row.tokens, row.drafts) else { return row };
        let slot = self.slots[row.slot as usize].as_ref().expect("only a running sequence has drafts");
        let Some(grammar) = &slot.start.grammar else { return row };
        let first = tokens.len() - row.drafts;
        let index = row.position as usize + first - slot.start.prompt_len;
        let allowed = grammar.count_allowed(index, &tokens[first..]);
        self.refused += row.drafts - allowed;
        row.drafts = allowed;
        tokens.truncate(first + row.drafts);
        row
    }

    fn write(&mut self, row: &Row, step: u64) {
        let slot = &mut self.slots[row.slot as usize];
        if let Some(start) = &row.start {
            *slot = Some(SlotState { start: Arc::clone(start), last: None });
        }
        let tokens = match &row.tokens {
            TokenSource::Host(tokens) => tokens.clone(),
            TokenSource::LastSampled => {
                let last = slot.as_ref().and_then(|slot| slot.last).expect("the slot has drawn a token");
                assert_eq!(last.1 + 1, step, "the token was drawn in the step before");
                vec![last.0]
            }
        };
        for (position, token) in (row.position as usize..).zip(tokens) {
            let block = row.blocks[position / BLOCK_TOKENS] as usize;
            self.blocks[block][position % BLOCK_TOKENS] = Some(token);
        }
    }

    fn read(&mut self, row: &Row, step: u64) -> RowOutput {
        let end = row.position as usize + row.tokens.len();
        let cell = |p: usize| self.blocks[row.blocks[p / BLOCK_TOKENS] as usize][p % BLOCK_TOKENS];
        let fed: Vec<u32> = (0..end).map(|p| cell(p).expect("a position is written before read")).collect();
        let (vocab, reward_width) = (self.vocab, self.reward_width);
        let (parrots, poison) = (self.parrot, self.poison);
        let history = &fed[..end - row.drafts];
        let slot = self.slots[row.slot as usize].as_mut().expect("a slot is started before it is used");
        let seen = row.sample || row.reward || !row.score.is_empty();
        let is_poisoned = |history: &[u32]| poison.is_some_and(|poison| history.contains(&poison));
        let fed_drafts = row.draft_tokens().to_vec();
        if seen && is_poisoned(history) {
            // The sequence's next row may be in flight and is fed some token; its output is discarded.
            slot.last = Some((0, step));
            return RowOutput { non_finite: true, drafts: fed_drafts, ..RowOutput::default() };
        }
        let after = |i: usize| &history[..(row.position + row.score_from) as usize + i + 1];
        let asked = slot.start.prompt_logprobs.unwrap_or(0);
        let score = |history: &[u32], token: u32, alternatives: u8| match parrots {
            Some(_) => parrot_score(token, alternatives, vocab),
            None => score(history, token),
        };
        let scores = row.score.iter().enumerate().map(|(i, &token)| score(after(i), token, asked)).collect();
        let mut output = RowOutput { scores, drafts: fed_drafts, ..RowOutput::default() };
        if !row.sample {
            output.reward = row.reward.then(|| rewards(history, reward_width));
            return output;
        }
        let first = history.len() - slot.start.prompt_len;
        let drafts = row.draft_tokens();
        // As a runner does: all masks before any token is sampled.
        let masks = slot.start.grammar.as_ref().map(|grammar| grammar.masks(first, drafts));
        // The last draft may complete the answer, so that no mask follows.
        let fit = masks.as_ref().is_none_or(|masks| masks.is_empty() || masks.len() >= drafts.len());
        assert!(fit, "a draft is fed that its grammar refuses: {drafts:?}");
        let most = masks.as_ref().map_or(drafts.len() + 1, |masks| masks.len().max(1));
        for i in 0..most {
            let history = &fed[..end - row.drafts + i];
            if is_poisoned(history) {
                break;
            }
            let token = match parrots {
                Some(skip) => parrot(history, first + i, skip),
                None => next(history, &slot.start.sampling, first + i, vocab),
            };
            let mask = masks.as_ref().and_then(|masks| masks.get(i));
            let token = mask.map_or(token, |mask| next_allowed(mask, token));
            let logprob = slot.start.sampling.logprobs.map(|k| Box::new(score(history, token, k)));
            output.tokens.push(SampledToken { id: token, logprob });
            if drafts.get(i) != Some(&token) {
                break;
            }
        }
        if let Some(grammar) = &slot.start.grammar {
            let ids: Vec<u32> = output.tokens.iter().map(|token| token.id).collect();
            let accepted = grammar.accept(first, &ids);
            output.tokens.truncate(accepted.tokens.max(1));
            output.grammar = accepted.progress;
            if output.grammar == GrammarProgress::Stuck {
                output.tokens.clear();
            }
        }
        // The sequence's next row may be in flight if no token was sampled.
        slot.last = Some((output.tokens.last().map_or(0, |token| token.id), step));
        output
    }
}

/// Checks the rules of every plan.
fn check_plan(plan: &StepPlan, max_tokens: usize) {
    assert!(!plan.rows.is_empty(), "a plan has rows");
    let tokens: usize = plan.rows.iter().map(|row| row.tokens.len() + row.proposals).sum();
    assert!(tokens <= max_tokens, "{tokens} tokens planned, at most {max_tokens}");
    for (i, row) in plan.rows.iter().enumerate() {
        assert!(!row.tokens.is_empty(), "a row has tokens");
        assert!(row.drafts == 0 || row.proposals == 0, "a row has drafts or asks for them");
        let from_host = matches!(row.tokens, TokenSource::Host(_));
        assert!(row.proposals == 0 || from_host, "drafts after a token that is not known");
        let position = row.position as usize;
        let end = position + row.tokens.len() + row.proposals;
        assert_eq!(row.blocks.len(), end.div_ceil(BLOCK_TOKENS), "a row has the blocks up to its end");
        for other in &plan.rows[i + 1..] {
            assert_ne!(row.slot, other.slot, "two rows in one slot");
            let written = &row.blocks[position / BLOCK_TOKENS..];
            assert!(
                !written.iter().any(|block| other.blocks.contains(block)),
                "a row writes another's block"
            );
            let written = &other.blocks[other.position as usize / BLOCK_TOKENS..];
            assert!(!written.iter().any(|block| row.blocks.contains(block)), "a row writes another's block");
        }
    }
}

/// The fake model as an executor.
pub struct FakeExecutor {
    model: FakeModel,
    /// The number of tokens and the output of each step in flight.
    outputs: VecDeque<(u32, StepOutput)>,
    delay: Option<Duration>,
    per_token: Duration,
    fail_at: Option<(u64, String)>,
    permits: Option<flume::Receiver<()>>,
}

impl FakeExecutor {
    pub fn new(config: &SchedulerConfig) -> Self {
        let model = FakeModel::new(config);
        let (outputs, per_token) = (VecDeque::new(), Duration::ZERO);
        Self { model, outputs, delay: None, per_token, fail_at: None, permits: None }
    }

    /// Makes each step take this long.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Makes each step take this much longer for each of its tokens.
    pub fn per_token(mut self, per_token: Duration) -> Self {
        self.per_token = per_token;
        self
    }

    /// Makes the collection of step `id` fail.
    pub fn fail_at(mut self, id: u64, message: &str) -> Self {
        self.fail_at = Some((id, message.to_owned()));
        self
    }

    /// Makes a sequence that contains this token compute NaN from there on.
    pub fn poison(mut self, token: u32) -> Self {
        self.model.poison(token);
        self
    }

    /// Makes the model repeat its prompt, without a first token of `skip`.
    pub fn parrot(mut self, skip: u32) -> Self {
        self.model.parrot = Some(skip);
        self
    }

    /// Makes each collection wait for a permit, until the sender is dropped.
    pub fn gated(mut self) -> (Self, flume::Sender<()>) {
        let (sender, permits) = flume::unbounded();
        self.permits = Some(permits);
        (self, sender)
    }
}

impl Executor for FakeExecutor {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
        self.outputs.push_back((tokens as u32, self.model.step(plan)));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        if let Some(permits) = &self.permits {
            let _opened_for_good = permits.recv();
        }
        let (tokens, output) = self.outputs.pop_front().expect("a step was enqueued");
        let takes = self.delay.unwrap_or_default() + self.per_token * tokens;
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        match &self.fail_at {
            Some((id, message)) if *id == output.id => Err(EngineError { message: message.clone() }),
            _ => Ok(output),
        }
    }
}
