//! Groups of threads of one process. They exchange data through host memory, at a barrier, and sum in rank
//! order.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Communicator, GroupBuffers, ResidualUpdate};
use crate::device::cpu::zeros;
use crate::device::{ActQuant, Device, DeviceError, Floats, Norm, PEER};

/// A rank of a group of threads.
#[derive(Debug)]
pub struct Local {
    rank: usize,
    group: Arc<ThreadGroup>,
}

#[derive(Debug)]
struct ThreadGroup {
    /// Each rank's operand of the current operation.
    parts: Vec<Mutex<Vec<f32>>>,
    barrier: Mutex<BarrierState>,
    /// Notified when a round of the barrier ends and when a rank leaves.
    changed: Condvar,
    /// The time that a rank waits at the barrier for the others.
    timeout: Duration,
}

/// The state of the barrier at which all ranks wait for one another.
#[derive(Debug)]
struct BarrierState {
    /// For each rank, whether it waits in the current round.
    arrived: Vec<bool>,
    /// The number of complete rounds.
    rounds: u64,
    /// The first rank that was dropped. No later round can complete.
    left: Option<usize>,
}

impl Local {
    /// Makes a group of `size` ranks, each of which waits at most `timeout` for the others.
    pub fn group(size: usize, timeout: Duration) -> Vec<Self> {
        let group = Arc::new(ThreadGroup {
            parts: (0..size).map(|_| Mutex::default()).collect(),
            barrier: Mutex::new(BarrierState { arrived: vec![false; size], rounds: 0, left: None }),
            changed: Condvar::new(),
            timeout,
        });
        (0..size).map(|rank| Self { rank, group: Arc::clone(&group) }).collect()
    }

    fn size(&self) -> usize {
        self.group.parts.len()
    }

    /// Σ over ranks of x, in F32, whatever the type of `x`.
    fn sum<D: Device>(&self, device: &D, x: &Floats<D>) -> Result<Vec<f32>, DeviceError> {
        let part = device.read(x)?;
        let mut sum: Vec<f32> = zeros(part.len())?;
        self.exchange(part, |_, part| sum.iter_mut().zip(part).for_each(|(s, p)| *s += p))?;
        Ok(sum)
    }

    /// Publishes this rank's part and calls `take` with each rank's part, in rank order.
    pub(super) fn exchange(
        &self,
        part: Vec<f32>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), DeviceError> {
        let parts = &self.group.parts;
        *locked(&parts[self.rank]) = part;
        self.barrier()?;
        for (rank, part) in parts.iter().enumerate() {
            take(rank, &locked(part));
        }
        // No rank publishes its next part before all ranks have read this one.
        self.barrier()
    }

    /// Waits until every rank is at the barrier. The error names a rank that is not there.
    pub(super) fn barrier(&self) -> Result<(), DeviceError> {
        let ThreadGroup { barrier, changed, timeout, .. } = &*self.group;
        let mut state = locked(barrier);
        state.arrived[self.rank] = true;
        let round = state.rounds;
        if state.left.is_none() && state.arrived.iter().all(|here| *here) {
            state.arrived.fill(false);
            state.rounds += 1;
            changed.notify_all();
            return Ok(());
        }
        let waits = |state: &mut BarrierState| state.rounds == round && state.left.is_none();
        let (state, wait) =
            changed.wait_timeout_while(state, *timeout, waits).unwrap_or_else(PoisonError::into_inner);
        match state.left {
            _ if state.rounds > round => Ok(()),
            Some(rank) => Err(DeviceError::peer_has_ended(rank)),
            None if wait.timed_out() => {
                let missing = state.arrived.iter().position(|here| !here).unwrap_or(self.rank);
                Err(DeviceError::peer_is_late(missing, *timeout))
            }
            None => Err(DeviceError { op: PEER, message: "woken before the round ended".to_owned() }),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        locked(&self.group.barrier).left.get_or_insert(self.rank);
        self.group.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> Communicator<D> for Local {
    // Data goes through host memory.
    const CAPTURES: bool = false;

    fn register(&self, _buffers: GroupBuffers<'_, D>) -> Result<(), DeviceError> {
        self.barrier()
    }

    fn all_reduce(&self, device: &D, x: &mut Floats<D>) -> Result<(), DeviceError> {
        if self.size() == 1 {
            return Ok(());
        }
        device.write(&self.sum(device, x)?, x)
    }

    fn reduce_norm(
        &self,
        device: &D,
        update: ResidualUpdate<'_, D>,
        norm: &Norm<D>,
        quant: ActQuant,
        out: &mut D::Acts,
    ) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        if self.size() == 1 {
            return device.norm(residual, Some(delta), norm, quant, out);
        }
        self.reduce_add(device, ResidualUpdate { residual: &mut *residual, delta })?;
        device.norm(residual, None, norm, quant, out)
    }

    fn reduce_add(&self, device: &D, update: ResidualUpdate<'_, D>) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        if self.size() == 1 {
            return device.add(std::slice::from_ref(delta), residual);
        }
        // The sum of BF16 parts is not rounded to BF16, so it cannot take the place of a part.
        let mut updated = device.read(residual)?;
        updated.iter_mut().zip(self.sum(device, delta)?).for_each(|(r, s)| *r += s);
        device.write(&updated, residual)
    }

    fn all_gather(&self, device: &D, part: &Floats<D>, whole: &mut Floats<D>) -> Result<(), DeviceError> {
        let size = self.size();
        let cols = part.cols();
        let part = device.read(part)?;
        let mut joined: Vec<f32> = zeros(part.len() * size)?;
        self.exchange(part, |rank, part| {
            for (row, part) in part.chunks_exact(cols).enumerate() {
                joined[(row * size + rank) * cols..][..cols].copy_from_slice(part);
            }
        })?;
        device.write(&joined, whole)
    }
}
