//! The error of a SentencePiece conversion.

/// The reason why a model file has no `tokenizer.json`.
#[derive(Debug, thiserror::Error)]
pub enum SentencePieceError {
    /// The bytes are not a SentencePiece model, or the model contradicts itself.
    #[error("not a SentencePiece model: {0}")]
    Malformed(String),
    /// The model needs something that `tokenizer.json` cannot express or that no test here covers.
    #[error("this SentencePiece model cannot be converted to tokenizer.json: {0}")]
    Unsupported(String),
}
