//! The GPU backend, through CUDA's driver. The driver is loaded when the first GPU is opened, so that the
//! same binary starts on machines without one.

mod cublaslt;
mod nccl;
mod pinned;

use std::any::Any;
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute_enum::{
    CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
};
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::backend::{Backend, HostCopy, Launch, MAX_PARAMS, MAX_SHARED, ProductLibrary};
use super::driver::Driver;
use super::{Cuda, Products};
use crate::device::{DeviceError, Graph};
use cublaslt::CublasLt;
pub use nccl::{Nccl, nccl_version};
use pinned::{Pinned, Staging};

include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// A GPU with the kernels loaded.
#[derive(Debug)]
struct Gpu {
    ordinal: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    second: SecondStream,
    kernels: HashMap<&'static str, CudaFunction>,
    staging: Mutex<Staging>,
    library: Option<CublasLt>,
    /// Whether another rank runs on the same GPU. Then no kernel starts before earlier ones have ended: it
    /// would take the multiprocessors of the other rank, which an earlier kernel of this rank waits for.
    is_shared: AtomicBool,
}

impl Cuda {
    /// Opens the GPU number `ordinal`, of compute capability 9.0.
    ///
    /// # Errors
    /// If the machine has no CUDA driver or no such GPU, or the GPU has another compute capability.
    pub fn new(ordinal: usize, products: Products) -> Result<Self, DeviceError> {
        let gpu = Gpu::open(ordinal, products != Products::Deterministic)?;
        Ok(Self::with_driver(Driver::new(gpu), products))
    }
}

/// A copy of a kernel's parameters. The driver reads the number of bytes that the kernel's parameters have.
#[repr(C, align(16))]
struct Params([u8; MAX_PARAMS]);

impl Gpu {
    /// Opens a GPU and loads the kernels, and cuBLASLt if it is wanted and installed.
    fn open(ordinal: usize, wants_library: bool) -> Result<Self, DeviceError> {
        // SAFETY: only looks for the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(error("cuda", "this machine has no CUDA driver (libcuda.so.1 was not found)"));
        }
        let context = CudaContext::new(ordinal).map_err(|e| driver("cuda", e))?;
        // SAFETY: all work runs on one stream, whose order needs no events, or on a second one, for which
        // `beside` and `join` record events.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(|e| driver("cuda", e))?;
        if capability != (9, 0) {
            let (major, minor) = capability;
            let message =
                format!("GPU {ordinal}: expected compute capability 9.0 (Hopper), got {major}.{minor}");
            return Err(error("cuda", message));
        }
        let stream = context.new_stream().map_err(|e| driver("cuda", e))?;
        let second = SecondStream::new(&context).map_err(|e| driver("cuda", e))?;
        let mut kernels = HashMap::new();
        for (cubin, names) in CUBINS {
            let module =
                context.load_module(Ptx::from_binary(cubin.to_vec())).map_err(|e| driver("cuda", e))?;
            for &name in *names {
                let kernel = module.load_function(name).map_err(|e| driver("cuda", e))?;
                kernel
                    .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, MAX_SHARED as i32)
                    .map_err(|e| driver("cuda", e))?;
                kernels.insert(name.trim_start_matches("octant_"), kernel);
            }
        }
        let library = if wants_library { CublasLt::open(&context, &stream)? } else { None };
        let staging = Mutex::new(Staging::new(&context).map_err(|e| driver("pinned memory", e))?);
        let is_shared = AtomicBool::new(false);
        Ok(Self { ordinal, context, stream, second, kernels, staging, library, is_shared })
    }

    /// The GPU behind a backend, unless that runs on the host.
    fn behind(backend: &dyn Backend) -> Option<&Self> {
        (backend as &dyn Any).downcast_ref()
    }

    /// Makes this GPU's context current on the calling thread.
    fn enter(&self, op: &'static str) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| driver(op, e))
    }
}

impl Backend for Gpu {
    fn name(&self) -> String {
        self.context.name().unwrap_or_else(|e| format!("a GPU without a name ({e:?})"))
    }

    fn free_memory(&self) -> Result<u64, DeviceError> {
        let (free, _total) = self.context.mem_get_info().map_err(|e| driver("memory", e))?;
        Ok(free as u64)
    }

