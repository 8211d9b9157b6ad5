//! Packing of a weight matrix whose rows are written in any order. The calling thread packs its rows, one
//! panel at a time.
//!
//! Packing transposes: the elements of a row are written at least 64 bytes apart. It therefore handles
//! [`COLUMNS`] columns of all rows of a panel before the next columns, which keeps source and target in the
//! L1 cache, and packs E4M3 four rows at a time.

use std::cell::UnsafeCell;
use std::sync::{Mutex, PoisonError};

use bytemuck::Zeroable;

use super::isa::Isa;
use super::matrix::{Matrix, PANEL, Packed, offset_in_panel};
use super::zeros;
use crate::device::{DeviceError, HostRows, MatrixData, MatrixShape};

/// Columns packed at a time.
const COLUMNS: usize = 128;

/// A weight matrix while its rows are written.
#[derive(Debug)]
pub struct MatrixBuilder {
    out: usize,
    input: usize,
    pairs: bool,
    data: Elements,
    /// One lock per panel, held while the panel is written.
    locks: Vec<Mutex<()>>,
    /// The scales of E4M3, one per output; empty for BF16.
    scales: Mutex<Vec<f32>>,
}

/// Packed elements; zeros until they are written.
#[derive(Debug)]
enum Elements {
    Bf16(SharedVec<u16>),
    Fp8(SharedVec<u8>),
}

/// A vector whose panels several threads write at once.
#[derive(Debug)]
struct SharedVec<T>(UnsafeCell<Vec<T>>);

// SAFETY: `panel` is the only access to the elements of a shared vector, and its callers hold the panel's
// lock. Taking the vector out requires ownership.
unsafe impl<T: Send> Sync for SharedVec<T> {}

impl<T: Zeroable> SharedVec<T> {
    fn new(len: usize) -> Result<Self, DeviceError> {
        Ok(Self(UnsafeCell::new(zeros_in_huge_pages(len)?)))
    }

    /// Returns panel number `panel` of the vector, if each panel has `elements` elements.
    ///
    /// # Safety
    /// The caller must hold the panel's lock while it uses the slice.
    #[allow(clippy::mut_from_ref)]
    unsafe fn panel(&self, panel: usize, elements: usize) -> &mut [T] {
        // SAFETY: this reads the vector's pointer and length, which nothing changes while it is shared.
        let (start, len) = unsafe { ((*self.0.get()).as_mut_ptr(), (*self.0.get()).len()) };
        assert!((panel + 1) * elements <= len, "panel {panel} of {elements} elements in {len}");
        // SAFETY: the assertion keeps the slice inside the vector, and the caller's lock makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(start.add(panel * elements), elements) }
    }
}

impl MatrixBuilder {
    /// Allocates a matrix of zeros in the layout of `isa`.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub(super) fn new(shape: MatrixShape, isa: Isa) -> Result<Self, DeviceError> {
        let MatrixShape { out, input, bf16 } = shape;
        let panels = out.div_ceil(PANEL);
        let size = (panels * PANEL).saturating_mul(input.next_multiple_of(2));
        let data = match bf16 {
            true => Elements::Bf16(SharedVec::new(size)?),
            false => Elements::Fp8(SharedVec::new(size)?),
        };
        let scales = Mutex::new(zeros(if bf16 { 0 } else { panels * PANEL })?);
        let locks = (0..panels).map(|_| Mutex::default()).collect();
        Ok(Self { out, input, pairs: isa == Isa::Avx512, data, locks, scales })
    }

    /// Packs `rows`, whose first row is row `first` of the matrix.
    pub(super) fn write(&self, first: usize, rows: HostRows<'_>) {
        rows.check();
        assert_eq!(rows.input, self.input, "elements per row");
        assert!(first + rows.rows <= self.out, "rows {first}..{} of {}", first + rows.rows, self.out);
        match (&self.data, rows.data) {
            (Elements::Bf16(to), MatrixData::Bf16(from)) => self.write_elements(to, from, first, rows, pack),
            (Elements::Fp8(to), MatrixData::Fp8 { codes, scales }) => {
                self.write_elements(to, codes, first, rows, pack_codes);
                let mut all = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
                all[first..first + rows.rows].copy_from_slice(scales);
            }
            _ => panic!("the element type of the rows differs from that of the matrix"),
        }
    }

    /// Packs the elements `from` of `rows` into `to`.
    fn write_elements<T: Zeroable>(
        &self,
        to: &SharedVec<T>,
        from: &[T],
        first: usize,
        rows: HostRows<'_>,
        pack: fn(&mut [T], usize, &[&[T]], bool),
    ) {
        let size = PANEL * self.input.next_multiple_of(2);
        let mut done = 0;
        while done < rows.rows {
            let (panel, lane) = ((first + done) / PANEL, (first + done) % PANEL);
            let count = (PANEL - lane).min(rows.rows - done);
            let _lock = self.locks[panel].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: this iteration holds the panel's lock until its end.
            let target = unsafe { to.panel(panel, size) };
            let row = |i: usize| &from[(done + i) * rows.stride..][..self.input];
            let slices: [&[T]; PANEL] = std::array::from_fn(|i| if i < count { row(i) } else { &[] });
            pack(target, lane, &slices[..count], self.pairs);
            done += count;
        }
    }

    /// Returns the packed matrix.
    pub(super) fn finish(self) -> Matrix {
        let scales = self.scales.into_inner().unwrap_or_else(PoisonError::into_inner);
        let data = match self.data {
            Elements::Bf16(values) => Packed::Bf16(values.0.into_inner()),
            Elements::Fp8(codes) => Packed::Fp8 { codes: codes.0.into_inner(), scales },
        };
        Matrix { out: self.out, input: self.input, pairs: self.pairs, data }
    }
}

