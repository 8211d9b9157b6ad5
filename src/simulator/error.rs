//! The error of the simulator's settings.

/// A setting of the simulation is out of range, or its request file cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// The factor on step times is negative or not finite.
    #[error("expected a pace of at least 0, got {0}")]
    Pace(f64),
    /// The mean number of tokens of an answer is below 1 or not finite.
    #[error("answers: expected a mean of at least 1 token, got {0}")]
    MeanAnswer(f64),
    /// Token ids do not fit in 32 bits.
    #[error("vocabulary: expected ids of 32 bits, got {0} ids")]
    Vocabulary(usize),
    /// No token can be generated.
    #[error("the vocabulary has no token that is plain text")]
    NoWord,
    /// A token to generate ends answers, or is not in the vocabulary.
    #[error("token {id}: expected an id below {vocab} that does not end an answer")]
    Word {
        /// The token's id.
        id: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// A line of the request file cannot be read.
    #[error("line {line}: {message}")]
    Workload {
        /// Number of the line, from 1.
        line: usize,
        /// Expected and actual content.
        message: String,
    },
}
