//! Limits the CPU work beside the engine's thread: tokenising texts and compiling constraints.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Refusal;

/// Limits how many pieces of work run at once, since more would only slow the engine's thread. Lines of
/// batches have permits of their own, so that their long prompts delay no live request.
#[derive(Debug)]
pub struct CpuWork {
    live: Arc<Semaphore>,
    batch: Arc<Semaphore>,
}

impl CpuWork {
    /// Allows `permits` pieces of work of live requests at once, and half as many of lines of batches.
    pub fn new(permits: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { live: semaphore(permits), batch: semaphore(permits.div_ceil(2)) }
    }

    /// Runs work on a blocking thread, when a permit is free. `batch` says whether it is for a line of a
    /// batch.
    ///
    /// # Errors
    /// [`Refusal::Internal`] if the work panics.
    pub async fn run<T: Send + 'static>(
        &self,
        batch: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let permits = if batch { &self.batch } else { &self.live };
        let permit = Arc::clone(permits).acquire_owned().await;
        let permit = permit.map_err(|e| Refusal::Internal(e.to_string()))?;
        let work = tokio::task::spawn_blocking(move || {
            // The work holds the permit, since it goes on if the client leaves.
            let _permit = permit;
            work()
        });
        work.await
            .map_err(|_| Refusal::Internal("the tokenizer or the compiler of constraints failed".to_owned()))
    }
}
