//! Descriptor 2 for writes that bypass the log: those of Rust's runtime, just before it aborts the process,
//! and of C libraries. These writes must not wait for a reader either.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::stdio::dup2_stderr;
use socket2::SockRef;

/// Longest wait of one write to a socket.
const SOCKET_WAIT: Duration = Duration::from_millis(200);

/// Returns the standard error that the process was started with. From now on, a write to descriptor 2 drops
/// what a pipe or a terminal does not take at once, and waits a limited time for a socket.
///
/// # Errors
/// The process has no descriptor left.
pub(super) fn split_off_stderr() -> io::Result<OwnedFd> {
    let given = io::stderr().as_fd().try_clone_to_owned()?;
    match FileType::from_raw_mode(fstat(&given)?.st_mode) {
        // A file has no reader to wait for. A second opening would overwrite it from its beginning.
        FileType::RegularFile => {}
        // A socket, such as that of systemd's journal, cannot be opened again.
        FileType::Socket => _ = SockRef::from(&given).set_write_timeout(Some(SOCKET_WAIT)),
        _ => {
            // Other processes that have the same pipe or terminal open do not share the flags of this second
            // opening. The system refuses to open a pipe of another user: then the messages are lost.
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let paths = ["/proc/self/fd/2", "/dev/null"];
            if let Some(own) = paths.into_iter().find_map(|path| open(path, flags, Mode::empty()).ok()) {
                dup2_stderr(own)?;
            }
        }
    }
    Ok(given)
}
