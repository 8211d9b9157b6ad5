//! One request in the scheduler: its tokens, the positions computed so far, and the blocks and slot it holds.

use std::sync::Arc;

use super::blocks::{BlockTable, Pool};
use super::draft_model::{DraftModelState, ModelDrafts};
use super::ngram::Drafter;
use super::prefix::BlockKey;
use super::slots::Slot;
use super::step_plan::{BLOCK_TOKENS, Row, RowOutput, SlotStart, TokenSource};
use super::{RequestId, SchedulerConfig};
use crate::grammar::{GrammarMatcher, GrammarProgress};
use crate::request::{Finish, Request, Tenant, Update};

/// The order of running sequences: the first is planned first, and the last is preempted when blocks run out.
/// Every sequence has a different order. It is set each time the sequence starts and does not change while it
/// runs. Because `false < true`, live sequences sort before those of batches, and within each kind sequences
/// that may not be preempted sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    /// Whether the sequence is of a batch.
    pub batch: bool,
    /// Whether the sequence may be preempted. A live sequence may preempt any sequence of a batch.
    pub preemptible: bool,
    /// The class of its priority after ageing; a lower class goes first.
    pub class: i64,
    /// The request's number in order of submission, counted over all requests.
    pub sequence_number: u64,
}

impl Order {
    /// Sorts after all live sequences and before those of batches.
    pub(super) const FIRST_OF_BATCHES: Self =
        Self { batch: true, preemptible: false, class: i64::MIN, sequence_number: 0 };
}

/// A request that waits or runs.
pub struct Sequence {
    /// The engine's id of the request.
    pub id: RequestId,
    /// Its order among running sequences.
    pub order: Order,
    /// KV blocks of the positions from 0 on; empty while the sequence waits.
    pub table: BlockTable,
    /// Rows that are planned and not yet committed.
    pub in_flight: usize,
    /// Number of steps that had been planned when the request was submitted.
    pub arrived_at_step: u64,
    /// How often the sequence was preempted.
    pub preemptions: u32,
    /// Blocks reserved for the sequence in addition to those of its table.
    pub reserved: usize,
    /// Drafts to feed with the next decode row.
    pub wanted_drafts: usize,
    /// The draft model's state; `None` if drafts are found in the sequence.
    pub(super) model_drafts: Option<ModelDrafts>,
    request: Request,
    /// The prompt, followed by all committed output tokens.
    tokens: Vec<u32>,
    /// Keys of the first full blocks of `tokens`, computed on demand.
    keys: Vec<BlockKey>,
    slot: Option<Slot>,
    /// Whether the next row must carry a [`SlotStart`], because the sequence has just taken its slot.
    starting: bool,
    /// Positions that are part of a plan, committed or not.
    planned: usize,
    /// Positions whose results have been committed.
    computed: usize,
    /// Tokens that rows in flight will sample.
    ahead: usize,
    /// Index of the last prompt token whose log-probability has been reported or is not asked for.
    scored: usize,
    /// Prompt tokens found in the prefix cache at the first start; `None` before that.
    cached: Option<u32>,
    /// Whether the first update has been returned.
    answered: bool,
    /// Finds drafts; `None` until they are first asked for, and with a draft model.
    drafter: Option<Box<Drafter>>,
    /// The drafts of the row in flight, unless the executor proposes them.
    drafts: Vec<u32>,
}

/// The scheduler's record of a row in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlannedRow {
    /// The order of the row's sequence.
    pub order: Order,
    /// The row's request.
    pub id: RequestId,
    position: usize,
    /// Tokens fed, without drafts.
    len: usize,
    /// Drafts fed after them; with a draft model at most.
    pub(super) drafts: usize,
    sample: bool,
    scores: usize,
    reward: bool,
}

