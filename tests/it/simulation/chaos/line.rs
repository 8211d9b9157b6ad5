//! Who waits and who starts, seen from outside, and what `src/scheduler/fair_queue.rs` promises of it.
//!
//! - Whoever starts for the first time has the first class of all that wait, as priorities and ages make it, and of its
//!   own tenant's of that class nobody came before it. So of two of a tenant the later one never starts first once the
//!   earlier one has waited as many times the steps of ageing as their priorities are apart.
//! - Nobody is preempted more often than may be, which is never where all blocks are reserved.
//! - Where all are of one priority, two tenants that both have requests waiting for their first start are served alike by
//!   their weights, within the bound that is stated.

use std::collections::{BTreeMap, BTreeSet};

use octant::engine::RequestId;
use octant::request::{Request, Update};
use octant::scheduler::fair_queue::{OUTPUT_COST, PROMPT_COST};
use octant::scheduler::step_plan::{BLOCK_TOKENS, StepPlan};
use octant::scheduler::{Scheduler, SchedulerConfig};

use super::asked::TENANTS;
use super::tally::Tally;

/// One that has been taken and has not ended.
struct Member {
    tenant: usize,
    priority: i32,
    prompt: usize,
    /// Steps planned when it came.
    arrived: u64,
    /// Times that it has started.
    starts: u32,
}

/// A plan with starts, as it was when it had been made.
struct Made {
    step: u64,
    /// Whether somebody gave up blocks for it.
    preempts: bool,
    starts: Vec<RequestId>,
    holders: BTreeSet<RequestId>,
    waiting: usize,
}

/// Two tenants for as long as both wait: how far what they were served has been apart since, least and most.
type Window = Option<(f64, f64)>;

/// Of one life.
pub struct Line {
    ageing: u64,
    /// Times that one may be preempted.
    preemptions: u32,
    /// The same, whatever is reserved.
    exposures: u32,
    /// By how much shares may differ for a tenant of weight 1; `None` where there is no such bound.
    bound: Option<f64>,
    /// What a step may add to a share that is not seen at once.
    unseen: f64,
    /// Of everyone that was ever taken, its tenant.
    tenants: BTreeMap<RequestId, usize>,
    open: BTreeMap<RequestId, Member>,
    /// Those that run, and the order in which they do: those behind give up their blocks first.
    running: BTreeMap<RequestId, (bool, i64, RequestId)>,
    /// Whether nothing is in flight when a step is planned: whoever gives up its blocks then does so at once.
    at_once: bool,
    preempted: u64,
    /// Those that were ever preempted.
    restarted: BTreeSet<RequestId>,
    made: Vec<Made>,
    /// By tenant: by its weight what it was served, and its requests that wait for their first start.
    served: [f64; TENANTS.len()],
    waiting: [usize; TENANTS.len()],
    windows: [[Window; TENANTS.len()]; TENANTS.len()],
    wrong: Option<String>,
}

impl Line {
    /// Shares are bounded where `flat`: all are of one priority.
    pub fn new(config: &SchedulerConfig, flat: bool, longest: usize, in_flight: usize) -> Self {
        let cache = config.num_blocks * BLOCK_TOKENS;
        let unit = (PROMPT_COST * longest as u64).max(OUTPUT_COST * cache as u64);
        Self {
            ageing: config.policy.ageing_steps,
            exposures: config.policy.max_preemptions,
            // Whose blocks are all reserved never gives them up.
            preemptions: if config.policy.kv_reserve < 1.0 { config.policy.max_preemptions } else { 0 },
            bound: flat.then_some(2.0 * unit as f64),
            unseen: (OUTPUT_COST * config.max_num_seqs as u64) as f64,
            tenants: BTreeMap::new(),
            open: BTreeMap::new(),
            running: BTreeMap::new(),
            at_once: in_flight == 1,
            preempted: 0,
            restarted: BTreeSet::new(),
            made: Vec::new(),
            served: [0.0; TENANTS.len()],
            waiting: [0; TENANTS.len()],
            windows: [[None; TENANTS.len()]; TENANTS.len()],
            wrong: None,
        }
    }

