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

/// Masks that are kept. Ranks are at most one step apart.
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

struct State {
    /// `None` if only rules constrain the answer.
    matcher: Option<Matcher>,
    /// The end of the answer, as far as rules depend on it.
    end: Vec<u32>,
    /// Tokens of the answer that the matcher has consumed.
    consumed: usize,
    progress: GrammarProgress,
    /// (the index of the token in the answer, its mask), latest last.
    masks: VecDeque<(usize, TokenMask)>,
}

impl GrammarMatcher {
    /// A matcher after the tokens `before` of the answer. `stop_ids` end the answer where the grammar allows
    /// an end.
    pub fn new(grammar: Arc<Grammar>, stop_ids: Vec<u32>, before: Vec<u32>) -> Self {
        Self { grammar, stop_ids, before, state: Mutex::new(None) }
    }

    /// The mask of token `index` of the answer; `None` where no token can be chosen by the grammar: its
    /// progress is not open. All tokens before `index` must have been given to [`Self::advance`].
    pub fn mask(&self, index: usize) -> Option<TokenMask> {
        let next = self.with_state(|state| {
            if let Some((_, mask)) = state.masks.iter().find(|(at, _)| *at == index) {
                return Some(Arc::clone(mask));
            }
            if state.progress != GrammarProgress::Open || state.consumed != index {
                return None;
            }
            let mask = self.compute(state)?;
            state.masks.push_back((index, Arc::clone(&mask)));
            if state.masks.len() > KEPT {
                state.masks.pop_front();
            }
            Some(mask)
        });
        next.ok().flatten()
    }

    /// Whether [`Self::mask`] returns the mask of token `index` at once. `false` as well while another thread
    /// uses the matcher.
    pub fn is_ready(&self, index: usize) -> bool {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        state.as_ref().is_some_and(|state| {
            let is_next = state.progress == GrammarProgress::Open && state.consumed == index;
            !is_next || state.masks.iter().any(|(at, _)| *at == index)
        })
    }

    /// Consumes token `index` of the answer, unless another rank has given it already. Returns how far the
    /// answer has come with it.
    pub fn advance(&self, index: usize, token: u32) -> GrammarProgress {
        let progress = self.with_state(|state| {
            if state.progress == GrammarProgress::Open && index >= state.consumed {
                if index == state.consumed {
                    self.consume(state, token);
                } else {
                    // A token before it was not sampled, or was not given to the matcher.
                    state.progress = failed("a token of the answer is missing");
                }
            }
            state.progress.clone()
        });
        progress.unwrap_or_else(|failed| failed)
    }

    /// Works on the state. A panic fails this answer, and not the thread, which works for others as well.
    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, GrammarProgress> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = catch_unwind(AssertUnwindSafe(|| work(self.started(&mut state))));
        done.map_err(|_panic| {
            let progress = failed("the matcher panicked");
            *state = Some(State {
                matcher: None,
                consumed: 0,
                end: Vec::new(),
                progress: progress.clone(),
                masks: VecDeque::new(),
            });
            progress
        })
    }

    fn started<'a>(&self, state: &'a mut Option<State>) -> &'a mut State {
        state.get_or_insert_with(|| {
            let (matcher, masks) = (self.grammar.start(), VecDeque::new());
            let mut state =
                State { matcher, end: Vec::new(), consumed: 0, progress: GrammarProgress::Open, masks };
            for token in &self.before {
                self.consume(&mut state, *token);
            }
            state
        })
    }

    fn consume(&self, state: &mut State, token: u32) {
        state.consumed += 1;
        if self.stop_ids.contains(&token) {
            state.progress = GrammarProgress::Complete;
            return;
        }
        if let Some(rules) = &self.grammar.rules {
            state.end.push(token);
            state.end.drain(..state.end.len().saturating_sub(rules.depth()));
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
            rules.apply(&mut mask, &state.end);
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
