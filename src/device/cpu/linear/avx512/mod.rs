//! The product with AVX-512.
//!
//! Two ways to compute, which round alike: the definition of the dot product is a fused multiply-add of the
//! pair's second product and then one of its first, and the product of two BF16 values is exact in F32.
//!
//! - `pairs.rs`: dot products of BF16 pairs. They need the fewest instructions per weight, so that the speed
//!   of memory limits a product of one or two rows on every processor.
//! - `floats.rs`: F32 multiply-adds over a decoded panel, from [`FLOAT_ROWS`] rows on, unless
//!   [`pairs_are_fast`].

mod floats;
mod pairs;

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::e4m3::DecodeTables;
use super::super::matrix::Packed;
use super::Product;

/// Rows from which on F32 multiply-adds are used if dot products are slow: fewer do not repay the time to
/// decode a panel to memory. Dot products compute one row less in one tile, whose weights they decode once.
const FLOAT_ROWS: usize = 7;

/// Whether dot products of BF16 pairs do more multiplications per second than F32 multiply-adds on this
/// processor. AMD's cores start as many of both per cycle, and a dot product does twice the work. Intel's
/// cores start four times as many multiply-adds. `cargo bench --bench kernels` measures both.
pub(in super::super) fn pairs_are_fast() -> bool {
    let leaf = __cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    vendor.as_flattened() == b"AuthenticAMD"
}

/// Floats of a cache line, which is as long as a vector.
const LINE_FLOATS: usize = 16;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    LINE_FLOATS + pairs::scratch_floats(rows).max(floats::scratch_floats(rows))
}

/// Returns the scratch memory from its first cache line on. Each load and store of a vector that lies in two
/// lines would take the time of two.
fn whole_lines(scratch: &mut [f32]) -> &mut [f32] {
    let skipped = scratch.as_ptr().align_offset(LINE_FLOATS * size_of::<f32>());
    &mut scratch[skipped..]
}

/// The distance of prefetched weights from those in use, in bytes.
const PREFETCH_BYTES: usize = 2048;

/// The weights of one panel: for each pair of inputs, two BF16 vectors of 16 outputs × 2 inputs.
trait PanelWeights: Copy {
    /// Loads a pair.
    ///
    /// # Safety
    /// `pair` must be inside the panel.
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2];

    /// Returns `count` pairs from pair `first` on as BF16, which it decodes into `room` if they are not BF16.
    ///
    /// # Safety
    /// The pairs must be inside the panel, and `room` must have space for 64 values of each.
    unsafe fn decoded(&self, first: usize, count: usize, room: *mut u16) -> *const u16;
}

/// A panel of E4M3 codes, which are decoded on loading.
#[derive(Clone, Copy)]
struct Fp8Panel(*const u8, DecodeTables);

impl PanelWeights for Fp8Panel {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: a pair is 64 codes, and the caller keeps it inside the panel. Callers run with the
        // features of `bf16`. A prefetch accepts any address.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
            self.1.bf16(_mm512_loadu_si512(at.cast()))
        }
    }

    #[inline(always)]
    unsafe fn decoded(&self, first: usize, count: usize, room: *mut u16) -> *const u16 {
        for i in 0..count {
            // SAFETY: the caller keeps the pair inside the panel, and `room` has space for its 64 values.
            unsafe {
                let [low, high] = self.pair(first + i);
                _mm512_storeu_si512(room.add(i * 64).cast(), low);
                _mm512_storeu_si512(room.add(i * 64 + 32).cast(), high);
            }
        }
        room
    }
}

/// A panel of BF16 values.
#[derive(Clone, Copy)]
struct Bf16Panel(*const u16);

impl PanelWeights for Bf16Panel {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: a pair is 64 values, and the caller keeps it inside the panel. A prefetch accepts any
        // address.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES / 2).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES / 2 + 32).cast());
            [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(32).cast())]
        }
    }

    #[inline(always)]
    unsafe fn decoded(&self, first: usize, _count: usize, _room: *mut u16) -> *const u16 {
        // SAFETY: the caller keeps the pairs inside the panel.
        unsafe { self.0.add(first * 64) }
    }
}

/// Computes all rows of some panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>, scratch: &mut [f32]) {
    let elements = product.w.panel_elements();
    let scratch = whole_lines(scratch);
    match &product.w.data {
        Packed::Bf16(values) => {
            let source = |panel| Bf16Panel(values[panel * elements..][..elements].as_ptr());
            panels_from(product, panels, source, scratch);
        }
        Packed::Fp8 { codes, .. } => {
            let tables = DecodeTables::new();
            let source = |panel| Fp8Panel(codes[panel * elements..][..elements].as_ptr(), tables);
            panels_from(product, panels, source, scratch);
        }
    }
}

/// Computes all rows of some panels, whose weights `source` returns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn panels_from<W: PanelWeights>(
    product: &Product<'_>,
    panels: Range<usize>,
    source: impl Fn(usize) -> W,
    scratch: &mut [f32],
) {
    let rows = product.x.rows;
    if rows >= FLOAT_ROWS && !product.pairs {
        panels.for_each(|panel| floats::all_rows(product, panel, source(panel), scratch));
    } else if rows < pairs::MANY_ROWS {
        pairs::few_rows(product, panels, source);
    } else {
        pairs::many_rows(product, panels, source, scratch);
    }
}
