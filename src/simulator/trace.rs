//! A recording on disk: what a step loop did, from which every plan can be made again.
//!
//! It holds prompts and answers as token ids, and so is as confidential as they are: others on the machine may not read
//! it.
//!
//! The magic, then frames, each its length (4 bytes), the lowest byte of a hash of the length, a payload of that length,
//! and 4 bytes of a hash of the payload; all least significant byte first. The first frame is the header, the others are
//! events (see `codec`), the last has no event and says how the recording ended. Frames are written as soon as nothing
//! waits to be written, so that a process that is killed leaves all but its last moments; such a file is read up to its
//! last whole frame. Any other damage is an error that names the byte.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::codec::{Reader, Writer};
use crate::engine::recorder::{Listener, Timed};
use crate::engine::{Recorder, SchedulerConfig};

const MAGIC: &[u8; 8] = b"OCTREC02";
/// Bytes before and after a payload.
const HEAD: usize = 5;
const TAIL: usize = 4;
/// A frame is closed when it is as long, also while more events wait.
const FRAME: usize = 1 << 16;
/// Events that may wait to be written: seconds of them.
const ROOM: usize = 1 << 14;
/// How a recording ended, in place of a kind of event.
const COMPLETE: u8 = 0;
const INCOMPLETE: u8 = 0xff;

/// What a recording begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The scheduler's limits.
    pub config: SchedulerConfig,
    /// Steps in flight: 1 or 2.
    pub in_flight: usize,
    /// What is needed to count costs, by names that the writer chooses.
    pub about: Vec<(String, String)>,
}

/// How a recording ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With the engine.
    Complete,
    /// It could not be written as fast as the engine went on.
    Incomplete,
    /// In the middle, at this byte, as when a process is killed.
    Cut(usize),
}

/// A recording, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Its beginning.
    pub header: Header,
    /// What happened.
    pub events: Vec<Timed>,
    /// How it ends.
    pub end: End,
}

/// A file that is no recording, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {message}")]
pub struct TraceError {
    /// Where the first frame that cannot be read begins.
    pub offset: usize,
    /// Expected versus got.
    pub message: String,
}

/// A recording under way: a thread that writes what the engine tells.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    thread: JoinHandle<std::io::Result<End>>,
}

impl Recording {
    /// Begins a file, and returns the engine's end. A file that is there is replaced.
    ///
    /// # Errors
    /// The file cannot be written, or there is no thread to be had.
    pub fn start(path: &Path, header: &Header) -> std::io::Result<(Recorder, Self)> {
        let mut file = BufWriter::new(private(path)?);
        write_header(&mut file, header)?;
        file.flush()?;
        let (recorder, listener) = Recorder::new(ROOM);
        let shown = path.display().to_string();
        let write = move || {
            let end = write_events(&mut file, &listener);
            if let Err(error) = &end {
                tracing::error!(file = shown, %error, "the recording ends here");
            }
            end
        };
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(write)?;
        Ok((recorder, Self { path: path.to_owned(), thread }))
    }

    /// Waits until all is written, which is when the engine has ended.
    ///
    /// # Errors
    /// What could not be written.
    pub fn finish(self) -> std::io::Result<End> {
        let end = self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")))?;
        tracing::info!(file = %self.path.display(), ?end, "recorded");
        Ok(end)
    }
}

/// A new file that nobody else may read.
fn private(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes the beginning of a recording.
pub fn write_header(file: &mut impl Write, header: &Header) -> std::io::Result<()> {
    let mut payload = Writer::default();
    payload.config(&header.config);
    payload.number(header.in_flight as u64);
    payload.number(header.about.len() as u64);
    for (name, value) in &header.about {
        payload.text(name);
        payload.text(value);
    }
    file.write_all(MAGIC)?;
    write_frame(file, &payload.0)
}

/// Writes what the listener hears, and how it ended.
pub fn write_events(file: &mut impl Write, listener: &Listener) -> std::io::Result<End> {
    while let Ok(first) = listener.events.recv() {
        let mut payload = Writer::default();
        payload.event(&first);
        while payload.0.len() < FRAME
            && let Ok(next) = listener.events.try_recv()
        {
            payload.event(&next);
        }
        write_frame(file, &payload.0)?;
        if listener.events.is_empty() {
            file.flush()?;
        }
    }
    let (end, byte) = match listener.is_incomplete() {
        true => (End::Incomplete, INCOMPLETE),
        false => (End::Complete, COMPLETE),
    };
    write_frame(file, &[byte])?;
    file.flush()?;
    Ok(end)
}

fn write_frame(file: &mut impl Write, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(std::io::Error::other)?.to_le_bytes();
    file.write_all(&length)?;
    file.write_all(&[hash(&length) as u8])?;
    file.write_all(payload)?;
    file.write_all(&hash(payload).to_le_bytes())
}

/// FNV-1a, 32 bits: against accidents.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Trace {
    /// Reads a recording.
    ///
    /// # Errors
    /// It is none, or is damaged elsewhere than at its end.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let wrong = |offset, message: &str| TraceError { offset, message: message.to_owned() };
        if bytes.starts_with(b"OCTREC01") {
            return Err(wrong(0, "a recording of version 1, which has no tenants; expected version 2"));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(wrong(0, "expected a recording of octant serve --record, version 2"));
        }
        let mut offset = MAGIC.len();
        let first = frame(bytes, offset)?.ok_or_else(|| wrong(offset, "the header is cut off"))?;
        let header = header(first).ok_or_else(|| wrong(offset, "the header makes no sense"))?;
        offset += HEAD + first.len() + TAIL;
        let mut events = Vec::new();
        while let Some(payload) = frame(bytes, offset)? {
            let next = offset + HEAD + payload.len() + TAIL;
            let end = match payload {
                [COMPLETE] => Some(End::Complete),
                [INCOMPLETE] => Some(End::Incomplete),
                _ => None,
            };
            if let Some(end) = end {
                return match bytes.len() == next {
                    true => Ok(Self { header, events, end }),
                    false => Err(wrong(next, "expected nothing behind the end")),
                };
            }
            let mut reader = Reader(payload);
            while !reader.0.is_empty() {
                let at = offset + HEAD + payload.len() - reader.0.len();
                events.push(reader.event().ok_or_else(|| wrong(at, "an event makes no sense"))?);
            }
            offset = next;
        }
        Ok(Self { header, events, end: End::Cut(offset) })
    }
}

fn header(payload: &[u8]) -> Option<Header> {
    let mut reader = Reader(payload);
    let config = reader.config()?;
    let in_flight = reader.number().filter(|steps| (1..=2).contains(steps))? as usize;
    let count = reader.count()?;
    let about = (0..count).map(|_| Some((reader.text()?, reader.text()?))).collect::<Option<_>>()?;
    reader.0.is_empty().then_some(Header { config, in_flight, about })
}

/// The payload of the frame at `offset`; `None` where the file ends before it does.
fn frame(bytes: &[u8], offset: usize) -> Result<Option<&[u8]>, TraceError> {
    let wrong = |message: &str| Err(TraceError { offset, message: message.to_owned() });
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some((length, after)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let Some((check, after)) = after.split_first() else { return Ok(None) };
    if hash(length) as u8 != *check {
        return wrong("the length of a frame is damaged");
    }
    let length = u32::from_le_bytes(*length) as usize;
    let Some((payload, after)) = after.split_at_checked(length) else { return Ok(None) };
    let Some((check, _)) = after.split_first_chunk::<TAIL>() else { return Ok(None) };
    if hash(payload) != u32::from_le_bytes(*check) {
        return wrong("a frame is damaged");
    }
    Ok(Some(payload))
}
