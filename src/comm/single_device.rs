//! A group of one rank. For measurements it does the memory traffic of a larger group on its own device; the
//! other ranks' parts are zeros, so results do not change.

use super::{Communicator, Message};
use crate::device::{Device, DeviceError, Floats};

/// Rows up to which every rank reads the whole part of every other rank. With more rows each rank sums its
/// share and reads the other ranks' sums: two reads and one write of the message in all.
const ONE_SHOT_ROWS: usize = 64;

/// The only rank of a group, which may stand for a larger one.
#[derive(Debug)]
pub struct SingleDeviceGroup<D: Device> {
    /// The other ranks' parts, \[ONE_SHOT_ROWS, cols\] each; the first has as many rows as the largest
    /// message.
    parts: Vec<Floats<D>>,
}

impl<D: Device> SingleDeviceGroup<D> {
    /// A group of one rank, whose operations change nothing.
    pub fn alone() -> Self {
        Self { parts: Vec::new() }
    }

    /// Stands for a group of `size` ranks whose largest message is `largest`.
    ///
    /// # Errors
    /// If the device has no memory for the parts.
    pub fn new(device: &D, size: usize, largest: Message) -> Result<Self, DeviceError> {
        let Message { float_type, rows, cols } = largest;
        let small = rows.min(ONE_SHOT_ROWS);
        let part = |peer| device.floats_of(float_type, if peer == 0 { rows } else { small }, cols);
        Ok(Self { parts: (0..size - 1).map(part).collect::<Result<_, _>>()? })
    }

    /// Bytes of the parts.
    pub fn bytes(size: usize, largest: Message) -> u64 {
        let Message { float_type, rows, cols } = largest;
        let rows = if size > 1 { rows + (size - 2) * rows.min(ONE_SHOT_ROWS) } else { 0 };
        (rows * cols * D::LAYOUT.float_bytes(float_type)) as u64
    }
}

impl<D: Device> Communicator<D> for SingleDeviceGroup<D> {
    fn all_reduce(&self, device: &D, x: &mut Floats<D>) -> Result<(), DeviceError> {
        let one_shot = x.rows() <= ONE_SHOT_ROWS;
        let read = if one_shot { &self.parts[..] } else { &self.parts[..self.parts.len().min(1)] };
        if read.is_empty() { Ok(()) } else { device.add(read, x) }
    }

    fn all_gather(&self, device: &D, part: &Floats<D>, whole: &mut Floats<D>) -> Result<(), DeviceError> {
        device.write(&device.read(part)?, whole)
    }
}
