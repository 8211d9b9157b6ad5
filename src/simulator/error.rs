//! Errors of the simulator's settings and runs.

/// A setting of the simulation is out of range.
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
}

/// The scheduler broke one of its rules during a simulation, which is a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SimulationError(String);

impl From<String> for SimulationError {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<crate::scheduler::IntegrityError> for SimulationError {
    fn from(error: crate::scheduler::IntegrityError) -> Self {
        Self(error.to_string())
    }
}

impl From<&str> for SimulationError {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}
