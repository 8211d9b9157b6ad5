//! A server's lives one after another, with everyone who comes by: made from one seed, on a clock that jumps.

use octant::engine::{Pipeline, RequestId, Submission, Turns};
use octant::request::{Cost, Reject, Update};
use octant::scheduler::SchedulerConfig;
use octant::simulator::workload::Draws;
use octant::simulator::{Machine, Voice};
use tokio::sync::mpsc;

use super::asked::{self, below, one_in};
use super::client::{Client, End, Visit};
use super::device::{Brain, Device, Fault};
use crate::fake::FakeModel;

/// Clients of a world.
const CLIENTS: usize = 60;
/// Steps that a request may take, by the tokens that go before it and its own.
const FAIRNESS: f64 = 1.1;
/// Seconds between groups, on average: hardly one at a time, some at once, a crowd. A step takes about 0.02.
const INTERVALS: [f64; 3] = [0.4, 0.1, 0.02];

/// What happened, to be summed up.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tally {
    pub worlds: u64,
    pub steps: u64,
    pub answered: u64,
    pub left: u64,
    /// Updates that had been committed when their client left.
    pub left_unsaid: u64,
    pub refused: u64,
    pub spoiled: u64,
    pub killed: u64,
    pub faults: [u64; 4],
    pub stops: u64,
    pub drains: u64,
    pub retries: u64,
    pub preemptions: u64,
    pub prefix_hits: u64,
    /// The longest that one waited, by the tokens that went before it.
    pub longest: f64,
    /// Of everything that was said and when.
    pub print: u64,
}

/// How a life ends.
#[derive(PartialEq)]
enum Course {
    /// When nobody comes any more.
    Peace,
    /// In this turn nobody is taken any more.
    Drain(u64),
    /// In this turn it is told to stop.
    Stop(u64),
    /// The device fails.
    Fault,
}

pub struct World {
    draws: Draws,
    config: SchedulerConfig,
    in_flight: usize,
    interval: usize,
    voice: Option<Voice>,
    machine: Machine,
    clients: Vec<Client>,
    /// Groups that will come, the last first: when, and who.
    to_come: Vec<(f64, Vec<usize>)>,
    turns: Turns,
    device: Device,
    course: Course,
    /// Why the engine has ended.
    death: Option<String>,
    ids: u64,
    turn: u64,
    tally: Tally,
}

