//! A weight matrix while its rows come: each piece is packed on the thread that has it, a panel at a time.
//!
//! Packing transposes: a row's elements go 64 bytes apart. So it goes over some columns of all rows of a panel before the
//! next columns, which keeps both sides in the first-level cache, and takes four rows of E4M3 at a time.

use std::cell::UnsafeCell;
use std::sync::{Mutex, PoisonError};

use super::isa::Isa;
use super::matrix::{Matrix, PANEL, Packed, within};
use crate::device::{HostRows, MatrixData, MatrixShape};

/// Columns that are packed at a time.
const COLUMNS: usize = 128;

/// A matrix while its rows are written.
#[derive(Debug)]
pub struct MatrixBuilder {
    out: usize,
    input: usize,
    pairs: bool,
    data: Elements,
    /// One for each panel: who holds it writes the panel.
    turns: Vec<Mutex<()>>,
    /// Of E4M3.
    scales: Mutex<Vec<f32>>,
}

/// Packed elements, or zeros.
#[derive(Debug)]
enum Elements {
    Bf16(SharedVec<u16>),
    Fp8(SharedVec<u8>),
}

/// What threads write disjoint parts of.
#[derive(Debug)]
struct SharedVec<T>(UnsafeCell<Vec<T>>);

// SAFETY: elements are written through `panel` alone, whose callers hold the panel's turn, and read by nobody before
// the vector is taken out, which needs it whole.
unsafe impl<T: Send> Sync for SharedVec<T> {}

impl<T: Default + Clone> SharedVec<T> {
    fn new(len: usize) -> Self {
        Self(UnsafeCell::new(zeros(len)))
    }

    /// A panel of so many elements.
    ///
    /// # Safety
    /// The caller holds the panel's turn as long as the slice.
    #[allow(clippy::mut_from_ref)]
    unsafe fn panel(&self, panel: usize, elements: usize) -> &mut [T] {
        // SAFETY: the vector itself is not changed while it is shared; only where its elements are is read here.
        let (start, len) = unsafe { ((*self.0.get()).as_mut_ptr(), (*self.0.get()).len()) };
        assert!((panel + 1) * elements <= len, "panel {panel} of {elements} elements in {len}");
        // SAFETY: inside the vector by the assertion; nobody else has this panel, by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(start.add(panel * elements), elements) }
    }
}

impl MatrixBuilder {
    /// Zeros.
    pub(super) fn new(shape: MatrixShape, isa: Isa) -> Self {
        let MatrixShape { out, input, bf16 } = shape;
        let panels = out.div_ceil(PANEL);
        let size = panels * PANEL * input.next_multiple_of(2);
        let data = match bf16 {
            true => Elements::Bf16(SharedVec::new(size)),
            false => Elements::Fp8(SharedVec::new(size)),
        };
        let scales = Mutex::new(vec![0.0; if bf16 { 0 } else { panels * PANEL }]);
        let turns = (0..panels).map(|_| Mutex::default()).collect();
        Self { out, input, pairs: isa == Isa::Avx512, data, turns, scales }
    }

    /// Packs rows from `first` on.
    pub(super) fn write(&self, first: usize, rows: HostRows<'_>) {
        rows.check();
        assert_eq!(rows.input, self.input, "elements of a row");
        assert!(first + rows.rows <= self.out, "{} rows from {first} on of {}", rows.rows, self.out);
        match (&self.data, rows.data) {
            (Elements::Bf16(to), MatrixData::Bf16(from)) => {
                self.put_elements((to, from), (first, rows), pack)
            }
            (Elements::Fp8(to), MatrixData::Fp8 { codes, scales }) => {
                self.put_elements((to, codes), (first, rows), pack_codes);
                let mut all = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
                all[first..first + rows.rows].copy_from_slice(scales);
            }
            _ => panic!("rows of another type than their matrix"),
        }
    }

