//! Replay of a recording: the same calls of a scheduler, whose plans must be equal bit for bit. It also
//! yields the requests for a simulation with other settings.
//!
//! A recording does not contain refused requests, since they change nothing in the scheduler. A simulation
//! with a longer queue therefore does not include them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::timeline::{RequestOutcome, RequestTimeline, ServerSample};
use super::trace::Trace;
use super::virtual_time::{ScriptedRequest, VirtualTime};
use crate::engine::recorder::{Event, RecordedRow};
use crate::request::{Finish, Request, SampledToken, SamplingParams, TokenLogprob, Update};
use crate::scheduler::step_plan::{RowOutput, StepOutput};
use crate::scheduler::{PlannedRows, RequestId, Scheduler};

/// Result of a replay.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// Number of plans, all equal to those recorded.
    pub plans: u64,
    /// Requests in order of arrival; a group was submitted together.
    pub groups: Vec<Vec<RecordedRequest>>,
    /// State of the server after each step.
    pub samples: Vec<ServerSample>,
}

/// A recorded request with its answer.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Id of the request.
    pub id: RequestId,
    /// The request as submitted.
    pub request: Request,
    /// The tokens of its answer.
    pub answer: Vec<u32>,
    /// Times of arrival and tokens.
    pub timeline: RequestTimeline,
    /// Time at which the client disconnected, if it did.
    pub left: Option<f64>,
}

/// The scheduler does not repeat what was recorded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{at:.6} s after the start, event {event}: {message}")]
pub struct Divergence {
    /// Number of the event, from 0; all events before it were repeated.
    pub event: usize,
    /// Time of the event in seconds since the recording began.
    pub at: f64,
    /// Recorded and actual behaviour.
    pub message: String,
}

/// Repeats a recording.
///
/// # Errors
/// A plan, or anything else, differs from what was recorded.
pub fn replay(trace: &Trace) -> Result<Replayed, Divergence> {
    let mut replayer = Replayer {
        scheduler: Scheduler::new(trace.header.config.clone()),
        replayed: Replayed::default(),
        in_flight: VecDeque::new(),
        positions: HashMap::new(),
    };
    for (event, (at, what)) in trace.events.iter().enumerate() {
        let at = *at as f64 / 1e6;
        replayer.apply(at, what).map_err(|ReplayMismatch(message)| Divergence { event, at, message })?;
    }
    Ok(replayer.replayed)
}

/// Adds the recorded requests, and the disconnects of their clients, to a server with other settings, at the
/// recorded times. A request that failed or had not ended is answered with its recorded tokens, or with one
/// token if it has none.
pub fn resimulate(replayed: &Replayed, server: &mut VirtualTime) {
    for group in &replayed.groups {
        let Some(first) = group.first() else { continue };
        let ids = server.arrive(first.timeline.arrived, group.iter().map(scripted).collect());
        for (id, recorded) in ids.into_iter().zip(group) {
            if let Some(at) = recorded.left {
                server.leave(at, id);
            }
        }
    }
}

fn scripted(recorded: &RecordedRequest) -> ScriptedRequest {
    let mut request = recorded.request.clone();
    if matches!(recorded.timeline.outcome, RequestOutcome::Open | RequestOutcome::Failed)
        && request.stop.max_tokens > 0
    {
        let known = u32::try_from(recorded.answer.len().max(1)).unwrap_or(u32::MAX);
        request.stop.max_tokens = known;
        let min_tokens = request.sampling.min_tokens.min(known);
        request.sampling = Arc::new(SamplingParams { min_tokens, ..(*request.sampling).clone() });
    }
    ScriptedRequest { request, answer: Arc::from(&*recorded.answer) }
}

/// A call of the scheduler did not have its recorded result.
struct ReplayMismatch(String);

