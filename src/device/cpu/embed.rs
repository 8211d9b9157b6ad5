//! out\[r\] = table\[token\[r\]\], read from the packed matrix, so that an LM head tied to the embedding
//! needs no second copy.

use super::pool::ThreadPool;
use super::{Floats, Matrix, Parts, Step};
use crate::device::{EmbeddingTable, Token};

pub(super) fn run(pool: &ThreadPool, step: &Step, table: EmbeddingTable<'_, Matrix>, out: &mut Floats) {
    let cols = out.cols;
    let EmbeddingTable { matrix, first } = table;
    assert_eq!(matrix.input, cols, "columns of an embedding of {cols}");
    let tokens = &step.inputs.tokens;
    let parts = Parts::new(out.resize(tokens.len()));
    pool.split(tokens.len(), |_, range| {
        for row in range {
            let token = match tokens[row] {
                Token::Id(id) => id as usize,
                Token::Last { slot } => step.sampled.last[slot as usize] as usize,
            };
            // SAFETY: the ranges of the threads are disjoint.
            let out = unsafe { parts.part(row * cols..(row + 1) * cols) };
            match token.checked_sub(first).filter(|row| *row < matrix.out) {
                Some(token) => out.iter_mut().enumerate().for_each(|(i, o)| *o = matrix.get(token, i)),
                None => out.fill(0.0),
            }
        }
    });
}
