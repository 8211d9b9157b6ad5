//! The state of one sequence's grammar.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use llguidance::Matcher;
use llguidance::api::StopReason;

use super::token_rules::all;
use super::{Grammar, is_dead_end, short};

/// A bit for each token id, in words of 32 ids, lowest bit first: whether the token may come next.
pub type TokenMask = Arc<[u32]>;

/// The token, or the next higher id that a mask allows; after the highest id the lowest. For models that do
/// not compute logits.
pub fn next_allowed(mask: &[u32], token: u32) -> u32 {
    let ids = mask.len() as u32 * 32;
    let mut from_there = (token..ids).chain(0..token.min(ids));
    from_there.find(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).unwrap_or(token)
}

/// Steps whose masks and progress are kept. Ranks are at most one step apart.
const KEPT: usize = 2;

/// How far an answer has come in its grammar.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum GrammarProgress {
    /// The answer can go on, or there is no grammar.
    #[default]
    Open,
    /// The answer is complete, and no text can follow.
    Complete,
    /// No token of the vocabulary can follow, and the answer is not complete.
    Stuck,
    /// The grammar cannot be followed because of a fault of the server; the text says why.
    Failed(String),
    // Recordings store the number of a variant: new ones stand last.
    /// The next step of the grammar takes more work than is allowed; the text says which.
    TooComplex(String),
}

/// Follows the tokens of one sequence. Its state is made when it is first used.
pub struct GrammarMatcher {
    grammar: Arc<Grammar>,
    /// Ids that end the answer where it is complete.
    stop_ids: Vec<u32>,
    /// Tokens generated before the sequence was preempted.
    before: Vec<u32>,
    state: Mutex<Option<State>>,
}

/// How many of the tokens sampled for an answer belong to it, and how far it has come with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The number of tokens.
    pub tokens: usize,
    /// The progress after the last of them.
    pub progress: GrammarProgress,
}

struct State {
    /// `None` if only rules constrain the answer.
    matcher: Option<Matcher>,
    /// The tokens of the answer that have been consumed.
    answer: Vec<u32>,
    progress: GrammarProgress,
    /// Whether the matcher has consumed drafts, which leave work in it that counts towards its limits.
    has_speculated: bool,
    /// Whether drafts can be taken back.
    can_speculate: bool,
    /// The masks of a step by the index of its first token in the answer, latest last.
    masks: VecDeque<Kept<DraftMasks>>,
    /// The same for what was accepted.
    accepted: VecDeque<Kept<Accepted>>,
    /// The same for the number of drafts that the grammar allows.
    allowed: VecDeque<Kept<usize>>,
}

/// The masks of a token and of those that follow if drafts are accepted.
#[derive(Clone)]
struct DraftMasks {
    drafts: Vec<u32>,
    /// One more than drafts, or fewer if a draft cannot be accepted or ends the answer.
    masks: Arc<[TokenMask]>,
}

impl DraftMasks {
    /// Whether all masks with these drafts are among them.
    fn cover(&self, drafts: &[u32]) -> bool {
        self.drafts.starts_with(drafts) || self.have_ended() && drafts.starts_with(&self.drafts)
    }

    /// Whether the last draft, or one before it, has no mask after it.
    fn have_ended(&self) -> bool {
        self.masks.len() <= self.drafts.len()
    }

    /// The masks with the first `count` drafts.
    fn first(&self, count: usize) -> Arc<[TokenMask]> {
        match self.masks.get(..=count) {
            Some(first) if first.len() < self.masks.len() => first.into(),
            _ => Arc::clone(&self.masks),
        }
    }
}