    pub fn arrive(&mut self, id: RequestId, request: &Request, tenant: usize, arrived: u64) {
        let (priority, prompt) = (request.priority, request.prompt.len());
        self.tenants.insert(id, tenant);
        self.open.insert(id, Member { tenant, priority, prompt, arrived, starts: 0 });
        self.waiting[tenant] += 1;
    }

    /// It has left, or its time is up; so many updates for it will not be said.
    pub fn leave(&mut self, id: RequestId, unsaid: usize) {
        self.serve(id, OUTPUT_COST * unsaid as u64);
        self.running.remove(&id);
        if let Some(member) = self.open.remove(&id).filter(|member| member.starts == 0) {
            self.wait_less(member.tenant);
        }
    }

    /// Whether it has started, if it is there.
    pub fn has_started(&self, id: RequestId) -> Option<bool> {
        self.open.get(&id).map(|member| member.starts > 0)
    }

    /// Whether it was ever preempted, ended or not.
    pub fn was_preempted(&self, id: RequestId) -> bool {
        self.restarted.contains(&id)
    }

    /// Whether one that comes now with this priority can start before that one, of its tenant, however long both wait.
    pub fn may_pass(&self, id: RequestId, priority: i32, steps: u64) -> bool {
        let Some(member) = self.open.get(&id) else { return true };
        let apart = i64::from(member.priority) - i64::from(priority);
        let lifted = (steps - member.arrived).checked_div(self.ageing);
        apart > 0 && lifted.is_none_or(|lifts| (lifts as i64) < apart)
    }

    fn serve(&mut self, id: RequestId, cost: u64) {
        let tenant = self.tenants[&id];
        self.served[tenant] += cost as f64 / f64::from(TENANTS[tenant].1);
    }

    fn wait_less(&mut self, tenant: usize) {
        self.waiting[tenant] -= 1;
        if self.waiting[tenant] == 0 {
            self.windows[tenant] = [None; TENANTS.len()];
            self.windows.iter_mut().for_each(|windows| windows[tenant] = None);
        }
    }

    /// Takes note of updates that are about to be published, and checks the plans made since the last ones.
    pub fn publishing(&mut self, updates: &[(RequestId, Update)], tally: &mut Tally) {
        for (id, update) in updates {
            self.serve(*id, OUTPUT_COST * update.tokens.len() as u64);
            if update.finish.is_some() {
                // It has started, or it left the queue when its deadline passed.
                self.open.remove(id);
                self.running.remove(id);
            }
        }
        for made in std::mem::take(&mut self.made) {
            let checked = self.check_victims(&made).and_then(|()| self.check_starts(&made, tally));
            if let Err(why) = checked {
                self.wrong.get_or_insert(why);
            }
        }
        self.compare(tally);
    }

    /// Takes note of a launched plan with the requests of its rows.
    pub fn launched(&mut self, scheduler: &Scheduler, plan: &StepPlan, ids: &[RequestId]) {
        let rows = plan.rows.iter().zip(ids);
        let starts: Vec<RequestId> = rows.filter(|(row, _)| row.start.is_some()).map(|(_, id)| *id).collect();
        let counts = scheduler.counts();
        let preempts = counts.preemptions > self.preempted;
        self.preempted = counts.preemptions;
        if starts.is_empty() && !preempts {
            return;
        }
        for id in &starts {
            let Some(member) = self.open.get_mut(id) else { continue };
            member.starts += 1;
            if member.starts > 1 {
                self.restarted.insert(*id);
                continue;
            }
            let (tenant, cost) = (member.tenant, PROMPT_COST * member.prompt as u64);
            self.serve(*id, cost);
            self.wait_less(tenant);
        }
        let holders = scheduler.holdings().map(|(id, _)| id).collect();
        self.made.push(Made { step: plan.id, preempts, starts, holders, waiting: counts.waiting });
    }

