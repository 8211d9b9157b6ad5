//! Backends that run kernels: a GPU through CUDA's driver (`gpu`), or the host in tests (`host`).
//!
//! Work is enqueued on one stream and runs in order. Only reading results waits for it. Kernels may also be
//! enqueued on a second stream, of which the first waits for named parts.

use std::any::Any;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::device::{DeviceError, Graph};

/// Bytes of dynamic shared memory that a block may ask for: those of a Hopper multiprocessor without the
/// kernels' static part.
pub(super) const MAX_SHARED: usize = 220 << 10;

/// Bytes of the largest parameters of a kernel.
pub(super) const MAX_PARAMS: usize = 512;

/// A kernel and its launch configuration. Kernels for clusters say themselves how many blocks a cluster has
/// (`KERNEL_CLUSTER` in `kernels/ptx.cuh`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    /// The kernel's name without the prefix `octant_` of its symbol.
    pub(super) kernel: &'static str,
    /// Blocks.
    pub(super) grid: [usize; 3],
    /// Threads per block.
    pub(super) threads: u32,
    /// Dynamic shared memory per block, in bytes.
    pub(super) shared: usize,
}

/// Runs kernels and owns device memory. Addresses are device addresses.
pub(super) trait Backend: Any + Debug + Send + Sync {
    /// The name of the GPU, or of its replacement.
    fn name(&self) -> String;
    /// Free device memory in bytes.
    fn free_memory(&self) -> Result<u64, DeviceError>;
    /// The GPU's PCI address in the form that NVIDIA's management library takes.
    fn pci_address(&self) -> Result<String, DeviceError>;
    /// Lets this backend's kernels access memory of `other`.
    fn enable_access(&self, other: &dyn Backend) -> Result<(), DeviceError>;
    /// Whether this backend and `other` run on the same GPU.
    fn is_same_gpu(&self, other: &dyn Backend) -> bool;

    /// Allocates zeroed device memory.
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError>;
    /// Frees device memory.
    ///
    /// # Safety
    /// `address` came from `alloc` and is not used any more.
    unsafe fn free(&self, address: u64);
    /// Allocates zeroed host memory that every device accesses at the same address.
    fn alloc_on_host(&self, bytes: usize) -> Result<u64, DeviceError>;
    /// Frees host memory.
    ///
    /// # Safety
    /// `address` came from `alloc_on_host` and is not used any more.
    unsafe fn free_on_host(&self, address: u64);

    /// Enqueues a copy to the device. `from` may change as soon as this returns.
    ///
    /// # Safety
    /// `from.len()` bytes from `address` on belong to one allocation of this backend.
    unsafe fn write(&self, address: u64, from: &[u8]) -> Result<(), DeviceError>;
    /// Waits for all enqueued work, then copies from the device.
    ///
    /// # Safety
    /// `to.len()` bytes from `address` on belong to one allocation of this backend.
    unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DeviceError>;
    /// Whether all enqueued work has ended. Does not wait.
    fn is_idle(&self) -> Result<bool, DeviceError>;
    /// Host memory of `bytes` bytes for asynchronous copies from the device.
    fn host_copy(&self, bytes: usize) -> Result<Box<dyn HostCopy>, DeviceError>;

    /// Enqueues a kernel. `params` are the bytes of its only argument.
    ///
    /// # Safety
    /// `params` have the layout that the kernel takes, and their pointers are valid for the kernel's
    /// accesses.
    unsafe fn launch(&self, launch: Launch, params: &[u8]) -> Result<(), DeviceError>;
    /// Enqueues the kernels of `launches` on the second stream as its part `number`, 0 or 1. They start after
    /// everything that has been enqueued on either stream.
    fn beside(
        &self,
        number: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError>;
    /// Lets the first stream wait for the last part `number` of the second.
    fn join(&self, number: usize) -> Result<(), DeviceError>;
    /// Captures what `launches` enqueues instead of running it. The graph enqueues it at each call; the
    /// buffers must still be alive then.
    fn capture(&self, launches: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError>;
    /// The library of matrix products, if it was asked for and could be loaded.
    fn library(&self) -> Option<&dyn ProductLibrary>;
    /// Runs an operation and returns its duration. The operation waits for what it enqueues.
    fn time(&self, operation: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        let start = Instant::now();
        operation()?;
        Ok(start.elapsed())
    }
}

/// Host memory to which results are copied while the device keeps running.
pub(super) trait HostCopy: Debug + Send {
    /// Enqueues a copy of device memory to the first `bytes` bytes.
    ///
    /// # Safety
    /// `bytes` bytes from `address` on belong to one allocation of the backend that made this.
    unsafe fn fetch(&mut self, address: u64, bytes: usize) -> Result<(), DeviceError>;
    /// Waits for the last copy, but not for work enqueued after it, and returns the memory.
    fn wait(&mut self) -> Result<&[u8], DeviceError>;
}

/// A library of E4M3 matrix products without scales: cuBLASLt, or its replacement in tests.
pub(super) trait ProductLibrary: Debug + Send + Sync {
    /// The library's version number.
    fn version(&self) -> usize;
    /// The algorithms that the library offers for a product, most promising first.
    fn algorithms(&self, shape: ProductShape) -> Result<Vec<Algorithm>, DeviceError>;
    /// Enqueues a product.
    ///
    /// # Safety
    /// The operands have the product's shapes.
    unsafe fn product(&self, product: &Product, algorithm: Algorithm) -> Result<(), DeviceError>;
}

/// Shape of a product of the library: out BF16 \[m, n\] = x \[m, k\] · w \[n, k\]ᵀ, all row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProductShape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// Device addresses and shape of a product of the library.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) shape: ProductShape,
    pub(super) w: u64,
    pub(super) x: u64,
    pub(super) out: u64,
}

/// An algorithm in cuBLASLt's own encoding (`cublasLtMatmulAlgo_t`).
pub(super) type Algorithm = [u64; 8];
