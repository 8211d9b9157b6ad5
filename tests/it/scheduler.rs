//! Tests of the scheduler: scripted runs, each with one fact, and random runs compared with a naive model.

mod admission;
mod batches;
mod fairness;
mod preemption;
pub mod random;
mod reward;
mod speculation;
mod steps;

use std::collections::{HashMap, VecDeque};

use octant::request::{Finish, Reject, Request, TokenLogprob, Update};
use octant::scheduler::step_plan::{StepOutput, StepPlan};
use octant::scheduler::{PlannedRows, PlannedStep, RequestId, Scheduler, SchedulerConfig};

use crate::fake::{Answer, FakeModel};

/// A scheduler and a fake model, stepped by the test. Every call runs the integrity check.
pub struct Bench {
    pub scheduler: Scheduler,
    pub model: FakeModel,
    /// Steps in flight with their outputs, earliest first.
    in_flight: VecDeque<(PlannedRows, StepOutput)>,
    pub heard: HashMap<u64, Vec<Update>>,
    /// The limit on prompt tokens of every plan.
    pub prompt_tokens: Option<usize>,
    next_id: u64,
}

impl Bench {
    pub fn new(config: SchedulerConfig) -> Self {
        let model = FakeModel::new(&config);
        let scheduler = Scheduler::new(config);
        let (in_flight, heard) = (VecDeque::new(), HashMap::new());
        Self { scheduler, model, in_flight, heard, prompt_tokens: None, next_id: 0 }
    }

    /// Submits a group; ids count up from 0.
    pub fn submit_group(&mut self, group: Vec<Request>) -> Result<Vec<u64>, Reject> {
        let ids: Vec<u64> = (self.next_id..).take(group.len()).collect();
        self.next_id += group.len() as u64;
        self.scheduler.submit(ids.iter().map(|&id| RequestId(id)).zip(group).collect())?;
        self.recount();
        Ok(ids)
    }

    pub fn submit(&mut self, request: Request) -> u64 {
        self.submit_group(vec![request]).expect("a valid request is accepted")[0]
    }

    pub fn abort(&mut self, id: u64) {
        self.scheduler.abort(RequestId(id));
        self.recount();
    }

    /// Plans and executes a step.
    pub fn plan(&mut self) -> Option<StepPlan> {
        let PlannedStep { plan, rows } = self.scheduler.plan(self.prompt_tokens)?;
        self.recount();
        self.in_flight.push_back((rows, self.model.step(&plan)));
        Some((*plan).clone())
    }

    /// Commits the earliest executed step.
    pub fn commit(&mut self) {
        let (rows, output) = self.in_flight.pop_front().expect("a step was executed");
        let updates = self.scheduler.commit(rows, output).expect("outputs fit their plans");
        self.recount();
        for (id, update) in updates {
            let heard = self.heard.entry(id.0).or_default();
            let ended = heard.last().is_some_and(|last: &Update| last.finish.is_some());
            assert!(!ended, "request {} has an update after its finish", id.0);
            let first = heard.is_empty();
            assert_eq!(update.cached_tokens.is_some(), first, "the first update has the cached tokens");
            heard.push(update);
        }
    }

    /// Plans and commits one step.
    pub fn step(&mut self) -> StepPlan {
        let plan = self.plan().expect("a step can be planned");
        self.commit();
        plan
    }

    /// Runs until idle with up to `in_flight` uncommitted steps. Returns the number of steps.
    pub fn run(&mut self, in_flight: usize) -> usize {
        let mut steps = 0;
        while !self.scheduler.is_idle() {
            while self.in_flight.len() < in_flight && self.plan().is_some() {
                steps += 1;
            }
            assert!(!self.in_flight.is_empty(), "work is left and none is planned");
            self.commit();
        }
        steps
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn recount(&self) {
        self.scheduler.check_integrity().expect("the integrity check passes");
    }

    /// Tokens heard for a request so far.
    pub fn tokens(&self, id: u64) -> Vec<u32> {
        self.updates(id).iter().flat_map(|update| &update.tokens).map(|token| token.id).collect()
    }

    pub fn finish(&self, id: u64) -> Option<Finish> {
        self.updates(id).last().and_then(|update| update.finish.clone())
    }

    pub fn cached(&self, id: u64) -> u32 {
        self.updates(id)[0].cached_tokens.expect("the first update has the cached tokens")
    }

    pub fn updates(&self, id: u64) -> &[Update] {
        self.heard.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// The whole answer of a finished request.
    pub fn answer(&self, id: u64) -> Option<Answer> {
        let finish = self.finish(id)?;
        let scores: Vec<TokenLogprob> =
            self.updates(id).iter().flat_map(|update| update.prompt_logprobs.clone()).collect();
        let reward = self.updates(id).last().and_then(|update| update.reward.clone());
        Some(Answer { tokens: self.tokens(id), finish, scores, reward })
    }
}

/// A prompt of `len` tokens: token i is (first + i) modulo 97.
pub fn prompt(first: u32, len: usize) -> Vec<u32> {
    (first..).map(|token| token % 97).take(len).collect()
}