    fn put_elements<T: Default + Clone>(
        &self,
        (to, from): (&SharedVec<T>, &[T]),
        (first, rows): (usize, HostRows<'_>),
        pack: fn(&mut [T], usize, &[&[T]], bool),
    ) {
        let size = PANEL * self.input.next_multiple_of(2);
        let mut done = 0;
        while done < rows.rows {
            let (panel, lane) = ((first + done) / PANEL, (first + done) % PANEL);
            let count = (PANEL - lane).min(rows.rows - done);
            let _turn = self.turns[panel].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the turn is held until the end of this round.
            let target = unsafe { to.panel(panel, size) };
            let row = |i: usize| &from[(done + i) * rows.stride..][..self.input];
            let slices: [&[T]; PANEL] = std::array::from_fn(|i| if i < count { row(i) } else { &[] });
            pack(target, lane, &slices[..count], self.pairs);
            done += count;
        }
    }

    /// The matrix. Outputs are padded with zeros.
    pub(super) fn finish(self) -> Matrix {
        let scales = self.scales.into_inner().unwrap_or_else(PoisonError::into_inner);
        let data = match self.data {
            Elements::Bf16(values) => Packed::Bf16(values.0.into_inner()),
            Elements::Fp8(codes) => Packed::Fp8 { codes: codes.0.into_inner(), scales },
        };
        Matrix { out: self.out, input: self.input, pairs: self.pairs, data }
    }
}

/// Packs rows into their panel, the first of them into `lane`.
fn pack<T: Copy>(panel: &mut [T], lane: usize, rows: &[&[T]], pairs: bool) {
    for start in (0..rows[0].len()).step_by(COLUMNS) {
        let end = (start + COLUMNS).min(rows[0].len());
        rows.iter()
            .enumerate()
            .for_each(|(i, row)| pack_row(panel, lane + i, (start, &row[start..end]), pairs));
    }
}

/// Some of a row's elements, `start` being the first one's column.
fn pack_row<T: Copy>(panel: &mut [T], lane: usize, (start, part): (usize, &[T]), pairs: bool) {
    if !pairs {
        panel[start * PANEL..].iter_mut().skip(lane).step_by(PANEL).zip(part).for_each(|(t, x)| *t = *x);
        return;
    }
    let place = within(true, size_of::<T>() == 1, lane, 0);
    let (whole, rest) = part.as_chunks::<2>();
    let mut groups = panel[start / 2 * 64..].chunks_exact_mut(64);
    for (pair, group) in whole.iter().zip(&mut groups) {
        group[place..place + 2].copy_from_slice(pair);
    }
    if let (Some(last), Some(group)) = (rest.first(), groups.next()) {
        group[place] = *last;
    }
}

/// As `pack`: of E4M3, the pairs of four lanes lie side by side.
fn pack_codes(panel: &mut [u8], lane: usize, rows: &[&[u8]], pairs: bool) {
    if !pairs || !lane.is_multiple_of(4) {
        return pack(panel, lane, rows, pairs);
    }
    for start in (0..rows[0].len()).step_by(COLUMNS) {
        let end = (start + COLUMNS).min(rows[0].len());
        // Eight columns at a time; what is left, by single rows.
        let even = start + (end - start) / 8 * 8;
        let (fours, rest) = rows.as_chunks::<4>();
        for (i, four) in fours.iter().enumerate() {
            let lane = lane + 4 * i;
            pack_four(&mut panel[start / 2 * 64..], lane, four.map(|row| &row[start..even]));
            for (j, row) in four.iter().enumerate() {
                pack_row(panel, lane + j, (even, &row[even..end]), true);
            }
        }
        let lane = lane + 4 * fours.len();
        rest.iter()
            .enumerate()
            .for_each(|(i, row)| pack_row(panel, lane + i, (start, &row[start..end]), true));
    }
}

/// Four rows of a multiple of eight columns: pairs are 16 bits, four by four of which are transposed in registers.
fn pack_four(groups: &mut [u8], lane: usize, rows: [&[u8]; 4]) {
    const EVEN: u64 = 0x0000_FFFF_0000_FFFF;
    const LOW: u64 = 0xFFFF_FFFF;
    let place = within(true, true, lane, 0);
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

/// Memory as weights lie in: new, and in large pages where the system has them.
pub fn zeros<T: Default + Clone>(len: usize) -> Vec<T> {
    let buffer = vec![T::default(); len];
    ask_for_huge_pages(&buffer);
    buffer
}

/// Weights are read from end to end once a step: with pages of 2 MiB the processor looks up few translations. Has to
/// come before the first write, and costs nothing where the system has no such pages.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages<T>(buffer: &[T]) {
    const HUGE: usize = 2 << 20;
    let (start, len) = (buffer.as_ptr() as usize, std::mem::size_of_val(buffer));
    let first = start.next_multiple_of(HUGE);
    let end = (start + len) / HUGE * HUGE;
    if first < end {
        // SAFETY: whole pages inside a live allocation; the advice does not change what they hold. Whether it is
        // taken does not matter.
        let _ = unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages<T>(_buffer: &[T]) {}
