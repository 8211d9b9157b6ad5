//! Memory and launches: on a GPU through CUDA's driver, or on the host, where tests run the same kernels.
//!
//! Everything is enqueued on one stream and runs in that order; only reading back waits.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(feature = "cuda")]
use cudarc::driver::{CudaContext, CudaStream};

#[cfg(feature = "cuda")]
use super::gpu::Gpu;
#[cfg(feature = "host-kernels")]
use super::host::Host;
use crate::device::DeviceError;

/// Where kernels run, and bytes of the buffers that are there.
#[derive(Debug, Clone)]
pub(super) struct Driver(Arc<Kind>, Arc<AtomicU64>);

#[derive(Debug)]
enum Kind {
    #[cfg(feature = "cuda")]
    Gpu(Gpu),
    #[cfg(feature = "host-kernels")]
    Host(Host),
}

/// Launches recorded once, to be repeated.
#[derive(Debug)]
pub enum Recording {
    #[cfg(feature = "cuda")]
    #[doc(hidden)]
    Gpu(super::gpu::Graph),
    #[cfg(feature = "host-kernels")]
    #[doc(hidden)]
    Host(super::host::Launches),
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    /// Its name, without the prefix of its symbol.
    pub(super) kernel: &'static str,
    /// Blocks.
    pub(super) grid: [usize; 3],
    /// Threads of a block.
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: usize,
}

/// Addresses and shape of a product of cuBLASLt: out f32 \[m, n\] = x \[m, k\] · w \[n, k\]ᵀ, E4M3, all row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) w: u64,
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// A way of cuBLASLt's to do a product, as it writes it down.
pub(super) type Algorithm = [u64; 8];

/// Calls one of the two.
macro_rules! on {
    ($driver:expr, $which:ident => $call:expr) => {
        match &*$driver.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu($which) => $call,
            #[cfg(feature = "host-kernels")]
            Kind::Host($which) => $call,
        }
    };
}

impl Driver {
    #[cfg(feature = "cuda")]
    pub(super) fn gpu(ordinal: usize, wants_library: bool) -> Result<Self, DeviceError> {
        Ok(Self(Arc::new(Kind::Gpu(Gpu::open(ordinal, wants_library)?)), Arc::default()))
    }

    #[cfg(feature = "host-kernels")]
    pub(super) fn host(descending: bool) -> Result<Self, DeviceError> {
        Ok(Self(Arc::new(Kind::Host(Host::open(descending)?)), Arc::default()))
    }

    /// Bytes that nobody uses.
    #[cfg(feature = "cuda")]
    pub(super) fn free_memory(&self) -> Result<u64, DeviceError> {
        match &*self.0 {
            Kind::Gpu(gpu) => gpu.free_memory(),
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => Ok(u64::MAX),
        }
    }

    /// The GPU's PCI address.
    #[cfg(feature = "cuda")]
    pub(super) fn pci(&self) -> Result<String, DeviceError> {
        match &*self.0 {
            Kind::Gpu(gpu) => gpu.pci(),
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => Err(DeviceError { op: "pci", message: "the host has none".to_owned() }),
        }
    }