impl Sequence {
    /// Makes a waiting sequence. `arrived_at_step` is the number of steps planned so far.
    pub fn new(id: RequestId, sequence_number: u64, arrived_at_step: u64, request: Request) -> Self {
        Self {
            id,
            order: Order {
                batch: request.batch,
                preemptible: true,
                class: i64::from(request.priority),
                sequence_number,
            },
            table: BlockTable::default(),
            in_flight: 0,
            arrived_at_step,
            preemptions: 0,
            reserved: 0,
            wanted_drafts: 0,
            model_drafts: None,
            tokens: request.prompt.to_vec(),
            scored: (request.prompt_logprobs_start as usize).saturating_sub(1),
            request,
            keys: Vec::new(),
            slot: None,
            starting: false,
            planned: 0,
            computed: 0,
            ahead: 0,
            cached: None,
            answered: false,
            drafter: None,
            drafts: Vec::new(),
        }
    }

    /// Number of prompt tokens.
    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    /// The tenant that the request is charged to.
    pub fn tenant(&self) -> &Tenant {
        &self.request.tenant
    }

    /// The submitted priority, before ageing.
    pub fn priority(&self) -> i32 {
        self.request.priority
    }

    /// Whether the sequence has run before.
    pub fn has_started(&self) -> bool {
        self.cached.is_some()
    }

    /// Blocks needed beyond those of the current tokens if the sequence generates `max_tokens`. The last
    /// token is never fed to the model, so it needs no position.
    pub(crate) fn growth(&self) -> usize {
        let most = self.prompt_len() + (self.request.stop.max_tokens as usize).max(1) - 1;
        most.div_ceil(BLOCK_TOKENS).saturating_sub(self.len().div_ceil(BLOCK_TOKENS))
    }

