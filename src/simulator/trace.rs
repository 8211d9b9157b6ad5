//! A recording on disk: the calls that the engine made of its scheduler, from which every plan can be made
//! again.
//!
//! A recording contains prompts and answers as token ids and is as confidential as they are: its file is
//! readable by its owner alone.
//!
//! # Format
//! 8 bytes of magic, whose last two are the version, then frames. A frame is the length of its payload (4
//! bytes), the lowest byte of a hash of these 4 bytes, the payload, and a hash of the payload (4 bytes); all
//! integers are little endian. The first frame is the header. Each later frame holds one or more events;
//! header and events are in the format of [`postcard`]. The last frame is one byte that says whether the
//! recording is complete; no event is that short.
//!
//! The writer flushes as soon as no event waits, so that a killed process loses only the last moments. Such a
//! file is read up to its last whole frame. Any other damage is an error that names the byte.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::engine::recorder::{Listener, Timed};
use crate::engine::{Recorder, SchedulerConfig};
use crate::scheduler::MAX_DRAFTS;

/// Magic without the version.
const MAGIC: &[u8; 6] = b"OCTREC";
/// Version of the format, in two ASCII digits. Version 1 had no tenants, version 2 a format of its own for
/// events, version 3 no progress of grammars, version 4 no batches, version 5 no start of the scores of a
/// prompt and no reward heads, version 6 no drafts and no limit on the prompt tokens of a step, version 7 no
/// draft models, version 8 no fed drafts that were found in the sequence.
const VERSION: &[u8; 2] = b"09";
/// Bytes of a frame before its payload.
const HEAD: usize = 5;
/// Bytes of a frame after its payload.
const TAIL: usize = 4;
/// Bytes of payload from which on a frame is closed although more events wait.
const FRAME: usize = 1 << 16;
/// Events that may wait to be written; this many are seconds of a run.
const QUEUE: usize = 1 << 14;
/// Payload of the last frame of a complete recording.
const COMPLETE: u8 = 0;
/// Payload of the last frame of an incomplete recording.
const INCOMPLETE: u8 = 0xff;

/// First frame of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// Limits and policy of the scheduler.
    pub config: SchedulerConfig,
    /// Steps in flight: 1 or 2.
    pub in_flight: usize,
    /// Model and GPUs as (name, value), from which a simulation derives its cost model.
    pub about: Vec<(String, String)>,
}

/// How a recording ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEnd {
    /// The recording ends when the engine ends.
    Complete,
    /// The recording ends before the engine does, because the disk could not keep up.
    Incomplete,
    /// The recording ends in the middle of the frame that begins at this byte: the process was killed.
    Cut(usize),
}

/// A recording in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Settings.
    pub header: TraceHeader,
    /// Events in order, each with its time.
    pub events: Vec<Timed>,
    /// How it ends.
    pub end: TraceEnd,
}

/// The file is not a recording, is of another version, or is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {message}")]
pub struct TraceError {
    /// Byte at which the first unreadable frame or event begins.
    pub offset: usize,
    /// Expected and actual content.
    pub message: String,
}

impl TraceError {
    fn new(offset: usize, message: &str) -> Self {
        Self { offset, message: message.to_owned() }
    }
}

/// A recording in progress: a thread that writes the engine's events to a file.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    thread: JoinHandle<std::io::Result<TraceEnd>>,
}

impl Recording {
    /// Creates or replaces the file, and returns the recorder that the engine writes to.
    ///
    /// # Errors
    /// The file cannot be written, or the thread cannot be started.
    pub fn start(path: &Path, header: &TraceHeader) -> std::io::Result<(Recorder, Self)> {
        let mut file = BufWriter::new(create_private(path)?);
        write_header(&mut file, header)?;
        file.flush()?;
        let (recorder, listener) = Recorder::new(QUEUE);
        let shown = path.display().to_string();
        let write = move || {
            let end = write_events(&mut file, &listener);
            if let Err(error) = &end {
                tracing::error!(file = shown, %error, "recording stopped: cannot write");
            }
            end
        };
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(write)?;
        Ok((recorder, Self { path: path.to_owned(), thread }))
    }

    /// Waits until everything is written, which is after the engine has ended.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn finish(self) -> std::io::Result<TraceEnd> {
        let end = self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))?;
        tracing::info!(file = %self.path.display(), ?end, "recorded");
        Ok(end)
    }
}

