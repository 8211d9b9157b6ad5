//! Page-locked host memory, which a GPU copies from and to asynchronously.

use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUevent_flags_enum::CU_EVENT_DISABLE_TIMING};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

/// Bytes of each half of a staging buffer.
const HALF: usize = 16 << 20;

/// Page-locked memory, and an event that is complete when the GPU's copies from or to the memory are.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    memory: NonNull<u8>,
    bytes: usize,
    event: CUevent,
}

// SAFETY: the struct owns the memory, and any thread may use an event.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the memory is set before it is read, and freed once, by `drop`.
        let memory = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        let memory = NonNull::new(memory).expect("allocated memory has an address");
        // SAFETY: `bytes` bytes were allocated.
        unsafe { memory.write_bytes(0, bytes) };
        let event = result::event::create(CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { context: Arc::clone(context), memory, bytes, event })
    }

    /// Enqueues a copy of `bytes` bytes of device memory at `address` to the start of this memory.
    ///
    /// # Safety
    /// `bytes` bytes from `address` on belong to one allocation of this GPU.
    pub(super) unsafe fn fetch(
        &mut self,
        stream: &CudaStream,
        address: u64,
        bytes: usize,
    ) -> Result<(), DriverError> {
        assert!(bytes <= self.bytes, "{bytes} bytes do not fit in {}", self.bytes);
        // SAFETY: the memory is not read before `wait`, since both functions take an exclusive reference.
        let to = unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), bytes) };
        // SAFETY: by this function's contract; the memory lives until `drop`, which waits.
        unsafe { result::memcpy_dtoh_async(to, address, stream.cu_stream()) }?;
        self.record_event(stream)
    }

    /// Records the event after all work that is in the stream now.
    fn record_event(&mut self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: the event and the stream are alive.
        unsafe { result::event::record(self.event, stream.cu_stream()) }
    }

    /// Waits for the event and returns the memory.
    pub(super) fn wait(&mut self) -> Result<&mut [u8], DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the event is alive; waiting for one that was never recorded returns at once.
        unsafe { result::event::synchronize(self.event) }?;
        // SAFETY: the struct owns the memory, and the GPU's copy is complete.
        Ok(unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // On a GPU that has failed the wait returns at once, and the process exits.
        let _failed = self.wait().map(|_| ());
        // SAFETY: nothing uses the event and the memory any more.
        let _failed = unsafe { result::event::destroy(self.event) };
        // SAFETY: as above; the memory came from `malloc_host`.
        let _failed = unsafe { result::free_host(self.memory.as_ptr().cast()) };
    }
}

/// A staging buffer of two halves: the host fills one while the GPU copies the other.
#[derive(Debug)]
pub(super) struct Staging {
    halves: [Pinned; 2],
    current: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        Ok(Self { halves: [Pinned::new(context, HALF)?, Pinned::new(context, HALF)?], current: 0, used: 0 })
    }

    /// Enqueues copies of `from` to device memory; `from` may change as soon as this returns.
    ///
    /// # Safety
    /// `from.len()` bytes from `address` on belong to one allocation of this GPU.
    pub(super) unsafe fn write(
        &mut self,
        stream: &CudaStream,
        address: u64,
        from: &[u8],
    ) -> Result<(), DriverError> {
        let mut address = address;
        let mut left = from;
        while !left.is_empty() {
            if self.used == HALF {
                self.halves[self.current].record_event(stream)?;
                self.current = 1 - self.current;
                self.halves[self.current].wait()?;
                self.used = 0;
            }
            let (piece, rest) = left.split_at(left.len().min(HALF - self.used));
            // SAFETY: no copy that reads these bytes was enqueued since the wait for this half.
            let target = unsafe {
                let start = self.halves[self.current].memory.as_ptr().add(self.used);
                slice::from_raw_parts_mut(start, piece.len())
            };
            target.copy_from_slice(piece);
            // SAFETY: by this function's contract.
            unsafe { result::memcpy_htod_async(address, target, stream.cu_stream()) }?;
            self.used += piece.len();
            address += piece.len() as u64;
            left = rest;
        }
        Ok(())
    }
}
