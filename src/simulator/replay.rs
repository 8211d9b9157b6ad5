//! A recording, done again: the same calls of a scheduler, whose plans must be the same bit for bit; and what a
//! simulation of other settings needs of it.
//!
//! Requests that were refused changed nothing and are not in a recording: a simulation with a longer queue does not know
//! of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::journey::{Journey, Outcome, Sample};
use super::trace::Trace;
use super::virtual_time::{Ask, VirtualTime};
use crate::engine::recorder::{Event, RecordedRow};
use crate::request::{Finish, Request, SampledToken, SamplingParams, TokenLogprob, Update};
use crate::scheduler::step_plan::{RowOutput, StepOutput};
use crate::scheduler::{PlannedRows, RequestId, Scheduler};

/// What a recording that was replayed tells.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// Plans made again, all equal.
    pub plans: u64,
    /// Requests in the order in which they came, by groups.
    pub groups: Vec<Vec<RecordedRequest>>,
    /// The server after each step.
    pub samples: Vec<Sample>,
}

/// A request as it was answered.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Its id.
    pub id: RequestId,
    /// What was asked.
    pub request: Request,
    /// The tokens of its answer.
    pub answer: Vec<u32>,
    /// When what came.
    pub journey: Journey,
    /// When its client left, if it did.
    pub left: Option<f64>,
}

/// The scheduler does not do as it was recorded to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{at:.6} s after its beginning, event {event}: {message}")]
pub struct Divergence {
    /// Events before this one, which were the same.
    pub event: usize,
    /// When it was recorded, in seconds.
    pub at: f64,
    /// Recorded versus got.
    pub message: String,
}

/// Does what was recorded.
///
/// # Errors
/// The first plan, or anything else, that is not the same.
pub fn replay(trace: &Trace) -> Result<Replayed, Divergence> {
    let mut player = Player {
        scheduler: Scheduler::new(trace.header.config.clone()),
        replayed: Replayed::default(),
        in_flight: VecDeque::new(),
        places: HashMap::new(),
    };
    for (event, (at, what)) in trace.events.iter().enumerate() {
        let at = *at as f64 / 1e6;
        player.play(at, what).map_err(|message| Divergence { event, at, message })?;
    }
    Ok(player.replayed)
}

/// The recorded requests, at the times at which they came and left, in a server with other settings. A client that left
/// leaves at the same time; a request that failed, or had not ended, gets the tokens that are known, or one.
pub fn resimulate(replayed: &Replayed, server: &mut VirtualTime) {
    for group in &replayed.groups {
        let Some(first) = group.first() else { continue };
        let ids = server.arrive(first.journey.arrived, group.iter().map(ask).collect());
        for (id, recorded) in ids.into_iter().zip(group) {
            if let Some(at) = recorded.left {
                server.leave(at, id);
            }
        }
    }
}

fn ask(recorded: &RecordedRequest) -> Ask {
    let mut request = recorded.request.clone();
    if matches!(recorded.journey.outcome, Outcome::Open | Outcome::Failed) && request.stop.max_tokens > 0 {
        let known = u32::try_from(recorded.answer.len().max(1)).unwrap_or(u32::MAX);
        request.stop.max_tokens = known;
        let min_tokens = request.sampling.min_tokens.min(known);
        request.sampling = Arc::new(SamplingParams { min_tokens, ..(*request.sampling).clone() });
    }
    Ask { request, answer: Arc::from(&*recorded.answer) }
}

struct Player {
    scheduler: Scheduler,
    /// Steps planned and not committed, earliest first.
    in_flight: VecDeque<PlannedRows>,
    replayed: Replayed,
    /// Where each request is among the groups.
    places: HashMap<RequestId, (usize, usize)>,
}

impl Player {
    fn play(&mut self, at: f64, event: &Event) -> Result<(), String> {
        match event {
            Event::Submit(group) => self.submit(at, group),
            Event::Abort(id) => {
                self.scheduler.abort(*id);
                let request = self.find(*id)?;
                request.left = Some(at);
                request.journey.outcome = Outcome::Left;
                Ok(())
            }
            Event::NoPlan => match self.scheduler.plan() {
                Some(step) => Err(format!("no plan was made, and now plan {}", step.plan.id)),
                None => Ok(()),
            },
            Event::Plan { id, fingerprint } => {
                let step = self.scheduler.plan().ok_or_else(|| format!("plan {id} is not made"))?;
                let plan = step.plan;
                self.in_flight.push_back(step.rows);
                if (plan.id, plan.fingerprint()) != (*id, *fingerprint) {
                    let got = plan.fingerprint();
                    let message = "was recorded with the fingerprint";
                    return Err(format!(
                        "plan {id} {message} {fingerprint:016x}, and is now plan {} with {got:016x}",
                        plan.id
                    ));
                }
                self.replayed.plans += 1;
                Ok(())
            }
            Event::Commit { id, rows } => {
                let output = StepOutput { id: *id, rows: rows.iter().map(output).collect() };
                let step = self.in_flight.pop_front().ok_or("a step is committed that was never planned")?;
                let updates = self.scheduler.commit(step, output).map_err(|e| e.to_string())?;
                for (id, update) in updates {
                    self.take(at, id, &update)?;
                }
                self.replayed.samples.push(Sample::new(at, &self.scheduler.counts()));
                Ok(())
            }
        }
    }

    fn submit(&mut self, at: f64, group: &[(RequestId, Request)]) -> Result<(), String> {
        if let Some((id, _)) = group.iter().find(|(id, _)| self.places.contains_key(id)) {
            return Err(format!("request {} comes twice", id.0));
        }
        self.scheduler
            .submit(group.to_vec())
            .map_err(|e| format!("a group was taken, and is refused: {e}"))?;
        let recorded = |(i, (id, request)): (usize, &(RequestId, Request))| {
            self.places.insert(*id, (self.replayed.groups.len(), i));
            let journey = Journey::new(at, request.prompt.len());
            RecordedRequest { id: *id, request: request.clone(), answer: Vec::new(), journey, left: None }
        };
        let group = group.iter().enumerate().map(recorded).collect();
        self.replayed.groups.push(group);
        Ok(())
    }

    fn take(&mut self, at: f64, id: RequestId, update: &Update) -> Result<(), String> {
        let request = self.find(id)?;
        for token in &update.tokens {
            request.answer.push(token.id);
            request.journey.tokens.push(at);
        }
        match update.finish {
            Some(Finish::Error(_)) => request.journey.outcome = Outcome::Failed,
            Some(_) => request.journey.outcome = Outcome::Finished(at),
            None => {}
        }
        Ok(())
    }

    fn find(&mut self, id: RequestId) -> Result<&mut RecordedRequest, String> {
        let place =
            self.places.get(&id).and_then(|(group, i)| self.replayed.groups.get_mut(*group)?.get_mut(*i));
        place.ok_or_else(|| format!("request {} never came", id.0))
    }
}

fn output(row: &RecordedRow) -> RowOutput {
    let score = TokenLogprob { token: 0, logprob: 0.0, top: Vec::new() };
    // A number of scores that no plan asks for is a fault whatever it is.
    let scores = vec![score; row.scores.min(1 << 24)];
    let tokens = row.tokens.iter().map(|id| SampledToken::new(*id)).collect();
    RowOutput { tokens, scores, non_finite: row.non_finite }
}
