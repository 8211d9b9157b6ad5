//! NCCL, loaded when a group over it is first asked for: sums and gathers in whatever order it finds fastest.
//!
//! Loaded by ourselves, since cudarc looks for `libnccl.so`, which only development packages have.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use libloading::Library;

use super::{Cuda, Floats};
use crate::device::DeviceError;

const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Of `nccl.h`: `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Comm = *mut c_void;
type Stream = *mut c_void;

/// The library's functions, of the types that `nccl.h` has.
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
    /// Whose they are.
    _library: Library,
}

impl Functions {
    fn load() -> Result<Self, DeviceError> {
        // SAFETY: NVIDIA's library, whose loading does nothing that we rely on.
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

    /// What a function says, if it is not well.
    fn check(&self, status: c_int) -> Result<(), DeviceError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library's own text, which lives as long as that.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        Err(error(text.to_string_lossy().into_owned()))
    }

    /// Calls that the library takes together.
    fn together<T>(&self, calls: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        // SAFETY: a start, and its end below.
        self.check(unsafe { (self.group_start)() })?;
        let outcome = calls();
        // SAFETY: as above.
        let ended = self.check(unsafe { (self.group_end)() });
        let outcome = outcome?;
        ended.map(|()| outcome)
    }
}

/// The version of the library, as it numbers them.
///
/// # Errors
/// If it cannot be loaded.
pub fn nccl_version() -> Result<i32, DeviceError> {
    let functions = Functions::load()?;
    let mut version = 0;
    // SAFETY: it writes one number.
    functions.check(unsafe { (functions.get_version)(&raw mut version) })?;
    Ok(version)
}

/// A rank's handle on a group.
#[derive(Debug)]
pub struct Nccl {
    functions: Arc<Functions>,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    comm: Comm,
    rank: usize,
    size: usize,
}

// SAFETY: a communicator may be used by any one thread at a time; its owner, a rank, is one.
unsafe impl Send for Nccl {}

impl Nccl {
    /// The ranks of a group on these devices, each on a GPU of its own.
    ///
    /// # Errors
    /// Without the library, and whatever it finds wrong: it takes no GPU twice.
    pub fn group(devices: &[Cuda]) -> Result<Vec<Self>, DeviceError> {
        let functions = Arc::new(Functions::load()?);
        let mut id = UniqueId([0; 128]);
        // SAFETY: it writes one.
        functions.check(unsafe { (functions.get_unique_id)(&raw mut id) })?;
        let size = devices.len();
        let rank = |(rank, device): (usize, &Cuda)| {
            let place = device.driver.stream();
            let (context, stream) = place.ok_or_else(|| error("the kernels run on the host".to_owned()))?;
            Ok(Self { functions: Arc::clone(&functions), context, stream, comm: null_mut(), rank, size })
        };
        let mut group = devices.iter().enumerate().map(rank).collect::<Result<Vec<_>, DeviceError>>()?;
        functions.together(|| group.iter_mut().try_for_each(|rank| rank.begin(id)))?;
        Ok(group)
    }

    /// Has the communicator made, when the group of calls ends.
    fn begin(&mut self, id: UniqueId) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| error(format!("{e:?}")))?;
        let (size, rank) = (self.size as c_int, self.rank as c_int);
        // SAFETY: the handle's place is not moved before the group of calls ends.
        let status = unsafe { (self.functions.comm_init_rank)(&raw mut self.comm, size, id, rank) };
        self.functions.check(status)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.size
    }

    fn stream(&self) -> Stream {
        self.stream.cu_stream().cast()
    }

    /// x = Σ over ranks of x.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn reduce(&self, x: &mut Floats) -> Result<(), DeviceError> {
        let (address, elements) = (x.data.address() as *mut c_void, x.rows * x.cols);
        // SAFETY: the valid rows are this buffer's, and every rank has as many.
        let status = unsafe {
            (self.functions.all_reduce)(address, address, elements, FLOAT32, SUM, self.comm, self.stream())
        };
        self.functions.check(status)
    }

    /// Each rank's `part` \[rows, cols\] beside the others' in `whole`.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn gather(&self, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(whole.cols, part.cols * self.size, "columns of what is gathered");
        whole.resize(part.rows);
        let row = |row: usize| {
            let from = part.data.at(row * part.cols) as *const c_void;
            let to = whole.data.at(row * whole.cols) as *mut c_void;
            // SAFETY: a row of each, of which the second is as long as those of all ranks.
            let status = unsafe {
                (self.functions.all_gather)(from, to, part.cols, FLOAT32, self.comm, self.stream())
            };
            self.functions.check(status)
        };
        self.functions.together(|| (0..part.rows).try_for_each(row))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        // Another rank may be gone: nobody waits for it here.
        // SAFETY: the communicator is this one's, and nothing uses it any more.
        let _failed =
            self.context.bind_to_thread().map(|()| unsafe { (self.functions.comm_abort)(self.comm) });
    }
}

fn error(message: String) -> DeviceError {
    DeviceError { op: "nccl", message }
}