    /// Whoever gave up its blocks was behind all that kept them.
    fn check_victims(&mut self, made: &Made) -> Result<(), String> {
        if !(made.preempts && self.at_once) {
            return Ok(());
        }
        let kept = self.running.iter().filter(|(id, _)| made.holders.contains(id));
        let last = kept.filter(|(id, _)| !made.starts.contains(id)).map(|(_, order)| *order).max();
        let lost = self.running.iter().filter(|(id, _)| !made.holders.contains(id));
        let first = lost.map(|(_, order)| *order).min();
        self.running.retain(|id, _| made.holders.contains(id));
        match (first, last) {
            (Some(first), Some(last)) if first < last => Err(format!(
                "in step {} {first:?} gave up its blocks, and {last:?} behind it kept them",
                made.step
            )),
            _ => Ok(()),
        }
    }

    /// Those that started did so one after the other, each before all that then waited.
    fn check_starts(&mut self, made: &Made, tally: &mut Tally) -> Result<(), String> {
        let waited = self.open.iter().filter(|(id, _)| !made.holders.contains(id));
        let mut waiting: BTreeMap<RequestId, &Member> = waited.map(|(id, member)| (*id, member)).collect();
        if waiting.len() != made.waiting {
            return Err(format!("{} wait in step {}, seen {}", made.waiting, made.step, waiting.len()));
        }
        for id in made.starts.iter().rev() {
            let Some(member) = self.open.get(id) else { return Err(format!("request {} starts", id.0)) };
            if member.starts > 1 + self.preemptions {
                return Err(format!("request {} starts {} times", id.0, member.starts));
            }
            waiting.insert(*id, member);
            let top = waiting.values().map(|member| member.priority).min().unwrap_or(0);
            let class = |member: &Member| {
                let lifts = (made.step - member.arrived).checked_div(self.ageing).unwrap_or(0);
                (i64::from(member.priority) - lifts as i64).max(top.into())
            };
            self.running.insert(*id, (member.starts <= self.exposures, class(member), *id));
            for (other, behind) in waiting.iter().filter(|(other, _)| *other != id) {
                let came_before = behind.tenant == member.tenant && other < id;
                if class(behind) < class(member) || came_before && class(behind) == class(member) {
                    return Err(format!(
                        "request {} starts in step {} before request {}, of priorities {} and {}, arrived in {} and {}",
                        id.0,
                        made.step,
                        other.0,
                        member.priority,
                        behind.priority,
                        member.arrived,
                        behind.arrived
                    ));
                }
                tally.passed += u64::from(other < id && behind.priority > member.priority);
                tally.aged += u64::from(behind.priority < member.priority);
            }
        }
        Ok(())
    }

    fn compare(&mut self, tally: &mut Tally) {
        let Some(bound) = self.bound else { return };
        for (a, (_, weight)) in TENANTS.iter().enumerate() {
            for (b, (_, other)) in TENANTS.iter().enumerate().skip(a + 1) {
                if self.waiting[a] == 0 || self.waiting[b] == 0 {
                    continue;
                }
                let apart = self.served[a] - self.served[b];
                let (least, most) = self.windows[a][b].unwrap_or((apart, apart));
                let (least, most) = (least.min(apart), most.max(apart));
                self.windows[a][b] = Some((least, most));
                let allowed = (bound + self.unseen) / f64::from(*weight.min(other));
                tally.compared += 1;
                tally.apart = tally.apart.max((most - least) / allowed);
                if most - least > allowed {
                    self.wrong.get_or_insert(format!(
                        "tenants {a} and {b} were served {} apart, at most {allowed}",
                        most - least
                    ));
                }
            }
        }
    }

    pub fn check(&mut self) -> Result<(), String> {
        self.wrong.take().map_or(Ok(()), Err)
    }
}
