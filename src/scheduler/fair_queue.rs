//! Who is next among those that wait: priorities that age, and between tenants of one class a virtual token counter
//! (VTC, Sheng et al. 2024).
//!
//! A tenant's counter is what it has been served, [`PROMPT_COST`] for each prompt token when its sequence first starts
//! and [`OUTPUT_COST`] for each token generated, divided by its weight. The tenant of the least counter goes first, and
//! within a tenant who came first. One that had nothing waiting of a priority or a higher one is lifted, when it has, to
//! the least counter of those that had, so that nobody saves up. With one tenant this is the order of arrival.
//!
//! A class is a priority; smaller goes first. For every so many steps that a request has waited it is lifted by one, up
//! to the first class that anyone waiting was given, where counters decide. So it may bring a request before those of a
//! higher class, but a tenant with a long queue never before a tenant with a short one.
//!
//! What follows, and is tested, with N the steps of ageing:
//! - Fairness: with U = max(PROMPT_COST × longest prompt, OUTPUT_COST × tokens that the KV cache holds), while two tenants
//!   of one class both have requests waiting, what they were served, by their weights, differs by at most 2 U over any
//!   time: the counters' distance is at most U.
//! - Starvation: a request of priority p competes, after N (p - q) steps, as if it had the priority q < p, however many of
//!   priority q come. From there the bound above holds between tenants, and of its own tenant's requests of the same
//!   class none that came later goes before it.
//!
//! Names of tenants that clients may choose freely are a share each for the asking: between clients that do not trust
//! one another the tenant must be the key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::error::IntegrityError;
use super::sequence::{Order, Sequence};
use crate::request::Tenant;

/// Of a prompt token.
pub const PROMPT_COST: u64 = 1;
/// Of a generated token, for which weights and cache are read again.
pub const OUTPUT_COST: u64 = 2;

/// A token's cost for a tenant of weight 1: divided by any weight it is still a number of many digits.
const SCALE: u64 = 1 << 20;
/// Counters that are kept of tenants with nothing to do. Beyond, all of those are forgotten, and their debts with them.
const IDLE_COUNTERS: usize = 1024;

/// What each tenant has been served.
#[derive(Debug, Default)]
struct Counters {
    of: HashMap<Arc<str>, u64>,
    /// The greatest with which a tenant's sequence has started, as it was before.
    last: u64,
}

/// Those that wait. All of a tenant and a priority are in order of arrival, and stay so however they age: only the first
/// of each such line can be next.
#[derive(Default)]
pub(super) struct FairQueue {
    waiting: BTreeMap<u64, Sequence>,
    lines: BTreeMap<(Arc<str>, i32), BTreeSet<u64>>,
    counters: Counters,
    /// Tokens generated and not charged yet, and for whom: rows side by side are often one tenant's.
    owed: Option<(Tenant, u64)>,
}

/// What would be before a request that came now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Requests.
    pub requests: usize,
    /// Their prompts' tokens.
    pub tokens: usize,
}

impl FairQueue {
    /// One that waits, for the first time or again.
    pub(super) fn arrive(&mut self, sequence: Sequence) {
        self.lift(&sequence.tenant().name, sequence.priority());
        let (line, arrival) = (line(&sequence), sequence.order.sequence_number);
        self.lines.entry(line).or_default().insert(arrival);
        self.waiting.insert(arrival, sequence);
    }

