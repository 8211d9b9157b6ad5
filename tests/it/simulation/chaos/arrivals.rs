//! Arrivals, refusals, retries, aborts and deadlines of a world's clients.

use octant::engine::{RequestId, Submission, SubmitOptions};
use octant::request::{Cost, Reject, Update};
use tokio::sync::mpsc;

use super::asked::{self, below, one_in};
use super::client::{End, Visit};
use super::world::World;

/// Steps after which a live request has the slot and the blocks of batches whose rows are in flight.
const YIELD_STEPS: usize = 2;

type Inbox = mpsc::UnboundedReceiver<Update>;

/// Whether the channel is empty and closed.
fn is_closed(inbox: &mut Inbox) -> bool {
    matches!(inbox.try_recv(), Err(mpsc::error::TryRecvError::Disconnected))
}

/// The cost that an aborted request reports, if that is the last update of a closed channel.
fn parting(inbox: &mut Inbox) -> Option<Cost> {
    let all: Vec<Update> = std::iter::from_fn(|| inbox.try_recv().ok()).collect();
    let ended = all.iter().position(|update| update.finish.is_some())? + 1 == all.len();
    (ended && all.last()?.tokens.is_empty() && is_closed(inbox)).then(|| all[all.len() - 1].cost)
}

impl World {
    /// Submits the groups that have arrived by now.
    pub(super) fn arrive(&mut self) -> Result<(), String> {
        while let Some((at, _)) = self.to_come.last()
            && *at <= self.clock.now()
        {
            let (_, group) = self.to_come.pop().expect("it was just looked at");
            self.submit(&group)?;
        }
        Ok(())
    }

    fn submit(&mut self, group: &[usize]) -> Result<(), String> {
        let counts = self.core.scheduler().counts();
        let sound = group.iter().all(|i| asked::sound(&self.clients[*i].request, &self.config));
        let tokens: usize = group.iter().map(|i| self.clients[*i].request.prompt.len()).sum();
        let batch = self.clients[group[0]].request.batch;
        // Batches take no place in the queue and wait as long as they must.
        let too_many = counts.waiting > 0 && counts.waiting + group.len() > self.config.max_queue_requests
            || counts.waiting_tokens > 0 && counts.waiting_tokens + tokens > self.config.max_queue_tokens;
        let full = !batch && too_many;
        if sound && self.is_too_late(group[0])? && !batch {
            self.tally.predicted_late += 1;
            if !self.again(group) {
                self.refuse(group);
            }
            return Ok(());
        }
        let (mut submissions, mut inboxes, mut flush_every_token) = (Vec::new(), Vec::new(), false);
        for &i in group {
            let (updates, inbox) = mpsc::unbounded_channel();
            let id = RequestId(self.ids);
            self.ids += 1;
            flush_every_token = one_in(&mut self.draws, 3);
            submissions.push(Submission { id, request: self.clients[i].request.clone(), updates });
            inboxes.push((i, id, inbox));
        }
        let (first, now) = (&self.clients[group[0]], self.clock.now());
        let options = SubmitOptions {
            received_at: self.clock.instant(now),
            deadline: first.due_after.map(|after| self.clock.instant(now + after)),
            counters: Some(self.costs.counters(first.tenant)),
            flush_every_token,
        };
        let outcome = self.core.submit(submissions, &options, self.clock.instant(now));
        match (&outcome, sound, full) {
            (Ok(()), true, false) | (Err(Reject::Invalid { .. } | Reject::TooLong { .. }), false, _) => {}
            (Err(Reject::QueueFull { .. } | Reject::QueueTokensFull { .. }), true, true) => {}
            _ => return Err(format!("{outcome:?} to a group that is sound: {sound}, a queue full: {full}")),
        }
        if outcome.is_err() {
            // Aborting a request that was never taken has no effect.
            let cost = self.core.abort(inboxes[0].1);
            self.costs.left(inboxes[0].1, cost);
            if inboxes.iter_mut().any(|(_, _, inbox)| !is_closed(inbox)) {
                return Err("a refused request has an open channel".to_owned());
            }
            if sound && self.again(group) {
                return Ok(());
            }
            self.refuse(group);
            return Ok(());
        }
        for (i, id, inbox) in inboxes {
            self.open_visit(i, id, inbox);
        }
        Ok(())
    }

    /// Whether the predicted wait for its first token exceeds the server's limit or the client's deadline.
    fn is_too_late(&mut self, i: usize) -> Result<bool, String> {
        let client = &self.clients[i];
        let seconds = self.core.forecast().first_token(&self.core.queue_state(&client.request));
        if !(seconds.is_finite() && seconds >= 0.0) {
            return Err(format!("client {i} is predicted to wait {seconds} s"));
        }
        let Some(promised) = self.promised else { return Ok(false) };
        Ok(seconds > client.due_after.unwrap_or(f64::INFINITY) || seconds > promised && !self.core.is_idle())
    }