/// Creates or truncates a file that only its owner may read.
fn create_private(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes magic and header.
///
/// # Errors
/// The file cannot be written.
pub fn write_header(file: &mut impl Write, header: &TraceHeader) -> std::io::Result<()> {
    file.write_all(MAGIC)?;
    file.write_all(VERSION)?;
    write_frame(file, &postcard::to_stdvec(header).map_err(std::io::Error::other)?)
}

/// Writes all events until the engine stops recording, and the last frame.
///
/// # Errors
/// The file cannot be written.
pub fn write_events(file: &mut impl Write, listener: &Listener) -> std::io::Result<TraceEnd> {
    let mut payload = Vec::new();
    while let Ok(first) = listener.events.recv() {
        payload.clear();
        payload = append(payload, &first)?;
        while payload.len() < FRAME
            && let Ok(next) = listener.events.try_recv()
        {
            payload = append(payload, &next)?;
        }
        write_frame(file, &payload)?;
        if listener.events.is_empty() {
            file.flush()?;
        }
    }
    let (end, byte) = match listener.is_incomplete() {
        true => (TraceEnd::Incomplete, INCOMPLETE),
        false => (TraceEnd::Complete, COMPLETE),
    };
    write_frame(file, &[byte])?;
    file.flush()?;
    Ok(end)
}

fn append(payload: Vec<u8>, event: &Timed) -> std::io::Result<Vec<u8>> {
    postcard::to_extend(event, payload).map_err(std::io::Error::other)
}

fn write_frame(file: &mut impl Write, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(std::io::Error::other)?.to_le_bytes();
    file.write_all(&length)?;
    file.write_all(&[hash(&length) as u8])?;
    file.write_all(payload)?;
    file.write_all(&hash(payload).to_le_bytes())
}

/// FNV-1a of 32 bits, which detects accidental damage.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Trace {
    /// Parses a recording.
    ///
    /// # Errors
    /// The bytes are not a recording of this version, or are damaged elsewhere than at their end.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let mut offset = check_version(bytes)?;
        let first = frame(bytes, offset)?.ok_or_else(|| TraceError::new(offset, "the header is cut off"))?;
        let header = header(first).ok_or_else(|| TraceError::new(offset, "the header is not valid"))?;
        offset += HEAD + first.len() + TAIL;
        let mut events = Vec::new();
        while let Some(payload) = frame(bytes, offset)? {
            let next = offset + HEAD + payload.len() + TAIL;
            let end = match payload {
                [COMPLETE] => Some(TraceEnd::Complete),
                [INCOMPLETE] => Some(TraceEnd::Incomplete),
                _ => None,
            };
            if let Some(end) = end {
                return match bytes.len() == next {
                    true => Ok(Self { header, events, end }),
                    false => Err(TraceError::new(next, "expected nothing after the last frame")),
                };
            }
            let mut rest = payload;
            while !rest.is_empty() {
                let at = offset + HEAD + payload.len() - rest.len();
                let invalid = |_| TraceError::new(at, "an event is not valid");
                let (event, after) = postcard::take_from_bytes(rest).map_err(invalid)?;
                events.push(event);
                rest = after;
            }
            offset = next;
        }
        Ok(Self { header, events, end: TraceEnd::Cut(offset) })
    }
}

/// Checks magic and version, and returns the number of their bytes.
fn check_version(bytes: &[u8]) -> Result<usize, TraceError> {
    let expected = String::from_utf8_lossy(VERSION);
    let rest = bytes.strip_prefix(MAGIC).and_then(|rest| rest.get(..VERSION.len()));
    match rest {
        Some(version) if version == VERSION => Ok(MAGIC.len() + VERSION.len()),
        Some(version) => {
            let got = String::from_utf8_lossy(version);
            let message = format!("a recording of version {got}; this program reads version {expected}");
            Err(TraceError::new(0, &message))
        }
        None => {
            let message = format!("expected a recording of octant serve --record, version {expected}");
            Err(TraceError::new(0, &message))
        }
    }
}

fn header(payload: &[u8]) -> Option<TraceHeader> {
    let header: TraceHeader = match postcard::take_from_bytes(payload) {
        Ok((header, [])) => header,
        _ => return None,
    };
    let c = &header.config;
    // The scheduler counts in 32 bits.
    let sizes = [c.max_num_seqs, c.max_num_batched_tokens, c.max_model_len, c.num_blocks, c.vocab_size];
    let valid = sizes.iter().all(|size| (1..1 << 32).contains(size))
        && (0.0..=1.0).contains(&c.policy.kv_reserve)
        && c.max_drafts <= MAX_DRAFTS
        && (1..=2).contains(&header.in_flight);
    valid.then_some(header)
}

/// Payload of the frame at `offset`, or `None` if the file ends before the frame does.
fn frame(bytes: &[u8], offset: usize) -> Result<Option<&[u8]>, TraceError> {
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some((length, after)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let Some((check, after)) = after.split_first() else { return Ok(None) };
    if hash(length) as u8 != *check {
        return Err(TraceError::new(offset, "the length of a frame is damaged"));
    }
    let length = u32::from_le_bytes(*length) as usize;
    let Some((payload, after)) = after.split_at_checked(length) else { return Ok(None) };
    let Some((check, _)) = after.split_first_chunk::<TAIL>() else { return Ok(None) };
    if hash(payload) != u32::from_le_bytes(*check) {
        return Err(TraceError::new(offset, "a frame is damaged"));
    }
    Ok(Some(payload))
}
