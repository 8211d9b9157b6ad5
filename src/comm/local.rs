//! Groups inside one process: one rank alone, or some CPU threads that meet at a barrier and sum in rank order.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use super::Communicator;
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
    barrier: Barrier,
}

impl Local {
    /// A group of one: its operations are the identity.
    pub fn alone() -> Self {
        Self::group(1).remove(0)
    }

    /// The ranks of a group of `size`.
    pub fn group(size: usize) -> Vec<Self> {
        let parts = (0..size).map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { parts, barrier: Barrier::new(size) });
        (0..size).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// Shows this rank's part to all, and hands each rank's part to `take` in rank order.
    fn exchange(&self, part: Vec<f32>, mut take: impl FnMut(usize, &[f32])) {
        let parts = &self.shared.parts;
        *parts[self.rank].lock().unwrap_or_else(PoisonError::into_inner) = part;
        self.shared.barrier.wait();
        for (rank, part) in parts.iter().enumerate() {
            take(rank, &part.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // Nobody may bring the next part before everybody has read this one.
        self.shared.barrier.wait();
    }
}

impl<D: Device> Communicator<D> for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.parts.len()
    }

    fn all_reduce(&self, device: &D, x: &mut D::Floats) -> Result<(), DeviceError> {
        if self.shared.parts.len() == 1 {
            return Ok(());
        }
        let part = device.read(x)?;
        let mut sum = vec![0.0; part.len()];
        self.exchange(part, |_, part| sum.iter_mut().zip(part).for_each(|(s, p)| *s += p));
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
        });
        device.write(&joined, whole)
    }
}