/// Packs consecutive rows into their panel; the first row is output `lane` of the panel.
fn pack<T: Copy>(panel: &mut [T], lane: usize, rows: &[&[T]], pairs: bool) {
    for start in (0..rows[0].len()).step_by(COLUMNS) {
        let end = (start + COLUMNS).min(rows[0].len());
        rows.iter()
            .enumerate()
            .for_each(|(i, row)| pack_row(panel, lane + i, start, &row[start..end], pairs));
    }
}

/// Packs `part` of a row. The first element of `part` is in column `start`.
fn pack_row<T: Copy>(panel: &mut [T], lane: usize, start: usize, part: &[T], pairs: bool) {
    if !pairs {
        panel[start * PANEL..].iter_mut().skip(lane).step_by(PANEL).zip(part).for_each(|(t, x)| *t = *x);
        return;
    }
    let place = offset_in_panel(true, size_of::<T>() == 1, lane, 0);
    let (whole, rest) = part.as_chunks::<2>();
    let mut groups = panel[start / 2 * 64..].chunks_exact_mut(64);
    for (pair, group) in whole.iter().zip(&mut groups) {
        group[place..place + 2].copy_from_slice(pair);
    }
    if let (Some(last), Some(group)) = (rest.first(), groups.next()) {
        group[place] = *last;
    }
}

/// Packs rows like [`pack`], for E4M3 codes. In their layout of pairs, the pairs of four lanes are adjacent.
fn pack_codes(panel: &mut [u8], lane: usize, rows: &[&[u8]], pairs: bool) {
    if !pairs || !lane.is_multiple_of(4) {
        return pack(panel, lane, rows, pairs);
    }
    for start in (0..rows[0].len()).step_by(COLUMNS) {
        let end = (start + COLUMNS).min(rows[0].len());
        // Packs four rows eight columns at a time, and the remaining columns row by row.
        let even = start + (end - start) / 8 * 8;
        let (fours, rest) = rows.as_chunks::<4>();
        for (i, four) in fours.iter().enumerate() {
            let lane = lane + 4 * i;
            pack_four(&mut panel[start / 2 * 64..], lane, four.map(|row| &row[start..even]));
            for (j, row) in four.iter().enumerate() {
                pack_row(panel, lane + j, even, &row[even..end], true);
            }
        }
        let lane = lane + 4 * fours.len();
        rest.iter().enumerate().for_each(|(i, row)| pack_row(panel, lane + i, start, &row[start..end], true));
    }
}

/// Packs four rows of a multiple of eight columns. A pair is 16 bits; 4 × 4 pairs are transposed in
/// registers.
fn pack_four(groups: &mut [u8], lane: usize, rows: [&[u8]; 4]) {
    const EVEN: u64 = 0x0000_FFFF_0000_FFFF;
    const LOW: u64 = 0xFFFF_FFFF;
    let place = offset_in_panel(true, true, lane, 0);
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<8>().0);
    let fours = groups.chunks_exact_mut(4 * 64);
    for ((((a, b), c), d), groups) in a.iter().zip(b).zip(c).zip(d).zip(fours) {
        let [a, b, c, d] = [a, b, c, d].map(|bytes| u64::from_le_bytes(*bytes));
        let (ab_even, ab_odd) = ((a & EVEN) | ((b & EVEN) << 16), ((a >> 16) & EVEN) | (b & !EVEN));
        let (cd_even, cd_odd) = ((c & EVEN) | ((d & EVEN) << 16), ((c >> 16) & EVEN) | (d & !EVEN));
        let columns = [
            (ab_even & LOW) | (cd_even << 32),
            (ab_odd & LOW) | (cd_odd << 32),
            (ab_even >> 32) | (cd_even & !LOW),
            (ab_odd >> 32) | (cd_odd & !LOW),
        ];
        for (group, column) in groups.chunks_exact_mut(64).zip(columns) {
            group[place..place + 8].copy_from_slice(&column.to_le_bytes());
        }
    }
}

/// Allocates zeros for weights, in huge pages if the system has them.
///
/// # Errors
/// The system has no memory for it.
pub(crate) fn zeros_in_huge_pages<T: Zeroable>(len: usize) -> Result<Vec<T>, DeviceError> {
    let buffer = zeros(len)?;
    ask_for_huge_pages(&buffer);
    Ok(buffer)
}

/// Asks the system for pages of 2 MiB, since each step reads all weights and small pages would cost many TLB
/// misses. The request must precede the first write. It has no effect on a system without huge pages.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages<T>(buffer: &[T]) {
    const HUGE: usize = 2 << 20;
    let (start, len) = (buffer.as_ptr() as usize, std::mem::size_of_val(buffer));
    let first = start.next_multiple_of(HUGE);
    let end = (start + len) / HUGE * HUGE;
    if first < end {
        // SAFETY: the range is whole pages of a live allocation, and the advice does not change their
        // contents. A failure only means small pages.
        let _ = unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages<T>(_buffer: &[T]) {}
