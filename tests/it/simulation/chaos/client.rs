//! A client: what it was told so far, held against what it must be told.

use octant::request::{Cost, Finish, Request, Update};
use octant::scheduler::RequestId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::fake::Answer;

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// As it would have undisturbed.
    Answered,
    /// With an error of its own.
    Failed(String),
    /// Its time was up.
    Late,
    /// It left.
    Left,
    /// It was not taken.
    Refused,
}

pub struct Client {
    pub request: Request,
    /// Whose, of the tenants there are.
    pub tenant: usize,
    pub expected: Answer,
    /// It leaves after so many turns, if it is still there.
    pub leaves_after: Option<u64>,
    /// Seconds after which it must have been answered.
    pub due_after: Option<f64>,
    /// Turns from one look into its inbox to the next.
    pub reads_every: u64,
    /// Times that it may yet try again.
    pub retries: usize,
    pub now: Option<Visit>,
    pub end: Option<End>,
}

/// A request under way.
pub struct Visit {
    pub id: RequestId,
    pub inbox: mpsc::UnboundedReceiver<Update>,
    /// The turn in which it was taken.
    pub since: u64,
    /// When it must have been answered.
    pub due: Option<f64>,
    /// Whether that has passed before its end was said.
    pub overdue: bool,
    /// Tokens that it may have to wait for: its own, those that were there, and those that go before it.
    pub work: usize,
    /// The same until it starts.
    pub start_work: usize,
    /// Tokens that had been fed again when it came.
    pub recomputed: u64,
    pub tokens: usize,
    pub scores: usize,
    /// Tokens of its prompt that it was told are cached.
    pub cached: Option<u32>,
    /// What it cost so far, as it was told.
    pub cost: Cost,
    said: bool,
}

impl Visit {
    pub fn new(id: RequestId, inbox: mpsc::UnboundedReceiver<Update>, since: u64) -> Self {
        Self {
            id,
            inbox,
            since,
            due: None,
            overdue: false,
            work: 0,
            start_work: 0,
            recomputed: 0,
            tokens: 0,
            scores: 0,
            cached: None,
            cost: Cost::default(),
            said: false,
        }
    }
}

impl Client {
    /// Tokens to compute for it, and two steps that may be lost.
    pub fn work(&self) -> usize {
        self.request.prompt.len() + self.expected.tokens.len() + 2
    }

    /// Reads what there is; `dead` is the reason if the engine has ended. Returns its visit if it has come to its end.
    pub fn read(&mut self, dead: Option<&str>) -> Result<Option<Visit>, String> {
        let Some(mut visit) = self.now.take() else { return Err("is not there".to_owned()) };
        loop {
            match visit.inbox.try_recv() {
                Ok(update) => {
                    if self.end.is_some() {
                        return Err(format!("was told something after its end: {update:?}"));
                    }
                    self.hear(&mut visit, update, dead)?;
                }
                Err(TryRecvError::Empty) if self.end.is_some() => {
                    return Err("was told the end and its account is still open".to_owned());
                }
                Err(TryRecvError::Disconnected) if self.end.is_none() => {
                    return Err("its account was closed without an answer".to_owned());
                }
                Err(TryRecvError::Disconnected) => return Ok(Some(visit)),
                Err(TryRecvError::Empty) => break,
            }
        }
        self.now = Some(visit);
        Ok(None)
    }

    fn hear(&mut self, visit: &mut Visit, update: Update, dead: Option<&str>) -> Result<(), String> {
        let dies = matches!(&update.finish, Some(Finish::Error(reason)) if dead == Some(reason));
        let cut_off = dies || update.finish == Some(Finish::Late);
        // Whoever never ran has no word of its cache.
        if update.cached_tokens.is_some() == visit.said && !cut_off {
            return Err(format!("was told of cached tokens not once: {update:?}"));
        }
        visit.said = true;
        visit.cached = visit.cached.or(update.cached_tokens);
        let (before, now) = (visit.cost, update.cost);
        let fell = before.prefill > now.prefill || before.decode > now.decode;
        // It pays for the step of each token no later than it hears the token.
        let unpaid = !update.tokens.is_empty() && before.prefill + before.decode == now.prefill + now.decode;
        if fell || unpaid || before.kv_block_seconds > now.kv_block_seconds {
            return Err(format!("was told of {update:?} after {before:?}"));
        }
        visit.cost = now;
        if update.cached_tokens.is_some_and(|cached| cached as usize > self.request.prompt.len()) {
            return Err(format!("has more tokens cached than it has: {update:?}"));
        }
        for score in &update.prompt_logprobs {
            if self.expected.scores.get(visit.scores) != Some(score) {
                return Err(format!("score {} is {score:?}", visit.scores));
            }
            visit.scores += 1;
        }
        for token in &update.tokens {
            let expected = self.expected.tokens.get(visit.tokens);
            if expected != Some(&token.id) {
                return Err(format!("token {} is {}, expected {expected:?}", visit.tokens, token.id));
            }
            if token.logprob.is_some() != self.request.sampling.logprobs.is_some() {
                return Err(format!("has a log-probability unasked, or none: {token:?}"));
            }
            visit.tokens += 1;
        }
        let whole = (visit.tokens, visit.scores) == (self.expected.tokens.len(), self.expected.scores.len());
        match update.finish {
            None => {}
            Some(Finish::Error(reason)) => self.end = Some(End::Failed(reason)),
            Some(Finish::Late) if !visit.overdue => return Err("is late before its time".to_owned()),
            Some(Finish::Late) if whole && visit.tokens + visit.scores > 0 => {
                return Err("is late with the whole answer".to_owned());
            }
            Some(Finish::Late) => self.end = Some(End::Late),
            Some(finish) => {
                if finish != self.expected.finish || !whole {
                    return Err(format!(
                        "ended with {finish:?} after {} tokens and {} scores, expected {:?}",
                        visit.tokens, visit.scores, self.expected
                    ));
                }
                self.end = Some(End::Answered);
            }
        }
        Ok(())
    }
}
