//! A pool of threads that share one operation at a time. A decode step runs some hundred operations of a few
//! microseconds each, so the threads spin between operations. After some hundred microseconds without work
//! they park, so that an idle server uses no CPU.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// Polls of a waiting thread before it yields its core between polls: some microseconds.
const SPINS: u32 = 2_000;

/// Yields of a waiting thread before it parks: some hundred microseconds if no other thread runs on the core.
const YIELDS: u32 = 500;

/// One operation. Each thread calls it once, with the index of the thread.
type PoolJob<'a> = dyn Fn(usize) + Sync + 'a;

/// State that the threads share. Incrementing `epoch` publishes a job; the job is done when `running` is 0.
struct PoolState {
    /// A pointer to a `&PoolJob` on the caller's stack, valid from the increment of `epoch` until `running`
    /// is 0.
    job: AtomicPtr<()>,
    /// The number of published jobs.
    epoch: AtomicUsize,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    /// Set by a worker that panics in the current job.
    panicked: AtomicBool,
    /// Tells the workers to end.
    stop: AtomicBool,
}

/// A pool of the calling thread and `threads - 1` workers.
pub(super) struct ThreadPool {
    shared: Arc<PoolState>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    /// Held during an operation, since the pool runs one at a time.
    operation_lock: Mutex<()>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadPool({} threads)", self.threads())
    }
}

impl ThreadPool {
    /// Starts `threads - 1` workers.
    ///
    /// # Errors
    /// The system cannot start a thread.
    ///
    /// # Panics
    /// If `threads` is 0.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        assert!(threads > 0, "a pool needs at least one thread");
        let shared = Arc::new(PoolState {
            job: AtomicPtr::new(std::ptr::null_mut()),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        // Dropping the pool ends the workers that have started.
        let mut pool = Self { shared, workers: Vec::new(), operation_lock: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("cpu-{index}"));
            let handle = builder.spawn(move || work(&shared, index))?;
            pool.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(pool)
    }

    /// Threads per operation, the calling thread included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(t)` for every t below [`ThreadPool::threads`], each on its own thread, and waits for all of
    /// them.
    ///
    /// # Panics
    /// If a call panicked.
    pub(super) fn run(&self, job: &PoolJob<'_>) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _lock = self.operation_lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut published: &PoolJob<'_> = job;
        let done = Completion(&self.shared);
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        self.shared.job.store((&raw mut published).cast(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for (thread, _) in &self.workers {
            thread.unpark();
        }
        job(0);
        drop(done);
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a thread of the CPU device panicked");
    }

    /// Splits `0..items` evenly and calls `job(thread, range)` on each thread whose range is not empty.
    pub(super) fn split(&self, items: usize, job: impl Fn(usize, std::ops::Range<usize>) + Sync) {
        let threads = self.threads();
        if items == 0 {
            return;
        }
        if items == 1 {
            return job(0, 0..1);
        }
        self.run(&|thread| {
            let range = items * thread / threads..items * (thread + 1) / threads;
            if !range.is_empty() {
                job(thread, range);
            }
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // Workers catch the panics of jobs, and `run` reports them.
                let _ = handle.join();
            }
        }
    }
}

/// Waits for the workers on drop, also if the caller's own call panics, since they hold a pointer into the
/// caller's stack.
struct Completion<'a>(&'a PoolState);

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        let mut polls = 0u32;
        while self.0.running.load(Ordering::Acquire) != 0 {
            polls += 1;
            if polls < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// The loop of worker `index`.
fn work(shared: &PoolState, index: usize) {
    let mut seen = 0;
    loop {
        seen = wait(shared, seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let job = shared.job.load(Ordering::Relaxed).cast::<&PoolJob<'_>>();
        // SAFETY: `run` stored a pointer to a live `&PoolJob` before it incremented the epoch. It does not
        // return before `running` is 0, and this thread decrements `running` after its last use of the job.
        let job: &PoolJob<'_> = unsafe { *job };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until the epoch differs from `seen`: spins, then yields, then parks.
fn wait(shared: &PoolState, seen: usize) -> usize {
    let mut polls = 0u32;
    loop {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        polls += 1;
        if polls < SPINS {
            std::hint::spin_loop();
        } else if polls < SPINS + YIELDS {
            std::thread::yield_now();
        } else {
            // `run` unparks after it increments the epoch. A token of an earlier unpark only causes one more
            // poll.
            std::thread::park();
        }
    }
}
