//! GPUs on a clock of their own that fail when they are told to.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use octant::engine::{Executor, ExecutorError};
use octant::random::Random;
use octant::scheduler::step_plan::{Row, RowOutput, StepOutput, StepPlan};
use octant::simulator::SimulatedModel;
use octant::simulator::workload;

use super::asked::{VOCAB, below, one_in};
use super::books::Clock;
use crate::fake::FakeModel;

/// Who draws the tokens.
pub enum Brain {
    /// By position alone, with times of the 340B's.
    Machine(Box<SimulatedModel>),
    /// From what stands in the blocks: what is shared, lost or stale shows.
    Fake(FakeModel),
}

/// How the device ends the engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// A step cannot be started.
    Enqueue,
    /// A step started and never came back.
    Collect,
    /// A step came back without its last row.
    ShortOfARow,
    /// A step came back under another's number.
    WrongNumber,
}

pub struct Device {
    pub brain: Brain,
    clock: Clock,
    free_at: f64,
    flights: VecDeque<Flight>,
    /// Whether it says what a step takes.
    pub predicts: bool,
    /// Seconds of steps that have been collected.
    pub busy: f64,
    /// What occupies each slot: its seed, and tokens of its prompt.
    slots: HashMap<u32, (u64, usize)>,
    /// Tokens that will be said to each seed.
    pub lengths: HashMap<u64, usize>,
    /// Seeds of which a row was spoilt that counts.
    pub spoiled: HashSet<u64>,
    /// One row in so many is spoilt; 0 for none.
    pub spoils: usize,
    /// At that step, or later.
    pub fault: Option<(u64, Fault)>,
    /// What the engine must end with, once it has happened.
    pub broke: Option<&'static str>,
    pub steps: u64,
    /// Seeds of which the step that was collected last drew the last token.
    pub ended: Vec<u64>,
    draws: Random,
}

/// A step that has not been collected.
struct Flight {
    output: StepOutput,
    took: f64,
    end: f64,
    /// Seeds of which it draws the last token.
    ends: Vec<u64>,
}

impl Device {
    pub fn new(brain: Brain, clock: Clock, seed: u64) -> Self {
        Self {
            brain,
            free_at: clock.now(),
            clock,
            flights: VecDeque::new(),
            predicts: false,
            busy: 0.0,
            slots: HashMap::new(),
            lengths: HashMap::new(),
            spoiled: HashSet::new(),
            spoils: 0,
            fault: None,
            broke: None,
            steps: 0,
            ended: Vec::new(),
            draws: workload::random(seed),
        }
    }

    /// Seconds of work that it was given and that nobody has seen the end of.
    pub fn outstanding(&self) -> f64 {
        self.flights.iter().map(|flight| flight.took).sum()
    }

    /// Notes who is in the row's slot. Says for whom it draws the last token, if it does.
    fn seat(&mut self, row: &Row) -> Option<u64> {
        if let Some(start) = &row.start {
            self.slots.insert(row.slot, (start.sampling.seed, start.prompt_len));
        }
        let (seed, prompt) = self.slots[&row.slot];
        let drawn =
            row.position as usize + row.tokens.len() - prompt.min(row.position as usize + row.tokens.len());
        (row.sample && drawn + 1 == self.lengths[&seed]).then_some(seed)
    }

    /// Makes a row's output such as fails its request, where that request is still owed something by it.
    fn spoil(&mut self, row: &Row, output: &mut RowOutput) {
        if self.spoils == 0 || !one_in(&mut self.draws, self.spoils) {
            return;
        }
        let (seed, prompt) = self.slots[&row.slot];
        let end = row.position as usize + row.tokens.len();
        let drawn_for = row.sample && end - prompt < self.lengths[&seed];
        if !drawn_for && row.score.is_empty() {
            return;
        }
        match below(&mut self.draws, 4) {
            0 if row.sample => output.token = Some(VOCAB as u32),
            1 if row.sample => output.token = None,
            2 if !row.score.is_empty() => drop(output.scores.pop()),
            _ => *output = RowOutput { non_finite: true, ..RowOutput::default() },
        }
        self.spoiled.insert(seed);
    }

    /// Whether it is time for that.
    fn fails(&mut self, step: u64, how: Fault, with: &'static str) -> bool {
        let now = self.fault.is_some_and(|(at, fault)| fault == how && step >= at);
        if now {
            self.broke = Some(with);
        }
        now
    }
}

fn error(message: &str) -> ExecutorError {
    ExecutorError { message: message.to_owned() }
}

impl Executor for Device {
    fn enqueue(&mut self, plan: &StepPlan) -> Result<(), ExecutorError> {
        if self.fails(plan.id, Fault::Enqueue, "cannot start") {
            return Err(error("cannot start"));
        }
        let (mut output, took) = match &mut self.brain {
            Brain::Machine(machine) => {
                let (output, time) = machine.step(plan);
                (output, time.total())
            }
            Brain::Fake(model) => (model.step(plan), 0.02),
        };
        let mut ends = Vec::new();
        for (row, output) in plan.rows.iter().zip(&mut output.rows) {
            ends.extend(self.seat(row));
            self.spoil(row, output);
        }
        self.free_at = self.free_at.max(self.clock.now()) + took;
        self.flights.push_back(Flight { output, took, end: self.free_at, ends });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, ExecutorError> {
        let Flight { output, end, .. } = self.flights.front().expect("a step was enqueued");
        let (id, end) = (output.id, *end);
        self.clock.reach(end);
        self.steps += 1;
        if self.fails(id, Fault::Collect, "it burns") {
            return Err(error("it burns"));
        }
        let Flight { mut output, took, ends, .. } = self.flights.pop_front().expect("it is there");
        (self.busy, self.ended) = (self.busy + took, ends);
        if self.fails(output.id, Fault::ShortOfARow, "the executor returned") {
            output.rows.pop();
        }
        if self.fails(output.id, Fault::WrongNumber, "the executor returned") {
            output.id += 1;
        }
        Ok(output)
    }

    fn predict(&self, _plan: &StepPlan) -> Option<Duration> {
        let last = self.flights.back().filter(|_| self.predicts)?;
        Some(Duration::from_secs_f64(last.took))
    }
}
