//! The E4M3 codec, exhaustively.

use octant::device::fp8::{bf16_bits, bf16_value, decode, encode, is_nan, quantize_row, round, scale_for};

/// The value of a code by the definition of E4M3, in F64: sign, 4 exponent bits with bias 7, 3 mantissa bits.
fn value(code: u8) -> f64 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3) & 15, f64::from(code & 7));
    if exponent == 0 {
        sign * mantissa / 512.0
    } else {
        sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7)
    }
}

#[test]
fn every_code_decodes_to_its_definition_and_back() {
    for code in 0..=255u8 {
        if is_nan(code) {
            assert!(decode(code).is_nan(), "code {code:#x}");
            continue;
        }
        assert_eq!(f64::from(decode(code)), value(code), "code {code:#x}");
        assert_eq!(encode(decode(code)), code, "code {code:#x}");
        assert_eq!(bf16_value(bf16_bits(decode(code))), decode(code), "BF16 holds code {code:#x} exactly");
    }
}

#[test]
fn encoding_rounds_to_nearest_even() {
    let codes: Vec<u8> = (0..0x7F).collect();
    for pair in codes.windows(2) {
        let (low, high) = (value(pair[0]), value(pair[1]));
        let middle = ((low + high) / 2.0) as f32;
        let even = if pair[0] % 2 == 0 { pair[0] } else { pair[1] };
        assert_eq!(encode(middle), even, "halfway between {low} and {high}");
        assert_eq!(encode(f32::from_bits(middle.to_bits() - 1)), pair[0], "just below {middle}");
        assert_eq!(encode(f32::from_bits(middle.to_bits() + 1)), pair[1], "just above {middle}");
        assert_eq!(encode(-middle), even | 0x80, "the same below zero");
    }
}

#[test]
fn large_values_saturate_and_nan_stays_nan() {
    for x in [449.0, 464.0, 1e9, f32::MAX, f32::INFINITY] {
        assert_eq!(encode(x), 0x7E, "{x}");
        assert_eq!(encode(-x), 0xFE, "-{x}");
    }
    assert!(is_nan(encode(f32::NAN)));
    assert!(round(f32::NAN).is_nan());
    assert_eq!(encode(-0.0), 0x80);
    assert_eq!(encode(1e-30), 0);
}

#[test]
fn a_row_uses_the_whole_range_and_a_row_of_zeros_has_scale_1() {
    let mut codes = [0; 3];
    assert_eq!(quantize_row(&[0.5, -896.0, 0.0], &mut codes), 2.0);
    assert_eq!(codes, [encode(0.25), 0xFE, 0]);
    assert_eq!(quantize_row(&[0.0, 0.0, -0.0], &mut codes), 1.0);
    assert_eq!(scale_for(1e-40), 1.0, "a scale whose reciprocal would be infinite");
}

#[test]
fn bf16_rounds_to_nearest_even() {
    assert_eq!(bf16_bits(1.0), 0x3F80);
    assert_eq!(bf16_bits(f32::from_bits(0x3F80_8000)), 0x3F80);
    assert_eq!(bf16_bits(f32::from_bits(0x3F81_8000)), 0x3F82);
    assert_eq!(bf16_bits(f32::from_bits(0x3F80_8001)), 0x3F81);
    assert!(bf16_value(bf16_bits(f32::NAN)).is_nan());
}