    fn pci_address(&self) -> Result<String, DeviceError> {
        let part = |attribute| self.context.attribute(attribute).map_err(|e| driver("pci", e));
        let (domain, bus) = (part(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?, part(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?);
        Ok(format!("{domain:08x}:{bus:02x}:{:02x}.0", part(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?))
    }

    fn enable_access(&self, other: &dyn Backend) -> Result<(), DeviceError> {
        const OP: &str = "peer access";
        let other = Self::behind(other).ok_or_else(|| error(OP, "the other rank runs on the host"))?;
        if self.ordinal == other.ordinal {
            if !ptr::eq(self, other) {
                self.is_shared.store(true, Ordering::Relaxed);
                other.is_shared.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        self.enter(OP)?;
        let mut can = 0;
        // SAFETY: both devices are open, and `can` outlives the call.
        let asked = unsafe {
            sys::cuDeviceCanAccessPeer(&raw mut can, self.context.cu_device(), other.context.cu_device())
        };
        asked.result().map_err(|e| driver(OP, e))?;
        if can == 0 {
            let message = format!("GPU {} cannot access the memory of GPU {}", self.ordinal, other.ordinal);
            return Err(error(OP, message));
        }
        // SAFETY: both contexts live as long as the process: they are the GPUs' primary contexts.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(other.context.cu_ctx(), 0) };
        match enabled {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            other => other.result().map_err(|e| driver(OP, e)),
        }
    }

    fn is_same_gpu(&self, other: &dyn Backend) -> bool {
        Self::behind(other).is_some_and(|other| other.ordinal == self.ordinal)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter("alloc")?;
        // SAFETY: a new allocation, of which every byte is set.
        let address = unsafe {
            let address = result::malloc_sync(bytes).map_err(|e| out_of_memory(e, bytes))?;
            result::memset_d8_async(address, 0, bytes, self.stream.cu_stream())
                .map_err(|e| driver("alloc", e))?;
            address
        };
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: by this function's contract. A GPU that has failed frees nothing, and the process exits.
        let _failed = self.enter("free").map(|()| unsafe { result::free_sync(address) });
    }

    /// Page-locked memory.
    fn alloc_on_host(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter("pinned memory")?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: new memory, of which every byte is set.
        let memory = unsafe {
            let memory = result::malloc_host(bytes, flags).map_err(|e| driver("pinned memory", e))?;
            memory.cast::<u8>().write_bytes(0, bytes);
            memory
        };
        Ok(memory as u64)
    }

    unsafe fn free_on_host(&self, address: u64) {
        // SAFETY: by this function's contract. A GPU that has failed frees nothing, and the process exits.
        let _failed =
            self.enter("free").map(|()| unsafe { result::free_host(address as *mut std::ffi::c_void) });
    }

    unsafe fn write(&self, address: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.enter("write")?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: by this function's contract.
        unsafe { staging.write(&self.stream, address, from) }.map_err(|e| driver("write", e))
    }

    unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.enter("read")?;
        // A copy to pageable memory waits inside the driver, and would block other ranks' threads there.
        self.stream.synchronize().map_err(failed)?;
        // SAFETY: by this function's contract; `to` is not read before the copy is complete.
        let copied = unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) };
        copied.and_then(|()| self.stream.synchronize()).map_err(failed)
    }

    fn is_idle(&self) -> Result<bool, DeviceError> {
        const OP: &str = "query";
        self.enter(OP)?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.stream.cu_stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true).map_err(|e| driver(OP, e)),
        }
    }

    fn host_copy(&self, bytes: usize) -> Result<Box<dyn HostCopy>, DeviceError> {
        let pinned = Pinned::new(&self.context, bytes).map_err(|e| driver("pinned memory", e))?;
        Ok(Box::new(PinnedCopy { pinned, context: self.context.clone(), stream: self.stream.clone() }))
    }

    /// Kernels of the first stream may start before the kernel before them has ended, and wait for it
    /// themselves ("programmatic dependent launch"), also in a captured graph. Kernels of the second stream
    /// start only after the one before has ended: a kernel that waited would hold multiprocessors that
    /// products need.
    unsafe fn launch(&self, launch: Launch, params: &[u8]) -> Result<(), DeviceError> {
        let op = launch.kernel;
        let kernel = self.kernels.get(op).ok_or_else(|| error(op, "this binary has no such kernel"))?;
        self.enter(op)?;
        let is_second = self.second.takes_launches.load(Ordering::Relaxed);
        let stream = if is_second { &self.second.stream } else { &self.stream };
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let overlaps = i32::from(!is_second && !self.is_shared.load(Ordering::Relaxed));
        let mut attribute = sys::CUlaunchAttribute {
            id: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: overlaps },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared as u32,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        let mut copy = Params([0; MAX_PARAMS]);
        copy.0[..params.len()].copy_from_slice(params);
        let mut arguments = [(&raw mut copy).cast::<std::ffi::c_void>()];
        // SAFETY: by this function's contract; the driver copies the configuration and the parameters.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.cu_function(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        launched.result().map_err(|e| driver(op, e))
    }

