//! Reads files with direct I/O, bypassing the page cache for bytes that are not in it.
//!
//! Weights are read once and can exceed a machine's memory. Reading through the page cache costs a copy, and
//! the system must reclaim the cache's memory while the weights need memory too. Direct I/O takes almost no
//! CPU time, which is left for quantisation. Bytes already in the page cache are read from there, so a
//! restarted server finds its weights cached. Small files are read through the page cache always: they fit,
//! and the next start is faster.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::device::DeviceError;
use crate::device::cpu::resize;

/// Alignment of positions, lengths and addresses in direct I/O. No disk requires more.
const ALIGN: usize = 4096;

/// Files of at most this many bytes are read through the page cache always.
pub(crate) const SMALL_FILE: u64 = 1 << 30;

/// An open file that can be read through the page cache and with direct I/O.
#[derive(Debug)]
pub struct DirectFile {
    pub(super) path: PathBuf,
    file: File,
    /// Handle for direct I/O; `None` if the file system does not support it.
    direct: Option<File>,
}

/// A reusable, aligned buffer.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
    /// The bytes that the last read asked for, as a range of `bytes`.
    wanted: Range<usize>,
}

impl ReadBuffer {
    /// Prepares for a read that starts at an aligned offset of the file. `wanted` is the range of its bytes
    /// that the caller asks for. Returns an aligned buffer for all bytes of the read.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub(super) fn room(&mut self, wanted: Range<usize>) -> std::io::Result<&mut [u8]> {
        let len = wanted.end.next_multiple_of(ALIGN);
        if self.bytes.len() < len + ALIGN {
            let no_memory = |error: DeviceError| Error::new(ErrorKind::OutOfMemory, error.message);
            resize(&mut self.bytes, len + ALIGN).map_err(no_memory)?;
        }
        let first = self.bytes.as_ptr().align_offset(ALIGN);
        self.wanted = first + wanted.start..first + wanted.end;
        Ok(&mut self.bytes[first..first + len])
    }

    /// The bytes that the last read asked for.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.wanted.clone()]
    }
}

impl DirectFile {
    /// Opens a file, also for direct I/O if possible and if it has more than `most_cached` bytes.
    pub fn open(path: PathBuf, most_cached: u64) -> std::io::Result<Self> {
        let file = File::open(&path)?;
        let is_large = file.metadata()?.len() > most_cached;
        let direct = if is_large { open_direct(&path) } else { None };
        Ok(Self { path, file, direct })
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
    pub fn len(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads through the page cache.
    pub(super) fn read_exact_at(&self, to: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    /// Reads `len` bytes at offset `at`, by direct I/O if they are not cached. For large reads that are
    /// needed once.
    ///
    /// # Errors
    /// The same as those of [`FileExt::read_exact_at`].
    pub fn read_once(&self, at: u64, len: usize, buffer: &mut ReadBuffer) -> std::io::Result<()> {
        // The read starts at an aligned offset at or before `at`.
        let before = (at % ALIGN as u64) as usize;
        let room = buffer.room(before..before + len)?;
        let done = match &self.direct {
            Some(direct) if !self.is_cached(at) => read_most(direct, room, at - before as u64),
            _ => 0,
        };
        // Read through the page cache what direct I/O has not read.
        let wanted = &mut room[before..before + len];
        let rest = done.saturating_sub(before).min(len);
        self.file.read_exact_at(&mut wanted[rest..], at + rest as u64)
    }

    /// Asks the system to start reading without waiting. Has an effect only if direct I/O is not possible.
    pub(super) fn prefetch(&self, at: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        if self.direct.is_none() {
            use rustix::fs::{Advice, fadvise};
            // If the system refuses, the later read waits longer.
            let _refused = fadvise(&self.file, at, std::num::NonZeroU64::new(bytes), Advice::WillNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (at, bytes);
    }

    /// Whether the byte is in the page cache. `true` if the system cannot tell.
    #[cfg(target_os = "linux")]
    fn is_cached(&self, at: u64) -> bool {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let mut byte = [0];
        let answer = preadv2(&self.file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        answer != Err(Errno::AGAIN)
    }

    #[cfg(not(target_os = "linux"))]
    fn is_cached(&self, _at: u64) -> bool {
        true
    }
}

/// Reads from an aligned offset as far as possible. Returns the number of bytes read, which may be 0.
fn read_most(direct: &File, room: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < room.len() {
        match direct.read_at(&mut room[done..], at + done as u64) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The read through the page cache meets the same error and reports it.
            Ok(0) | Err(_) => break,
            Ok(count) => {
                done += count;
                // The end of the file: the next offset is not aligned.
                if count % ALIGN != 0 {
                    break;
                }
            }
        }
    }
    done
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

/// Whether the error means that the file has ended.
pub(super) fn is_eof(error: &Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof
}
