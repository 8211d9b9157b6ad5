//! The real scheduler over simulated GPUs, on a clock that jumps from the end of one step to the end of the next: no
//! threads, no sleeping, no randomness. What takes hours takes seconds, and takes them in the same way every time.
//!
//! Each turn has the order of [`crate::engine::EngineCore::step`]: take what has happened by now, launch steps until the
//! most are in flight, then commit the earliest. Host time is not counted; with two steps in flight the device hides it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::journey::{Journey, Outcome, Sample};
use super::machine::Machine;
use crate::engine::Forecast;
use crate::engine::admission::queue_state;
use crate::request::{Finish, Request, SamplingParams, StopRules, Tenant};
use crate::scheduler::step_plan::StepOutput;
use crate::scheduler::{MAX_IN_FLIGHT, PlannedRows, PlannedStep, RequestId, Scheduler, SchedulerConfig};

/// A request as the GPUs will answer it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// The tokens of its answer.
    pub answer: Arc<[u32]>,
}

impl Ask {
    /// A prompt that is answered so, and no further.
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
        };
        Self { request, answer }
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A step ended.
    Step,
    /// Nothing runs; something has been taken that leaves nothing to run.
    Idle,
    /// Nothing runs and nothing will happen.
    Done,
}

enum Happening {
    Arrive(Vec<(RequestId, Request)>),
    Leave(RequestId),
}

/// A step in flight.
struct InFlightStep {
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
    machine: Machine,
    /// By the bits of the time, which order as the time does since none is negative; then as they were added.
    to_come: BTreeMap<(u64, u64), Happening>,
    added: u64,
    now: f64,
    free_at: f64,
    in_flight: VecDeque<InFlightStep>,
    journeys: HashMap<RequestId, Journey>,
    samples: Vec<Sample>,
    busy: f64,
    ids: u64,
    forecast: Option<Forecast>,
    /// Seconds.
    max_ttft: Option<f64>,
}

impl VirtualTime {
    /// At time 0 with nothing to do. The machine is to be a scripted one.
    ///
    /// # Panics
    /// If a limit of `config` is 0, or there are neither one nor two steps in flight.
    pub fn new(config: SchedulerConfig, in_flight: usize, machine: Machine) -> Self {
        let allowed = 1..=MAX_IN_FLIGHT;
        assert!(allowed.contains(&in_flight), "one or two steps in flight, got {in_flight}");
        Self {
            scheduler: Scheduler::new(config),
            max_in_flight: in_flight,
            machine,
            to_come: BTreeMap::new(),
            added: 0,
            now: 0.0,
            free_at: 0.0,
            in_flight: VecDeque::new(),
            journeys: HashMap::new(),
            samples: Vec::new(),
            busy: 0.0,
            ids: 0,
            forecast: None,
            max_ttft: None,
        }
    }

    /// From here on every request's time to its first token is predicted when it comes, as the engine does.
    pub fn foresee(&mut self, forecast: Forecast) {
        self.forecast = Some(forecast);
    }

    /// And whoever's would come later than this, in seconds, is refused, unless there is nothing to do.
    pub fn refuse_beyond(&mut self, max_ttft: Option<f64>) {
        self.max_ttft = max_ttft;
    }

    /// A group comes at this time, in seconds, or now if that has passed. Returns the ids of its requests.
    pub fn arrive(&mut self, at: f64, group: Vec<Ask>) -> Vec<RequestId> {
        let mut requests = Vec::new();
        for Ask { mut request, answer } in group {
            let id = RequestId(self.ids);
            self.ids += 1;
            let seed = self.machine.learn(answer);
            request.sampling = Arc::new(SamplingParams { seed, ..(*request.sampling).clone() });
            self.journeys.insert(id, Journey::new(at, request.prompt.len()));
            requests.push((id, request));
        }
        let ids = requests.iter().map(|(id, _)| *id).collect();
        self.add(at, Happening::Arrive(requests));
        ids
    }

    /// The client of a request leaves at this time.
    pub fn leave(&mut self, at: f64, id: RequestId) {
        self.add(at, Happening::Leave(id));
    }

