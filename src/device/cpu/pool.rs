//! Threads that share one operation at a time. A decode step is some hundred operations of a few microseconds each,
//! so between operations the threads spin; when nothing comes for a while they park, and an idle server burns nothing.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// How often a waiting thread looks before it yields its core between looks: some microseconds.
const SPINS: u32 = 2_000;

/// How often it then yields before it parks: with nothing else to run, some hundred microseconds.
const YIELDS: u32 = 500;

/// One operation: called once on each thread with the thread's index.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// What the threads share. A job is published by raising `epoch`, and done when `running` is back at 0.
struct Shared {
    /// A pointer to a `&Job` on the caller's stack, valid from the raise of `epoch` until `running` is 0.
    job: AtomicPtr<()>,
    epoch: AtomicUsize,
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// The calling thread and `threads - 1` more.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    /// One operation at a time.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// # Panics
    /// If `threads` is 0 or the system has no thread to give.
    pub(super) fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool of no threads");
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(std::ptr::null_mut()),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = std::thread::Builder::new()
                    .name(format!("cpu-{index}"))
                    .spawn(move || work(&shared, index))
                    .expect("the system can start a thread");
                (handle.thread().clone(), Some(handle))
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// How many threads take part in an operation.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(t)` for every t below [`Pool::threads`], each on its own thread, and returns when all are done.
    ///
    /// # Panics
    /// If a job panicked.
    pub(super) fn run(&self, job: &Job<'_>) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut published: &Job<'_> = job;
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

    /// Splits `0..items` evenly and calls `job(range)` on each thread that gets any.
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

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                let _its_panic_was_reported = handle.join();
            }
        }
    }
}

/// Waits for the workers, also when the caller's own share panics: they hold a pointer into its stack.
struct Completion<'a>(&'a Shared);

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        let mut looks = 0u32;
        while self.0.running.load(Ordering::Acquire) != 0 {
            looks += 1;
            if looks < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = wait(shared, seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let job = shared.job.load(Ordering::Relaxed).cast::<&Job<'_>>();
        // SAFETY: `run` stored a pointer to a live `&Job` before it raised the epoch, and does not return before
        // `running` is 0, which this thread lowers after its last use of it.
        let job: &Job<'_> = unsafe { *job };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until the epoch differs from `seen`: spins, then yields, then parks.
fn wait(shared: &Shared, seen: usize) -> usize {
    let mut looks = 0u32;
    loop {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        looks += 1;
        if looks < SPINS {
            std::hint::spin_loop();
        } else if looks < SPINS + YIELDS {
            std::thread::yield_now();
        } else {
            // `run` unparks after raising the epoch; a token left from before only makes this look once more.
            std::thread::park();
        }
    }
}
