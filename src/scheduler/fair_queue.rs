//! The waiting queue: priorities with ageing, and fairness between the tenants of one priority class by a
//! virtual token counter (VTC, Sheng et al. 2024).
//!
//! A tenant's counter is the service it has received: [`PROMPT_COST`] for each prompt token, charged when the
//! sequence first starts, and [`OUTPUT_COST`] for each generated token, divided by the tenant's weight. The
//! tenant with the lowest counter goes first; the requests of one tenant go in order of arrival. If a
//! tenant submits a request while it has none waiting of that priority or a higher one, its counter is raised
//! to the lowest counter among the tenants that have one, so that idle time earns no credit. With one tenant
//! the order is the order of arrival.
//!
//! A request's class starts as its priority; a lower class goes first. Every N steps of waiting
//! (`ageing_steps`) lower the class by one, down to the lowest priority number that any waiting request was
//! submitted with. Within that class counters decide. Ageing can therefore bring a request before those of a
//! higher priority, but a tenant with a long queue never gains over a tenant with a short one.
//!
//! Two guarantees follow, and are tested:
//! - Fairness: let U = max(PROMPT_COST × longest prompt, OUTPUT_COST × tokens that the KV cache holds). While
//!   two tenants of one class both have waiting requests, their counters differ by at most U, so the service
//!   they receive over any period, divided by their weights, differs by at most 2 U.
//! - No starvation: after N (p - q) steps a request of priority p competes with priority q < p, however many
//!   requests of priority q arrive. From then on the bound above holds between tenants, and no later request
//!   of the same tenant and class goes before it.
//!
//! A client that may choose its tenant name can claim one share per name. Between clients that do not trust
//! each other the tenant must therefore be derived from the API key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::error::{SchedulerError, broken};
use super::sequence::{Order, Sequence};
use crate::request::Tenant;

/// Cost of a prompt token.
pub const PROMPT_COST: u64 = 1;
/// Cost of a generated token. It is higher because each one reads the weights and the KV cache again.
pub const OUTPUT_COST: u64 = 2;

/// Counter units per unit of cost at weight 1: large enough that dividing by any weight keeps its precision.
const SCALE: u64 = 1 << 20;
/// Limit on the counters kept for tenants without waiting requests. Beyond it all such counters are dropped.
const IDLE_COUNTERS: usize = 1024;

/// Service received, per tenant.
#[derive(Debug, Default)]
struct Counters {
    by_tenant: HashMap<Arc<str>, u64>,
    /// The highest counter of a tenant at the time one of its sequences started, before it was charged.
    last: u64,
}

/// Tenant name and submitted priority: requests that share both are in order of arrival however they age, so
/// only the first of them can be next.
pub(super) type QueueKey = (Arc<str>, i32);

/// The waiting sequences, in one queue per tenant and priority.
#[derive(Default)]
pub(super) struct FairQueue {
    /// The waiting sequences, by sequence number.
    waiting: BTreeMap<u64, Sequence>,
    /// The queue of each tenant and priority: sequence numbers of `waiting`, in order of arrival.
    queues: BTreeMap<QueueKey, BTreeSet<u64>>,
    counters: Counters,
    /// Generated tokens of one tenant that are not charged yet. Neighbouring rows often belong to one tenant,
    /// so charging them together saves look-ups.
    uncharged_output: Option<(Tenant, u64)>,
}

/// Estimated work that a newly submitted request would wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Requests that would start first.
    pub requests: usize,
    /// Prompt tokens of those requests.
    pub tokens: usize,
}

impl FairQueue {
    /// Adds a sequence, new or preempted.
    pub(super) fn push(&mut self, sequence: Sequence) {
        self.lift_counter(&sequence.tenant().name, sequence.priority());
        let number = sequence.order.sequence_number;
        self.queues.entry(queue_key(&sequence)).or_default().insert(number);
        self.waiting.insert(number, sequence);
    }

    pub(super) fn remove(&mut self, order: &Order) -> Option<Sequence> {
        let sequence = self.waiting.remove(&order.sequence_number)?;
        let key = queue_key(&sequence);
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.remove(&order.sequence_number);
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
        Some(sequence)
    }