    fn add(&mut self, at: f64, happening: Happening) {
        // `max` also makes an order of what is not a number.
        self.to_come.insert((at.max(0.0).to_bits(), self.added), happening);
        self.added += 1;
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// The scheduler is broken.
    pub fn step(&mut self) -> Result<Turn, String> {
        if self.scheduler.is_idle() {
            self.scheduler.check_integrity()?;
            let Some((&(at, _), _)) = self.to_come.first_key_value() else { return Ok(Turn::Done) };
            self.now = self.now.max(f64::from_bits(at));
        }
        self.happen();
        while self.in_flight.len() < self.max_in_flight
            && let Some(PlannedStep { plan, rows }) = self.scheduler.plan()
        {
            let (output, time) = self.machine.step(&plan);
            let took = time.total();
            self.free_at = self.free_at.max(self.now) + took;
            self.busy += took;
            let tokens = plan.rows.iter().map(|row| row.tokens.len()).sum();
            self.in_flight.push_back(InFlightStep { rows, output, tokens, took, end: self.free_at });
        }
        let Some(InFlightStep { rows, output, tokens, took, end }) = self.in_flight.pop_front() else {
            return match self.scheduler.is_idle() {
                true => Ok(Turn::Idle),
                false => Err("the scheduler has work and plans none".to_owned()),
            };
        };
        self.now = self.now.max(end);
        let updates = self.scheduler.commit(rows, output).map_err(|e| e.to_string())?;
        if let Some(forecast) = &mut self.forecast {
            forecast.step(tokens, took);
            let drawn = updates.iter().map(|(_, update)| update.tokens.len()).sum();
            forecast.answers(drawn, updates.iter().filter(|(_, update)| update.finish.is_some()).count());
        }
        for (id, update) in updates {
            let journey = self.journeys.get_mut(&id).ok_or("an update for a request that never was")?;
            journey.tokens.extend(update.tokens.iter().map(|_| self.now));
            match update.finish {
                Some(Finish::Error(reason)) => return Err(reason),
                Some(_) => journey.outcome = Outcome::Finished(self.now),
                None => {}
            }
        }
        self.samples.push(Sample::new(self.now, &self.scheduler.counts()));
        Ok(Turn::Step)
    }

    /// Takes what has come by now.
    fn happen(&mut self) {
        while let Some(entry) = self.to_come.first_entry()
            && f64::from_bits(entry.key().0) <= self.now
        {
            match entry.remove() {
                Happening::Arrive(group) => {
                    let ids: Vec<RequestId> = group.iter().map(|(id, _)| *id).collect();
                    let busy = !self.scheduler.is_idle();
                    let wait = self.predict(&group);
                    let too_long = self.max_ttft.is_some_and(|limit| wait > limit && busy);
                    if too_long || self.scheduler.submit(group).is_err() {
                        ids.iter().for_each(|id| self.end(*id, Outcome::Refused));
                    }
                }
                Happening::Leave(id) => {
                    if self.journeys.get(&id).is_some_and(|journey| journey.outcome == Outcome::Open) {
                        self.scheduler.abort(id);
                        self.end(id, Outcome::Left);
                    }
                }
            }
        }
    }

    /// Says of each of a group when its first token is to be expected: of all from what is there before the group. Returns
    /// the seconds that the first of them is to wait; 0 where nobody foresees.
    fn predict(&mut self, group: &[(RequestId, Request)]) -> f64 {
        let Some(forecast) = &self.forecast else { return 0.0 };
        let mut first = None;
        for (id, request) in group {
            let wait = forecast.first_token(&queue_state(&self.scheduler, self.in_flight.len(), request));
            first.get_or_insert(wait);
            if let Some(journey) = self.journeys.get_mut(id) {
                journey.predicted = Some(self.now - journey.arrived + wait);
            }
        }
        first.unwrap_or(0.0)
    }

    fn end(&mut self, id: RequestId, outcome: Outcome) {
        if let Some(journey) = self.journeys.get_mut(&id) {
            journey.outcome = outcome;
        }
    }

    /// Turns until nothing is left to do.
    ///
    /// # Errors
    /// The scheduler is broken.
    pub fn run(&mut self) -> Result<(), String> {
        while self.step()? != Turn::Done {}
        Ok(())
    }

    /// Seconds since the beginning.
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Seconds during which the GPUs worked, or will have with the steps in flight.
    pub fn busy(&self) -> f64 {
        self.busy
    }

    /// The scheduler, to be looked at between turns.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// What became of a request.
    pub fn journey(&self, id: RequestId) -> Option<&Journey> {
        self.journeys.get(&id)
    }

    /// What became of all requests, by their ids, and of the server after each step.
    pub fn history(&self) -> (Vec<&Journey>, &[Sample]) {
        let mut all: Vec<_> = self.journeys.iter().collect();
        all.sort_by_key(|(id, _)| **id);
        (all.into_iter().map(|(_, journey)| journey).collect(), &self.samples)
    }
}
