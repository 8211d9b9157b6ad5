//! The host backend, for tests: kernels compiled by g++ into a library, run by `kernels/host/cuda.cpp`.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_char, c_void};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libloading::Library;

use super::backend::{Algorithm, Backend, HostCopy, Launch, Product, ProductLibrary, ProductShape};
use super::driver::Driver;
use super::{Cuda, Products};
use crate::device::{DeviceError, Graph, fp8};

/// The parameters of `octant_launch` in `kernels/host/cuda.cpp`.
#[repr(C)]
struct HostLaunch {
    name: *const c_char,
    kernel: *const c_void,
    params: *const c_void,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    descending: u32,
    cluster: u32,
    overlaps: u32,
}

/// Alignment of device memory: the least that kernels need. With a larger one AddressSanitizer would miss
/// accesses shortly past the end of a buffer.
const ALIGN: usize = 16;

/// The library of kernels and the memory allocated for them. Launches of different threads run concurrently.
#[derive(Debug)]
struct Host {
    kernels: Arc<Kernels>,
    allocations: Mutex<HashMap<u64, Layout>>,
    /// The launches captured so far; `None` unless launches are being captured.
    capture: Mutex<Option<Vec<CapturedLaunch>>>,
    second: Mutex<SecondStream>,
    library_products: PlainProducts,
}

/// Launches on the second stream. They run at once if threads are ascending; if descending, as late as
/// possible, so that an operation that does not wait for them computes with old values.
#[derive(Debug, Default)]
struct SecondStream {
    /// The part that launches belong to; `None` while launches are for the first stream.
    part: Option<usize>,
    /// Launches that have not run, with their parts.
    late: VecDeque<(usize, CapturedLaunch)>,
}

/// The clock of measurements, in microseconds. It does not run by itself: launches and products add fixed
/// durations, so that the choice of the fastest product does not depend on the machine.
type Clock = Arc<AtomicU64>;

/// The library of kernels.
#[derive(Debug)]
struct Kernels {
    library: Library,
    /// Whether the threads of a block start from the last to the first.
    descending: bool,
    wrong: Option<WrongKernel>,
    clock: Clock,
}

/// A fault for tests: launches of `kernel` run `in_its_place`.
#[derive(Debug, Clone, Copy)]
struct WrongKernel {
    kernel: &'static str,
    in_its_place: &'static str,
}

/// A launch with the bytes of its parameters.
#[derive(Debug)]
struct CapturedLaunch {
    launch: Launch,
    params: Vec<u8>,
}

impl Cuda {
    /// Runs the kernels on the host, for tests: slowly, with every barrier checked. `descending` says whether
    /// the threads of a block start from the last to the first.
    ///
    /// # Errors
    /// If the library of kernels cannot be loaded.
    pub fn on_host(descending: bool, products: Products) -> Result<Self, DeviceError> {
        Self::with_host(descending, products, None)
    }

    /// Runs the kernels on the host, with a fault: launches of `kernel` run the kernel `in_its_place`, which
    /// takes the same parameters.
    ///
    /// # Errors
    /// Those of [`Cuda::on_host`].
    pub fn on_faulty_host(kernel: &'static str, in_its_place: &'static str) -> Result<Self, DeviceError> {
        let wrong = WrongKernel { kernel, in_its_place };
        Self::with_host(false, Products::Deterministic, Some(wrong))
    }

    fn with_host(
        descending: bool,
        products: Products,
        wrong: Option<WrongKernel>,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the library is our own and runs nothing on loading.
        let library = unsafe { Library::new(env!("OCTANT_HOST_KERNELS")) };
        let library = library.map_err(|e| error("host kernels", e.to_string()))?;
        let clock = Clock::default();
        let library_products = PlainProducts { clock: Arc::clone(&clock) };
        let kernels = Arc::new(Kernels { library, descending, wrong, clock });
        let host = Host {
            kernels,
            allocations: Mutex::default(),
            capture: Mutex::default(),
            second: Mutex::default(),
            library_products,
        };
        Ok(Self::with_driver(Driver::new(host), products))
    }
}

impl Host {
    fn allocations(&self) -> MutexGuard<'_, HashMap<u64, Layout>> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn second(&self) -> MutexGuard<'_, SecondStream> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn captured(&self) -> MutexGuard<'_, Option<Vec<CapturedLaunch>>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Host {
    fn name(&self) -> String {
        let order = if self.kernels.descending { "descending" } else { "ascending" };
        format!("kernels on the host, threads {order}")
    }

