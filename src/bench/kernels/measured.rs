//! A row of the table of `octant bench kernels`.

use serde::Serialize;

use super::timer::{RunTime, Timing};

/// A measured operation, for one number of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTime {
    /// The operation of the device.
    pub operation: &'static str,
    /// The kernel that it launches on CUDA; `attention` stands for `rope`, `attention_decode` and
    /// `attention_combine`.
    pub kernel: &'static str,
    /// Rows.
    pub rows: usize,
    /// Launches for these rows.
    pub launches: usize,
    /// Shape of the input. `add`: summands, rows, columns. `reward_head`: rows, columns, values. `attention`:
    /// rows, positions, elements of a row of queries.
    pub shape: Vec<usize>,
    /// How it was timed.
    pub timing: Timing,
    /// Median microseconds for all rows.
    pub us: f64,
    /// Microseconds that the host takes to enqueue the launches, where it enqueues each of them.
    pub enqueue_us: Option<f64>,
    /// Bytes by the COST line of the kernel's file.
    pub bytes: usize,
}

impl KernelTime {
    /// Microseconds to read the bytes from memory at this rate, in bytes per second.
    pub fn floor_us(&self, read: f64) -> f64 {
        self.bytes as f64 / read * 1e6
    }
}

/// The launches of an operation that is measured.
pub(super) struct Kernel {
    pub(super) operation: &'static str,
    pub(super) kernel: &'static str,
    pub(super) rows: usize,
    pub(super) launches: usize,
    /// Bytes of all launches.
    pub(super) bytes: usize,
}

impl Kernel {
    /// One launch of the kernel that has its operation's name.
    pub(super) fn of(name: &'static str) -> Self {
        Self { operation: name, kernel: name, rows: 0, launches: 1, bytes: 0 }
    }

    /// The row of the table, with the shape of the input.
    pub(super) fn timed(self, shape: impl Into<Vec<usize>>, time: RunTime) -> KernelTime {
        let Self { operation, kernel, rows, launches, bytes } = self;
        KernelTime {
            operation,
            kernel,
            rows,
            launches,
            shape: shape.into(),
            timing: time.timing,
            us: time.seconds * 1e6,
            enqueue_us: time.enqueue.map(|seconds| seconds * 1e6),
            bytes,
        }
    }
}