impl State {
    fn new(matcher: Option<Matcher>) -> Self {
        Self {
            matcher,
            answer: Vec::new(),
            progress: GrammarProgress::Open,
            has_speculated: false,
            can_speculate: true,
            masks: VecDeque::new(),
            accepted: VecDeque::new(),
            allowed: VecDeque::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.progress == GrammarProgress::Open
    }
}

/// A result for the tokens of the answer from `index` on.
struct Kept<T> {
    index: usize,
    result: T,
}

/// Adds the result of a step to those that are kept.
fn keep<T>(kept: &mut VecDeque<Kept<T>>, index: usize, result: T) {
    kept.push_back(Kept { index, result });
    if kept.len() > KEPT {
        kept.pop_front();
    }
}

fn kept<T: Clone>(kept: &VecDeque<Kept<T>>, index: usize) -> Option<T> {
    kept.iter().rev().find(|kept| kept.index == index).map(|kept| kept.result.clone())
}

impl GrammarMatcher {
    /// A matcher after the tokens `before` of the answer. `stop_ids` end the answer where the grammar allows
    /// an end.
    pub fn new(grammar: Arc<Grammar>, stop_ids: Vec<u32>, before: Vec<u32>) -> Self {
        Self { grammar, stop_ids, before, state: Mutex::new(None) }
    }

    /// The mask of token `index` of the answer; `None` where no token can be chosen by the grammar: its
    /// progress is not open. All tokens before `index` must have been given to [`Self::accept`].
    pub fn mask(&self, index: usize) -> Option<TokenMask> {
        self.masks(index, &[]).first().cloned()
    }

    /// The masks of token `index` of the answer and of those that follow if the drafts before them are
    /// accepted. They end where a draft is not allowed or ends the answer. Empty where [`Self::mask`] is
    /// `None`. The matcher consumes no draft. Masks are computed once: a call with more drafts computes those
    /// that are new.
    pub fn masks(&self, index: usize, drafts: &[u32]) -> Arc<[TokenMask]> {
        let masks = self.with_state(|state| {
            let before = kept(&state.masks, index);
            if let Some(before) = before.as_ref().filter(|before| before.cover(drafts)) {
                return before.first(drafts.len());
            }
            if !state.is_open() || state.answer.len() != index {
                return Arc::default();
            }
            let known = match before.filter(|before| drafts.starts_with(&before.drafts)) {
                Some(before) => before.masks.to_vec(),
                None => match self.exact(state, |state| self.compute(state)) {
                    Some(first) => vec![first],
                    None => return Arc::default(),
                },
            };
            let masks: Arc<[TokenMask]> = self.speculate(state, known, drafts).into();
            let with_drafts = DraftMasks { drafts: drafts.to_vec(), masks: Arc::clone(&masks) };
            state.masks.retain(|kept| kept.index != index);
            keep(&mut state.masks, index, with_drafts);
            masks
        });
        masks.unwrap_or_default()
    }

    /// How many of `drafts`, from the first on, the grammar allows after the first `index` tokens of the
    /// answer, which must have been given to [`Self::accept`]. The count ends before an id that ends the
    /// answer. It takes much less work than the masks. Every call for an index must pass the same drafts.
    pub fn count_allowed(&self, index: usize, drafts: &[u32]) -> usize {
        let count = self.with_state(|state| {
            if let Some(count) = kept(&state.allowed, index) {
                return count;
            }
            if !state.is_open() || state.answer.len() != index {
                return 0;
            }
            let count = self.count(state, drafts);
            keep(&mut state.allowed, index, count);
            count
        });
        count.unwrap_or_default().min(drafts.len())
    }

    fn count(&self, state: &mut State, drafts: &[u32]) -> usize {
        let environment = state.matcher.as_ref().and_then(|matcher| matcher.tok_env().ok());
        let eos = environment.as_ref().map(|environment| environment.tok_trie().eos_tokens());
        let ends = eos.unwrap_or_default();
        let is_end = |draft: &u32| {
            self.stop_ids.contains(draft) || ends.contains(draft) || *draft as usize >= self.grammar.vocab
        };
        let before_end = drafts.iter().position(is_end).unwrap_or(drafts.len());
        let mut count = before_end;
        if let Some(matcher) = &mut state.matcher {
            state.has_speculated = true;
            count = matcher.validate_tokens(&drafts[..before_end]).unwrap_or(0).min(before_end);
        }
        let Some(rules) = &self.grammar.rules else { return count };
        let mut answer = state.answer.clone();
        let is_allowed = |draft: &&u32| {
            let allows = rules.allow(&answer, **draft);
            answer.push(**draft);
            allows
        };
        drafts[..count].iter().take_while(is_allowed).count()
    }