    /// Number of tokens generated so far.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len()
    }

    /// The most tokens that the sequence may still generate.
    pub(super) fn most_tokens_left(&self) -> usize {
        (self.request.stop.max_tokens as usize).saturating_sub(self.generated())
    }

    /// Number of tokens known so far: prompt and committed output.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Index of the held slot.
    pub fn slot(&self) -> Option<u32> {
        self.slot.as_ref().map(Slot::index)
    }

    /// Positions that are part of a plan.
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Tokens to feed before the next one can be sampled, including one that is sampled but not yet
    /// committed. 0 once the last permitted token is sampled or in flight, so nothing is planned beyond
    /// `max_tokens`.
    pub fn pending(&self) -> usize {
        let known = self.tokens.len() + self.ahead;
        let max_tokens = self.request.stop.max_tokens as usize;
        if max_tokens > 0 && known - self.prompt_len() >= max_tokens {
            return 0;
        }
        known - self.planned
    }

    /// Whether the next token to feed lies beyond the blocks held.
    pub(crate) fn needs_block(&self) -> bool {
        self.planned >= self.table.len() * BLOCK_TOKENS
    }

    /// Keys of the blocks that a prefix hit may cover. At least one token is left to compute, because its
    /// logits are needed. If prompt tokens must be scored, all from the one before the first of them are left
    /// to compute: cached positions have no logits.
    pub(crate) fn lookup_keys(&mut self) -> &[BlockKey] {
        let scores = self.request.prompt_logprobs.is_some() && self.scored + 1 < self.prompt_len();
        let most = if scores { self.scored } else { self.tokens.len() - 1 };
        let blocks = most / BLOCK_TOKENS;
        self.extend_keys(blocks);
        &self.keys[..blocks]
    }

    fn extend_keys(&mut self, blocks: usize) {
        while self.keys.len() < blocks {
            let salt = self.request.cache_salt.as_deref();
            let parent = self.keys.last().copied().unwrap_or_else(|| BlockKey::root(salt));
            let first = self.keys.len() * BLOCK_TOKENS;
            self.keys.push(parent.child(&self.tokens[first..first + BLOCK_TOKENS]));
        }
    }

    /// Starts the sequence with an order, a slot and blocks. The first `cached` positions are already
    /// computed.
    pub fn start(&mut self, order: Order, slot: Slot, table: BlockTable, cached: usize) {
        self.order = order;
        self.slot = Some(slot);
        self.table = table;
        self.starting = true;
        self.planned = cached;
        self.computed = cached;
        self.model_drafts.iter_mut().for_each(|drafts| drafts.start(cached));
        let reported = cached.min(self.prompt_len());
        self.cached.get_or_insert(u32::try_from(reported).expect("a prompt's length fits in 32 bits"));
    }

    /// Reads a part of each object that the next commit and the next plan use, so that
    /// [`super::Scheduler::prefetch`] brings it into the CPU's cache. The returned sum has no meaning.
    pub(crate) fn read_state(&self) -> u64 {
        let Request { sampling, stop, tenant, .. } = &self.request;
        let far = [
            u64::from(self.tokens.last().copied().unwrap_or(0)),
            u64::from(self.table.last_id().unwrap_or(0)),
            u64::from(stop.stop_ids.first().copied().unwrap_or(0)),
            u64::from(sampling.min_tokens),
        ];
        let (step, keys, scored) = (self.arrived_at_step, self.keys.len() as u64, self.scored as u64);
        let near = [u64::from(tenant.weight), step, keys, scored];
        far.iter().chain(&near).fold(self.computed as u64, |sum, part| sum.wrapping_add(*part))
    }

    /// Gives up slot and blocks and keeps the tokens: what was computed is computed again after the next
    /// start.
    pub(crate) fn give_up(&mut self) {
        debug_assert_eq!((self.in_flight, self.ahead), (0, 0), "a runner may still write to its blocks");
        self.slot = None;
        self.table.clear();
        self.planned = 0;
        self.computed = 0;
        self.wanted_drafts = 0;
    }

    /// The chances of at most `most` drafts of the next decode row that is not in flight; see
    /// [`Drafter::chances`]. Empty for a sequence that does not decode or has no use for drafts.
    pub(super) fn draft_chances(&mut self, most: usize, model: &DraftModelState) -> Vec<f32> {
        let generated = self.generated();
        if self.pending() != 1 || generated == 0 {
            return Vec::new();
        }
        // The row's own sample may be the last token, and needs no draft.
        let left = self.request.stop.max_tokens as usize - generated - self.ahead - 1;
        if let Some(drafts) = &self.model_drafts {
            let chance = model.chance(drafts);
            return (1..=most.min(left) as i32).map(|place| chance.powi(place)).collect();
        }
        let drafter = self.drafter.get_or_insert_with(|| Box::new(Drafter::new()));
        drafter.extend(&self.tokens, self.request.prompt.len());
        drafter.chances(most.min(left) + self.ahead).skip(self.ahead).collect()
    }

    /// The next drafts, at most `count`. A token that ends the answer is none: nothing follows it.
    fn next_drafts(&self, count: usize) -> Vec<u32> {
        let drafter = self.drafter.as_ref().filter(|_| count > 0);
        let mut drafts = drafter.map_or_else(Vec::new, |drafter| drafter.drafts(&self.tokens, count));
        let end = drafts.iter().position(|token| self.request.stop.stop_ids.contains(token));
        drafts.truncate(end.unwrap_or(count));
        drafts
    }

    /// Plans the next `len` tokens; `len` is at least 1 and at most `pending`, and the blocks for them are
    /// held. A decode row feeds at most `drafts` drafts as well, whose blocks are held too.
    pub fn row(&mut self, len: usize, drafts: usize) -> (Row, PlannedRow) {
        let position = self.planned;
        let end = position + len;
        let proposals = if self.model_drafts.is_some() { drafts } else { 0 };
        self.drafts = self.next_drafts(drafts);
        let drafts = self.drafts.len() + proposals;
        let sample = end == self.tokens.len() + self.ahead && self.request.stop.max_tokens > 0;
        let (score_from, score) = self.targets(position, end);
        let reward = self.request.reward && end == self.prompt_len();
        let (order, id, scores) = (self.order, self.id, score.len());
        let planned = PlannedRow { order, id, position, len, drafts, sample, scores, reward };
        let tokens = if position < self.tokens.len() {
            TokenSource::Host([&self.tokens[position..end], &self.drafts].concat())
        } else {
            TokenSource::LastSampled
        };
        let row = Row {
            slot: self.slot().expect("a running sequence has a slot"),
            start: self.starting.then(|| self.slot_start()),
            tokens,
            position: u32::try_from(position).expect("positions fit in 32 bits"),
            blocks: self.table.ids(end + drafts).into(),
            sample,
            drafts: self.drafts.len(),
            proposals,
            score,
            score_from: u32::try_from(score_from).expect("positions fit in 32 bits"),
            reward,
        };
        self.starting = false;
        self.planned = end;
        // Nothing can be planned before it is known how many drafts are accepted.
        self.ahead += usize::from(sample && drafts == 0);
        self.in_flight += 1;
        (row, planned)
    }

    fn slot_start(&self) -> Arc<SlotStart> {
        Arc::new(SlotStart {
            sampling: Arc::clone(&self.request.sampling),
            prompt_len: self.prompt_len(),
            tokens: self.tokens.clone(),
            prompt_logprobs: self.request.prompt_logprobs,
            grammar: self.request.sampling.grammar.as_ref().map(|grammar| {
                let (stop_ids, before) = (&self.request.stop.stop_ids, &self.tokens[self.prompt_len()..]);
                GrammarMatcher::new(Arc::clone(grammar), stop_ids.clone(), before.to_vec())
            }),
        })
    }

    /// Prompt tokens to score for the positions `position..end`, with the number of positions before the
    /// first that scores one: the token after each position, as far as the prompt goes, without those that
    /// are not asked for or were reported before a preemption.
    fn targets(&self, position: usize, end: usize) -> (usize, Vec<u32>) {
        let first = self.scored.max(position) + 1;
        let last = (end + 1).min(self.prompt_len());
        if self.request.prompt_logprobs.is_none() || first >= last {
            return (0, Vec::new());
        }
        (first - 1 - position, self.tokens[first..last].to_vec())
    }

    /// Counts a row as committed without using its output.
    pub(crate) fn discard(&mut self) {
        self.in_flight -= 1;
    }

    /// Applies the output of one of the sequence's rows. Adds the update for the client, if there is one.
    pub(crate) fn apply_output(
        &mut self,
        row: &PlannedRow,
        mut output: RowOutput,
        config: &SchedulerConfig,
        updates: &mut Vec<(RequestId, Update)>,
    ) {
        self.in_flight -= 1;
        self.ahead -= usize::from(row.sample && row.drafts == 0);
        let (planned, drafts) = (std::mem::take(&mut self.drafts), std::mem::take(&mut output.drafts));
        let are_planned = self.model_drafts.is_some() || planned.starts_with(&drafts);
        let failed = match &output.grammar {
            GrammarProgress::TooComplex(reason) if !output.non_finite => {
                Some(Finish::TooComplex(reason.clone()))
            }
            _ if !are_planned && !output.non_finite => Some(Finish::Error(format!(
                "the executor fed the drafts {drafts:?}, expected the first ones of {planned:?}"
            ))),
            _ => fault(row, &output, &drafts, config).map(Finish::Error),
        };
        if let Some(finish) = failed {
            let (finish, cached_tokens) = (Some(finish), self.first_cached_tokens());
            return updates.push((self.id, Update { finish, cached_tokens, ..Update::default() }));
        }
        let prompt_logprobs = output.scores;
        self.scored += prompt_logprobs.len();
        let mut tokens = output.tokens;
        // The last token sampled has not been fed.
        self.computed = row.position + row.len + tokens.len().saturating_sub(1);
        self.planned = self.planned.max(self.computed);
        let mut finish = if tokens.is_empty() { self.finish_unsampled(&output.grammar) } else { None };
        let mut accepted = 0;
        while accepted < tokens.len() && finish.is_none() {
            self.tokens.push(tokens[accepted].id);
            finish = self.finish(tokens[accepted].id);
            accepted += 1;
        }
        if accepted == tokens.len() && output.grammar == GrammarProgress::Complete {
            finish = finish.filter(|finish| matches!(finish, Finish::Stop(_))).or(Some(Finish::Complete));
        }
        // Tokens sampled after the one that ends the request are dropped.
        tokens.truncate(accepted);
        self.computed = self.computed.min(self.tokens.len());
        if tokens.is_empty() && prompt_logprobs.is_empty() && finish.is_none() {
            return;
        }
        let (cached_tokens, reward) = (self.first_cached_tokens(), output.reward);
        let update = Update { tokens, prompt_logprobs, reward, finish, cached_tokens, ..Update::default() };
        updates.push((self.id, update));
    }

    /// The number of cached prompt tokens for the first update; `None` for those after it.
    fn first_cached_tokens(&mut self) -> Option<u32> {
        if std::mem::replace(&mut self.answered, true) { None } else { self.cached }
    }

    /// How the request ends after a row that sampled no token; `None` if it goes on. A request with
    /// `max_tokens` 0 ends here, once its prompt is scored, and one whose grammar allows no token.
    fn finish_unsampled(&self, grammar: &GrammarProgress) -> Option<Finish> {
        if *grammar == GrammarProgress::Stuck {
            return Some(Finish::Length);
        }
        let scored_only = self.request.stop.max_tokens == 0 && self.computed == self.tokens.len();
        scored_only.then_some(Finish::Length)
    }

    /// How the request ends with this token, which is the last of `tokens`; `None` if it goes on.
    fn finish(&self, token: u32) -> Option<Finish> {
        let generated = self.tokens.len() - self.prompt_len();
        let long_enough = generated >= self.request.sampling.min_tokens as usize;
        if long_enough && self.request.stop.stop_ids.contains(&token) {
            return Some(Finish::Stop(token));
        }
        (generated >= self.request.stop.max_tokens as usize).then_some(Finish::Length)
    }

    /// Adds the blocks that have been completed since `before` computed positions to the prefix cache.
    pub fn publish(&mut self, before: usize, pool: &Pool) {
        let full = self.computed / BLOCK_TOKENS;
        if full > before / BLOCK_TOKENS {
            self.extend_keys(full);
            for block in before / BLOCK_TOKENS..full {
                pool.publish(self.keys[block], &self.table.blocks()[block]);
            }
        }
    }

    /// Whether the sequence is computing the full block `block` that will have this key.
    pub(crate) fn is_computing(&self, block: usize, key: BlockKey) -> bool {
        self.keys.get(block) == Some(&key) && self.computed < (block + 1) * BLOCK_TOKENS
    }

    /// Number of positions whose results are committed.
    pub(crate) fn computed(&self) -> usize {
        self.computed
    }
}