    /// Where everything is enqueued, on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn stream(&self) -> Option<(Arc<CudaContext>, Arc<CudaStream>)> {
        match &*self.0 {
            Kind::Gpu(gpu) => Some(gpu.stream()),
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => None,
        }
    }

    /// What it is, for people.
    pub(super) fn name(&self) -> String {
        on!(self, driver => driver.name())
    }

    /// Records launches instead of doing them.
    pub(super) fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Recording, DeviceError> {
        match &*self.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu(gpu) => gpu.record(launches).map(Recording::Gpu),
            #[cfg(feature = "host-kernels")]
            Kind::Host(host) => host.record(launches).map(Recording::Host),
        }
    }

    /// Does what was recorded.
    pub(super) fn repeat(&self, recording: &Recording) -> Result<(), DeviceError> {
        match (&*self.0, recording) {
            #[cfg(feature = "cuda")]
            (Kind::Gpu(gpu), Recording::Gpu(graph)) => gpu.repeat(graph),
            #[cfg(feature = "host-kernels")]
            (Kind::Host(host), Recording::Host(launches)) => host.repeat(launches),
            #[cfg(all(feature = "cuda", feature = "host-kernels"))]
            _ => unreachable!("a recording is repeated by the device that made it"),
        }
    }

    /// The version of cuBLASLt, if it was wanted and there.
    pub(super) fn library(&self) -> Option<usize> {
        match &*self.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu(gpu) => gpu.library().map(super::cublaslt::CublasLt::version),
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => Some(0),
        }
    }

    /// What cuBLASLt offers for products of [m, k] by [n, k].
    pub(super) fn algorithms(&self, m: usize, n: usize, k: usize) -> Result<Vec<Algorithm>, DeviceError> {
        match &*self.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu(gpu) => gpu.library().map_or(Ok(Vec::new()), |library| library.algorithms(m, n, k)),
            #[cfg(feature = "host-kernels")]
            Kind::Host(host) => Ok(host.algorithms(m, n, k)),
        }
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// The operands have the product's shapes.
    pub(super) unsafe fn product(&self, product: &Product, algorithm: Algorithm) -> Result<(), DeviceError> {
        // SAFETY: by this function's contract.
        on!(self, driver => unsafe { driver.product(product, algorithm) })
    }

    /// Bytes of all buffers that there are.
    pub(super) fn allocated(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    /// A buffer of zeros.
    pub(super) fn buffer<T: bytemuck::Pod>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        // A length of 0 has an address too.
        let bytes = (len * size_of::<T>()).max(16);
        let address = on!(self, driver => driver.alloc(bytes))?;
        self.1.fetch_add(bytes as u64, Ordering::Relaxed);
        let memory = Arc::new(Allocation { driver: self.clone(), address, bytes: bytes as u64 });
        Ok(Buffer { memory, len, elements: PhantomData })
    }

    /// Words of the host's memory, all 0, which every device reads and writes too.
    pub(super) fn words(&self, len: usize) -> Result<Words, DeviceError> {
        let address = on!(self, driver => driver.alloc_on_host(len * 4))?;
        Ok(Words { driver: self.clone(), address, len })
    }

    /// Lets kernels of this device reach the other's memory.
    pub(super) fn reach(&self, other: &Self) -> Result<(), DeviceError> {
        match (&*self.0, &*other.0) {
            #[cfg(feature = "cuda")]
            (Kind::Gpu(own), Kind::Gpu(other)) => own.reach(other),
            #[cfg(feature = "host-kernels")]
            (Kind::Host(_), Kind::Host(_)) => Ok(()),
            #[cfg(all(feature = "cuda", feature = "host-kernels"))]
            _ => unreachable!("a group's devices are of one kind"),
        }
    }

    /// Whether both are one GPU.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        match (&*self.0, &*other.0) {
            #[cfg(feature = "cuda")]
            (Kind::Gpu(own), Kind::Gpu(other)) => own.ordinal() == other.ordinal(),
            #[cfg(feature = "host-kernels")]
            (Kind::Host(_), Kind::Host(_)) => true,
            #[cfg(all(feature = "cuda", feature = "host-kernels"))]
            _ => false,
        }
    }

    /// Enqueues a kernel. `params` is the kernel's one argument.
    ///
    /// # Errors
    /// If the launch is refused. What goes wrong while the kernel runs shows when something is read back.
    ///
    /// # Safety
    /// The kernel takes a `P`, and its pointers are valid for what the kernel does with them.
    pub(super) unsafe fn launch<P: bytemuck::Pod>(
        &self,
        launch: Launch,
        params: &P,
    ) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        on!(self, driver => unsafe { driver.launch(launch, params) })
    }
}

/// Memory of the device, which whoever reads it keeps.
#[derive(Debug)]
pub(super) struct Allocation {
    driver: Driver,
    address: u64,
    bytes: u64,
}

impl Allocation {
    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address is this allocation's own, and nothing is launched with it any more.
        on!(self.driver, driver => unsafe { driver.free(self.address) });
        self.driver.1.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Elements in the memory of the device.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Arc<Allocation>,
    len: usize,
    elements: PhantomData<fn() -> T>,
}

