//! The real scheduler over simulated GPUs, in virtual time: the clock jumps from the end of one step to the
//! end of the next. There are no threads, no sleeping and no randomness, so that hours of serving take
//! seconds and every run of the same requests is identical.
//!
//! Each turn has the order of [`crate::engine::EngineCore::step`]: take what has happened by now, launch
//! steps until the most are in flight, then commit the earliest. Host time is not counted; with two steps in
//! flight the device hides it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::simulated_model::SimulatedModel;
use super::timeline::{RequestOutcome, RequestTimeline, ServerSample};
use crate::engine::Forecast;
use crate::engine::admission::{prompt_load, queue_state};
use crate::request::{Finish, Request, SamplingParams, StopRules, Tenant};
use crate::scheduler::step_plan::{Row, StepOutput};
use crate::scheduler::{
    MAX_IN_FLIGHT, PlannedRows, PlannedStep, RequestId, Scheduler, SchedulerConfig, SchedulerError, StepTimes,
};

/// A request and the answer that the simulated model gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedRequest {
    /// The request.
    pub request: Request,
    /// Tokens of the answer.
    pub answer: Arc<[u32]>,
}

impl ScriptedRequest {
    /// A greedy request of the default tenant that ends with the last token of `answer`.
    pub fn new(prompt: Arc<[u32]>, answer: Arc<[u32]>) -> Self {
        let max_tokens = u32::try_from(answer.len()).unwrap_or(u32::MAX);
        let request = Request {
            prompt,
            sampling: Arc::new(SamplingParams::greedy()),
            stop: StopRules { max_tokens, stop_ids: Vec::new() },
            priority: 0,
            tenant: Tenant::default(),
            cache_salt: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
            reward: false,
            batch: false,
        };
        Self { request, answer }
    }
}

/// Result of [`VirtualTime::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// A step ended.
    Step,
    /// No step ran: the arrivals and disconnects that were due left no work.
    Idle,
    /// No work is left and none is due.
    Done,
}

/// Something that clients do at a given time.
enum ClientAction {
    Arrive(Vec<(RequestId, Request)>),
    Leave(RequestId),
}

/// A step in flight. Times are in seconds.
struct SimulatedStep {
    rows: PlannedRows,
    output: StepOutput,
    tokens: usize,
    took: f64,
    end: f64,
}

/// A server in virtual time.
pub struct VirtualTime {
    scheduler: Scheduler,
    max_in_flight: usize,
    model: SimulatedModel,
    /// Keys are the bits of the time, which sort like the time itself since it is never negative, and a
    /// serial number.
    upcoming: BTreeMap<(u64, u64), ClientAction>,
    added: u64,
    now: f64,
    free_at: f64,
    in_flight: VecDeque<SimulatedStep>,
    timelines: HashMap<RequestId, RequestTimeline>,
    samples: Vec<ServerSample>,
    ids: u64,
    forecast: Option<Forecast>,
    /// Limit in seconds on the predicted TTFT.
    max_ttft: Option<f64>,
}

impl VirtualTime {
    /// An idle server at time 0. `model` must be a scripted one.
    ///
    /// # Panics
    /// If a limit of `config` is 0, or `in_flight` is neither 1 nor 2.
    pub fn new(config: SchedulerConfig, in_flight: usize, model: SimulatedModel) -> Self {
        let allowed = 1..=MAX_IN_FLIGHT;
        assert!(allowed.contains(&in_flight), "one or two steps in flight, got {in_flight}");
        Self {
            scheduler: Scheduler::new(config),
            max_in_flight: in_flight,
            model,
            upcoming: BTreeMap::new(),
            added: 0,
            now: 0.0,
            free_at: 0.0,
            in_flight: VecDeque::new(),
            timelines: HashMap::new(),
            samples: Vec::new(),
            ids: 0,
            forecast: None,
            max_ttft: None,
        }
    }

    /// Predicts the TTFT of every later request on arrival, and limits the prompt tokens of steps, as the
    /// engine does.
    pub fn set_forecast(&mut self, forecast: Forecast) {
        self.forecast = Some(forecast);
    }

    /// Sets the step times by which drafts are chosen.
    pub fn set_step_times(&mut self, step_times: StepTimes) {
        self.scheduler.set_step_times(step_times);
    }

    /// Refuses requests whose predicted TTFT exceeds this many seconds, unless the server is idle. `None` is
    /// no limit.
    pub(crate) fn set_max_ttft(&mut self, max_ttft: Option<f64>) {
        self.max_ttft = max_ttft;
    }

    /// Submits a group at a time in seconds, or now if that time has passed. Returns the ids of its requests.
    pub fn arrive(&mut self, at: f64, group: Vec<ScriptedRequest>) -> Vec<RequestId> {
        let mut requests = Vec::new();
        for ScriptedRequest { mut request, answer } in group {
            let id = RequestId(self.ids);
            self.ids += 1;
            let seed = self.model.add_answer(answer);
            request.sampling = Arc::new(SamplingParams { seed, ..(*request.sampling).clone() });
            self.timelines.insert(id, RequestTimeline::new(at, request.prompt.len()));
            requests.push((id, request));
        }
        let ids = requests.iter().map(|(id, _)| *id).collect();
        self.add(at, ClientAction::Arrive(requests));
        ids
    }

    /// Disconnects the client of a request at a time in seconds.
    pub fn leave(&mut self, at: f64, id: RequestId) {
        self.add(at, ClientAction::Leave(id));
    }

