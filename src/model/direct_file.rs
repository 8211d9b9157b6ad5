//! Bytes of a file, past the system's cache where they are not in it.
//!
//! Weights are read once and are more than a machine can cache. Going through the cache costs a copy, and memory that the
//! system has to find, in a hurry, beside that of the weights; reading past it costs next to no processor time, which
//! quantising needs. Bytes that are in the cache already are taken from there: a restarted server finds its weights in it.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What positions, lengths and addresses are multiples of when the cache is gone past: no disk asks for more.
const ALIGN: usize = 4096;

/// One open file.
#[derive(Debug)]
pub struct DirectFile {
    pub(super) path: PathBuf,
    file: File,
    /// The same past the cache, where the file system can.
    direct: Option<File>,
}

/// Memory to read into, again and again.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
    /// Where what was wanted of the last read is.
    wanted: Range<usize>,
}

impl ReadBuffer {
    /// Room for `wanted` of a read that begins at an aligned address; all the read's bytes.
    pub(super) fn room(&mut self, wanted: Range<usize>) -> &mut [u8] {
        let len = wanted.end.next_multiple_of(ALIGN);
        if self.bytes.len() < len + ALIGN {
            self.bytes.resize(len + ALIGN, 0);
        }
        let first = self.bytes.as_ptr().align_offset(ALIGN);
        self.wanted = first + wanted.start..first + wanted.end;
        &mut self.bytes[first..first + len]
    }

    /// What the last read was to bring.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.wanted.clone()]
    }
}

impl DirectFile {
    /// Opens it, both ways.
    pub fn open(path: PathBuf) -> std::io::Result<Self> {
        let file = File::open(&path)?;
        let direct = open_direct(&path);
        Ok(Self { path, file, direct })
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
    pub fn len(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// By way of the cache.
    pub(super) fn read_exact_at(&self, to: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    /// By whichever way is better: much, that is wanted once.
    ///
    /// # Errors
    /// As [`FileExt::read_exact_at`].
    pub fn read_once(&self, at: u64, len: usize, buffer: &mut ReadBuffer) -> std::io::Result<()> {
        // Aligned around what is wanted.
        let before = (at % ALIGN as u64) as usize;
        let room = buffer.room(before..before + len);
        let done = match &self.direct {
            Some(direct) if !self.is_cached(at) => read_most(direct, room, at - before as u64),
            _ => 0,
        };
        // Whatever the other way would not do.
        let wanted = &mut room[before..before + len];
        let rest = done.saturating_sub(before).min(len);
        self.file.read_exact_at(&mut wanted[rest..], at + rest as u64)
    }

    /// Has the system begin to read what will be read by way of its cache, without waiting for it.
    pub(super) fn prefetch(&self, at: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        if self.direct.is_none() {
            use rustix::fs::{Advice, fadvise};
            // A refusal only means that reading waits later.
            let _refused = fadvise(&self.file, at, std::num::NonZeroU64::new(bytes), Advice::WillNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (at, bytes);
    }

    /// Whether the byte is in the system's cache; where it will not say, it is taken to be.
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

/// Reads from an aligned position on as far as it goes, which may be nowhere; the bytes read.
fn read_most(direct: &File, room: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < room.len() {
        match direct.read_at(&mut room[done..], at + done as u64) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // An error is left to the other way to find, and to say.
            Ok(0) | Err(_) => break,
            Ok(count) => {
                done += count;
                // The end of the file, after which no position is aligned.
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

/// As [`FileExt::read_exact_at`] says it.
pub(super) fn is_short(error: &Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof
}