impl<T: bytemuck::Pod> Buffer<T> {
    /// Where it begins, for a kernel's parameters.
    pub(super) fn address(&self) -> u64 {
        self.memory.address
    }

    /// The address of an element.
    pub(super) fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.address() + (index * size_of::<T>()) as u64
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The memory, for other ranks that read and write it.
    pub(super) fn memory(&self) -> Arc<Allocation> {
        Arc::clone(&self.memory)
    }

    /// Overwrites the elements from `start` on.
    pub(super) fn write(&self, start: usize, from: &[T]) -> Result<(), DeviceError> {
        assert!(start + from.len() <= self.len, "{} elements from {start} on of {}", from.len(), self.len);
        let bytes: &[u8] = bytemuck::cast_slice(from);
        // SAFETY: inside the buffer by the assertion.
        on!(self.memory.driver, driver => unsafe { driver.write(self.at(start), bytes) })
    }

    /// Waits for all that was enqueued and copies the first elements.
    pub(super) fn read(&self, len: usize) -> Result<Vec<T>, DeviceError> {
        assert!(len <= self.len, "{len} elements of {}", self.len);
        let mut out = vec![T::zeroed(); len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        // SAFETY: inside the buffer by the assertion.
        on!(self.memory.driver, driver => unsafe { driver.read(self.address(), bytes) })?;
        Ok(out)
    }
}

/// Words of the host's memory that devices read and write.
#[derive(Debug)]
pub(super) struct Words {
    driver: Driver,
    address: u64,
    len: usize,
}

impl Words {
    /// Where they begin, for a kernel's parameters.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// One of them.
    pub(super) fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.len, "word {index} of {}", self.len);
        // SAFETY: inside the words by the assertion; all access, also the device's, is atomic.
        unsafe { &*(self.address as *const AtomicU32).add(index) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the memory is these words' own, and nothing is launched with it any more.
        on!(self.driver, driver => unsafe { driver.free_on_host(self.address) });
    }
}

/// A buffer of results, and on the host a copy that is fetched while the device goes on.
#[derive(Debug)]
pub(super) struct Mirror<T> {
    buffer: Buffer<T>,
    /// Elements that were fetched last.
    fetched: usize,
    #[cfg(feature = "cuda")]
    pinned: Option<super::pinned::Pinned>,
}

impl<T: bytemuck::Pod> Mirror<T> {
    pub(super) fn new(driver: &Driver, len: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            buffer: driver.buffer(len)?,
            fetched: 0,
            #[cfg(feature = "cuda")]
            pinned: match &*driver.0 {
                Kind::Gpu(gpu) => Some(gpu.pinned(len * size_of::<T>())?),
                #[cfg(feature = "host-kernels")]
                Kind::Host(_) => None,
            },
        })
    }

    /// The results on the device.
    pub(super) fn buffer(&self) -> &Buffer<T> {
        &self.buffer
    }

    /// Enqueues a copy of the first elements to the host.
    pub(super) fn fetch(&mut self, len: usize) -> Result<(), DeviceError> {
        assert!(len <= self.buffer.len, "{len} elements of {}", self.buffer.len);
        self.fetched = len;
        match &*self.buffer.memory.driver.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu(gpu) => {
                let pinned = self.pinned.as_mut().expect("a GPU's mirror has pinned memory");
                // SAFETY: inside the buffer by the assertion.
                unsafe { gpu.fetch(pinned, self.buffer.address(), len * size_of::<T>()) }
            }
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => Ok(()),
        }
    }

    /// Waits for the copy, and not for what was enqueued after it.
    pub(super) fn wait(&mut self) -> Result<Vec<T>, DeviceError> {
        match &*self.buffer.memory.driver.0 {
            #[cfg(feature = "cuda")]
            Kind::Gpu(gpu) => {
                let pinned = self.pinned.as_mut().expect("a GPU's mirror has pinned memory");
                let mut out = vec![T::zeroed(); self.fetched];
                gpu.fetched(pinned, bytemuck::cast_slice_mut(&mut out))?;
                Ok(out)
            }
            #[cfg(feature = "host-kernels")]
            Kind::Host(_) => self.buffer.read(self.fetched),
        }
    }
}
