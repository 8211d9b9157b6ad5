//! Writes all bytes to a descriptor, also if another process has made it non-blocking.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes of one write, the capacity of a pipe on Linux.
const PART: usize = 64 << 10;

/// Writes all bytes to `descriptor`, and calls `wrote` with the size of each part that was written.
///
/// Another process that has the same pipe or terminal open may have made it non-blocking; then this waits
/// until the descriptor takes bytes again.
///
/// # Errors
/// The system's error, such as a closed pipe or a full disk.
pub(super) fn write_all(
    descriptor: impl AsFd,
    mut bytes: &[u8],
    mut wrote: impl FnMut(usize),
) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&descriptor, &bytes[..bytes.len().min(PART)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                wrote(count);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _interrupted = poll(&mut [PollFd::new(&descriptor, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