    pub(super) fn get_mut(&mut self, order: &Order) -> Option<&mut Sequence> {
        self.waiting.get_mut(&order.sequence_number)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.values()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next sequence to start at `step`, and its class after ageing.
    pub(super) fn first(&self, step: u64, ageing: u64) -> Option<(Order, i64)> {
        let top = i64::from(self.queues.keys().map(|(_, priority)| *priority).min()?);
        let head = |((name, priority), queue): (&QueueKey, &BTreeSet<u64>)| {
            let sequence = &self.waiting[queue.first()?];
            let class = aged(*priority, step - sequence.arrived_at_step, ageing).max(top);
            Some((class, self.counters.get(name), sequence.order.sequence_number, sequence.order))
        };
        let (class, _, _, order) = self.queues.iter().filter_map(head).min()?;
        Some((order, class))
    }

    /// The tenant and the priority of all waiting requests, if they all have the same.
    pub(super) fn only_key(&self) -> Option<&QueueKey> {
        self.queues.keys().next().filter(|_| self.queues.len() == 1)
    }

    /// Estimates what would start before a request of this tenant and priority: all requests of a higher
    /// class, all of its own tenant's requests of its class, and one more than these of every other tenant,
    /// since tenants alternate. It is an estimate because the alternation counts tokens, not requests.
    pub(super) fn ahead(&self, tenant: &str, priority: i32, step: u64, ageing: u64) -> Ahead {
        let highest = self.queues.keys().map(|(_, priority)| *priority).fold(priority, i32::min);
        let top = i64::from(highest);
        // The number of a queue's requests in `class` or a higher one.
        let up_to = |((_, priority), queue): (&QueueKey, &BTreeSet<u64>), class: i64| {
            let is_up_to = |number: &&u64| {
                aged(*priority, step - self.waiting[*number].arrived_at_step, ageing).max(top) <= class
            };
            queue.iter().take_while(is_up_to).count()
        };
        let class = i64::from(priority);
        let own = self.queues.iter().filter(|((name, _), _)| &**name == tenant);
        let own: usize = own.map(|queue| up_to(queue, class)).sum();
        let mut ahead = Ahead::default();
        for (key, queue) in &self.queues {
            let level = up_to((key, queue), class);
            let turns = if &*key.0 == tenant { level } else { level.min(own + 1) };
            for number in queue.iter().take(turns.max(up_to((key, queue), class - 1))) {
                ahead.requests += 1;
                ahead.tokens += self.waiting[number].prompt_len();
            }
        }
        ahead
    }

    /// Charges a prompt to the tenant. Called when a sequence starts for the first time.
    pub(super) fn charge_prompt(&mut self, tenant: &Tenant, tokens: usize) {
        self.counters.last = self.counters.get(&tenant.name).max(self.counters.last);
        self.counters.charge(tenant, PROMPT_COST * tokens as u64);
    }

    /// Charges the tenant for generated tokens, at the latest in `flush_charges`.
    pub(super) fn charge_output(&mut self, tenant: &Tenant, generated: usize) {
        if generated == 0 {
            return;
        }
        match &mut self.uncharged_output {
            // Two names that are one string are equal without being read.
            Some((of, tokens)) if of == tenant => *tokens += generated as u64,
            _ => {
                self.flush_charges();
                self.uncharged_output = Some((tenant.clone(), generated as u64));
            }
        }
    }

    /// Applies charges that were put off. Must be called before counters are compared.
    pub(super) fn flush_charges(&mut self) {
        if let Some((tenant, tokens)) = self.uncharged_output.take() {
            self.counters.charge(&tenant, OUTPUT_COST * tokens);
        }
    }

    /// Resets all counters. Called when no request is open.
    pub(super) fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    /// Raises a tenant's counter to the lowest counter among tenants with waiting requests of this priority
    /// or a higher one. Called before a request is added. Tenants with only lower priorities do not count:
    /// they have been served less because of their priority, which must not benefit others.
    fn lift_counter(&mut self, name: &Arc<str>, priority: i32) {
        let first = self.queues.range((Arc::clone(name), i32::MIN)..).next();
        if first.is_some_and(|((tenant, highest), _)| tenant == name && *highest <= priority) {
            return;
        }
        let competing = self.queues.keys().filter(|(_, other)| *other <= priority);
        let least = competing.map(|(name, _)| self.counters.get(name)).min();
        let counter = self.counters.get(name).max(least.unwrap_or(self.counters.last));
        if self.counters.by_tenant.len() > IDLE_COUNTERS + self.queues.len() {
            let waiting: BTreeSet<&Arc<str>> = self.queues.keys().map(|(name, _)| name).collect();
            self.counters.by_tenant.retain(|name, _| waiting.contains(name));
        }
        self.counters.by_tenant.insert(Arc::clone(name), counter);
    }

    /// Checks that `queues` and `waiting` hold the same sequences.
    pub(super) fn check(&self) -> Result<(), SchedulerError> {
        let queued: usize = self.queues.values().map(BTreeSet::len).sum();
        if queued != self.waiting.len() {
            return broken(format!("{} sequences wait, {queued} are queued", self.waiting.len()));
        }
        let lost = |sequence: &&Sequence| {
            let queue = self.queues.get(&queue_key(sequence));
            !queue.is_some_and(|queue| queue.contains(&sequence.order.sequence_number))
        };
        match self.waiting.values().find(lost) {
            Some(sequence) => broken(format!("request {} waits but is not queued", sequence.id.0)),
            None => Ok(()),
        }
    }
}

impl Counters {
    fn get(&self, name: &str) -> u64 {
        self.by_tenant.get(name).copied().unwrap_or(0)
    }

    fn charge(&mut self, tenant: &Tenant, cost: u64) {
        // A counter that was dropped while its sequence ran restarts at the level of the others.
        let last = self.last;
        let counter = self.by_tenant.entry(Arc::clone(&tenant.name)).or_insert(last);
        *counter = counter.saturating_add(cost * SCALE / u64::from(tenant.weight.max(1)));
    }
}

/// The queue that a sequence belongs to.
fn queue_key(sequence: &Sequence) -> QueueKey {
    (Arc::clone(&sequence.tenant().name), sequence.priority())
}

/// The class of a priority after `waited` steps. With `ageing` 0 priorities do not age.
fn aged(priority: i32, waited: u64, ageing: u64) -> i64 {
    let classes = waited.checked_div(ageing).unwrap_or(0);
    i64::from(priority).saturating_sub(i64::try_from(classes).unwrap_or(i64::MAX))
}
