//! One world: a server that is started, ends and is started again, with all its clients, from one seed and in
//! virtual time.

use std::sync::Arc;

use octant::engine::{EngineCore, EngineMetrics};
use octant::random::Random;
use octant::request::{Cost, Finish, Request};
use octant::scheduler::SchedulerConfig;
use octant::simulator::workload;
use octant::simulator::{SimulatedModel, SyntheticAnswers};

use super::asked::{self, below, one_in};
use super::client::{Client, End, Visit};
use super::costs::{Clock, CostCheck, Life};
use super::device::{Brain, Device, Fault};
use super::queue_order::QueueOrder;
use super::tally::Tally;
use crate::fake::{Answer, FakeModel};

/// Clients of a world.
const CLIENTS: usize = 60;
/// The most steps of a request, relative to its own tokens and those that may run before it.
const FAIRNESS: f64 = 1.1;
/// Mean seconds between groups, for low, medium and high load. A step takes about 0.02 s.
const INTERVALS: [f64; 3] = [0.4, 0.1, 0.02];

/// How an engine ends.
#[derive(PartialEq)]
enum Course {
    /// The server runs until all clients are done.
    AllDone,
    /// The server refuses new requests from this step on.
    Drain(u64),
    /// The server is stopped in this step.
    Stop(u64),
    /// The device fails.
    Fault,
}

/// The clients of a world.
pub(super) struct Load {
    clients: usize,
    /// Number of tenants with requests.
    tenants: usize,
    /// Whether all requests of a tenant arrive at once and none is aborted.
    at_once: bool,
    /// Seconds between the arrivals of two tenants, if so.
    apart: f64,
    /// One group in this many has a deadline; 0 for none.
    with_deadline: usize,
    /// Whether some groups are lines of batches.
    pub(super) with_batches: bool,
}

pub struct World {
    pub(super) draws: Random,
    pub(super) config: SchedulerConfig,
    in_flight: usize,
    /// Seconds from a step's results to the next launch.
    host: f64,
    interval: usize,
    /// Whether all requests have one priority.
    pub(super) flat: bool,
    pub(super) load: Load,
    /// The most predicted seconds to a first token; requests beyond it are refused.
    pub(super) promised: Option<f64>,
    voice: Option<SyntheticAnswers>,
    machine: SimulatedModel,
    pub(super) clock: Clock,
    pub(super) clients: Vec<Client>,
    /// Future arrivals, the last one first: time, and the group's clients.
    pub(super) to_come: Vec<(f64, Vec<usize>)>,
    pub(super) core: EngineCore,
    pub(super) device: Device,
    pub(super) costs: CostCheck,
    pub(super) queue_order: QueueOrder,
    course: Course,
    /// Why the engine has ended.
    death: Option<String>,
    pub(super) ids: u64,
    pub(super) turn: u64,
    pub(super) tally: Tally,
}

