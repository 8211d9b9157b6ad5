//! Scores of pieces as a list of merges.
//!
//! SentencePiece merges any two neighbours that together are a piece, whatever two they are: those of the piece with the
//! highest score first, and of several with the same score the leftmost. In a list of merges the first goes first, and
//! where the same merge can be done twice, the leftmost. The two are the same where no two pieces have the same score.
//! They are also the same where those that do are runs of one character, as of spaces in Llama's models: there the
//! leftmost merge lengthens the run begun last, and so does the one that yields the longest run.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::SentencePieceError;
use super::proto::{Kind, Piece};

/// All merges, in order: `[left, right]`.
pub(super) fn merges(pieces: &[Piece], ids: &HashMap<&str, u32>) -> Result<Vec<Value>, SentencePieceError> {
    let unsupported = |message: String| Err(SentencePieceError::Unsupported(message));
    // What text can be merged from: nothing yields or merges with a piece of another kind.
    let normal = |text: &str| ids.get(text).is_some_and(|&id| pieces[id as usize].kind == Kind::Normal);
    let mut merged: Vec<(&Piece, Vec<usize>)> = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.kind == Kind::Normal) {
        let text = piece.text;
        if piece.score.is_nan() {
            return unsupported(format!("the piece {text:?} has no score"));
        }
        let inner = text.char_indices().map(|(at, _)| at).skip(1);
        let cuts: Vec<usize> = inner.filter(|&at| normal(&text[..at]) && normal(&text[at..])).collect();
        let character = text.char_indices().find(|&(at, c)| !ids.contains_key(&text[at..at + c.len_utf8()]));
        if let Some((_, character)) = character {
            // SentencePiece would merge the character itself, which has no id.
            return unsupported(format!("the piece {text:?} has {character:?}, which is no piece by itself"));
        }
        if !cuts.is_empty() {
            merged.push((piece, cuts));
        }
    }
    let order = |one: &Piece, other: &Piece| {
        let score = other.score.partial_cmp(&one.score).expect("no score is NaN");
        score.then(other.text.len().cmp(&one.text.len()))
    };
    merged.sort_by(|(one, _), (other, _)| order(one, other));
    let tied = |pair: &&[(&Piece, Vec<usize>)]| {
        pair[0].0.score == pair[1].0.score && !(is_run(pair[0].0.text) && is_run(pair[1].0.text))
    };
    if let Some(pair) = merged.windows(2).find(tied) {
        let (one, other) = (pair[0].0.text, pair[1].0.text);
        return unsupported(format!("the pieces {one:?} and {other:?} have the same score"));
    }
    let pairs = merged.iter().flat_map(|(piece, cuts)| cuts.iter().map(|&at| piece.text.split_at(at)));
    Ok(pairs.map(|(left, right)| json!([left, right])).collect())
}

/// Whether a text is one character over and over.
fn is_run(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next();
    characters.all(|character| Some(character) == first)
}
