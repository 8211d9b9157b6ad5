//! A group of one that does on its own device what it would do in a larger group, for measuring: it reads as many
//! bytes as the others' parts have, which are zeros here, so that results stay what they are.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use super::Communicator;
use crate::device::{Device, DeviceError};

/// Rows up to which every rank reads all of every other's part. Above, each sums its share of the rows and reads the
/// other shares when they are summed, which is two readings and a writing in all.
const ONE_SHOT_ROWS: usize = 64;

/// A rank that pretends to have peers.
#[derive(Debug)]
pub struct SingleDeviceGroup<D: Device> {
    /// Of each peer, \[ONE_SHOT_ROWS, cols\], and the first as large as any message. A device's operations may be
    /// called from the rank's thread only, but the trait asks for a shared reference.
    peers: Mutex<Vec<D::Floats>>,
    device: PhantomData<D>,
}

impl<D: Device> SingleDeviceGroup<D> {
    /// The stand-in of a rank of `size`, for messages of at most \[rows, cols\].
    ///
    /// # Errors
    /// If the device has no memory for the parts.
    pub fn new(device: &D, size: usize, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let small = rows.min(ONE_SHOT_ROWS);
        let part = |peer| device.floats(if peer == 0 { rows } else { small }, cols);
        let peers = (0..size - 1).map(part).collect::<Result<_, _>>()?;
        Ok(Self { peers: Mutex::new(peers), device: PhantomData })
    }

    /// Bytes of the parts.
    pub fn bytes(size: usize, rows: usize, cols: usize) -> u64 {
        let rows = if size > 1 { rows + (size - 2) * rows.min(ONE_SHOT_ROWS) } else { 0 };
        (rows * cols * 4) as u64
    }
}

impl<D: Device> Communicator<D> for SingleDeviceGroup<D> {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn meet(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn all_reduce(&self, device: &D, x: &mut D::Floats) -> Result<(), DeviceError> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let one_shot = device.rows(x) <= ONE_SHOT_ROWS;
        let read = if one_shot { &peers[..] } else { &peers[..peers.len().min(1)] };
        if read.is_empty() { Ok(()) } else { device.add(read, x) }
    }

    fn all_gather(&self, device: &D, part: &D::Floats, whole: &mut D::Floats) -> Result<(), DeviceError> {
        device.write(&device.read(part)?, whole)
    }
}
