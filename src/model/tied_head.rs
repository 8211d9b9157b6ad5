//! Compares an LM head with the embedding whose weights it should share.

use std::path::Path;

use safetensors::tensor::Dtype;

use super::checkpoint::{Checkpoint, Tensor};
use super::convert::{float_width, widen};
use super::error::LoadError;

/// Elements that are compared at a time.
const ELEMENTS: u64 = 1 << 20;

/// Whether the checkpoint in `dir` stores both, with different values. It does not if its files cannot be
/// opened: loading reports that.
///
/// # Errors
/// A tensor cannot be read.
pub(super) fn differs(dir: &Path) -> Result<bool, LoadError> {
    let Ok(mut checkpoint) = Checkpoint::open(dir) else { return Ok(false) };
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    if !checkpoint.has(embedding) || !checkpoint.has(head) {
        return Ok(false);
    }
    let (embedding, head) = (checkpoint.take(embedding)?, checkpoint.take(head)?);
    // An E4M3 weight has scales, so the same codes need not mean the same values.
    if embedding.shape != head.shape || [embedding.dtype, head.dtype].contains(&Dtype::F8_E4M3) {
        return Ok(true);
    }
    let elements: u64 = embedding.shape.iter().map(|n| *n as u64).product();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for from in (0..elements).step_by(ELEMENTS as usize) {
        let count = ELEMENTS.min(elements - from);
        read(&embedding, from, count, &mut one)?;
        read(&head, from, count, &mut other)?;
        if one != other {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads elements, widened to F32.
fn read(tensor: &Tensor, from: u64, count: u64, to: &mut Vec<f32>) -> Result<(), LoadError> {
    let width = float_width(tensor)? as u64;
    let mut bytes = vec![0; (count * width) as usize];
    tensor.read(from * width, &mut bytes)?;
    to.resize(count as usize, 0.0);
    widen(tensor.dtype, &bytes, to);
    Ok(())
}
