//! The bounded queue of log lines, and the thread that writes them to standard error.

use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::write::write_all;

/// Largest number of bytes that wait to be written. A line that does not fit is dropped.
pub(super) const CAPACITY: usize = 1 << 20;
/// Longest wait of [`Queue::flush`] for one write: a pipe that takes longer has no reader.
const STALLED: Duration = Duration::from_millis(200);
/// Longest wait of [`Queue::flush`] in all.
const FLUSH: Duration = Duration::from_secs(1);
/// Moves the cursor to the start of the terminal's line, and clears the line.
const CLEAR_LINE: &[u8] = b"\r\x1b[2K";

/// Lines on their way to standard error, and the text of the progress bar below them.
#[derive(Debug)]
pub(super) struct Queue {
    /// Standard error.
    stream: OwnedFd,
    state: Mutex<State>,
    /// Notified when there is something to write.
    added: Condvar,
    /// Notified when a write begins and when it ends.
    written: Condvar,
    /// Number of lines that were dropped or could not be written.
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines.
    lines: Vec<u8>,
    /// New text of the progress bar; empty to remove the bar.
    bar: Option<String>,
    /// Start of the write in progress, or the end of its last part.
    writing_since: Option<Instant>,
}

impl State {
    fn is_written(&self) -> bool {
        self.lines.is_empty() && self.bar.is_none() && self.writing_since.is_none()
    }
}

impl Queue {
    pub(super) fn new(stream: OwnedFd) -> Self {
        let (added, written, dropped) = (Condvar::new(), Condvar::new(), Arc::default());
        Self { stream, state: Mutex::default(), added, written, dropped }
    }

    /// Standard error.
    pub(super) fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    /// Whether standard error is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.stream.is_terminal()
    }

    /// The state. The lock is never held during a write to the stream.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds text that ends with a line break, or drops it if the queue is full. Does not wait for the stream.
    pub(super) fn push(&self, text: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() + text.len() > CAPACITY {
            drop(state);
            self.dropped.fetch_add(lines(text), Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(text);
        drop(state);
        self.added.notify_one();
    }

    /// Replaces the text of the progress bar, one line of a terminal; an empty text removes the bar.
    pub(super) fn set_bar(&self, text: String) {
        self.lock().bar = Some(text);
        self.added.notify_one();
    }

    /// Counter of lines that were dropped or could not be written.
    pub(super) fn dropped(&self) -> &Arc<AtomicU64> {
        &self.dropped
    }

    /// Waits until everything is written, but not for a reader that has stopped: at most [`STALLED`] for one
    /// write and [`FLUSH`] in all.
    pub(super) fn flush(&self) {
        let began = Instant::now();
        let mut state = self.lock();
        while !state.is_written() {
            let stalled = state.writing_since.map(|since| since.max(began) + STALLED);
            let end = (began + FLUSH).min(stalled.unwrap_or(began + FLUSH));
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes lines to standard error for ever.
    pub(super) fn write_on(&self) -> ! {
        let (mut bar, mut out, mut taken) = (String::new(), Vec::new(), Vec::new());
        // Whether the last write succeeded, and the number of lost lines that the log has reported.
        let (mut is_read, mut reported) = (true, 0);
        loop {
            let new_bar = self.take(&mut taken);
            let dropped = self.dropped.load(Ordering::Relaxed);
            if is_read && dropped > reported {
                // The queue has room now: its lines have just been taken.
                tracing::warn!(
                    lines = dropped - reported,
                    "lines of the log were lost: it was not read in time"
                );
                reported = dropped;
            }
            out.clear();
            if !bar.is_empty() {
                out.extend_from_slice(CLEAR_LINE);
            }
            out.extend_from_slice(&taken);
            bar = new_bar.unwrap_or(bar);
            out.extend_from_slice(bar.as_bytes());
            let mut count = 0;
            let outcome = write_all(&self.stream, &out, |part| {
                count += part;
                self.lock().writing_since = Some(Instant::now());
            });
            is_read = outcome.is_ok();
            if !is_read {
                self.dropped.fetch_add(lines(&out[count..]), Ordering::Relaxed);
            }
            self.lock().writing_since = None;
            self.written.notify_all();
        }
    }

    /// Waits for something to write. Moves the lines into `taken`, and returns the bar's text if it is new.
    fn take(&self, taken: &mut Vec<u8>) -> Option<String> {
        taken.clear();
        let mut state = self.lock();
        while state.lines.is_empty() && state.bar.is_none() {
            state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.lines, taken);
        state.writing_since = Some(Instant::now());
        // Wakes `flush`, so that it limits its wait for this write.
        self.written.notify_all();
        state.bar.take()
    }
}

/// Number of line breaks.
fn lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// One event of the log is one write. Line breaks within it are escaped, so that it stays one line, whatever
/// text it quotes.
impl io::Write for &Queue {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        let mut text = Vec::with_capacity(line.len() + 1);
        for byte in line {
            match byte {
                b'\n' => text.extend_from_slice(b"\\n"),
                b'\r' => text.extend_from_slice(b"\\r"),
                other => text.push(*other),
            }
        }
        text.push(b'\n');
        self.push(&text);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
