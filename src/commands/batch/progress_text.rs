//! The text about the progress of a batch run, from counts and durations alone.

use std::time::Duration;

/// Counts of a run at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Lines of the input.
    pub(super) lines: u64,
    /// Lines that have a record, also those of earlier runs.
    pub(super) done: u64,
    /// Lines among them that have an error.
    pub(super) failed: u64,
    /// Lines whose record was written by this run.
    pub(super) written: u64,
    /// Tokens that this run has read and generated.
    pub(super) tokens: u64,
}

/// The errors, the tokens per second of the last interval, and the time left if the remaining lines take as
/// long as those of this run. `tokens` counts those of the interval.
pub(super) fn rate_and_time_left(now: &Counts, tokens: u64, interval: Duration, elapsed: Duration) -> String {
    let rate = per_second(tokens, interval);
    let left = time_left(now, elapsed).map_or("unknown time".to_owned(), clock);
    format!("{} failed, {rate:.0} tokens/s, {left} left", now.failed)
}

/// The same after the number of requests.
pub(super) fn progress_line(now: &Counts, rate_and_time_left: &str) -> String {
    format!("{} of {} requests, {rate_and_time_left}", now.done, now.lines)
}

/// The requests, tokens, time and rate of the whole run.
pub(super) fn total(now: &Counts, elapsed: Duration) -> String {
    let rate = per_second(now.tokens, elapsed);
    let (written, tokens, time) = (now.written, now.tokens, clock(elapsed));
    format!("this run: {written} requests and {tokens} tokens in {time}, {rate:.0} tokens/s")
}

fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-3)
}

/// The time that the remaining lines take, if they take as long as those of this run.
fn time_left(now: &Counts, elapsed: Duration) -> Option<Duration> {
    let left = now.lines.checked_sub(now.done)?;
    let seconds = elapsed.as_secs_f64() * left as f64 / now.written as f64;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A duration as hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
