//! Checks the order in which requests start against the guarantees of `src/scheduler/fair_queue.rs`, from
//! plans alone.
//!
//! - A request that starts for the first time has the best class of all waiting requests, by priority and
//!   age, and is the earliest of its tenant in that class. So of two requests of one tenant, the later never
//!   starts first once the earlier has waited `ageing_steps` times the difference of their priorities, in
//!   steps.
//! - No request is preempted more often than allowed, and never if all its blocks are reserved.
//! - Requests of batches start only when no live request waits. They do not age, and live requests preempt
//!   them as often as they need. They are preempted before any live request.
//! - If all requests have one priority, two tenants with live requests that wait for their first start are
//!   served in proportion to their weights, within the documented bound.

use std::collections::{BTreeMap, BTreeSet};

use octant::engine::RequestId;
use octant::request::{Request, Update};
use octant::scheduler::fair_queue::{OUTPUT_COST, PROMPT_COST};
use octant::scheduler::step_plan::{BLOCK_TOKENS, StepPlan};
use octant::scheduler::{Scheduler, SchedulerConfig};

use super::asked::TENANTS;
use super::tally::Tally;

/// An open request.
struct Member {
    batch: bool,
    tenant: usize,
    priority: i32,
    prompt: usize,
    /// Number of steps that had been planned when the request was submitted.
    arrived: u64,
    /// How often the request has started.
    starts: u32,
}

/// A plan with starts or preemptions.
struct Made {
    step: u64,
    /// Whether a sequence was preempted when the plan was made.
    preempts: bool,
    starts: Vec<RequestId>,
    holders: BTreeSet<RequestId>,
    waiting: usize,
}

/// The least and the greatest difference of two tenants' service while both wait.
type Window = Option<(f64, f64)>;

/// The open requests of one engine, and the order of their starts.
pub struct QueueOrder {
    ageing: u64,
    /// How often a request may be preempted.
    preemptions: u32,
    /// In this many of its first starts a request is preemptible, whatever blocks are reserved for it.
    preemptible_starts: u32,
    /// The greatest difference of service that a tenant of weight 1 may have; `None` if there is no bound.
    bound: Option<f64>,
    /// The greatest service of one step that the scheduler may have counted before this check counts it.
    unseen: f64,
    /// The tenant of every live request so far.
    tenants: BTreeMap<RequestId, usize>,
    open: BTreeMap<RequestId, Member>,
    /// Running requests with their order: the last ones are preempted first.
    running: BTreeMap<RequestId, (bool, bool, i64, RequestId)>,
    /// Whether no step is in flight when a step is planned: a preempted sequence then frees its blocks at
    /// once.
    at_once: bool,
    preempted: u64,
    /// Requests that were ever preempted.
    restarted: BTreeSet<RequestId>,
    made: Vec<Made>,
    /// By tenant: its service divided by its weight, and its requests that wait for their first start.
    served: [f64; TENANTS.len()],
    waiting: [usize; TENANTS.len()],
    windows: [[Window; TENANTS.len()]; TENANTS.len()],
    wrong: Option<String>,
}

