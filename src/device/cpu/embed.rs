//! out\[r\] = table\[token\[r\]\], read from the packed matrix: a tied LM head and embedding are one copy.

use super::pool::Pool;
use super::{Draws, Floats, Matrix, Parts, Step};
use crate::device::Token;

pub(super) fn run(pool: &Pool, step: &Step, table: &Matrix, draws: &Draws, out: &mut Floats) {
    let cols = out.cols;
    assert_eq!(table.input, cols, "columns of an embedding of {cols}");
    let tokens = &step.inputs.tokens;
    let parts = Parts::new(out.resize(tokens.len()));
    pool.split(tokens.len(), |_, range| {
        for row in range {
            let token = match tokens[row] {
                Token::Id(id) => id as usize,
                Token::Last { slot } => draws.last[slot as usize] as usize,
            };
            assert!(token < table.out, "token {token} of {}", table.out);
            // SAFETY: each row is in one range.
            let out = unsafe { parts.part(row * cols..(row + 1) * cols) };
            out.iter_mut().enumerate().for_each(|(i, o)| *o = table.get(token, i));
        }
    });
}
