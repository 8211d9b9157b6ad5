//! The bandwidth kernel reads every word.

use crate::dev;

#[test]
fn every_word_is_read_once() {
    for device in dev::all() {
        for len in [4, 2048, 4 * 512 * 528 * 9 + 20] {
            let words: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
            let expected = words.iter().fold(0, |sum, x| sum ^ x);
            assert_eq!(device.stream_read(&words, 0).unwrap().1, expected, "{}: {len} words", device.name());
        }
    }
}