    /// Whether [`Self::masks`] returns the masks from token `index` on at once. `false` as well while another
    /// thread uses the matcher.
    pub fn is_ready(&self, index: usize, drafts: &[u32]) -> bool {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        state.as_ref().is_some_and(|state| {
            let is_next = state.is_open() && state.answer.len() == index;
            !is_next || kept(&state.masks, index).is_some_and(|masks| masks.cover(drafts))
        })
    }

    /// Consumes token `index` of the answer, unless another rank has given it already. Returns how far the
    /// answer has come with it.
    pub fn advance(&self, index: usize, token: u32) -> GrammarProgress {
        self.accept(index, &[token]).progress
    }

    /// Consumes the tokens of the answer from `index` on, up to one that ends it, unless another rank has
    /// given them already. If a token after the first cannot be followed, those before it are accepted, and
    /// the next call says why.
    pub fn accept(&self, index: usize, tokens: &[u32]) -> Accepted {
        let accepted = self.with_state(|state| {
            if let Some(accepted) = kept(&state.accepted, index) {
                return accepted;
            }
            if state.is_open() && index > state.answer.len() {
                // A token before it was not sampled, or was not given to the matcher.
                state.progress = failed("a token of the answer is missing");
            }
            if !state.is_open() || index < state.answer.len() {
                return Accepted { tokens: 0, progress: state.progress.clone() };
            }
            let accepted = self.consume_all(state, tokens);
            keep(&mut state.accepted, index, accepted.clone());
            accepted
        });
        accepted.unwrap_or_else(|progress| Accepted { tokens: 0, progress })
    }

    fn consume_all(&self, state: &mut State, tokens: &[u32]) -> Accepted {
        for (before, token) in tokens.iter().enumerate() {
            self.exact(state, |state| self.consume(state, *token));
            match &state.progress {
                GrammarProgress::Open => {}
                GrammarProgress::Complete => {
                    return Accepted { tokens: before + 1, progress: GrammarProgress::Complete };
                }
                _ if before > 0 => return Accepted { tokens: before, progress: GrammarProgress::Open },
                fault => return Accepted { tokens: 1, progress: fault.clone() },
            }
        }
        Accepted { tokens: tokens.len(), progress: GrammarProgress::Open }
    }

    /// Computes the masks after those that are known, and takes the drafts back.
    fn speculate(&self, state: &mut State, known: Vec<TokenMask>, drafts: &[u32]) -> Vec<TokenMask> {
        let before = state.answer.len();
        let mut masks = known;
        let drafts = if state.can_speculate { drafts } else { &[] };
        for (draft, at) in drafts.iter().zip(0..) {
            if !allows(&masks[at], *draft) || self.stop_ids.contains(draft) {
                break;
            }
            state.has_speculated = true;
            self.consume(state, *draft);
            if at + 1 < masks.len() && state.is_open() {
                continue;
            }
            let next = if state.is_open() { self.compute(state) } else { None };
            let Some(next) = next else { break };
            masks.push(next);
        }
        let consumed = state.answer.len() - before;
        if consumed > 0 {
            state.answer.truncate(before);
            state.progress = GrammarProgress::Open;
            let taken_back = state.matcher.as_mut().map_or(Ok(()), |matcher| matcher.rollback(consumed));
            if taken_back.is_err() {
                state.can_speculate = false;
                self.restart(state);
            }
        }
        masks
    }

    /// Does some work for the answer. If it fails after drafts were consumed, it is done again with a matcher
    /// that has consumed none: the work for drafts must not count towards the limits.
    fn exact<T>(&self, state: &mut State, work: impl Fn(&mut State) -> T) -> T {
        let before = state.answer.len();
        let result = work(state);
        let has_failed =
            matches!(state.progress, GrammarProgress::Failed(_) | GrammarProgress::TooComplex(_));
        if !has_failed || !state.has_speculated {
            return result;
        }
        state.answer.truncate(before);
        self.restart(state);
        work(state)
    }