    pub(super) fn remove(&mut self, order: &Order) -> Option<Sequence> {
        let sequence = self.waiting.remove(&order.sequence_number)?;
        let key = line(&sequence);
        if let Some(line) = self.lines.get_mut(&key) {
            line.remove(&order.sequence_number);
            if line.is_empty() {
                self.lines.remove(&key);
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

    /// Who is next after so many steps, and the class it has by then.
    pub(super) fn first(&self, step: u64, ageing: u64) -> Option<(Order, i64)> {
        let top = i64::from(self.lines.keys().map(|(_, priority)| *priority).min()?);
        let place = |((name, priority), line): (&(Arc<str>, i32), &BTreeSet<u64>)| {
            let sequence = &self.waiting[line.first()?];
            let class = aged(*priority, step - sequence.arrived_at_step, ageing).max(top);
            Some((class, self.counters.get(name), sequence.order.sequence_number, sequence.order))
        };
        let (class, _, _, order) = self.lines.iter().filter_map(place).min()?;
        Some((order, class))
    }

    /// The tenant and the priority of all that wait, where those of all are the same.
    pub(super) fn only_line(&self) -> Option<&(Arc<str>, i32)> {
        self.lines.keys().next().filter(|_| self.lines.len() == 1)
    }

    /// What would be before a request of this tenant and priority: all of a higher class, its tenant's others, and of
    /// every other tenant as many, and one more, since they take turns. An estimate: turns are counted in tokens.
    pub(super) fn ahead(&self, tenant: &str, priority: i32, step: u64, ageing: u64) -> Ahead {
        let most = self.lines.keys().map(|(_, priority)| *priority).fold(priority, i32::min);
        let top = i64::from(most);
        // How many of a line have a class that is at most so.
        let up_to = |((_, of), line): (&(Arc<str>, i32), &BTreeSet<u64>), class: i64| {
            let is = |arrival: &&u64| {
                aged(*of, step - self.waiting[*arrival].arrived_at_step, ageing).max(top) <= class
            };
            line.iter().take_while(is).count()
        };
        let class = i64::from(priority);
        let own = self.lines.iter().filter(|((name, _), _)| &**name == tenant);
        let own: usize = own.map(|line| up_to(line, class)).sum();
        let mut ahead = Ahead::default();
        for (key, line) in &self.lines {
            let level = up_to((key, line), class);
            let turns = if &*key.0 == tenant { level } else { level.min(own + 1) };
            for arrival in line.iter().take(turns.max(up_to((key, line), class - 1))) {
                ahead.requests += 1;
                ahead.tokens += self.waiting[arrival].prompt_len();
            }
        }
        ahead
    }

    /// A sequence of the tenant starts for the first time.
    pub(super) fn charge_prompt(&mut self, tenant: &Tenant, tokens: usize) {
        self.counters.last = self.counters.get(&tenant.name).max(self.counters.last);
        self.counters.charge(tenant, PROMPT_COST * tokens as u64);
    }

    /// A token was generated for the tenant; charged at the latest by `settle`.
    pub(super) fn charge_output(&mut self, tenant: &Tenant) {
        match &mut self.owed {
            // Two names that are one string are equal without being read.
            Some((of, tokens)) if of == tenant => *tokens += 1,
            _ => {
                self.settle();
                self.owed = Some((tenant.clone(), 1));
            }
        }
    }

    /// Charges what is owed: before anyone is compared.
    pub(super) fn settle(&mut self) {
        if let Some((tenant, tokens)) = self.owed.take() {
            self.counters.charge(&tenant, OUTPUT_COST * tokens);
        }
    }

    /// Nobody has anything to do: all begin alike.
    pub(super) fn forget(&mut self) {
        self.counters = Counters::default();
    }

    /// Before one of this priority waits. Those of lower ones have been served less because of that, and lend it to nobody.
    fn lift(&mut self, name: &Arc<str>, priority: i32) {
        let waits = |name: &Arc<str>| {
            let line = self.lines.range((Arc::clone(name), i32::MIN)..).next();
            line.is_some_and(|((of, highest), _)| of == name && *highest <= priority)
        };
        if waits(name) {
            return;
        }
        let level = self.lines.keys().filter(|(_, of)| *of <= priority);
        let least = level.map(|(name, _)| self.counters.get(name)).min();
        let counter = self.counters.get(name).max(least.unwrap_or(self.counters.last));
        if self.counters.of.len() > IDLE_COUNTERS + self.lines.len() {
            let waiting: BTreeSet<&Arc<str>> = self.lines.keys().map(|(name, _)| name).collect();
            self.counters.of.retain(|name, _| waiting.contains(name));
        }
        self.counters.of.insert(Arc::clone(name), counter);
    }

    /// Whether lines and those who wait are the same.
    pub(super) fn check(&self) -> Result<(), IntegrityError> {
        let in_line: usize = self.lines.values().map(BTreeSet::len).sum();
        if in_line != self.waiting.len() {
            return Err(IntegrityError(format!("{} wait, {in_line} in line", self.waiting.len())));
        }
        let lost = |sequence: &&Sequence| {
            !self
                .lines
                .get(&line(sequence))
                .is_some_and(|line| line.contains(&sequence.order.sequence_number))
        };
        match self.waiting.values().find(lost) {
            Some(sequence) => Err(IntegrityError(format!("request {} waits in no line", sequence.id.0))),
            None => Ok(()),
        }
    }
}

impl Counters {
    fn get(&self, name: &str) -> u64 {
        self.of.get(name).copied().unwrap_or(0)
    }

    fn charge(&mut self, tenant: &Tenant, cost: u64) {
        // One that was forgotten while it ran begins where others are.
        let last = self.last;
        let counter = self.of.entry(Arc::clone(&tenant.name)).or_insert(last);
        *counter = counter.saturating_add(cost * SCALE / u64::from(tenant.weight.max(1)));
    }
}

fn line(sequence: &Sequence) -> (Arc<str>, i32) {
    (Arc::clone(&sequence.tenant().name), sequence.priority())
}

/// The class of a priority after so many steps; `ageing` 0 is never.
fn aged(priority: i32, waited: u64, ageing: u64) -> i64 {
    let lifts = waited.checked_div(ageing).unwrap_or(0);
    i64::from(priority).saturating_sub(i64::try_from(lifts).unwrap_or(i64::MAX))
}
