//! Groups inside one process: one rank alone, or some CPU threads that meet at a barrier and sum in rank order.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Communicator, PEER, did_not_come, has_ended};
use crate::device::{Device, DeviceError};

/// A rank of a group of threads.
#[derive(Debug)]
pub struct Local {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What each rank brings to the operation under way.
    parts: Vec<Mutex<Vec<f32>>>,
    meeting: Mutex<Meeting>,
    /// Told of every end of a meeting, and of whoever leaves.
    changed: Condvar,
    patience: Duration,
}

/// Where all ranks wait for one another.
#[derive(Debug)]
struct Meeting {
    /// Which ranks are there.
    arrived: Vec<bool>,
    /// How many meetings have ended.
    ended: u64,
    /// A rank that has left for good: nobody will ever meet again.
    left: Option<usize>,
}

impl Local {
    /// A group of one: its operations are the identity.
    pub fn alone() -> Self {
        Self::group(1, Duration::MAX).remove(0)
    }

    /// The ranks of a group of `size`, each of which waits for the others for at most `patience`.
    pub fn group(size: usize, patience: Duration) -> Vec<Self> {
        let shared = Arc::new(Shared {
            parts: (0..size).map(|_| Mutex::default()).collect(),
            meeting: Mutex::new(Meeting { arrived: vec![false; size], ended: 0, left: None }),
            changed: Condvar::new(),
            patience,
        });
        (0..size).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// Shows this rank's part to all, and hands each rank's part to `take` in rank order.
    pub(super) fn exchange(
        &self,
        part: Vec<f32>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), DeviceError> {
        let parts = &self.shared.parts;
        *locked(&parts[self.rank]) = part;
        self.meet()?;
        for (rank, part) in parts.iter().enumerate() {
            take(rank, &locked(part));
        }
        // Nobody may bring the next part before everybody has read this one.
        self.meet()
    }

    /// Waits until every rank is here, or says which is not.
    pub(super) fn meet(&self) -> Result<(), DeviceError> {
        let Shared { meeting, changed, patience, .. } = &*self.shared;
        let mut meeting = locked(meeting);
        meeting.arrived[self.rank] = true;
        let round = meeting.ended;
        if meeting.left.is_none() && meeting.arrived.iter().all(|here| *here) {
            meeting.arrived.fill(false);
            meeting.ended += 1;
            changed.notify_all();
            return Ok(());
        }
        let waits = |meeting: &mut Meeting| meeting.ended == round && meeting.left.is_none();
        let (meeting, late) =
            changed.wait_timeout_while(meeting, *patience, waits).unwrap_or_else(PoisonError::into_inner);
        match meeting.left {
            _ if meeting.ended > round => Ok(()),
            Some(rank) => Err(has_ended(rank)),
            None if late.timed_out() => {
                let missing = meeting.arrived.iter().position(|here| !here).unwrap_or(self.rank);
                Err(did_not_come(missing, *patience))
            }
            None => Err(DeviceError { op: PEER, message: "woken before the meeting ended".to_owned() }),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        locked(&self.shared.meeting).left.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> Communicator<D> for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.parts.len()
    }

    fn meet(&self) -> Result<(), DeviceError> {
        Self::meet(self)
    }

    fn captures(&self) -> bool {
        // Others' parts come by way of the host.
        self.shared.parts.len() == 1
    }

    fn all_reduce(&self, device: &D, x: &mut D::Floats) -> Result<(), DeviceError> {
        if self.shared.parts.len() == 1 {
            return Ok(());
        }
        let part = device.read(x)?;
        let mut sum = vec![0.0; part.len()];
        self.exchange(part, |_, part| sum.iter_mut().zip(part).for_each(|(s, p)| *s += p))?;
        device.write(&sum, x)
    }

    fn all_gather(&self, device: &D, part: &D::Floats, whole: &mut D::Floats) -> Result<(), DeviceError> {
        let size = self.shared.parts.len();
        let cols = device.cols(part);
        let part = device.read(part)?;
        let mut joined = vec![0.0; part.len() * size];
        self.exchange(part, |rank, part| {
            for (row, part) in part.chunks_exact(cols).enumerate() {
                joined[(row * size + rank) * cols..][..cols].copy_from_slice(part);
            }
        })?;
        device.write(&joined, whole)
    }
}
