//! Attempts after temporary errors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::HubError;

/// Pause after the first attempt. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that the server has not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Interval in which a pause looks whether the download has failed elsewhere.
const POLL: Duration = Duration::from_millis(50);

/// The attempts that are left.
pub(super) struct Attempts<'a> {
    /// The subject of the attempts, for the log.
    what: &'a str,
    made: u32,
    most: u32,
}

impl<'a> Attempts<'a> {
    /// For a question that takes one short answer: about 3 s in all.
    pub(super) fn of_question(what: &'a str) -> Self {
        Self { what, made: 0, most: 5 }
    }

    /// For a file, of which hours may have arrived: about 45 s without a byte.
    pub(super) fn of_file(what: &'a str) -> Self {
        Self { what, made: 0, most: 10 }
    }

    /// Pauses after a temporary error. Returns the error if it is none or no attempt is left.
    pub(super) fn wait(&mut self, error: HubError, stop: &AtomicBool) -> Result<(), HubError> {
        self.made += 1;
        let HubError::Temporary { message, wait } = error else { return Err(error) };
        if self.made >= self.most {
            let message = format!("{message} ({} attempts)", self.made);
            return Err(HubError::Temporary { message, wait });
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.made - 1)).min(LONGEST_PAUSE);
        let pause = wait.unwrap_or(pause);
        tracing::info!("{}: {message}; trying again in {:.1} s", self.what, pause.as_secs_f64());
        sleep(pause, stop)
    }
}

/// Asks until there is an answer or the attempts are over.
pub(super) fn ask<T>(
    what: &str,
    stop: &AtomicBool,
    question: impl Fn() -> Result<T, HubError>,
) -> Result<T, HubError> {
    let mut attempts = Attempts::of_question(what);
    loop {
        match question() {
            Ok(answer) => return Ok(answer),
            Err(error) => attempts.wait(error, stop)?,
        }
    }
}

/// Sleeps unless the download has failed elsewhere.
pub(super) fn sleep(time: Duration, stop: &AtomicBool) -> Result<(), HubError> {
    let start = Instant::now();
    loop {
        check(stop)?;
        let left = time.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// Fails if the download has failed elsewhere.
pub(super) fn check(stop: &AtomicBool) -> Result<(), HubError> {
    if stop.load(Ordering::Relaxed) { Err(HubError::fatal("the download has stopped")) } else { Ok(()) }
}