    /// Makes a matcher that has consumed the answer and no drafts.
    fn restart(&self, state: &mut State) {
        state.matcher = self.grammar.start();
        state.has_speculated = false;
        state.progress = GrammarProgress::Open;
        for token in std::mem::take(&mut state.answer) {
            self.consume(state, token);
        }
    }

    /// Works on the state. A panic fails this answer, and not the thread, which works for others as well.
    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, GrammarProgress> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = catch_unwind(AssertUnwindSafe(|| work(self.started(&mut state))));
        done.map_err(|_panic| {
            let progress = failed("the matcher panicked");
            let mut after = State { progress: progress.clone(), ..State::new(None) };
            // What some ranks have got before, the others get as well.
            if let Some(State { masks, accepted, allowed, .. }) = state.take() {
                (after.masks, after.accepted, after.allowed) = (masks, accepted, allowed);
            }
            *state = Some(after);
            progress
        })
    }

    fn started<'a>(&self, state: &'a mut Option<State>) -> &'a mut State {
        state.get_or_insert_with(|| {
            let mut state = State::new(self.grammar.start());
            for token in &self.before {
                self.consume(&mut state, *token);
            }
            state
        })
    }

    fn consume(&self, state: &mut State, token: u32) {
        state.answer.push(token);
        if self.stop_ids.contains(&token) {
            state.progress = GrammarProgress::Complete;
            return;
        }
        let Some(matcher) = &mut state.matcher else { return };
        match matcher.consume_token(token) {
            Ok(()) => state.progress = progress(matcher),
            Err(error) => state.progress = fault(&error),
        }
    }

    /// Computes the next mask. Without one, the state's progress says why.
    fn compute(&self, state: &mut State) -> Option<TokenMask> {
        let mut mask = match &mut state.matcher {
            None => all(self.grammar.vocab),
            Some(matcher) => match self.compute_grammar(matcher) {
                Ok(mask) => mask,
                Err(progress) => {
                    state.progress = progress;
                    return None;
                }
            },
        };
        if let Some(rules) = &self.grammar.rules {
            rules.apply(&mut mask, &state.answer);
            if mask.iter().all(|word| *word == 0) {
                state.progress = GrammarProgress::Stuck;
                return None;
            }
        }
        Some(mask.into())
    }

    /// Computes the mask of the grammar alone.
    fn compute_grammar(&self, matcher: &mut Matcher) -> Result<Vec<u32>, GrammarProgress> {
        let computed = matcher.compute_mask().and_then(|mask| Ok((mask, matcher.is_accepting()?)));
        let (mut mask, accepting) = computed.map_err(|error| match is_dead_end(&error) {
            true => GrammarProgress::Stuck,
            false => fault(&error),
        })?;
        for id in self.stop_ids.iter().filter(|id| (**id as usize) < self.grammar.vocab) {
            if accepting {
                mask.allow_token(*id);
            }
        }
        Ok(mask.as_slice()[..self.grammar.vocab.div_ceil(32)].to_vec())
    }
}

/// Whether a mask allows a token.
fn allows(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn failed(text: &str) -> GrammarProgress {
    GrammarProgress::Failed(text.to_owned())
}

/// The progress after an error of the matcher. The error has no type of its own: its text tells limits on
/// work from other faults.
fn fault(error: &anyhow::Error) -> GrammarProgress {
    let text = short(error);
    let is_limit = ["lexer error: ", "parser error: ", "Parser Error: Current row has "]
        .iter()
        .any(|begin| text.starts_with(begin));
    if is_limit { GrammarProgress::TooComplex(text) } else { GrammarProgress::Failed(text) }
}

fn progress(matcher: &Matcher) -> GrammarProgress {
    match matcher.stop_reason() {
        StopReason::NotStopped => GrammarProgress::Open,
        StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence => {
            GrammarProgress::Complete
        }
        reason => GrammarProgress::Failed(format!("the grammar stopped: {reason}")),
    }
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("grammar", &self.grammar).finish_non_exhaustive()
    }
}

impl PartialEq for GrammarMatcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.grammar, &self.stop_ids, &self.before) == (&other.grammar, &other.stop_ids, &other.before)
    }
}
