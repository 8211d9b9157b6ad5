//! NCCL, loaded when the first group is made. It sums in the order that it finds fastest.
//!
//! This module loads the library itself: cudarc looks for `libnccl.so`, which only development packages have.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use libloading::Library;

use super::super::Floats;
use super::{Cuda, Gpu};
use crate::device::{DeviceError, FloatType};

const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclFloat32` and `ncclBfloat16` of `nccl.h`.
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
/// `ncclSum` of `nccl.h`.
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Comm = *mut c_void;
type Stream = *mut c_void;

/// The library's functions, with the types of `nccl.h`.
#[derive(Debug)]
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Functions {
    fn load() -> Result<Self, DeviceError> {
        // SAFETY: NVIDIA's library; the program relies on nothing that its loading does.
        let library = FILES.iter().find_map(|file| unsafe { Library::new(*file) }.ok());
        let library = library.ok_or_else(|| error(format!("none of {} can be loaded", FILES.join(", "))))?;
        let missing = |e: libloading::Error| error(e.to_string());
        // SAFETY: the types are those of the library's header.
        unsafe {
            Ok(Self {
                get_version: *library.get(b"ncclGetVersion\0").map_err(missing)?,
                get_unique_id: *library.get(b"ncclGetUniqueId\0").map_err(missing)?,
                comm_init_rank: *library.get(b"ncclCommInitRank\0").map_err(missing)?,
                comm_abort: *library.get(b"ncclCommAbort\0").map_err(missing)?,
                all_reduce: *library.get(b"ncclAllReduce\0").map_err(missing)?,
                all_gather: *library.get(b"ncclAllGather\0").map_err(missing)?,
                group_start: *library.get(b"ncclGroupStart\0").map_err(missing)?,
                group_end: *library.get(b"ncclGroupEnd\0").map_err(missing)?,
                get_error_string: *library.get(b"ncclGetErrorString\0").map_err(missing)?,
                _library: library,
            })
        }
    }

    /// Turns a status into an error with the library's text.
    fn check(&self, status: c_int) -> Result<(), DeviceError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library's own text, which lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        Err(error(text.to_string_lossy().into_owned()))
    }

    /// Makes `calls` as one group of calls (`ncclGroupStart`, `ncclGroupEnd`).
    fn grouped<T>(&self, calls: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        // SAFETY: the start of a group of calls, which ends below.
        self.check(unsafe { (self.group_start)() })?;
        let outcome = calls();
        // SAFETY: as above.
        let ended = self.check(unsafe { (self.group_end)() });
        let outcome = outcome?;
        ended.map(|()| outcome)
    }
}

/// The version number of the library.
///
/// # Errors
/// If the library cannot be loaded.
pub fn nccl_version() -> Result<i32, DeviceError> {
    let functions = Functions::load()?;
    let mut version = 0;
    // SAFETY: the function writes one number.
    functions.check(unsafe { (functions.get_version)(&raw mut version) })?;
    Ok(version)
}

/// One rank's handle on a group.
#[derive(Debug)]
pub struct Nccl {
    functions: Arc<Functions>,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    comm: Comm,
    rank: usize,
    size: usize,
}

// SAFETY: any thread may use a communicator, one at a time; its owner, a rank, runs on one thread.
unsafe impl Send for Nccl {}

impl Nccl {
    /// Makes a group with one rank per device, each on its own GPU.
    ///
    /// # Errors
    /// If the library cannot be loaded or refuses the group: it takes no GPU twice.
    pub fn group(devices: &[Cuda]) -> Result<Vec<Self>, DeviceError> {
        let functions = Arc::new(Functions::load()?);
        let mut id = UniqueId([0; 128]);
        // SAFETY: the function writes one id.
        functions.check(unsafe { (functions.get_unique_id)(&raw mut id) })?;
        let size = devices.len();
        let rank = |(rank, device): (usize, &Cuda)| {
            let gpu = Gpu::behind(device.driver.backend());
            let gpu = gpu.ok_or_else(|| error("the kernels run on the host".to_owned()))?;
            let (context, stream) = (Arc::clone(&gpu.context), Arc::clone(&gpu.stream));
            Ok(Self { functions: Arc::clone(&functions), context, stream, comm: null_mut(), rank, size })
        };
        let mut group = devices.iter().enumerate().map(rank).collect::<Result<Vec<_>, DeviceError>>()?;
        functions.grouped(|| group.iter_mut().try_for_each(|rank| rank.begin(id)))?;
        Ok(group)
    }

    /// Starts making the communicator, which is done when the group of calls ends.
    fn begin(&mut self, id: UniqueId) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| error(format!("{e:?}")))?;
        let (size, rank) = (self.size as c_int, self.rank as c_int);
        // SAFETY: the handle does not move before the group of calls ends.
        let status = unsafe { (self.functions.comm_init_rank)(&raw mut self.comm, size, id, rank) };
        self.functions.check(status)
    }

    fn stream(&self) -> Stream {
        self.stream.cu_stream().cast()
    }

    /// x = Σ over ranks of x, in the type of `x`.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn reduce(&self, x: &mut Floats) -> Result<(), DeviceError> {
        let (address, elements) = (x.data.address() as *mut c_void, x.rows * x.cols);
        let float_type = match x.float_type {
            FloatType::F32 => FLOAT32,
            FloatType::Bf16 => BFLOAT16,
        };
        // SAFETY: the valid rows are inside the buffer, and every rank has the same number.
        let status = unsafe {
            (self.functions.all_reduce)(address, address, elements, float_type, SUM, self.comm, self.stream())
        };
        self.functions.check(status)
    }

    /// whole \[rows, size × cols\] = the parts \[rows, cols\] of all ranks, side by side in rank order.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn gather(&self, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(whole.cols, part.cols * self.size, "columns of the gathered rows");
        whole.set_rows(part.rows);
        let row = |row: usize| {
            let from = part.data.f32().at(row * part.cols) as *const c_void;
            let to = whole.data.f32().at(row * whole.cols) as *mut c_void;
            // SAFETY: one row of each; a row of `whole` holds the rows of all ranks.
            let status = unsafe {
                (self.functions.all_gather)(from, to, part.cols, FLOAT32, self.comm, self.stream())
            };
            self.functions.check(status)
        };
        self.functions.grouped(|| (0..part.rows).try_for_each(row))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        // Aborts rather than destroys: another rank may have ended, and destroying would wait for it.
        // SAFETY: the communicator is this rank's own, and nothing uses it any more.
        let _failed =
            self.context.bind_to_thread().map(|()| unsafe { (self.functions.comm_abort)(self.comm) });
    }
}

fn error(message: String) -> DeviceError {
    DeviceError { op: "nccl", message }
}