    fn add(&mut self, at: f64, action: ClientAction) {
        // `max` also turns NaN into 0.
        self.upcoming.insert((at.max(0.0).to_bits(), self.added), action);
        self.added += 1;
    }

    /// Applies what is due, starts steps, and advances the clock to the end of the earliest step.
    ///
    /// # Errors
    /// The scheduler broke one of its rules.
    pub fn step(&mut self) -> Result<StepOutcome, SchedulerError> {
        if self.scheduler.is_idle() {
            self.scheduler.check_integrity()?;
            let Some((&(at, _), _)) = self.upcoming.first_key_value() else { return Ok(StepOutcome::Done) };
            self.now = self.now.max(f64::from_bits(at));
        }
        self.apply_due_actions();
        while self.in_flight.len() < self.max_in_flight
            && let Some(PlannedStep { plan, rows }) = self.scheduler.plan(self.prompt_tokens())
        {
            let (output, time) = self.model.step(&plan);
            let took = time.total();
            self.free_at = self.free_at.max(self.now) + took;
            let tokens = plan.rows.iter().map(Row::most_tokens).sum();
            self.in_flight.push_back(SimulatedStep { rows, output, tokens, took, end: self.free_at });
        }
        let Some(SimulatedStep { rows, output, tokens, took, end }) = self.in_flight.pop_front() else {
            return match self.scheduler.is_idle() {
                true => Ok(StepOutcome::Idle),
                false => Err(SchedulerError::new("the scheduler has requests and plans no step")),
            };
        };
        self.now = self.now.max(end);
        let updates = self.scheduler.commit(rows, output)?;
        if let Some(forecast) = &mut self.forecast {
            forecast.step(tokens, took);
            let drawn = updates.iter().map(|(_, update)| update.tokens.len()).sum();
            forecast.answers(drawn, updates.iter().filter(|(_, update)| update.finish.is_some()).count());
        }
        for (id, update) in updates {
            let unknown = || SchedulerError::new("an update for an unknown request");
            let timeline = self.timelines.get_mut(&id).ok_or_else(unknown)?;
            timeline.tokens.extend(update.tokens.iter().map(|_| self.now));
            match update.finish {
                Some(Finish::Error(reason)) => return Err(SchedulerError::new(reason)),
                Some(_) => timeline.outcome = RequestOutcome::Finished(self.now),
                None => {}
            }
        }
        self.samples.push(ServerSample::new(self.now, &self.scheduler.counts()));
        Ok(StepOutcome::Step)
    }

    /// The limit on prompt tokens of the next step.
    fn prompt_tokens(&self) -> Option<usize> {
        self.forecast.as_ref()?.prompt_tokens(&prompt_load(&self.scheduler))
    }

    /// Applies the arrivals and disconnects whose time has come.
    fn apply_due_actions(&mut self) {
        while let Some(entry) = self.upcoming.first_entry()
            && f64::from_bits(entry.key().0) <= self.now
        {
            match entry.remove() {
                ClientAction::Arrive(group) => {
                    let ids: Vec<RequestId> = group.iter().map(|(id, _)| *id).collect();
                    let busy = !self.scheduler.is_idle();
                    let wait = self.predict(&group);
                    let too_long = self.max_ttft.is_some_and(|limit| wait > limit && busy);
                    if too_long || self.scheduler.submit(group).is_err() {
                        ids.iter().for_each(|id| self.end(*id, RequestOutcome::Refused));
                    }
                }
                ClientAction::Leave(id) => {
                    if self
                        .timelines
                        .get(&id)
                        .is_some_and(|timeline| timeline.outcome == RequestOutcome::Open)
                    {
                        self.scheduler.abort(id);
                        self.end(id, RequestOutcome::Left);
                    }
                }
            }
        }
    }

    /// Predicts the TTFT of each request of a group from the server's state before the group arrives. Returns
    /// the prediction of the first one in seconds, 0 without a forecast.
    fn predict(&mut self, group: &[(RequestId, Request)]) -> f64 {
        let Some(forecast) = &self.forecast else { return 0.0 };
        let mut first = None;
        for (id, request) in group {
            let wait = forecast.first_token(&queue_state(&self.scheduler, self.in_flight.len(), request));
            first.get_or_insert(wait);
            if let Some(timeline) = self.timelines.get_mut(id) {
                timeline.predicted_ttft = Some(self.now - timeline.arrived + wait);
            }
        }
        first.unwrap_or(0.0)
    }

    fn end(&mut self, id: RequestId, outcome: RequestOutcome) {
        if let Some(timeline) = self.timelines.get_mut(&id) {
            timeline.outcome = outcome;
        }
    }

    /// Steps until no work is left.
    ///
    /// # Errors
    /// The scheduler broke one of its rules.
    pub fn run(&mut self) -> Result<(), SchedulerError> {
        while self.step()? != StepOutcome::Done {}
        Ok(())
    }

    /// Virtual time in seconds.
    pub fn now(&self) -> f64 {
        self.now
    }

    /// The scheduler, for inspection between steps.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Timeline of a request.
    pub fn timeline(&self, id: RequestId) -> Option<&RequestTimeline> {
        self.timelines.get(&id)
    }

    /// Timelines of all requests in the order of their ids.
    pub fn timelines(&self) -> Vec<&RequestTimeline> {
        let mut all: Vec<_> = self.timelines.iter().collect();
        all.sort_unstable_by_key(|(id, _)| **id);
        all.into_iter().map(|(_, timeline)| timeline).collect()
    }

    /// State of the server after each step.
    pub fn samples(&self) -> &[ServerSample] {
        &self.samples
    }
}
