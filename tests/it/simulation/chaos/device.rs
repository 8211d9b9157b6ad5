//! A simulated device in virtual time, with injected faults.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use octant::engine::{EngineError, Executor};
use octant::random::Random;
use octant::scheduler::step_plan::{Row, RowOutput, StepOutput, StepPlan};
use octant::simulator::SimulatedModel;
use octant::simulator::workload;

use super::asked::{VOCAB, below, one_in};
use super::costs::Clock;
use crate::fake::FakeModel;

/// The model behind the device.
pub enum Brain {
    /// Tokens depend on the position only; times are those of the 340B model.
    Machine(Box<SimulatedModel>),
    /// Tokens depend on the contents of the blocks, so that shared, lost or stale blocks show.
    Fake(FakeModel),
}

/// A fault that ends the engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// `enqueue` fails.
    Enqueue,
    /// `collect` fails.
    Collect,
    /// An output lacks its last row.
    ShortOfARow,
    /// An output has another step's id.
    WrongNumber,
}

pub struct Device {
    pub brain: Brain,
    clock: Clock,
    free_at: f64,
    in_flight: VecDeque<InFlight>,
    /// Whether it predicts the time of steps.
    pub predicts: bool,
    /// Device time of the steps collected, in seconds.
    pub busy: f64,
    /// The seed and the prompt tokens of each slot's sequence.
    slots: HashMap<u32, (u64, usize)>,
    /// Answer tokens of each seed.
    pub lengths: HashMap<u64, usize>,
    /// Seeds whose answers a fault in a row must fail.
    pub spoiled: HashSet<u64>,
    /// On average one row in `n` gets a fault, where `n` is this number; 0 turns faults off.
    pub spoils: usize,
    /// The fault, and the first step at which it may happen.
    pub fault: Option<(u64, Fault)>,
    /// The prefix of the engine's error message, once the fault has happened.
    pub broke: Option<&'static str>,
    pub steps: u64,
    /// Seeds whose last token the last collected step sampled.
    pub ended: Vec<u64>,
    draws: Random,
}

/// A step in flight.
struct InFlight {
    output: StepOutput,
    took: f64,
    end: f64,
    /// Seeds whose last token it samples.
    ends: Vec<u64>,
}

impl Device {
    pub fn new(brain: Brain, clock: Clock, seed: u64) -> Self {
        Self {
            brain,
            free_at: clock.now(),
            clock,
            in_flight: VecDeque::new(),
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

    /// Device time of the steps in flight, in seconds.
    pub fn outstanding(&self) -> f64 {
        self.in_flight.iter().map(|step| step.took).sum()
    }

    /// Records the sequence of the row's slot. Returns its seed if the row samples its last token.
    fn occupy_slot(&mut self, row: &Row) -> Option<u64> {
        if let Some(start) = &row.start {
            self.slots.insert(row.slot, (start.sampling.seed, start.prompt_len));
        }
        let (seed, prompt) = self.slots[&row.slot];
        let drawn =
            row.position as usize + row.tokens.len() - prompt.min(row.position as usize + row.tokens.len());
        (row.sample && drawn + 1 == self.lengths[&seed]).then_some(seed)
    }

    /// Sometimes puts a fault into a row's output, if the output counts for the request's answer.
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
            0 if row.sample => output.tokens[0].id = VOCAB as u32,
            1 if row.sample => output.tokens.clear(),
            2 if !row.score.is_empty() => drop(output.scores.pop()),
            _ => *output = RowOutput { non_finite: true, ..RowOutput::default() },
        }
        self.spoiled.insert(seed);
    }

    /// Whether the fault happens now.
    fn fails(&mut self, step: u64, how: Fault, with: &'static str) -> bool {
        let now = self.fault.is_some_and(|(at, fault)| fault == how && step >= at);
        if now {
            self.broke = Some(with);
        }
        now
    }
}

fn error(message: &str) -> EngineError {
    EngineError { message: message.to_owned() }
}

impl Executor for Device {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
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
            ends.extend(self.occupy_slot(row));
            self.spoil(row, output);
        }
        self.free_at = self.free_at.max(self.clock.now()) + took;
        self.in_flight.push_back(InFlight { output, took, end: self.free_at, ends });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let InFlight { output, end, .. } = self.in_flight.front().expect("a step was enqueued");
        let (id, end) = (output.id, *end);
        self.clock.reach(end);
        self.steps += 1;
        if self.fails(id, Fault::Collect, "it burns") {
            return Err(error("it burns"));
        }
        let InFlight { mut output, took, ends, .. } = self.in_flight.pop_front().expect("it is there");
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
        let last = self.in_flight.back().filter(|_| self.predicts)?;
        Some(Duration::from_secs_f64(last.took))
    }
}