    /// Opens a client's visit and bounds how long it and the others may wait.
    fn open_visit(&mut self, i: usize, id: RequestId, inbox: Inbox) {
        let client = &self.clients[i];
        let (priority, tenant, own) = (client.request.priority, client.tenant, client.work());
        let batch = client.request.batch;
        let counts = self.core.scheduler().counts();
        let mut visit = Visit::new(id, inbox, self.turn);
        let own_bound = if self.load.with_batches && !batch { own + YIELD_STEPS } else { own };
        (visit.work, visit.start_work, visit.recomputed) = (own_bound, own_bound, self.costs.recomputed());
        for other in &mut self.clients {
            let before = other.work();
            let Some(earlier) = &mut other.now else { continue };
            // A live request does not wait for those of batches.
            if batch || !other.request.batch {
                visit.work += before;
                visit.start_work += before;
            }
            if batch && !other.request.batch {
                continue;
            }
            // A running request may sort after a later one: of another tenant, of better priority, by ageing,
            // or because it is of a batch and the later one is not.
            let may_age = self.config.policy.ageing_steps > 0 && !self.flat && !batch;
            let apart = other.tenant != tenant || other.request.batch != batch;
            if apart || other.request.priority > priority || may_age {
                earlier.work += own;
            }
            if apart || self.queue_order.may_pass(earlier.id, priority, counts.steps) {
                earlier.start_work += own;
            }
        }
        let client = &mut self.clients[i];
        visit.due = client.due_after.map(|after| self.clock.now() + after);
        self.queue_order.arrive(id, &client.request, tenant, counts.steps);
        self.costs.open(id, client.request.prompt.len());
        client.now = Some(visit);
    }

    /// Submits a group again later, if its client has retries left.
    pub(super) fn again(&mut self, group: &[usize]) -> bool {
        if self.clients[group[0]].retries == 0 {
            return false;
        }
        group.iter().for_each(|i| self.clients[*i].end = None);
        self.clients[group[0]].retries -= 1;
        self.tally.retries += 1;
        let at = self.clock.now() + below(&mut self.draws, 1000) as f64 / 200.0;
        let place = self.to_come.partition_point(|(other, _)| *other > at);
        self.to_come.insert(place, (at, group.to_vec()));
        true
    }

    pub(super) fn refuse(&mut self, group: &[usize]) {
        self.tally.refused += group.len() as u64;
        group.iter().for_each(|i| self.clients[*i].end = Some(End::Refused));
    }

    /// Aborts requests of clients that leave, while updates may be committed and not published.
    pub(super) fn leave(&mut self) -> Result<(), String> {
        for i in 0..self.clients.len() {
            let client = &mut self.clients[i];
            let Some(visit) = &client.now else { continue };
            let id = visit.id;
            if client.leaves_after.is_none_or(|after| self.turn - visit.since < after) {
                continue;
            }
            client.leaves_after = None;
            let ended = client.read(None).map_err(|e| format!("client {i} {e}"))?;
            let before = self.core.unpublished().len();
            self.costs.hold(&self.core);
            let cost = self.core.abort(id);
            self.costs.left(id, cost);
            let unpublished = before - self.core.unpublished().len();
            self.queue_order.leave(id, unpublished);
            self.tally.left_unpublished += unpublished as u64;
            if let Some(visit) = ended {
                self.settle(i, &visit)?;
                continue;
            }
            let client = &mut self.clients[i];
            let mut visit = client.now.take().expect("it has not ended");
            if parting(&mut visit.inbox) != Some(cost) {
                return Err(format!("client {i} aborted and did not receive {cost:?} as its last update"));
            }
            client.end = Some(End::Left);
            self.check_cost(i, &visit)?;
            self.tally.left += 1;
        }
        Ok(())
    }

    /// Expires requests. Some that the last step finished get a deadline at this very time.
    pub(super) fn expire(&mut self) -> Result<(), String> {
        for seed in std::mem::take(&mut self.device.ended) {
            let client = &mut self.clients[seed as usize];
            let has_deadline = |visit: &&mut Visit| visit.due.is_some() && !visit.inbox.is_closed();
            let Some(visit) = client.now.as_mut().filter(has_deadline) else { continue };
            if one_in(&mut self.draws, 2) {
                visit.due = Some(self.clock.now());
                self.core.set_deadline(visit.id, self.clock.instant(self.clock.now()));
            }
        }
        while let Some((id, ended)) = self.core.expire_next() {
            let visits = self.clients.iter_mut().filter_map(|client| client.now.as_mut());
            let found = visits.into_iter().find(|visit| visit.id == id);
            let Some(visit) = found.filter(|visit| !visit.overdue && !visit.inbox.is_closed()) else {
                return Err(format!("the deadline of request {} passed twice or after its end", id.0));
            };
            visit.overdue = true;
            let started = self.queue_order.has_started(id).unwrap_or(true);
            let begun = visit.tokens > 0 || visit.scores > 0;
            if !ended {
                self.tally.late[3] += 1;
                continue;
            }
            self.queue_order.leave(id, 0);
            self.tally.late[usize::from(started) + usize::from(started && begun)] += 1;
        }
        Ok(())
    }
}