impl From<String> for ReplayMismatch {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for ReplayMismatch {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

struct Replayer {
    scheduler: Scheduler,
    /// Steps planned and not committed, earliest first.
    in_flight: VecDeque<PlannedRows>,
    replayed: Replayed,
    /// Index of the group of each request, and its index within the group.
    positions: HashMap<RequestId, (usize, usize)>,
}

impl Replayer {
    fn apply(&mut self, at: f64, event: &Event) -> Result<(), ReplayMismatch> {
        match event {
            Event::Submit(group) => self.submit(at, group),
            Event::Abort(id) => {
                self.scheduler.abort(*id);
                let request = self.find(*id)?;
                request.left = Some(at);
                request.timeline.outcome = RequestOutcome::Left;
                Ok(())
            }
            Event::StepTimes(times) => {
                self.scheduler.set_step_times(times.clone());
                Ok(())
            }
            Event::NoPlan { prompt_tokens } => match self.scheduler.plan(*prompt_tokens) {
                Some(step) => Err(ReplayMismatch(format!("expected no plan, got plan {}", step.plan.id))),
                None => Ok(()),
            },
            Event::Plan { id, fingerprint, prompt_tokens } => {
                let step = self.scheduler.plan(*prompt_tokens);
                let step = step.ok_or_else(|| format!("expected plan {id}, got no plan"))?;
                let plan = step.plan;
                self.in_flight.push_back(step.rows);
                if (plan.id, plan.fingerprint()) != (*id, *fingerprint) {
                    let got = plan.fingerprint();
                    return Err(ReplayMismatch(format!(
                        "expected plan {id} of fingerprint {fingerprint:016x}, \
                         got plan {} of fingerprint {got:016x}",
                        plan.id
                    )));
                }
                self.replayed.plans += 1;
                Ok(())
            }
            Event::Commit { id, rows } => {
                let rows = rows.iter().map(output).collect();
                let output = StepOutput { id: *id, rows, ..StepOutput::default() };
                let step = self.in_flight.pop_front().ok_or("a step is committed that was never planned")?;
                let updates = self.scheduler.commit(step, output).map_err(|e| e.to_string())?;
                for (id, update) in updates {
                    self.take(at, id, &update)?;
                }
                self.replayed.samples.push(ServerSample::new(at, &self.scheduler.counts()));
                Ok(())
            }
        }
    }

    fn submit(&mut self, at: f64, group: &[(RequestId, Request)]) -> Result<(), ReplayMismatch> {
        if let Some((id, _)) = group.iter().find(|(id, _)| self.positions.contains_key(id)) {
            return Err(ReplayMismatch(format!("request {} is submitted twice", id.0)));
        }
        self.scheduler
            .submit(group.to_vec())
            .map_err(|e| format!("a group that was accepted is now refused: {e}"))?;
        let recorded = |(i, (id, request)): (usize, &(RequestId, Request))| {
            self.positions.insert(*id, (self.replayed.groups.len(), i));
            let timeline = RequestTimeline::new(at, request.prompt.len());
            RecordedRequest { id: *id, request: request.clone(), answer: Vec::new(), timeline, left: None }
        };
        let group = group.iter().enumerate().map(recorded).collect();
        self.replayed.groups.push(group);
        Ok(())
    }

    fn take(&mut self, at: f64, id: RequestId, update: &Update) -> Result<(), ReplayMismatch> {
        let request = self.find(id)?;
        for token in &update.tokens {
            request.answer.push(token.id);
            request.timeline.tokens.push(at);
        }
        match update.finish {
            Some(Finish::Error(_)) => request.timeline.outcome = RequestOutcome::Failed,
            Some(_) => request.timeline.outcome = RequestOutcome::Finished(at),
            None => {}
        }
        Ok(())
    }

    fn find(&mut self, id: RequestId) -> Result<&mut RecordedRequest, ReplayMismatch> {
        let found =
            self.positions.get(&id).and_then(|(group, i)| self.replayed.groups.get_mut(*group)?.get_mut(*i));
        found.ok_or_else(|| ReplayMismatch(format!("request {} was never submitted", id.0)))
    }
}

fn output(row: &RecordedRow) -> RowOutput {
    let score = TokenLogprob { token: 0, logprob: 0.0, rank: 1, top: Vec::new() };
    // The scheduler rejects any number of scores that the plan does not ask for; the limit bounds memory.
    let scores = vec![score; row.scores.min(1 << 24)];
    let tokens = row.tokens.iter().map(|id| SampledToken::new(*id)).collect();
    // The same holds for values of a reward head. A recording does not keep them.
    let reward = (row.rewards > 0).then(|| vec![0.0; row.rewards.min(1 << 24)].into());
    let (drafts, grammar) = (row.drafts.to_vec(), row.grammar.clone());
    RowOutput { tokens, drafts, scores, reward, non_finite: row.non_finite, grammar }
}
