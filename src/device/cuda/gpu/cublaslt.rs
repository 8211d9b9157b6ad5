//! cuBLASLt, loaded on first use: products of row-major E4M3 operands without scales, as BF16.

use std::ffi::c_void;
use std::ptr::{from_ref, null};
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtMatmulAlgo_t,
    cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
    cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, cudaDataType,
    cudaDataType_t::CUDA_R_8F_E4M3, cudaDataType_t::CUDA_R_16BF, cudaDataType_t::CUDA_R_32F,
};
use cudarc::driver::{CudaContext, CudaStream, result as driver};

use super::super::backend::{Algorithm, Product, ProductLibrary, ProductShape};
use crate::device::DeviceError;

/// Bytes of the workspace that algorithms use.
const WORKSPACE: usize = 32 << 20;
/// `CUBLAS_OP_T` of `cublas_api.h`.
const TRANSPOSED: i32 = 1;
/// Number of algorithms to ask for, which is more than the library has for one product.
const ALGORITHMS: usize = 64;

/// The library's handle on a GPU, with its workspace.
#[derive(Debug)]
pub(super) struct CublasLt {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
}

// SAFETY: the library may be called from any thread; one stream uses the workspace, in order.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Opens the library; `None` if it is not installed.
    pub(super) fn open(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
    ) -> Result<Option<Self>, DeviceError> {
        // SAFETY: the call only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let handle = result::create_handle().map_err(error)?;
        // SAFETY: only the library uses this new allocation.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) }
            .map_err(|e| DeviceError { op: "cublaslt", message: format!("{WORKSPACE} bytes: {e:?}") })?;
        Ok(Some(Self { context: Arc::clone(context), stream: Arc::clone(stream), handle, workspace }))
    }
}

impl ProductLibrary for CublasLt {
    fn version(&self) -> usize {
        // SAFETY: the library is loaded.
        unsafe { sys::cublasLtGetVersion() }
    }

    fn algorithms(&self, shape: ProductShape) -> Result<Vec<Algorithm>, DeviceError> {
        let problem = Problem::new(shape).map_err(error)?;
        let preference = Preference(result::create_matmul_pref().map_err(error)?);
        // SAFETY: every descriptor is alive, and the arrays have the lengths passed.
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

    unsafe fn product(&self, product: &Product, algorithm: Algorithm) -> Result<(), DeviceError> {
        self.context
            .bind_to_thread()
            .map_err(|e| DeviceError { op: "cublaslt", message: format!("{e:?}") })?;
        let problem = Problem::new(product.shape).map_err(error)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let algorithm = cublasLtMatmulAlgo_t { data: algorithm };
        // SAFETY: every descriptor is alive, and this function's contract covers the operands.
        unsafe {
            result::matmul(
                self.handle,
                problem.operation,
                from_ref(&one).cast(),
                from_ref(&zero).cast(),
                product.w as *const c_void,
                problem.w,
                product.x as *const c_void,
                problem.x,
                product.out as *const c_void,
                problem.out,
                product.out as *mut c_void,
                problem.out,
                &algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(error)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // Errors are ignored: a GPU that has failed cannot free memory, and the process exits.
        let _failed = self.context.bind_to_thread();
        // SAFETY: nothing uses the workspace and the handle any more.
        let _failed = unsafe { driver::free_sync(self.workspace) };
        // SAFETY: as above.
        let _failed = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptors of the product out = x · wᵀ. The library reads matrices by column, so the row-major w, x and
/// out are wᵀ, xᵀ and outᵀ to it. It computes outᵀ \[n, m\] = (wᵀ)ᵀ · xᵀ.
struct Problem {
    operation: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    fn new(shape: ProductShape) -> Result<Self, CublasError> {
        let ProductShape { m, n, k } = shape;
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
        problem.out = layout(CUDA_R_16BF, n, m)?;
        Ok(problem)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.out] {
            if !layout.is_null() {
                // SAFETY: `new` created the layout, and nothing uses it any more.
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
        // SAFETY: nothing uses the preference any more.
        let _failed = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn error(e: CublasError) -> DeviceError {
    DeviceError { op: "cublaslt", message: e.to_string() }
}