impl QueueOrder {
    /// `flat`: all requests have one priority, so that shares are bounded.
    pub fn new(config: &SchedulerConfig, flat: bool, longest: usize, in_flight: usize) -> Self {
        let cache = config.num_blocks * BLOCK_TOKENS;
        let unit = (PROMPT_COST * longest as u64).max(OUTPUT_COST * cache as u64);
        Self {
            ageing: config.policy.ageing_steps,
            preemptible_starts: config.policy.max_preemptions,
            // A sequence whose blocks are all reserved is never preempted.
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
        self.open.insert(id, Member { batch: request.batch, tenant, priority, prompt, arrived, starts: 0 });
        if !request.batch {
            self.tenants.insert(id, tenant);
            self.waiting[tenant] += 1;
        }
    }

    /// Records a request that was aborted or passed its deadline. Its client does not get the last
    /// `unpublished` updates.
    pub fn leave(&mut self, id: RequestId, unpublished: usize) {
        self.serve(id, OUTPUT_COST * unpublished as u64);
        self.running.remove(&id);
        if let Some(member) = self.open.remove(&id).filter(|member| member.starts == 0 && !member.batch) {
            self.wait_less(member.tenant);
        }
    }

    /// Whether an open request has started.
    pub fn has_started(&self, id: RequestId) -> Option<bool> {
        self.open.get(&id).map(|member| member.starts > 0)
    }

    /// Whether a request was ever preempted.
    pub fn was_preempted(&self, id: RequestId) -> bool {
        self.restarted.contains(&id)
    }

    /// Whether a new request of this priority, of the same tenant and kind, may start before request `id`.
    pub fn may_pass(&self, id: RequestId, priority: i32, steps: u64) -> bool {
        let Some(member) = self.open.get(&id) else { return true };
        let apart = i64::from(member.priority) - i64::from(priority);
        let lifted = (steps - member.arrived).checked_div(self.ageing).filter(|_| !member.batch);
        apart > 0 && lifted.is_none_or(|lifts| (lifts as i64) < apart)
    }

    fn serve(&mut self, id: RequestId, cost: u64) {
        let Some(&tenant) = self.tenants.get(&id) else { return };
        self.served[tenant] += cost as f64 / f64::from(TENANTS[tenant].1);
    }

    fn wait_less(&mut self, tenant: usize) {
        self.waiting[tenant] -= 1;
        if self.waiting[tenant] == 0 {
            self.windows[tenant] = [None; TENANTS.len()];
            self.windows.iter_mut().for_each(|windows| windows[tenant] = None);
        }
    }

    /// Records updates that are about to be published, and checks the plans made since the previous updates.
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
            let checked = self.check_preempted(&made).and_then(|()| self.check_starts(&made, tally));
            if let Err(why) = checked {
                self.wrong.get_or_insert(why);
            }
        }
        self.compare(tally);
    }

    /// Records a launched plan and the requests of its rows.
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
            let (batch, tenant, cost) = (member.batch, member.tenant, PROMPT_COST * member.prompt as u64);
            self.serve(*id, cost);
            if !batch {
                self.wait_less(tenant);
            }
        }
        let holders = scheduler.holdings().map(|(id, _)| id).collect();
        let waiting = counts.waiting + counts.batch_waiting;
        self.made.push(Made { step: plan.id, preempts, starts, holders, waiting });
    }

    /// Checks that every preempted sequence was behind all sequences that kept their blocks.
    fn check_preempted(&mut self, made: &Made) -> Result<(), String> {
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

    /// Checks that each started request came before all that still waited.
    fn check_starts(&mut self, made: &Made, tally: &mut Tally) -> Result<(), String> {
        let waited = self.open.iter().filter(|(id, _)| !made.holders.contains(id));
        let mut waiting: BTreeMap<RequestId, &Member> = waited.map(|(id, member)| (*id, member)).collect();
        if waiting.len() != made.waiting {
            return Err(format!("{} wait in step {}, expected {}", made.waiting, made.step, waiting.len()));
        }
        for id in made.starts.iter().rev() {
            let Some(member) = self.open.get(id) else { return Err(format!("request {} starts", id.0)) };
            if member.starts > 1 + self.preemptions && !member.batch {
                return Err(format!("request {} starts {} times", id.0, member.starts));
            }
            waiting.insert(*id, member);
            let live = waiting.values().filter(|member| !member.batch);
            let top = live.map(|member| member.priority).min().unwrap_or(0);
            let class = |member: &Member| {
                if member.batch {
                    return i64::from(member.priority);
                }
                let lifts = (made.step - member.arrived).checked_div(self.ageing).unwrap_or(0);
                (i64::from(member.priority) - lifts as i64).max(top.into())
            };
            let preemptible = member.starts <= self.preemptible_starts;
            self.running.insert(*id, (member.batch, preemptible, class(member), *id));
            for (other, behind) in waiting.iter().filter(|(other, _)| *other != id) {
                if member.batch && !behind.batch {
                    return Err(format!(
                        "request {} of a batch starts in step {} while {} waits",
                        id.0, made.step, other.0
                    ));
                }
                if behind.batch && !member.batch {
                    tally.overtaken += u64::from(other < id);
                    continue;
                }
                let came_before = behind.tenant == member.tenant && other < id;
                if class(behind) < class(member) || came_before && class(behind) == class(member) {
                    return Err(format!(
                        "request {} (priority {}, arrived in {}) starts in step {} before {} ({}, {})",
                        id.0,
                        member.priority,
                        member.arrived,
                        made.step,
                        other.0,
                        behind.priority,
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