    fn free_memory(&self) -> Result<u64, DeviceError> {
        Ok(u64::MAX)
    }

    fn pci_address(&self) -> Result<String, DeviceError> {
        Err(error("pci", "the kernels run on the host, which has no PCI address".to_owned()))
    }

    fn enable_access(&self, _other: &dyn Backend) -> Result<(), DeviceError> {
        Ok(())
    }

    fn is_same_gpu(&self, other: &dyn Backend) -> bool {
        (other as &dyn Any).is::<Self>()
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|e| error("alloc", e.to_string()))?;
        // SAFETY: the size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(error("alloc", format!("no memory for {bytes} bytes")));
        }
        self.allocations().insert(pointer as u64, layout);
        Ok(pointer as u64)
    }

    unsafe fn free(&self, address: u64) {
        if let Some(layout) = self.allocations().remove(&address) {
            // SAFETY: `alloc` allocated the memory with this layout.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }

    fn alloc_on_host(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.alloc(bytes)
    }

    unsafe fn free_on_host(&self, address: u64) {
        // SAFETY: the caller keeps this function's contract.
        unsafe { self.free(address) };
    }

    unsafe fn write(&self, address: u64, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller keeps this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller keeps this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn is_idle(&self) -> Result<bool, DeviceError> {
        // A kernel runs within its launch.
        Ok(true)
    }

    fn host_copy(&self, bytes: usize) -> Result<Box<dyn HostCopy>, DeviceError> {
        Ok(Box::new(Copied(vec![0; bytes])))
    }

    unsafe fn launch(&self, launch: Launch, params: &[u8]) -> Result<(), DeviceError> {
        if let Some(captured) = &mut *self.captured() {
            captured.push(CapturedLaunch { launch, params: params.to_vec() });
            return Ok(());
        }
        let mut second = self.second();
        if let Some(part) = second.part.filter(|_| self.kernels.descending) {
            second.late.push_back((part, CapturedLaunch { launch, params: params.to_vec() }));
            return Ok(());
        }
        drop(second);
        // SAFETY: the caller keeps this function's contract.
        unsafe { self.kernels.run(launch, params) }
    }

    fn beside(
        &self,
        number: usize,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.second().part = Some(number);
        let outcome = launches();
        self.second().part = None;
        outcome
    }

    fn join(&self, number: usize) -> Result<(), DeviceError> {
        let last = self.second().late.iter().rposition(|(part, _)| *part == number);
        let count = last.map_or(0, |last| last + 1);
        let late: Vec<_> = self.second().late.drain(..count).collect();
        late.iter().try_for_each(|(_, CapturedLaunch { launch, params })| {
            // SAFETY: the contract of the launch holds while its buffers live, until the batch is joined.
            unsafe { self.kernels.run(*launch, params) }
        })
    }

    fn capture(&self, launches: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        *self.captured() = Some(Vec::new());
        let outcome = launches();
        let captured = self.captured().take().unwrap_or_default();
        outcome?;
        let kernels = Arc::clone(&self.kernels);
        Ok(Box::new(move || {
            captured.iter().try_for_each(|CapturedLaunch { launch, params }| {
                // SAFETY: the contract of the captured launch holds while its buffers live, and the owner of
                // the graph keeps the buffers.
                unsafe { kernels.run(*launch, params) }
            })
        }))
    }

    fn library(&self) -> Option<&dyn ProductLibrary> {
        Some(&self.library_products)
    }

    fn time(&self, operation: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        let now = || self.kernels.clock.load(Ordering::Relaxed);
        let start = now();
        operation()?;
        Ok(Duration::from_micros(now() - start))
    }
}

/// Host memory for results. A kernel has ended when its launch returns, so `fetch` copies at once.
#[derive(Debug)]
struct Copied(Vec<u8>);

impl HostCopy for Copied {
    unsafe fn fetch(&mut self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let to = &mut self.0[..bytes];
        // SAFETY: the caller keeps this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), bytes) };
        Ok(())
    }

    fn wait(&mut self) -> Result<&[u8], DeviceError> {
        Ok(&self.0)
    }
}

/// Replaces cuBLASLt with a wrong algorithm, which must never be chosen, and three right ones.
#[derive(Debug)]
struct PlainProducts {
    clock: Clock,
}

/// The algorithm that computes the negated product.
const WRONG: Algorithm = [7; 8];
/// All algorithms, with their durations in microseconds.
const ALGORITHMS: [(Algorithm, u64); 4] = [(WRONG, 1), ([2; 8], 50), ([1; 8], 10), ([3; 8], 30)];
/// Microseconds of a launch of the `linear` kernel, and of any other kernel.
const LAUNCH: (u64, u64) = (100, 1);
/// Products with at most this many outputs take this many microseconds more, so that the `linear` kernel is
/// faster than the library.
const FEW_OUTPUTS: (usize, u64) = (32, 1_000_000);

impl ProductLibrary for PlainProducts {
    fn version(&self) -> usize {
        0
    }

    fn algorithms(&self, _shape: ProductShape) -> Result<Vec<Algorithm>, DeviceError> {
        Ok(ALGORITHMS.map(|(algorithm, _)| algorithm).to_vec())
    }

    unsafe fn product(&self, product: &Product, algorithm: Algorithm) -> Result<(), DeviceError> {
        let ProductShape { m, n, k } = product.shape;
        let known = ALGORITHMS.iter().find(|(known, _)| *known == algorithm);
        let duration = known.map_or(0, |(_, duration)| *duration);
        let more = if n <= FEW_OUTPUTS.0 { FEW_OUTPUTS.1 } else { 0 };
        self.clock.fetch_add(duration + more, Ordering::Relaxed);
        // SAFETY: the caller keeps this function's contract.
        let (x, w, out) = unsafe {
            (
                slice::from_raw_parts(product.x as *const u8, m * k),
                slice::from_raw_parts(product.w as *const u8, n * k),
                slice::from_raw_parts_mut(product.out as *mut u16, m * n),
            )
        };
        let values: Vec<f32> = (0..=255).map(fp8::decode).collect();
        let sign = if algorithm == WRONG { -1.0 } else { 1.0 };
        for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            for (w, out) in w.chunks_exact(k).zip(out) {
                let products =
                    x.iter().zip(w).map(|(x, w)| values[usize::from(*x)] * values[usize::from(*w)]);
                *out = fp8::bf16_bits(sign * products.sum::<f32>());
            }
        }
        Ok(())
    }
}

impl Kernels {
    /// Runs a kernel.
    ///
    /// # Safety
    /// `params` have the layout that the kernel takes, and their pointers are valid for the kernel's
    /// accesses.
    unsafe fn run(&self, launch: Launch, params: &[u8]) -> Result<(), DeviceError> {
        let duration = if launch.kernel.starts_with("linear") { LAUNCH.0 } else { LAUNCH.1 };
        self.clock.fetch_add(duration, Ordering::Relaxed);
        // Bytes have no alignment; the kernel's parameters are aligned to 8 bytes.
        let words: Vec<u64> = params
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        let wrong = self.wrong.filter(|wrong| wrong.kernel == launch.kernel);
        let symbol = format!("octant_{}\0", wrong.map_or(launch.kernel, |wrong| wrong.in_its_place));
        // SAFETY: in the library every kernel, and `octant_launch`, has the type given here.
        let (kernel, entry) = unsafe {
            let kernel = self.library.get::<unsafe extern "C" fn(*const c_void)>(symbol.as_bytes());
            let entry = self.library.get::<unsafe extern "C" fn(*const HostLaunch)>(b"octant_launch\0");
            let missing = |e: libloading::Error| error(launch.kernel, e.to_string());
            (kernel.map_err(missing)?, entry.map_err(missing)?)
        };
        // A word that kernels for clusters have: the number of blocks of a cluster.
        let symbol = format!("{}_cluster\0", symbol.trim_end_matches('\0'));
        // SAFETY: in the library every symbol of such a name is a constant word.
        let cluster = unsafe { self.library.get::<*const u32>(symbol.as_bytes()).map_or(1, |word| **word) };
        let name = CString::new(launch.kernel).map_err(|e| error(launch.kernel, e.to_string()))?;
        let launch = HostLaunch {
            name: name.as_ptr(),
            kernel: *kernel as *const c_void,
            params: words.as_ptr().cast(),
            grid: launch.grid.map(|n| n as u32),
            threads: launch.threads,
            shared_bytes: launch.shared as u32,
            descending: u32::from(self.descending),
            cluster,
            overlaps: 1,
        };
        // SAFETY: the parameters are valid by this function's contract.
        unsafe { entry(&launch) };
        Ok(())
    }
}

fn error(op: &'static str, message: String) -> DeviceError {
    DeviceError { op, message }
}
