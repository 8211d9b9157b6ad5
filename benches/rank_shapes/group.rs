//! Groups of ranks, each on its own thread.

use std::time::Duration;

use octant::comm::Communicator;
use octant::device::{Device, DeviceError};

/// The time that a rank waits for the others.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// Calls `run` with the number, device and handle of every rank of a group. Returns the results in the order
/// of ranks.
pub(crate) fn on_ranks<D: Device, C: Communicator<D>, T: Send>(
    devices: &[D],
    group: Vec<C>,
    run: impl Fn(usize, &D, C) -> Result<T, DeviceError> + Sync,
) -> Result<Vec<T>, DeviceError> {
    std::thread::scope(|scope| {
        let run = &run;
        let ranks = devices.iter().zip(group).enumerate();
        let threads: Vec<_> =
            ranks.map(|(rank, (device, comm))| scope.spawn(move || run(rank, device, comm))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    })
}
