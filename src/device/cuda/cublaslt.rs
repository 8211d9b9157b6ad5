//! cuBLASLt, loaded when it is first asked for: products of row-major E4M3 operands without scales.

use std::ffi::c_void;
use std::ptr::{from_ref, null};
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtMatmulAlgo_t,
    cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
    cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, cudaDataType,
    cudaDataType_t::CUDA_R_8F_E4M3, cudaDataType_t::CUDA_R_32F,
};
use cudarc::driver::{CudaContext, CudaStream, result as driver};

use super::driver::{Algorithm, Product};
use crate::device::DeviceError;

/// What algorithms may work in.
const WORKSPACE: usize = 32 << 20;
/// `CUBLAS_OP_T` of the library's header.
const TRANSPOSED: i32 = 1;
/// Algorithms that are asked for: more than there are for a product.
const ALGORITHMS: usize = 64;

/// The library's handle on a GPU, and its workspace.
#[derive(Debug)]
pub(super) struct CublasLt {
    context: Arc<CudaContext>,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
}

// SAFETY: the library may be called from any thread; the workspace is used by one stream, in its order.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// `None` where there is no such library.
    pub(super) fn open(context: &Arc<CudaContext>) -> Result<Option<Self>, DeviceError> {
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let handle = result::create_handle().map_err(error)?;
        // SAFETY: a fresh allocation, which only the library uses.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) }
            .map_err(|e| DeviceError { op: "cublaslt", message: format!("{WORKSPACE} bytes: {e:?}") })?;
        Ok(Some(Self { context: Arc::clone(context), handle, workspace }))
    }

    /// As the library numbers it.
    pub(super) fn version(&self) -> usize {
        // SAFETY: it is loaded.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// What it offers for a product, most promising first.
    pub(super) fn algorithms(&self, m: usize, n: usize, k: usize) -> Result<Vec<Algorithm>, DeviceError> {
        let problem = Problem::new(m, n, k).map_err(error)?;
        let preference = Preference(result::create_matmul_pref().map_err(error)?);
        // SAFETY: every descriptor is alive, and the arrays are as long as told.
        let found = unsafe {
            let (bytes, size) = (from_ref(&WORKSPACE).cast::<c_void>(), size_of::<usize>());
            let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference.0, attribute, bytes, size).map_err(error)?;
            let mut found = vec![std::mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>(); ALGORITHMS];
            let mut count = 0;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                problem.operation,
                problem.w,
                problem.x,
                problem.out,
                problem.out,
                preference.0,
                ALGORITHMS as i32,
                found.as_mut_ptr(),
                &mut count,
            )
            .result()
            .map_err(error)?;
            found.truncate(count as usize);
            found
        };
        let sound = found.iter().filter(|found| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(sound.map(|found| found.algo.data).collect())
    }

    /// # Safety
    /// The operands have the product's shapes, and the stream is this GPU's.
    pub(super) unsafe fn product(
        &self,
        stream: &CudaStream,
        p: &Product,
        algorithm: Algorithm,
    ) -> Result<(), DeviceError> {
        let problem = Problem::new(p.m, p.n, p.k).map_err(error)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let algorithm = cublasLtMatmulAlgo_t { data: algorithm };
        // SAFETY: every descriptor is alive, and the operands are by this function's contract.
        unsafe {
            result::matmul(
                self.handle,
                problem.operation,
                from_ref(&one).cast(),
                from_ref(&zero).cast(),
                p.w as *const c_void,
                problem.w,
                p.x as *const c_void,
                problem.x,
                p.out as *const c_void,
                problem.out,
                p.out as *mut c_void,
                problem.out,
                &algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(error)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // A GPU that has failed frees nothing, and the process ends.
        let _failed = self.context.bind_to_thread();
        // SAFETY: nothing uses either any more.
        let _failed = unsafe { driver::free_sync(self.workspace) };
        // SAFETY: as above.
        let _failed = unsafe { result::destroy_handle(self.handle) };
    }
}

/// out = x · wᵀ as the library says it, which counts columns first: outᵀ \[n, m\] = wᵀᵀ · xᵀ.
struct Problem {
    operation: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    fn new(m: usize, n: usize, k: usize) -> Result<Self, CublasError> {
        let mut problem = Self {
            operation: result::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F)?,
            w: null::<c_void>() as _,
            x: null::<c_void>() as _,
            out: null::<c_void>() as _,
        };
        let transposed = TRANSPOSED;
        let (value, size) = (from_ref(&transposed).cast::<c_void>(), size_of::<i32>());
        // SAFETY: the descriptor is alive.
        unsafe {
            result::set_matmul_desc_attribute(problem.operation, CUBLASLT_MATMUL_DESC_TRANSA, value, size)
        }?;
        let layout = |kind: cudaDataType, rows: usize, cols: usize| {
            result::create_matrix_layout(kind, rows as u64, cols as u64, rows as i64)
        };
        problem.w = layout(CUDA_R_8F_E4M3, k, n)?;
        problem.x = layout(CUDA_R_8F_E4M3, k, m)?;
        problem.out = layout(CUDA_R_32F, n, m)?;
        Ok(problem)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.out] {
            if !layout.is_null() {
                // SAFETY: created by `new`, and used by nobody any more.
                let _failed = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
        // SAFETY: as above.
        let _failed = unsafe { result::destroy_matmul_desc(self.operation) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: used by nobody any more.
        let _failed = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn error(e: CublasError) -> DeviceError {
    DeviceError { op: "cublaslt", message: e.to_string() }
}
