//! `--lm-head-dtype`: an LM head that is quantised on load.

use octant::device::{KvDtype, fp8};
use octant::model::{ModelConfig, Precision};

use super::checkpoints::{IDS, f32s, read, write};
use super::copy;
use crate::device::model::{fixture, logits, logits_of_fp8_head};

/// A head that is quantised on load gives the bits of the same head that is stored in FP8. The first model
/// has a head of its own, the head of the second is the embedding.
#[test]
fn a_quantised_head_gives_the_bits_of_one_stored_in_fp8() {
    for (name, source) in [("nemotron", "lm_head.weight"), ("llama", "model.embed_tokens.weight")] {
        let stored = copy(name);
        let mut tensors = read(stored.path());
        let (_, shape, bytes) = tensors[source].clone();
        let values: Vec<f32> =
            bytes.as_chunks::<2>().0.iter().map(|pair| fp8::bf16_value(u16::from_le_bytes(*pair))).collect();
        let mut codes = vec![0; values.len()];
        let rows = values.chunks_exact(shape[1]).zip(codes.chunks_exact_mut(shape[1]));
        let scales: Vec<f32> = rows.map(|(row, codes)| fp8::quantize_row(row, codes)).collect();
        tensors.insert("lm_head.weight".to_owned(), ("F8_E4M3", shape.clone(), codes));
        let of_scales = ("F32", vec![shape[0], 1], f32s(&scales));
        tensors.insert("lm_head.weight_scale".to_owned(), of_scales);
        write(&stored.path().join("model.safetensors"), &tensors);

        for precision in [Precision::None, Precision::Fp8] {
            let quantised = logits_of_fp8_head(&fixture(name), precision, KvDtype::Bf16, &IDS);
            let plain = logits(&fixture(name), precision, KvDtype::Bf16, &IDS);
            assert!(quantised != plain, "{name}, {precision:?}: the head changes the logits");
            let expected = logits(stored.path(), precision, KvDtype::Bf16, &IDS);
            // With E4M3 activations, the inputs of a stored FP8 head are E4M3 too, those of a quantised one
            // BF16.
            assert_eq!(quantised == expected, precision == Precision::None, "{name}, {precision:?}");
            // A head that is stored in FP8 stays as it is.
            let kept = logits_of_fp8_head(stored.path(), precision, KvDtype::Bf16, &IDS);
            assert!(kept == expected, "{name}, {precision:?}: a stored FP8 head");
        }
    }
}

#[test]
fn a_configuration_that_was_just_read_has_a_head_of_bf16() {
    let config = ModelConfig::from_dir(&fixture("llama")).unwrap();
    assert_eq!(config.head_dtype, octant::model::HeadDtype::Bf16);
}
