//! `kernels/select.cu`.

use super::{Cuda, Floats, Launch};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SelectParams {
    from: u64,
    rows: u64,
    out: u64,
    cols: u32,
    unused: u32,
}
const _: () = assert!(size_of::<SelectParams>() == 32);

pub(super) fn run(
    cuda: &Cuda,
    from: &Floats,
    rows: &[u32],
    out: &mut Floats,
    first: usize,
) -> Result<(), DeviceError> {
    let cols = from.cols;
    assert_eq!(out.cols, cols, "columns of the selected rows");
    let known = from.rows;
    assert!(rows.iter().all(|row| (*row as usize) < known), "rows {rows:?} of {known}");
    let scratch = cuda.scratch();
    let buffer = scratch.rows.as_ref().expect("a step was made before rows are selected");
    buffer.write(0, rows)?;
    out.set_rows(first + rows.len());
    let params = SelectParams {
        from: from.data.f32().address(),
        rows: buffer.address(),
        out: out.data.f32().at(first * cols),
        cols: cols as u32,
        unused: 0,
    };
    let launch = Launch { kernel: "select", grid: [rows.len(), 1, 1], threads: 256, shared: 0 };
    // SAFETY: shapes and row indices have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