/// Why a row's output cannot be used.
fn fault(row: &PlannedRow, output: &RowOutput, drafts: &[u32], config: &SchedulerConfig) -> Option<String> {
    let vocab = config.vocab_size;
    if output.non_finite {
        return Some("the model computed NaN or infinity for this request".to_owned());
    }
    if let GrammarProgress::Failed(reason) = &output.grammar {
        return Some(reason.clone());
    }
    if output.scores.len() != row.scores {
        return Some(format!(
            "the executor returned {} scores, expected {}",
            output.scores.len(),
            row.scores
        ));
    }
    let rewards = if row.reward { config.reward_width } else { 0 };
    let got = output.reward.as_ref().map_or(0, |values| values.len());
    if got != rewards {
        return Some(format!("the executor returned {got} values of a reward head, expected {rewards}"));
    }
    if let Some(token) = output.tokens.iter().find(|token| token.id as usize >= vocab) {
        return Some(format!("the executor sampled token {} of a vocabulary of {vocab}", token.id));
    }
    if drafts.len() > row.drafts {
        return Some(format!("the executor fed {} drafts, expected at most {}", drafts.len(), row.drafts));
    }
    let stuck = output.grammar == GrammarProgress::Stuck;
    let (got, least) = (output.tokens.len(), usize::from(row.sample && !stuck));
    let most = least + if stuck { 0 } else { drafts.len() };
    if !(least..=most).contains(&got) {
        let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
        return Some(format!("the executor sampled {got} tokens, expected {expected}"));
    }
    let mut accepted = output.tokens.iter().zip(drafts).take(got.saturating_sub(1));
    let other = accepted.find(|(token, draft)| token.id != **draft);
    other.map(|(token, draft)| {
        format!("the executor accepted the draft {draft}, but sampled the token {}", token.id)
    })
}