impl World {
    pub fn new(seed: u64, machine: Machine) -> Self {
        let mut draws = Draws::new(seed);
        let config = asked::config(&mut draws);
        let in_flight = 1 + below(&mut draws, 2);
        let voice = (!one_in(&mut draws, 4)).then(asked::voice);
        let interval = if one_in(&mut draws, 2) { 1 } else { 1 + below(&mut draws, 12) };
        let turns = Turns::new(Pipeline::new(config.clone(), in_flight, None), interval);
        let device = Device::new(Brain::Machine(Box::new(machine.clone())), 0.0, seed);
        let mut world = Self {
            draws,
            config,
            in_flight,
            interval,
            voice,
            machine,
            clients: Vec::new(),
            to_come: Vec::new(),
            turns,
            device,
            course: Course::Peace,
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
        while self.clients.len() < CLIENTS {
            at += rate * below(&mut self.draws, 200) as f64 / 100.0;
            let n = if one_in(&mut self.draws, 8) { 2 + below(&mut self.draws, 3) } else { 1 };
            let first = self.clients.len();
            let like = asked::any(&mut self.draws, first as u64, &self.config);
            for seed in first..first + n {
                // The choices of one request differ in their seeds alone.
                let mut request = like.clone();
                std::sync::Arc::make_mut(&mut request.sampling).seed = seed as u64;
                let sound = asked::sound(&request, &self.config);
                let expected = match sound {
                    true => asked::answer(&request, self.voice.as_ref()),
                    false => crate::fake::Answer {
                        tokens: Vec::new(),
                        finish: octant::request::Finish::Length,
                        scores: Vec::new(),
                    },
                };
                let draws = &mut self.draws;
                self.clients.push(Client {
                    request,
                    expected,
                    leaves_after: one_in(draws, 4).then(|| below(draws, 120) as u64),
                    reads_every: if one_in(draws, 4) { 2 + below(draws, 40) as u64 } else { 1 },
                    retries: below(draws, 4),
                    now: None,
                    end: None,
                });
            }
            self.to_come.push((at, (first..first + n).collect()));
        }
        self.to_come.reverse();
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Result<Tally, String> {
        let lives = 1 + below(&mut self.draws, 3);
        for life in 0..lives {
            self.be_born(life + 1 == lives);
            let death = loop {
                match self.turn()? {
                    Next::Turn => {}
                    Next::Rest => break None,
                    Next::Death(reason) => break Some(reason),
                }
            };
            let counts = self.turns.pipeline().scheduler().counts();
            self.tally.steps += self.device.steps;
            self.tally.preemptions += counts.preemptions;
            self.tally.prefix_hits += counts.prefix_hits;
            match death {
                Some(reason) => self.die(&reason)?,
                None => break,
            }
        }
        for (i, client) in self.clients.iter().enumerate() {
            if client.now.is_some() || client.end.is_none() {
                return Err(format!("client {i} was never answered"));
            }
        }
        Ok(self.tally)
    }

    /// A fresh server, with nothing in its blocks.
    fn be_born(&mut self, last: bool) {
        let draws = &mut self.draws;
        let brain = match self.voice {
            Some(_) => Brain::Machine(Box::new(self.machine.clone())),
            None => Brain::Fake(FakeModel::new(&self.config)),
        };
        let pipeline = Pipeline::new(self.config.clone(), self.in_flight, None);
        self.turns = Turns::new(pipeline, self.interval);
        let mut device = Device::new(brain, self.device.now, draws.bits());
        device.spoils = if one_in(draws, 2) { 40 + below(draws, 400) } else { 0 };
        let seeds = self.clients.iter().enumerate();
        device.lengths = seeds.map(|(seed, client)| (seed as u64, client.expected.tokens.len())).collect();
        let at = self.turn + below(draws, 400) as u64;
        self.course = match below(draws, if last { 2 } else { 8 }) {
            0 => Course::Peace,
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
        if self.turns.is_idle() {
            self.turns.answer(&mut |_, _| ());
            self.turns.rest()?;
            self.read(true)?;
            let Some((at, _)) = self.to_come.last() else { return Ok(Next::Rest) };
            self.device.now = self.device.now.max(*at);
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
        if let Err(reason) = self.turns.turn(&mut self.device, &mut |_, _| ()) {
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
        Ok(Next::Turn)
    }

    /// Takes who has come by now.
    fn arrive(&mut self) -> Result<(), String> {
        while let Some((at, _)) = self.to_come.last()
            && *at <= self.device.now
        {
            let (_, group) = self.to_come.pop().expect("it was just looked at");
            self.submit(&group)?;
        }
        Ok(())
    }

    fn submit(&mut self, group: &[usize]) -> Result<(), String> {
        let counts = self.turns.pipeline().scheduler().counts();
        let sound = group.iter().all(|i| asked::sound(&self.clients[*i].request, &self.config));
        let tokens: usize = group.iter().map(|i| self.clients[*i].request.prompt.len()).sum();
        let full = counts.waiting > 0 && counts.waiting + group.len() > self.config.max_queue_requests
            || counts.waiting_tokens > 0 && counts.waiting_tokens + tokens > self.config.max_queue_tokens;
        let (mut submissions, mut inboxes) = (Vec::new(), Vec::new());
        for &i in group {
            let (updates, inbox) = mpsc::unbounded_channel();
            let id = RequestId(self.ids);
            self.ids += 1;
            let (request, each) = (self.clients[i].request.clone(), one_in(&mut self.draws, 3));
            submissions.push(Submission { id, request, updates, each });
            inboxes.push((i, id, inbox));
        }
        let outcome = self.turns.submit(submissions);
        match (&outcome, sound, full) {
            (Ok(()), true, false) | (Err(Reject::Invalid { .. } | Reject::TooLong { .. }), false, _) => {}
            (Err(Reject::QueueFull { .. } | Reject::QueueTokensFull { .. }), true, true) => {}
            _ => return Err(format!("{outcome:?} to a group that is sound: {sound}, a queue full: {full}")),
        }
        if outcome.is_err() {
            // One that was never taken has nothing to abort.
            self.turns.abort(inboxes[0].1, Cost::default());
            if inboxes.iter_mut().any(|(_, _, inbox)| !is_closed(inbox)) {
                return Err("a refused request has an account".to_owned());
            }
            if sound && self.again(group) {
                return Ok(());
            }
            self.refuse(group);
            return Ok(());
        }
        for (i, id, inbox) in inboxes {
            self.welcome(i, id, inbox);
        }
        Ok(())
    }

    /// Counts who goes before whom.
    fn welcome(&mut self, i: usize, id: RequestId, inbox: Inbox) {
        let (priority, own) = (self.clients[i].request.priority, self.clients[i].work());
        let mut work = own;
        for other in &mut self.clients {
            let before = other.work();
            if let Some(visit) = &mut other.now {
                work += before;
                visit.work += if other.request.priority > priority { own } else { 0 };
            }
        }
        self.clients[i].now = Some(Visit::new(id, inbox, self.turn, work));
    }

    /// Comes again later, if they want to.
    fn again(&mut self, group: &[usize]) -> bool {
        if self.clients[group[0]].retries == 0 {
            return false;
        }
        group.iter().for_each(|i| self.clients[*i].end = None);
        self.clients[group[0]].retries -= 1;
        self.tally.retries += 1;
        let at = self.device.now + below(&mut self.draws, 1000) as f64 / 200.0;
        let place = self.to_come.partition_point(|(other, _)| *other > at);
        self.to_come.insert(place, (at, group.to_vec()));
        true
    }

    fn refuse(&mut self, group: &[usize]) {
        self.tally.refused += group.len() as u64;
        group.iter().for_each(|i| self.clients[*i].end = Some(End::Refused));
    }

    /// Whoever leaves does so when a step has been committed, and perhaps not said.
    fn leave(&mut self) -> Result<(), String> {
        for i in 0..self.clients.len() {
            let client = &mut self.clients[i];
            let Some(visit) = &client.now else { continue };
            let id = visit.id;
            if client.leaves_after.is_none_or(|after| self.turn - visit.since < after) {
                continue;
            }
            client.leaves_after = None;
            let ended = client.read(self.turn, None).map_err(|e| format!("client {i} {e}"))?;
            let unsaid = self.turns.unsaid();
            self.turns.abort(id, Cost::default());
            self.tally.left_unsaid += (unsaid - self.turns.unsaid()) as u64;
            if ended {
                self.settle(i)?;
                continue;
            }
            let client = &mut self.clients[i];
            let mut visit = client.now.take().expect("it has not ended");
            if !is_parting(&mut visit.inbox) {
                return Err(format!("client {i} left and is told more than that"));
            }
            client.end = Some(End::Left);
            self.tally.left += 1;
        }
        Ok(())
    }

    /// Everyone, or everyone whose turn it is, looks into the inbox.
    fn read(&mut self, everyone: bool) -> Result<(), String> {
        for i in 0..self.clients.len() {
            let client = &mut self.clients[i];
            if client.now.is_none() || !(everyone || self.turn.is_multiple_of(client.reads_every)) {
                continue;
            }
            if client.read(self.turn, self.death.as_deref()).map_err(|e| format!("client {i} {e}"))? {
                self.settle(i)?;
            }
        }
        Ok(())
    }

    /// One has come to its end.
    fn settle(&mut self, i: usize) -> Result<(), String> {
        let spoiled = self.device.spoiled.contains(&(i as u64));
        self.tally.print =
            self.tally.print.rotate_left(7) ^ (self.turn << 20) ^ i as u64 ^ self.device.now.to_bits();
        match &self.clients[i].end {
            Some(End::Answered) if spoiled => Err(format!("client {i} was answered from a spoilt row")),
            Some(End::Answered) => {
                self.tally.answered += 1;
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
            other => Err(format!("client {i} ended as {other:?}")),
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let scheduler = self.turns.pipeline().scheduler();
        // Recounting a large server is dear.
        if self.config.num_blocks <= 20 || self.turn.is_multiple_of(16) {
            scheduler.check_integrity()?;
        }
        let counts = scheduler.counts();
        if counts.blocks_free + counts.blocks_used + counts.blocks_cached != counts.blocks_total {
            return Err(format!("blocks are lost: {counts:?}"));
        }
        let owed = self.clients.iter().filter_map(|client| client.now.as_ref());
        let owed = owed.filter(|visit| !visit.inbox.is_closed()).count();
        if owed != self.turns.open() {
            return Err(format!("{owed} wait for an answer, {} accounts are open", self.turns.open()));
        }
        self.check_fairness()
    }

    /// Nobody waits for those behind; of equal priority nobody begins before whoever came before.
    fn check_fairness(&mut self) -> Result<(), String> {
        let prompt = self.clients.iter().enumerate().filter(|(_, client)| client.reads_every == 1);
        let visits = prompt.filter_map(|(i, client)| Some((i, client, client.now.as_ref()?)));
        let mut first_unbegun = std::collections::BTreeMap::new();
        let mut begun = Vec::new();
        for (i, client, visit) in visits {
            let (steps, work) = ((self.turn - visit.since) as f64, visit.work as f64);
            self.tally.longest = self.tally.longest.max(steps / work);
            if steps > FAIRNESS * work {
                return Err(format!("client {i} waits for {steps} steps, of {work} tokens"));
            }
            let priority = client.request.priority;
            match visit.begun {
                Some(turn) if turn == self.turn => begun.push((i, priority, visit.id)),
                Some(_) => {}
                // Whoever is only to be scored begins nothing.
                None if client.expected.tokens.is_empty() => {}
                None => {
                    let first = first_unbegun.entry(priority).or_insert((visit.id, i));
                    *first = (*first).min((visit.id, i));
                }
            }
        }
        for (i, priority, id) in begun {
            if let Some((earlier, other)) = first_unbegun.get(&priority).filter(|(earlier, _)| *earlier < id)
            {
                return Err(format!(
                    "client {i}, request {}, began before {other}, request {}",
                    id.0, earlier.0
                ));
            }
        }
        Ok(())
    }

    /// The engine ends: everyone gets the reason, once, and some come again to the next.
    fn die(&mut self, reason: &str) -> Result<(), String> {
        self.death = Some(reason.to_owned());
        self.turns.answer(&mut |_, _| ());
        self.turns.fail(reason, |_| Cost::default());
        if self.turns.open() != 0 {
            return Err(format!("{} accounts outlive the engine", self.turns.open()));
        }
        let open: Vec<usize> = (0..self.clients.len()).filter(|i| self.clients[*i].now.is_some()).collect();
        self.read(true)?;
        for i in open {
            let client = &self.clients[i];
            if client.now.is_some() || client.end.is_none() {
                return Err(format!("client {i} was not told of the end"));
            }
            let killed = matches!(&client.end, Some(End::Failed(why)) if why == reason);
            if killed {
                self.again(&[i]);
            }
        }
        Ok(())
    }
}

type Inbox = mpsc::UnboundedReceiver<Update>;

/// Whether nothing is there and nothing can come.
fn is_closed(inbox: &mut Inbox) -> bool {
    matches!(inbox.try_recv(), Err(mpsc::error::TryRecvError::Disconnected))
}

/// Whether all that is there ends with what a client that has left has cost, and nothing can come.
fn is_parting(inbox: &mut Inbox) -> bool {
    while let Ok(update) = inbox.try_recv() {
        if update.finish.is_some() {
            return update.token.is_none() && is_closed(inbox);
        }
    }
    false
}

/// What follows a turn.
enum Next {
    Turn,
    /// Nobody is there and nobody will come.
    Rest,
    /// The engine has ended with this.
    Death(String),
}
