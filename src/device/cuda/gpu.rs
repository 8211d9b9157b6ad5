//! Launches on a GPU, through CUDA's driver, which is loaded when the first GPU is opened: the same binary starts where
//! there is none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    result, sys,
};
use cudarc::nvrtc::Ptx;

use super::cublaslt::CublasLt;
use super::driver::{Algorithm, Launch, Product};
use super::pinned::{Pinned, Staging};
use crate::device::DeviceError;

include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// Dynamic shared memory that a block may ask for: what a Hopper multiprocessor has, less what kernels have fixed.
const MAX_SHARED: i32 = 220 << 10;

/// A GPU with our kernels on it, and one stream.
#[derive(Debug)]
pub(super) struct Gpu {
    ordinal: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: HashMap<&'static str, CudaFunction>,
    staging: Mutex<Staging>,
    library: Option<CublasLt>,
}

/// A CUDA graph of launches.
pub struct Graph(CudaGraph);

// SAFETY: a graph may be launched by any one thread at a time; its owner, a rank, is one.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

/// A kernel's parameters, which are plain bytes.
#[repr(transparent)]
struct Plain<P>(P);

// SAFETY: `P` is plain old data with the layout of the kernel's argument, by the contract of `Driver::launch`.
unsafe impl<P: bytemuck::Pod> DeviceRepr for Plain<P> {}