    fn beside(
        &self,
        number: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let SecondStream { stream, begun, parts, takes_launches } = &self.second;
        let began = begun.record(&self.stream).and_then(|()| stream.wait(begun));
        began.map_err(|e| driver("second stream", e))?;
        takes_launches.store(true, Ordering::Relaxed);
        let outcome = launches();
        takes_launches.store(false, Ordering::Relaxed);
        outcome?;
        parts[number].record(stream).map_err(|e| driver("second stream", e))
    }

    fn join(&self, number: usize) -> Result<(), DeviceError> {
        self.stream.wait(&self.second.parts[number]).map_err(|e| driver("second stream", e))
    }

    /// Captures the calling thread's launches as a CUDA graph.
    fn capture(&self, launches: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        const OP: &str = "capture";
        self.enter(OP)?;
        self.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(|e| driver(OP, e))?;
        let outcome = launches();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        let graph = graph.map_err(|e| driver(OP, e))?;
        let graph = graph.map(CapturedGraph).ok_or_else(|| error(OP, "nothing was captured"))?;
        let context = Arc::clone(&self.context);
        Ok(Box::new(move || {
            let replayed = context.bind_to_thread().and_then(|()| graph.launch());
            replayed.map_err(|e| driver("replay", e))
        }))
    }

    fn library(&self) -> Option<&dyn ProductLibrary> {
        self.library.as_ref().map(|library| library as &dyn ProductLibrary)
    }
}

/// The stream of sums that run beside products. Its kernels have priority for free multiprocessors, since
/// products wait for them.
#[derive(Debug)]
struct SecondStream {
    stream: Arc<CudaStream>,
    /// Recorded on the first stream before each part, whose launches wait for it.
    begun: CudaEvent,
    /// Recorded after the last launch of each part; the first stream waits for it.
    parts: [CudaEvent; 2],
    /// Whether launches are for this stream. All come from one thread.
    takes_launches: AtomicBool,
}

impl SecondStream {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let (_lowest, highest) = result::stream::get_priority_range()?;
        let event = || context.new_event(None);
        Ok(Self {
            stream: context.new_stream_with_priority(highest)?,
            begun: event()?,
            parts: [event()?, event()?],
            takes_launches: AtomicBool::new(false),
        })
    }
}

/// A CUDA graph.
struct CapturedGraph(CudaGraph);

// SAFETY: a graph may be launched by any thread, one at a time; its owner, a rank, runs on one thread.
unsafe impl Send for CapturedGraph {}

impl CapturedGraph {
    fn launch(&self) -> Result<(), DriverError> {
        self.0.launch()
    }
}

/// Page-locked memory for results, and the stream that copies to it.
#[derive(Debug)]
struct PinnedCopy {
    pinned: Pinned,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl HostCopy for PinnedCopy {
    unsafe fn fetch(&mut self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| driver("fetch", e))?;
        // SAFETY: by this function's contract.
        unsafe { self.pinned.fetch(&self.stream, address, bytes) }.map_err(failed)
    }

    fn wait(&mut self) -> Result<&[u8], DeviceError> {
        self.pinned.wait().map(|bytes| &*bytes).map_err(failed)
    }
}

/// Whether a shared library can be loaded.
pub(crate) fn library_loads(file: &str) -> bool {
    // SAFETY: used for NVIDIA's libraries; the program relies on nothing that their loading does.
    unsafe { libloading::Library::new(file) }.is_ok()
}

fn error(op: &'static str, message: impl Into<String>) -> DeviceError {
    DeviceError { op, message: message.into() }
}

fn driver(op: &'static str, e: DriverError) -> DeviceError {
    error(op, format!("{e:?}"))
}

/// An error of a wait: any kernel enqueued before may have caused it.
fn failed(e: DriverError) -> DeviceError {
    error("read", format!("{e:?}; with CUDA_LAUNCH_BLOCKING=1 the error names the kernel"))
}

fn out_of_memory(e: DriverError, bytes: usize) -> DeviceError {
    error("alloc", format!("{bytes} bytes: {e:?}"))
}
