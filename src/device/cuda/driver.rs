//! Kernel launches and device memory, on either backend. Dropping the owner of memory frees the memory.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::backend::{Backend, HostCopy, Launch, MAX_PARAMS, MAX_SHARED};
use crate::device::DeviceError;

/// A backend and the count of bytes allocated on it.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    backend: Arc<dyn Backend>,
    allocated: Arc<AtomicU64>,
}

impl Driver {
    pub(super) fn new(backend: impl Backend) -> Self {
        Self { backend: Arc::new(backend), allocated: Arc::default() }
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Bytes of all buffers that are alive.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Allocates a buffer of zeros.
    pub(super) fn buffer<T: bytemuck::Pod>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        // A buffer of length 0 needs an address too.
        let bytes = (len * size_of::<T>()).max(16);
        let address = self.backend.alloc(bytes)?;
        self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        let memory = Arc::new(Allocation { driver: self.clone(), address, bytes: bytes as u64 });
        Ok(Buffer { memory, len, elements: PhantomData })
    }

    /// Allocates `len` zeroed words of host memory that every device can access.
    pub(super) fn words(&self, len: usize) -> Result<Words, DeviceError> {
        let address = self.backend.alloc_on_host(len * 4)?;
        Ok(Words { driver: self.clone(), address, len })
    }

    /// Enqueues a kernel. `params` is the kernel's only argument.
    ///
    /// # Errors
    /// If the launch is refused. An error while the kernel runs is returned by the next read.
    ///
    /// # Safety
    /// The kernel's parameters have the type `P`, and the pointers in `params` are valid for the kernel's
    /// accesses.
    pub(super) unsafe fn launch<P: bytemuck::Pod>(
        &self,
        launch: Launch,
        params: &P,
    ) -> Result<(), DeviceError> {
        const { assert!(size_of::<P>() <= MAX_PARAMS, "the parameters of a kernel are too large") };
        let Launch { kernel, shared, .. } = launch;
        if shared > MAX_SHARED {
            let message = format!("expected at most {MAX_SHARED} bytes of shared memory, got {shared}");
            return Err(DeviceError { op: kernel, message });
        }
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: the caller keeps this function's contract.
        unsafe { self.backend.launch(launch, bytemuck::bytes_of(params)) }
    }
}

/// Device memory, owned jointly by its buffer and by the other ranks that access it.
#[derive(Debug)]
pub(super) struct Allocation {
    driver: Driver,
    address: u64,
    bytes: u64,
}

impl Allocation {
    /// The address of the first byte.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address is this allocation's own, and no later launch uses it.
        unsafe { self.driver.backend.free(self.address) };
        self.driver.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An array in device memory.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Arc<Allocation>,
    len: usize,
    elements: PhantomData<fn() -> T>,
}

impl<T: bytemuck::Pod> Buffer<T> {
    /// The address of the first element, for a kernel's parameters.
    pub(super) fn address(&self) -> u64 {
        self.memory.address
    }

    /// The address of an element.
    pub(super) fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.address() + (index * size_of::<T>()) as u64
    }

    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The memory, for other ranks that access it.
    pub(super) fn memory(&self) -> Arc<Allocation> {
        Arc::clone(&self.memory)
    }

    /// Overwrites the elements from `start` on.
    pub(super) fn write(&self, start: usize, from: &[T]) -> Result<(), DeviceError> {
        assert!(start + from.len() <= self.len, "{} elements from {start} on of {}", from.len(), self.len);
        let bytes: &[u8] = bytemuck::cast_slice(from);
        // SAFETY: the assertion keeps the range inside the buffer.
        unsafe { self.memory.driver.backend.write(self.at(start), bytes) }
    }

    /// Waits for all enqueued work and copies the first `len` elements.
    pub(super) fn read(&self, len: usize) -> Result<Vec<T>, DeviceError> {
        assert!(len <= self.len, "{len} elements of {}", self.len);
        let mut out = vec![T::zeroed(); len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        // SAFETY: the assertion keeps the range inside the buffer.
        unsafe { self.memory.driver.backend.read(self.address(), bytes) }?;
        Ok(out)
    }
}

/// Words of host memory that devices read and write.
#[derive(Debug)]
pub(super) struct Words {
    driver: Driver,
    address: u64,
    len: usize,
}

impl Words {
    /// The address of the first word, for a kernel's parameters.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// The word at `index`.
    pub(super) fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.len, "word {index} of {}", self.len);
        // SAFETY: the assertion keeps the index inside the words, and the host and the devices access them
        // atomically.
        unsafe { &*(self.address as *const AtomicU32).add(index) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the memory is these words' own, and no later launch uses it.
        unsafe { self.driver.backend.free_on_host(self.address) };
    }
}

/// A device buffer of results, and host memory. The results are copied to the host memory while the device
/// keeps running.
#[derive(Debug)]
pub(super) struct Mirror<T> {
    buffer: Buffer<T>,
    copy: Box<dyn HostCopy>,
    /// Elements of the last copy.
    fetched: usize,
}

impl<T: bytemuck::Pod> Mirror<T> {
    pub(super) fn new(driver: &Driver, len: usize) -> Result<Self, DeviceError> {
        let (buffer, copy) = (driver.buffer(len)?, driver.backend.host_copy(len * size_of::<T>())?);
        Ok(Self { buffer, copy, fetched: 0 })
    }

    /// The results on the device.
    pub(super) fn buffer(&self) -> &Buffer<T> {
        &self.buffer
    }

    /// Enqueues a copy of the first `len` elements to the host.
    pub(super) fn fetch(&mut self, len: usize) -> Result<(), DeviceError> {
        assert!(len <= self.buffer.len, "{len} elements of {}", self.buffer.len);
        self.fetched = len;
        // SAFETY: the assertion keeps the range inside the buffer.
        unsafe { self.copy.fetch(self.buffer.address(), len * size_of::<T>()) }
    }

    /// Waits for the copy, but not for work enqueued after it.
    pub(super) fn wait(&mut self) -> Result<Vec<T>, DeviceError> {
        let mut out = vec![T::zeroed(); self.fetched];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        let copied = self.copy.wait()?;
        bytes.copy_from_slice(&copied[..bytes.len()]);
        Ok(out)
    }
}