impl Gpu {
    /// Opens a GPU of compute capability 9.0 and loads the kernels, and cuBLASLt if it is wanted and there.
    pub(super) fn open(ordinal: usize, wants_library: bool) -> Result<Self, DeviceError> {
        // SAFETY: only looks for the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(error("cuda", "this machine has no CUDA driver (libcuda.so.1 was not found)"));
        }
        let context = CudaContext::new(ordinal).map_err(|e| driver("cuda", e))?;
        // SAFETY: everything runs on one stream, so that nothing needs events to be ordered.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(|e| driver("cuda", e))?;
        if capability != (9, 0) {
            let (major, minor) = capability;
            let message =
                format!("GPU {ordinal}: expected compute capability 9.0 (Hopper), got {major}.{minor}");
            return Err(error("cuda", message));
        }
        let stream = context.new_stream().map_err(|e| driver("cuda", e))?;
        let mut kernels = HashMap::new();
        for (cubin, names) in CUBINS {
            let module =
                context.load_module(Ptx::from_binary(cubin.to_vec())).map_err(|e| driver("cuda", e))?;
            for &name in *names {
                let kernel = module.load_function(name).map_err(|e| driver("cuda", e))?;
                kernel
                    .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, MAX_SHARED)
                    .map_err(|e| driver("cuda", e))?;
                kernels.insert(name.trim_start_matches("octant_"), kernel);
            }
        }
        let library = if wants_library { CublasLt::open(&context)? } else { None };
        let staging = Mutex::new(Staging::new(&context).map_err(|e| driver("pinned memory", e))?);
        Ok(Self { ordinal, context, stream, kernels, staging, library })
    }

    pub(super) fn free_memory(&self) -> Result<u64, DeviceError> {
        let (free, _total) = self.context.mem_get_info().map_err(|e| driver("memory", e))?;
        Ok(free as u64)
    }

    /// Where everything is enqueued.
    pub(super) fn stream(&self) -> (Arc<CudaContext>, Arc<CudaStream>) {
        (Arc::clone(&self.context), Arc::clone(&self.stream))
    }

    /// Its number.
    pub(super) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Lets this GPU's kernels reach another's memory.
    pub(super) fn reach(&self, other: &Self) -> Result<(), DeviceError> {
        const OP: &str = "peer access";
        if self.ordinal == other.ordinal {
            return Ok(());
        }
        self.enter(OP)?;
        let mut can = 0;
        // SAFETY: both are open, and `can` outlives the call.
        let asked = unsafe {
            sys::cuDeviceCanAccessPeer(&raw mut can, self.context.cu_device(), other.context.cu_device())
        };
        asked.result().map_err(|e| driver(OP, e))?;
        if can == 0 {
            let message = format!("GPU {} cannot reach the memory of GPU {}", self.ordinal, other.ordinal);
            return Err(error(OP, message));
        }
        // SAFETY: both contexts are alive, and stay so as long as the process: they are the GPUs' primary ones.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(other.context.cu_ctx(), 0) };
        match enabled {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            other => other.result().map_err(|e| driver(OP, e)),
        }
    }

    /// Page-locked memory that every GPU reaches at the same address, of zeros.
    pub(super) fn alloc_on_host(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter("pinned memory")?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: fresh memory, of which every byte is set.
        let memory = unsafe {
            let memory = result::malloc_host(bytes, flags).map_err(|e| driver("pinned memory", e))?;
            memory.cast::<u8>().write_bytes(0, bytes);
            memory
        };
        Ok(memory as u64)
    }

    /// # Safety
    /// The address came from `alloc_on_host`, and is not used any more.
    pub(super) unsafe fn free_on_host(&self, address: u64) {
        // SAFETY: by this function's contract. A GPU that has failed frees nothing, and the process ends.
        let _failed =
            self.enter("free").map(|()| unsafe { result::free_host(address as *mut std::ffi::c_void) });
    }

    pub(super) fn name(&self) -> String {
        self.context.name().unwrap_or_else(|e| format!("a GPU without a name ({e:?})"))
    }

    /// Its address, as NVIDIA's management library takes it.
    pub(super) fn pci(&self) -> Result<String, DeviceError> {
        use sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
            CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
        };
        let part = |attribute| self.context.attribute(attribute).map_err(|e| driver("pci", e));
        let (domain, bus) = (part(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?, part(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?);
        Ok(format!("{domain:08x}:{bus:02x}:{:02x}.0", part(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?))
    }

    /// Makes this GPU the calling thread's.
    fn enter(&self, op: &'static str) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| driver(op, e))
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter("alloc")?;
        // SAFETY: a fresh allocation, of which every byte is set.
        let address = unsafe {
            let address = result::malloc_sync(bytes).map_err(|e| out_of_memory(e, bytes))?;
            result::memset_d8_async(address, 0, bytes, self.stream.cu_stream())
                .map_err(|e| driver("alloc", e))?;
            address
        };
        Ok(address)
    }

    /// # Safety
    /// The address came from `alloc`, and is not used any more.
    pub(super) unsafe fn free(&self, address: u64) {
        // SAFETY: by this function's contract. A GPU that has failed frees nothing, and the process ends.
        let _failed = self.enter("free").map(|()| unsafe { result::free_sync(address) });
    }

    /// # Safety
    /// The memory from `address` on is as long as `from`, and this device's.
    pub(super) unsafe fn write(&self, address: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.enter("write")?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: by this function's contract.
        unsafe { staging.write(&self.stream, address, from) }.map_err(|e| driver("write", e))
    }

    /// Host memory for so many bytes, to be fetched into.
    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        Pinned::new(&self.context, bytes).map_err(|e| driver("pinned memory", e))
    }

    /// # Safety
    /// `bytes` from `address` on are this device's.
    pub(super) unsafe fn fetch(
        &self,
        to: &mut Pinned,
        address: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.enter("fetch")?;
        // SAFETY: by this function's contract.
        unsafe { to.fetch(&self.stream, address, bytes) }.map_err(failed)
    }

    /// Waits for what was fetched last, and for no more than that.
    pub(super) fn fetched(&self, pinned: &mut Pinned, to: &mut [u8]) -> Result<(), DeviceError> {
        to.copy_from_slice(&pinned.wait().map_err(failed)?[..to.len()]);
        Ok(())
    }

    /// # Safety
    /// The memory from `address` on is as long as `to`, and this device's.
    pub(super) unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.enter("read")?;
        // A copy to pageable memory waits inside the driver, where other ranks' threads may need to pass.
        self.stream.synchronize().map_err(failed)?;
        // SAFETY: by this function's contract, and nobody looks at `to` before the wait is over.
        let copied = unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) };
        copied.and_then(|()| self.stream.synchronize()).map_err(failed)
    }

    /// Captures launches of this thread as a graph.
    pub(super) fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.enter("record")?;
        self.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(|e| driver("record", e))?;
        let outcome = launches();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        let graph = graph.map_err(|e| driver("record", e))?;
        graph.map(Graph).ok_or_else(|| error("record", "nothing was captured"))
    }

    pub(super) fn repeat(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.enter("repeat")?;
        graph.0.launch().map_err(|e| driver("repeat", e))
    }

    /// cuBLASLt, if it was wanted and there.
    pub(super) fn library(&self) -> Option<&CublasLt> {
        self.library.as_ref()
    }

    /// # Safety
    /// As for `Driver::product`.
    pub(super) unsafe fn product(&self, product: &Product, algorithm: Algorithm) -> Result<(), DeviceError> {
        self.enter("cublaslt")?;
        let library = self.library().ok_or_else(|| error("cublaslt", "it was not loaded"))?;
        // SAFETY: by this function's contract.
        unsafe { library.product(&self.stream, product, algorithm) }
    }

    /// # Safety
    /// As for `Driver::launch`.
    pub(super) unsafe fn launch<P: bytemuck::Pod>(
        &self,
        launch: Launch,
        params: &P,
    ) -> Result<(), DeviceError> {
        let op = launch.kernel;
        let kernel = self.kernels.get(op).ok_or_else(|| error(op, "this binary carries no such kernel"))?;
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared as u32,
        };
        let params = Plain(*params);
        let mut builder = self.stream.launch_builder(kernel);
        builder.arg(&params);
        // SAFETY: by this function's contract.
        unsafe { builder.launch(config) }.map(|_no_events| ()).map_err(|e| driver(op, e))
    }
}

/// Whether a library can be loaded.
pub fn library_loads(file: &str) -> bool {
    // SAFETY: used for libraries of NVIDIA's, whose loading does nothing that we rely on.
    unsafe { libloading::Library::new(file) }.is_ok()
}

fn error(op: &'static str, message: impl Into<String>) -> DeviceError {
    DeviceError { op, message: message.into() }
}

fn driver(op: &'static str, e: DriverError) -> DeviceError {
    error(op, format!("{e:?}"))
}

/// What went wrong in any kernel before shows where the host waits.
fn failed(e: DriverError) -> DeviceError {
    error("read", format!("{e:?}; with CUDA_LAUNCH_BLOCKING=1 the error names the kernel"))
}

fn out_of_memory(e: DriverError, bytes: usize) -> DeviceError {
    error("alloc", format!("{bytes} bytes: {e:?}"))
}
