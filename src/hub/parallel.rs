//! Work on several files at once, while the caller's thread shows the progress.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use flume::RecvTimeoutError;

use super::error::HubError;

/// Files that are downloaded at once.
const THREADS: usize = 8;
/// Interval of the progress.
const TICK: Duration = Duration::from_millis(100);

/// Does `work` on each item and returns the results in the items' order. Returns at the first error without
/// waiting for the other threads; they end when they look at the flag that the caller then sets.
pub(super) fn each<T, R, W>(items: Vec<T>, work: W, mut tick: impl FnMut()) -> Result<Vec<R>, HubError>
where
    T: Send + 'static,
    R: Send + 'static,
    W: Fn(T) -> Result<R, HubError> + Send + Sync + 'static,
{
    let count = items.len();
    let (give, take) = flume::unbounded();
    for item in items.into_iter().enumerate() {
        let _never_closed_here = give.send(item);
    }
    drop(give);
    let work = Arc::new(work);
    let (done, results) = flume::unbounded();
    for _ in 0..count.min(THREADS) {
        let (take, done, work) = (take.clone(), done.clone(), Arc::clone(&work));
        let run = move || {
            for (at, item) in take {
                if done.send((at, work(item))).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("hub".to_owned()).spawn(run);
        thread.map_err(|error| HubError::fatal(format!("cannot start a thread: {error}")))?;
    }
    drop(done);
    let mut found: Vec<Option<R>> = (0..count).map(|_| None).collect();
    let mut left = count;
    while left > 0 {
        match results.recv_timeout(TICK) {
            Ok((at, result)) => {
                found[at] = Some(result?);
                left -= 1;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(HubError::fatal("a thread has failed")),
        }
        tick();
    }
    Ok(found.into_iter().flatten().collect())
}
