//! NCCL, loaded when a group over it is first asked for: sums and gathers in whatever order it finds fastest.

use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::result::{self, NcclError};
use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum, ncclUniqueId};

use super::{Cuda, Floats};
use crate::device::DeviceError;

/// A rank's handle on a group.
#[derive(Debug)]
pub struct Nccl {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    comm: ncclComm_t,
    rank: usize,
    size: usize,
}

// SAFETY: a communicator may be used by any one thread at a time; its owner, a rank, is one.
unsafe impl Send for Nccl {}

/// The version of NCCL, as it numbers them, if it is there.
pub fn version() -> Option<i32> {
    // SAFETY: only looks for the library.
    let there = unsafe { sys::is_culib_present() };
    if there { result::get_nccl_version().ok() } else { None }
}

impl Nccl {
    /// The ranks of a group on these devices, each on a GPU of its own.
    ///
    /// # Errors
    /// Without the library, and whatever it finds wrong: it takes no GPU twice.
    pub fn group(devices: &[Cuda]) -> Result<Vec<Self>, DeviceError> {
        if version().is_none() {
            return Err(DeviceError { op: "nccl", message: "libnccl.so.2 cannot be loaded".to_owned() });
        }
        let id = result::get_uniqueid().map_err(error)?;
        result::group_start().map_err(error)?;
        let begun: Result<Vec<_>, _> = devices
            .iter()
            .enumerate()
            .map(|(rank, device)| Self::begin(device, (rank, devices.len()), id))
            .collect();
        // Only this makes the communicators, of all ranks together.
        let ended = result::group_end().map_err(error);
        let mut group = begun?;
        ended?;
        for (rank, comm) in &mut group {
            // SAFETY: the group has ended, and each handle was written.
            rank.comm = unsafe { comm.assume_init_read() };
        }
        Ok(group.into_iter().map(|(rank, _)| rank).collect())
    }

    /// Has a communicator made when the group of calls ends, where the library writes it.
    fn begin(
        device: &Cuda,
        (rank, size): (usize, usize),
        id: ncclUniqueId,
    ) -> Result<(Self, Box<MaybeUninit<ncclComm_t>>), DeviceError> {
        let (context, stream) = device
            .driver
            .stream()
            .ok_or_else(|| DeviceError { op: "nccl", message: "the kernels run on the host".to_owned() })?;
        context.bind_to_thread().map_err(|e| DeviceError { op: "nccl", message: format!("{e:?}") })?;
        let mut comm = Box::new(MaybeUninit::uninit());
        // SAFETY: the handle's place outlives the group of calls.
        unsafe { result::comm_init_rank(comm.as_mut_ptr(), size as i32, id, rank as i32) }.map_err(error)?;
        Ok((Self { context, stream, comm: std::ptr::null_mut(), rank, size }, comm))
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.size
    }

    /// x = Σ over ranks of x.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn reduce(&self, x: &mut Floats) -> Result<(), DeviceError> {
        let address = x.data.address();
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the valid rows are this buffer's, and every rank has as many.
        let done = unsafe {
            let (from, to) = (address as *const _, address as *mut _);
            result::all_reduce(from, to, x.rows * x.cols, ncclFloat32, ncclSum, self.comm, stream)
        };
        done.map(|_| ()).map_err(error)
    }

    /// Each rank's `part` \[rows, cols\] beside the others' in `whole`.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn gather(&self, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(whole.cols, part.cols * self.size, "columns of what is gathered");
        whole.resize(part.rows);
        result::group_start().map_err(error)?;
        let rows: Result<Vec<_>, _> = (0..part.rows)
            .map(|row| {
                let (from, to) = (part.data.at(row * part.cols), whole.data.at(row * whole.cols));
                let stream = self.stream.cu_stream().cast();
                // SAFETY: a row of each, of which the second is as long as those of all ranks.
                unsafe {
                    result::all_gather(
                        from as *const _,
                        to as *mut _,
                        part.cols,
                        ncclFloat32,
                        self.comm,
                        stream,
                    )
                }
            })
            .collect();
        let ended = result::group_end().map_err(error);
        rows.map_err(error)?;
        ended.map(|_| ())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        // Another rank may be gone: nobody waits for it here.
        // SAFETY: the communicator is this one's, and nothing uses it any more.
        let _failed = self.context.bind_to_thread().map(|()| unsafe { result::comm_abort(self.comm) });
    }
}

fn error(e: NcclError) -> DeviceError {
    DeviceError { op: "nccl", message: format!("{:?}", e.0) }
}
