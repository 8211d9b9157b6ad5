//! Launches on the host: the kernels as g++ compiled them, in a library of their own (`kernels/host/cuda.h`).

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::slice;
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use super::driver::{Algorithm, Launch, Product};
use crate::device::{DeviceError, fp8};

/// As `kernels/host/cuda.cpp` has it.
#[repr(C)]
struct HostLaunch {
    name: *const c_char,
    kernel: *const c_void,
    params: *const c_void,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    descending: u32,
}

/// An algorithm that computes something else.
const WRONG: Algorithm = [7; 8];

/// Alignment of device memory: what kernels count on. A larger one would keep AddressSanitizer from seeing every end.
const ALIGN: usize = 16;

/// The library, and what it was given. Launches of different threads run side by side.
#[derive(Debug)]
pub(super) struct Host {
    library: Library,
    descending: bool,
    blocks: Mutex<HashMap<u64, Layout>>,
    /// While launches are recorded.
    recording: Mutex<Option<Launches>>,
}

/// Launches with their parameters.
#[derive(Debug, Default)]
pub struct Launches(Vec<(Launch, Vec<u8>)>);

impl Host {
    /// `descending` says in which order the threads of a block start.
    pub(super) fn open(descending: bool) -> Result<Self, DeviceError> {
        // SAFETY: our own library, which runs nothing on loading.
        let library = unsafe { Library::new(env!("OCTANT_HOST_KERNELS")) };
        let library = library.map_err(|e| error("host kernels", e.to_string()))?;
        Ok(Self { library, descending, blocks: Mutex::default(), recording: Mutex::default() })
    }

    pub(super) fn name(&self) -> String {
        format!("kernels on the host, threads {}", if self.descending { "descending" } else { "ascending" })
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Layout>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|e| error("alloc", e.to_string()))?;
        // SAFETY: the size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(error("alloc", format!("no memory for {bytes} bytes")));
        }
        self.blocks().insert(pointer as u64, layout);
        Ok(pointer as u64)
    }

    /// # Safety
    /// The address came from `alloc`, and is not used any more.
    pub(super) unsafe fn free(&self, address: u64) {
        if let Some(layout) = self.blocks().remove(&address) {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }

    pub(super) fn alloc_on_host(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.alloc(bytes)
    }

    /// # Safety
    /// The address came from `alloc_on_host`, and is not used any more.
    pub(super) unsafe fn free_on_host(&self, address: u64) {
        // SAFETY: by this function's contract.
        unsafe { self.free(address) };
    }

    /// # Safety
    /// The memory from `address` on is as long as `from`, and this device's.
    pub(super) unsafe fn write(&self, address: u64, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: by this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
        Ok(())
    }

    /// # Safety
    /// The memory from `address` on is as long as `to`, and this device's.
    pub(super) unsafe fn read(&self, address: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: by this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// # Safety
    /// As for `Driver::launch`.
    pub(super) unsafe fn launch<P: bytemuck::Pod>(
        &self,
        launch: Launch,
        params: &P,
    ) -> Result<(), DeviceError> {
        let bytes = bytemuck::bytes_of(params);
        if let Some(recorded) = &mut *self.recording() {
            recorded.0.push((launch, bytes.to_vec()));
            return Ok(());
        }
        // SAFETY: by this function's contract.
        unsafe { self.run(launch, bytes) }
    }

    pub(super) fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Launches, DeviceError> {
        *self.recording() = Some(Launches::default());
        let outcome = launches();
        let recorded = self.recording().take().unwrap_or_default();
        outcome.map(|()| recorded)
    }

    pub(super) fn repeat(&self, launches: &Launches) -> Result<(), DeviceError> {
        for (launch, params) in &launches.0 {
            // SAFETY: what was promised of the launch when it was recorded holds as long as its buffers live, which
            // those who repeat it own.
            unsafe { self.run(*launch, params) }?;
        }
        Ok(())
    }

    /// In the place of cuBLASLt's algorithms: one that is wrong, which must never be chosen, and one that is right.
    pub(super) fn algorithms(&self, _m: usize, _n: usize, _k: usize) -> Vec<Algorithm> {
        vec![WRONG, [1; 8]]
    }

    /// # Safety
    /// As for `Driver::product`.
    pub(super) unsafe fn product(&self, p: &Product, algorithm: Algorithm) -> Result<(), DeviceError> {
        // SAFETY: by this function's contract.
        let (x, w, out) = unsafe {
            (
                slice::from_raw_parts(p.x as *const u8, p.m * p.k),
                slice::from_raw_parts(p.w as *const u8, p.n * p.k),
                slice::from_raw_parts_mut(p.out as *mut f32, p.m * p.n),
            )
        };
        let values: Vec<f32> = (0..=255).map(fp8::decode).collect();
        let sign = if algorithm == WRONG { -1.0 } else { 1.0 };
        for (x, out) in x.chunks_exact(p.k).zip(out.chunks_exact_mut(p.n)) {
            for (w, out) in w.chunks_exact(p.k).zip(out) {
                let products =
                    x.iter().zip(w).map(|(x, w)| values[usize::from(*x)] * values[usize::from(*w)]);
                *out = sign * products.sum::<f32>();
            }
        }
        Ok(())
    }

    fn recording(&self) -> std::sync::MutexGuard<'_, Option<Launches>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a kernel over the bytes of its parameters.
    ///
    /// # Safety
    /// As for `Driver::launch`.
    unsafe fn run(&self, launch: Launch, params: &[u8]) -> Result<(), DeviceError> {
        // The parameters' alignment, which bytes have not.
        let words: Vec<u64> = params
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        let symbol = format!("octant_{}\0", launch.kernel);
        // SAFETY: every kernel has this type in the library, and the entry point that of `octant_launch`.
        let (kernel, entry) = unsafe {
            let kernel = self.library.get::<unsafe extern "C" fn(*const c_void)>(symbol.as_bytes());
            let entry = self.library.get::<unsafe extern "C" fn(*const HostLaunch)>(b"octant_launch\0");
            let missing = |e: libloading::Error| error(launch.kernel, e.to_string());
            (kernel.map_err(missing)?, entry.map_err(missing)?)
        };
        let name = CString::new(launch.kernel).map_err(|e| error(launch.kernel, e.to_string()))?;
        let launch = HostLaunch {
            name: name.as_ptr(),
            kernel: *kernel as *const c_void,
            params: words.as_ptr().cast(),
            grid: launch.grid.map(|n| n as u32),
            threads: launch.threads,
            shared_bytes: launch.shared as u32,
            descending: u32::from(self.descending),
        };
        // SAFETY: the parameters are valid by this function's contract.
        unsafe { entry(&launch) };
        Ok(())
    }
}

fn error(op: &'static str, message: String) -> DeviceError {
    DeviceError { op, message }
}