impl World {
    pub fn new(seed: u64, machine: SimulatedModel) -> Self {
        let mut draws = workload::random(seed);
        let mut config = asked::config(&mut draws);
        config.policy = asked::policy(&mut draws);
        let in_flight = 1 + below(&mut draws, 2);
        let voice = (!one_in(&mut draws, 4)).then(asked::voice);
        let interval = if one_in(&mut draws, 2) { 1 } else { 1 + below(&mut draws, 12) };
        let flat = one_in(&mut draws, 3);
        let at_once = flat && one_in(&mut draws, 2);
        if at_once {
            (config.max_queue_requests, config.max_queue_tokens) = (1000, 1_000_000);
        }
        let load = Load {
            clients: if at_once { 3 * CLIENTS } else { CLIENTS },
            tenants: if at_once { 2 + below(&mut draws, 3) } else { 1 + below(&mut draws, 4) },
            at_once,
            apart: below(&mut draws, 300) as f64 / 100.0,
            with_deadline: if at_once || one_in(&mut draws, 3) { 0 } else { 1 + below(&mut draws, 5) },
            with_batches: one_in(&mut draws, 2),
        };
        let promised = one_in(&mut draws, 4).then(|| below(&mut draws, 400) as f64 / 100.0);
        let (clock, metrics) = (Clock::new(), EngineMetrics::default());
        let core = EngineCore::new(config.clone(), clock.engine_options(in_flight, interval, &metrics));
        let device = Device::new(Brain::Machine(Box::new(machine.clone())), clock.clone(), seed);
        let mut world = Self {
            draws,
            queue_order: QueueOrder::new(&config, flat, 0, in_flight),
            config,
            in_flight,
            host: 0.0,
            interval,
            flat,
            load,
            promised,
            voice,
            machine,
            costs: CostCheck::new(clock.clone(), metrics),
            clock,
            clients: Vec::new(),
            to_come: Vec::new(),
            core,
            device,
            course: Course::AllDone,
            death: None,
            ids: 0,
            turn: 0,
            tally: Tally { worlds: 1, ..Tally::default() },
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let (mut at, rate) = (0.0, INTERVALS[below(&mut self.draws, 3)]);
        while self.clients.len() < self.load.clients {
            let draws = &mut self.draws;
            let n = if one_in(draws, 8) { 2 + below(draws, 3) } else { 1 };
            let first = self.clients.len();
            let mut like = asked::any(draws, first as u64, &self.config);
            let tenant = below(draws, self.load.tenants);
            like.tenant = asked::tenant(tenant);
            like.batch = self.load.with_batches && one_in(draws, 3);
            // Some requests arrive before the others of their tenant.
            let before = if one_in(draws, 12) { below(draws, 100) as f64 / 100.0 } else { 1.0 };
            at = match self.load.at_once {
                true => tenant as f64 * self.load.apart * before,
                false => at + rate * below(draws, 200) as f64 / 100.0,
            };
            like.priority = if self.flat { 0 } else { like.priority };
            let hurried = self.load.with_deadline > 0 && one_in(draws, self.load.with_deadline);
            let due_after = hurried.then(|| below(draws, 400) as f64 / 100.0);
            for seed in first..first + n {
                // The choices of one request differ only in their seeds.
                let mut request = like.clone();
                Arc::make_mut(&mut request.sampling).seed = seed as u64;
                let client = self.client(request, tenant, due_after);
                self.clients.push(client);
            }
            self.to_come.push((at, (first..first + n).collect()));
        }
        self.to_come.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    }

    fn client(&mut self, request: Request, tenant: usize, due_after: Option<f64>) -> Client {
        let expected = match asked::sound(&request, &self.config) {
            true => asked::answer(&request, self.voice.as_ref()),
            false => Answer { tokens: Vec::new(), finish: Finish::Length, scores: Vec::new(), reward: None },
        };
        let draws = &mut self.draws;
        Client {
            request,
            tenant,
            expected,
            leaves_after: (!self.load.at_once && one_in(draws, 4)).then(|| below(draws, 120) as u64),
            due_after,
            reads_every: if one_in(draws, 4) { 2 + below(draws, 40) as u64 } else { 1 },
            retries: below(draws, 4),
            now: None,
            end: None,
        }
    }

    /// Runs the world until all clients are done.
    pub fn run(mut self) -> Result<Tally, String> {
        let lives = 1 + below(&mut self.draws, 3);
        for life in 0..lives {
            self.start_engine(life + 1 == lives);
            let death = loop {
                match self.turn()? {
                    Next::Turn => {}
                    Next::Done => break None,
                    Next::Death(reason) => break Some(reason),
                }
            };
            let counts = self.core.scheduler().counts();
            self.tally.steps += self.device.steps;
            self.tally.preemptions += counts.preemptions;
            self.tally.prefix_hits += counts.prefix_hits;
            if let Some(reason) = &death {
                self.end_engine(reason)?;
            }
            self.check_costs(counts.preemptions)?;
            if death.is_none() {
                break;
            }
        }
        for (i, client) in self.clients.iter().enumerate() {
            if client.now.is_some() || client.end.is_none() {
                return Err(format!("client {i} was never answered"));
            }
        }
        Ok(self.tally)
    }

    /// Checks that the costs of all requests add up to the device's time, when an engine has ended.
    fn check_costs(&mut self, preemptions: u64) -> Result<(), String> {
        let Device { busy, predicts, .. } = self.device;
        let (outstanding, host) = (self.device.outstanding(), self.host > 0.0);
        let life = Life { busy, outstanding, exact: predicts, host, preemptions };
        let sums = self.costs.settle(&life, &mut self.core)?;
        if outstanding == 0.0 {
            for (i, [paid, took]) in sums.into_iter().enumerate() {
                self.tally.paid[i + 2 * usize::from(predicts)] += paid;
                self.tally.took[i + 2 * usize::from(predicts)] += took;
            }
        }
        Ok(())
    }

    /// Starts a new engine and device with empty blocks.
    fn start_engine(&mut self, last: bool) {
        let draws = &mut self.draws;
        let brain = match self.voice {
            Some(_) => Brain::Machine(Box::new(self.machine.clone())),
            None => Brain::Fake(FakeModel::new(&self.config)),
        };
        let metrics = EngineMetrics::default();
        let options = self.clock.engine_options(self.in_flight, self.interval, &metrics);
        self.core = EngineCore::new(self.config.clone(), options);
        let longest = self.clients.iter().map(|client| client.request.prompt.len()).max();
        self.queue_order = QueueOrder::new(&self.config, self.flat, longest.unwrap_or(0), self.in_flight);
        self.costs = CostCheck::new(self.clock.clone(), metrics);
        let mut device = Device::new(brain, self.clock.clone(), draws.bits());
        device.predicts = one_in(draws, 2);
        self.host = [0.0, 0.002][below(draws, 2)];
        device.spoils = if one_in(draws, 2) { 40 + below(draws, 400) } else { 0 };
        let seeds = self.clients.iter().enumerate();
        device.lengths = seeds.map(|(seed, client)| (seed as u64, client.expected.tokens.len())).collect();
        let at = self.turn + below(draws, 400) as u64;
        self.course = match below(draws, if self.load.at_once || last { 2 } else { 8 }) {
            0 => Course::AllDone,
            1 => Course::Drain(at),
            2 | 3 => Course::Stop(at),
            _ => Course::Fault,
        };
        if self.course == Course::Fault {
            let faults = [Fault::Enqueue, Fault::Collect, Fault::ShortOfARow, Fault::WrongNumber];
            device.fault = Some((below(draws, 400) as u64, faults[below(draws, 4)]));
        }
        self.device = device;
        self.death = None;
    }

    fn turn(&mut self) -> Result<Next, String> {
        self.turn += 1;
        self.expire()?;
        if self.core.is_idle() {
            self.publish();
            self.core.check_idle().map_err(|error| error.message)?;
            self.read(true)?;
            let Some((at, _)) = self.to_come.last() else { return Ok(Next::Done) };
            self.clock.reach(*at);
        }
        match self.course {
            Course::Drain(at) if at <= self.turn => {
                self.tally.drains += u64::from(!self.to_come.is_empty());
                for (_, group) in std::mem::take(&mut self.to_come) {
                    self.refuse(&group);
                }
            }
            _ => self.arrive()?,
        }
        self.leave()?;
        if matches!(self.course, Course::Stop(at) if at <= self.turn) {
            self.tally.stops += 1;
            return Ok(Next::Death("the server is shutting down".to_owned()));
        }
        self.core.set_busy();
        if let Err(reason) = self.step() {
            return match self.device.broke {
                Some(why) if reason.starts_with(why) => {
                    self.tally.faults[self.device.fault.expect("it broke").1 as usize] += 1;
                    Ok(Next::Death(reason))
                }
                _ => Err(reason),
            };
        }
        if self.device.broke.is_some() {
            return Err("the engine went on with a broken device".to_owned());
        }
        self.read(false)?;
        self.check()?;
        self.clock.reach(self.clock.now() + self.host);
        Ok(Next::Turn)
    }

    /// Runs the phases of [`EngineCore::step`], with checks between them.
    fn step(&mut self) -> Result<(), String> {
        while let Some(step) = self.core.schedule() {
            let (plan, ids) = (Arc::clone(&step.plan), step.rows.request_ids().collect::<Vec<_>>());
            self.core.launch(step, &mut self.device).map_err(|error| error.message)?;
            self.queue_order.launched(self.core.scheduler(), &plan, &ids);
            self.costs.launched(&plan, &ids);
        }
        self.publish();
        let Some(step) = self.core.collect(&mut self.device).map_err(|error| error.message)? else {
            return Ok(());
        };
        self.costs.collected();
        self.core.commit(step).map_err(|error| error.message)
    }

    /// Publishes the updates of the last step.
    fn publish(&mut self) {
        self.queue_order.publishing(self.core.unpublished(), &mut self.tally);
        let published = self.core.publish();
        self.costs.published(&published, &self.core);
    }

    /// Lets clients read their channels: all of them, or those whose interval has passed.
    fn read(&mut self, all: bool) -> Result<(), String> {
        for i in 0..self.clients.len() {
            let client = &mut self.clients[i];
            if client.now.is_none() || !(all || self.turn.is_multiple_of(client.reads_every)) {
                continue;
            }
            let ended = client.read(self.death.as_deref()).map_err(|e| format!("client {i} {e}"))?;
            if let Some(visit) = ended {
                self.settle(i, &visit)?;
            }
        }
        Ok(())
    }

    /// Checks a request that has ended.
    pub(super) fn settle(&mut self, i: usize, visit: &Visit) -> Result<(), String> {
        self.check_cost(i, visit)?;
        let spoiled = self.device.spoiled.contains(&(i as u64));
        self.tally.print =
            self.tally.print.rotate_left(7) ^ (self.turn << 20) ^ i as u64 ^ self.clock.now().to_bits();
        match &self.clients[i].end {
            Some(End::Answered) if spoiled => Err(format!("client {i} was answered from a spoilt row")),
            Some(End::Answered) => {
                self.tally.answered += 1;
                self.tally.batch_answered += u64::from(self.clients[i].request.batch);
                Ok(())
            }
            Some(End::Failed(reason)) => {
                let own = self.death.as_ref() != Some(reason);
                self.tally.spoiled += u64::from(own);
                self.tally.killed += u64::from(!own);
                if own && !spoiled {
                    return Err(format!("client {i} failed for no reason: {reason}"));
                }
                Ok(())
            }
            // The tally has counted the deadline already.
            Some(End::Late) => Ok(()),
            other => Err(format!("client {i} ended as {other:?}")),
        }
    }

    /// Checks a request's cost against its answer.
    pub(super) fn check_cost(&self, i: usize, visit: &Visit) -> Result<(), String> {
        let client = &self.clients[i];
        let Some(cost) = self.costs.cost(visit.id) else {
            return Err(format!("client {i} was never charged"));
        };
        let (prompt, said) = (client.request.prompt.len() as u64, client.expected.tokens.len() as u64);
        let known = cost.cached_tokens + cost.computed_tokens;
        let ran = cost.prefill + cost.decode > 0.0 && cost.kv_block_seconds > 0.0 && known > 0;
        // A row may be in flight when the last token is sampled, if `max_tokens` allows more tokens.
        let most = (prompt + said).min(prompt + u64::from(client.request.stop.max_tokens.max(1)) - 1);
        let fits = match &client.end {
            Some(End::Answered) => {
                let all = (prompt + said).saturating_sub(u64::from(said > 0));
                let most = if self.in_flight == 1 { all } else { most };
                // After a preemption, blocks that other requests computed count neither as computed nor as
                // cached.
                let least = if self.queue_order.was_preempted(visit.id) { 1 } else { all };
                ran && (least..=most).contains(&known) && visit.cached == Some(cost.cached_tokens as u32)
            }
            end if matches!(end, Some(End::Late | End::Left)) || self.death.is_some() => {
                let waited = Cost { queue: 0.0, ..*cost } == Cost::default();
                known <= most && (ran || waited && visit.tokens + visit.scores == 0)
            }
            _ => ran && known <= most,
        };
        let reported = matches!(client.end, Some(End::Left)) || visit.cost == *cost;
        match fits && reported {
            true => Ok(()),
            false => Err(format!(
                "client {i}, {prompt} prompt tokens, {said} answered, {:?}, was sent {:?}, cost {cost:?}",
                client.end, visit.cost
            )),
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.costs.check()?;
        self.queue_order.check()?;
        let scheduler = self.core.scheduler();
        // Recounting a large server is slow.
        if self.config.num_blocks <= 20 || self.turn.is_multiple_of(16) {
            scheduler.check_integrity().map_err(|error| error.to_string())?;
        }
        let counts = scheduler.counts();
        if counts.blocks_free + counts.blocks_used + counts.blocks_cached != counts.blocks_total {
            return Err(format!("blocks are lost: {counts:?}"));
        }
        let visits = self.clients.iter().filter_map(|client| client.now.as_ref());
        let owed = visits.filter(|visit| !visit.inbox.is_closed());
        if let Some(visit) = owed.clone().find(|visit| visit.overdue) {
            return Err(format!("the deadline of request {} passed without a finish", visit.id.0));
        }
        let (owed, open) = (owed.count(), self.core.open_requests());
        if owed != open {
            return Err(format!("{owed} wait for an answer, {open} requests are open"));
        }
        self.check_fairness()
    }

    /// Checks that no request waits for later ones, neither for its start nor for its finish.
    fn check_fairness(&mut self) -> Result<(), String> {
        let recomputed = self.costs.recomputed();
        for (i, client) in self.clients.iter().enumerate() {
            let Some(visit) = &client.now else { continue };
            let steps = (self.turn - visit.since) as f64;
            let again = (recomputed - visit.recomputed) as f64;
            let (work, start_work) = (visit.work as f64 + again, visit.start_work as f64 + again);
            // A client that reads rarely sees the finish late.
            if client.reads_every == 1 {
                self.tally.longest = self.tally.longest.max(steps / work);
                if steps > FAIRNESS * work {
                    return Err(format!("client {i} waits for {steps} steps, of {work} tokens"));
                }
            }
            if self.queue_order.has_started(visit.id) == Some(false) {
                self.tally.longest_start = self.tally.longest_start.max(steps / start_work);
                if steps > start_work {
                    return Err(format!(
                        "client {i} waits to start for {steps} steps, of {start_work} tokens"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends the engine: every open request gets the reason once, and some clients try again.
    fn end_engine(&mut self, reason: &str) -> Result<(), String> {
        self.death = Some(reason.to_owned());
        self.publish();
        for (id, cost) in self.core.fail(reason) {
            self.costs.left(id, cost);
        }
        if self.core.open_requests() != 0 {
            return Err(format!("{} requests are open after the engine's end", self.core.open_requests()));
        }
        let open: Vec<usize> = (0..self.clients.len()).filter(|i| self.clients[*i].now.is_some()).collect();
        self.read(true)?;
        for i in open {
            let client = &self.clients[i];
            if client.now.is_some() || client.end.is_none() {
                return Err(format!("client {i} did not receive the end"));
            }
            let killed = matches!(&client.end, Some(End::Failed(why)) if why == reason);
            if killed {
                self.again(&[i]);
            }
        }
        Ok(())
    }
}

/// The state after a step.
enum Next {
    Turn,
    /// No client is left.
    Done,
    /// The engine has ended for this reason.
    Death(String),
}
