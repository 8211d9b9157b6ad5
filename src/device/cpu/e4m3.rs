//! Decoding of E4M3 with AVX-512.
//!
//! BF16 represents E4M3 exactly. Each of the two bytes of the BF16 is a look-up in a table of 128 entries,
//! which a byte permute over two registers performs (VBMI). The sign bit is copied from the code.

use std::arch::x86_64::*;

use crate::device::fp8;

/// The decode tables in registers.
#[derive(Clone, Copy)]
pub(super) struct DecodeTables {
    high: [__m512i; 2],
    low: [__m512i; 2],
    sign: __m512i,
}

impl DecodeTables {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    pub(super) fn new() -> Self {
        let (high, low) = bytes();
        // SAFETY: both tables have 128 bytes.
        unsafe {
            Self {
                high: [
                    _mm512_loadu_si512(high.as_ptr().cast()),
                    _mm512_loadu_si512(high[64..].as_ptr().cast()),
                ],
                low: [_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(low[64..].as_ptr().cast())],
                sign: _mm512_set1_epi8(i8::MIN),
            }
        }
    }

    /// Decodes 64 codes to BF16. Of each 16 bytes of codes, the first vector has the first 8 and the second
    /// the others.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    pub(super) fn bf16(&self, codes: __m512i) -> [__m512i; 2] {
        let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
        // The operation 0xF8 is high | (codes & sign).
        let high = _mm512_ternarylogic_epi32::<0xF8>(high, codes, self.sign);
        let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// BF16 bit patterns of the 128 non-negative E4M3 codes: high bytes, then low bytes.
fn bytes() -> ([u8; 128], [u8; 128]) {
    let mut high = [0; 128];
    let mut low = [0; 128];
    for code in 0..128u8 {
        let [l, h] = fp8_bf16(code).to_le_bytes();
        high[usize::from(code)] = h;
        low[usize::from(code)] = l;
    }
    (high, low)
}

/// Decodes codes to F32. Their number must be a multiple of 64.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn decode(codes: &[u8], out: &mut [f32]) {
    assert!(codes.len() == out.len() && codes.len().is_multiple_of(64), "{} codes", codes.len());
    let tables = DecodeTables::new();
    // The unpacks take 4 codes of each 16 bytes. The codes are first transposed as 4 × 4 groups of 4, so that
    // each vector of results has 16 consecutive ones.
    let transpose = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let zero = _mm512_setzero_si512();
    for (codes, out) in codes.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        // SAFETY: both chunks have 64 elements.
        unsafe {
            let codes = _mm512_loadu_si512(codes.as_ptr().cast());
            let [low, high] = tables.bf16(_mm512_permutexvar_epi32(transpose, codes));
            let quarters = [
                _mm512_unpacklo_epi16(zero, low),
                _mm512_unpackhi_epi16(zero, low),
                _mm512_unpacklo_epi16(zero, high),
                _mm512_unpackhi_epi16(zero, high),
            ];
            for (quarter, out) in quarters.iter().zip(out.as_chunks_mut::<16>().0) {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), *quarter);
            }
        }
    }
}

/// The BF16 bit pattern of an E4M3 code. The conversion is exact.
fn fp8_bf16(code: u8) -> u16 {
    fp8::bf16_bits(fp8::decode(code))
}
