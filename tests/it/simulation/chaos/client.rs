//! A client: compares the updates that it receives with the right answer.

use octant::request::{Cost, Finish, Request, Update};
use octant::scheduler::RequestId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::fake::Answer;

/// How a client's request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// The client got the right answer.
    Answered,
    /// The client got this error.
    Failed(String),
    /// Its deadline passed.
    Late,
    /// The client aborted it.
    Left,
    /// It was refused.
    Refused,
}

pub struct Client {
    pub request: Request,
    /// Index of its tenant.
    pub tenant: usize,
    pub expected: Answer,
    /// Steps after which it aborts, if it has not finished.
    pub leaves_after: Option<u64>,
    /// Seconds from its submission to its deadline.
    pub due_after: Option<f64>,
    /// Steps between two reads of its channel.
    pub reads_every: u64,
    /// Remaining retries.
    pub retries: usize,
    pub now: Option<Visit>,
    pub end: Option<End>,
}

/// A submitted request.
pub struct Visit {
    pub id: RequestId,
    pub inbox: mpsc::UnboundedReceiver<Update>,
    /// The step in which it was submitted.
    pub since: u64,
    /// Its deadline.
    pub due: Option<f64>,
    /// Whether the deadline passed before the request ended.
    pub overdue: bool,
    /// Tokens that bound its time: its own, those of earlier requests, and those of later ones that may run
    /// first.
    pub work: usize,
    /// The part of these tokens that bounds the time until the request starts.
    pub start_work: usize,
    /// Total of recomputed tokens at its submission.
    pub recomputed: u64,
    pub tokens: usize,
    pub scores: usize,
    /// Cached prompt tokens, as reported.
    pub cached: Option<u32>,
    /// Its cost, as reported last.
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
    /// Tokens to compute for the request, plus two steps that may be lost.
    pub fn work(&self) -> usize {
        self.request.prompt.len() + self.expected.tokens.len() + 2
    }

    /// Reads all updates. `dead` is the reason if the engine has ended. Returns the visit if the request has
    /// ended.
    pub fn read(&mut self, dead: Option<&str>) -> Result<Option<Visit>, String> {
        let Some(mut visit) = self.now.take() else { return Err("is not there".to_owned()) };
        loop {
            match visit.inbox.try_recv() {
                Ok(update) => {
                    if self.end.is_some() {
                        return Err(format!("received an update after its finish: {update:?}"));
                    }
                    self.receive(&mut visit, update, dead)?;
                }
                Err(TryRecvError::Empty) if self.end.is_some() => {
                    return Err("received its finish and its channel is still open".to_owned());
                }
                Err(TryRecvError::Disconnected) if self.end.is_none() => {
                    return Err("its channel was closed without a finish".to_owned());
                }
                Err(TryRecvError::Disconnected) => return Ok(Some(visit)),
                Err(TryRecvError::Empty) => break,
            }
        }
        self.now = Some(visit);
        Ok(None)
    }

    fn receive(&mut self, visit: &mut Visit, update: Update, dead: Option<&str>) -> Result<(), String> {
        let dies = matches!(&update.finish, Some(Finish::Error(reason)) if dead == Some(reason));
        let cut_off = dies || update.finish == Some(Finish::Late);
        // A request that never ran reports no cached tokens.
        if update.cached_tokens.is_some() == visit.said && !cut_off {
            return Err(format!("cached tokens were not reported exactly once: {update:?}"));
        }
        visit.said = true;
        visit.cached = visit.cached.or(update.cached_tokens);
        let (before, now) = (visit.cost, update.cost);
        let fell = before.prefill > now.prefill || before.decode > now.decode;
        // The update of a token includes the cost of the token's step.
        let unpaid = !update.tokens.is_empty() && before.prefill + before.decode == now.prefill + now.decode;
        if fell || unpaid || before.kv_block_seconds > now.kv_block_seconds {
            return Err(format!("received {update:?} after {before:?}"));
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
