//! The merge list of tokenizer.json, from the scores of the pieces.
//!
//! SentencePiece merges any two neighbours whose concatenation is a piece. It takes the piece with the
//! highest score first and, among equal scores, the leftmost pair. A merge list is applied in its order and,
//! for one merge, from left to right. Both give the same result if no two mergeable pieces have equal scores.
//!
//! Both also give the same result if all pieces with equal scores are runs of one character, such as the runs
//! of spaces in Llama's models: there the leftmost merge extends the run that was begun last, and so does the
//! merge that yields the longest run.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::error::SentencePieceError;
use super::proto::{PieceType, SentencePiece};

/// Returns all merges in order, each as `[left, right]`.
///
/// # Errors
/// `Unsupported` if a merge list cannot reproduce the model: a score is NaN, a character of a piece is not a
/// piece itself, or equal scores leave the order open.
pub(super) fn merges(
    pieces: &[SentencePiece],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<Value>, SentencePieceError> {
    let unsupported = |message: String| Err(SentencePieceError::Unsupported(message));
    // Only normal pieces take part in merges.
    let normal =
        |text: &str| ids.get(text).is_some_and(|&id| pieces[id as usize].piece_type() == PieceType::Normal);
    // Each piece with the byte offsets at which it splits into two normal pieces.
    let mut merged: Vec<(&SentencePiece, Vec<usize>)> = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.piece_type() == PieceType::Normal) {
        let text = piece.piece();
        if piece.score().is_nan() {
            return unsupported(format!("the piece {text:?} has no score"));
        }
        let inner = text.char_indices().map(|(at, _)| at).skip(1);
        let cuts: Vec<usize> = inner.filter(|&at| normal(&text[..at]) && normal(&text[at..])).collect();
        let character = text.char_indices().find(|&(at, c)| !ids.contains_key(&text[at..at + c.len_utf8()]));
        if let Some((_, character)) = character {
            // SentencePiece would merge the character itself, but the character has no id.
            return unsupported(format!("the piece {text:?} has {character:?}, which is no piece by itself"));
        }
        if !cuts.is_empty() {
            merged.push((piece, cuts));
        }
    }
    let order = |one: &SentencePiece, other: &SentencePiece| {
        let score = other.score().partial_cmp(&one.score()).expect("no score is NaN");
        score.then(other.piece().len().cmp(&one.piece().len()))
    };
    merged.sort_by(|(one, _), (other, _)| order(one, other));
    let tied = |pair: &&[(&SentencePiece, Vec<usize>)]| {
        let (one, other) = (pair[0].0, pair[1].0);
        one.score() == other.score() && !(is_run(one.piece()) && is_run(other.piece()))
    };
    if let Some(pair) = merged.windows(2).find(tied) {
        let (one, other) = (pair[0].0.piece(), pair[1].0.piece());
        return unsupported(format!("the pieces {one:?} and {other:?} have the same score"));
    }
    let pairs = merged.iter().flat_map(|(piece, cuts)| cuts.iter().map(|&at| piece.piece().split_at(at)));
    Ok(pairs.map(|(left, right)| json!([left, right])).collect())
}

/// Returns whether a text repeats a single character.
fn is_run(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next();
    characters.all(|character| Some(character) == first)
}
