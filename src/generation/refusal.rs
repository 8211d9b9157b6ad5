//! Why a request was refused, or failed.

use crate::grammar::GrammarError;
use crate::request::Reject;

/// Why a request was refused before anything was generated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The model has no chat template.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The template or the tokenizer refused the messages.
    #[error("{0}")]
    Text(String),
    /// The text is too long for the context, whatever its tokens.
    #[error("{bytes} bytes of text do not fit {limit} tokens")]
    TooManyBytes {
        /// Bytes of the prompt.
        bytes: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The prompt has no token.
    #[error("expected at least one token, got an empty prompt")]
    EmptyPrompt,
    /// Prompt and answer do not fit the context.
    #[error("{prompt} + {completion} tokens do not fit {limit}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The tokens asked for; at least 1, and 0 for a score.
        completion: u32,
        /// Tokens that fit.
        limit: usize,
    },
    /// `min_tokens` exceeds the rest of the context.
    #[error("expected at most max_tokens = {max}, got {min}")]
    MinTokens {
        /// The `min_tokens` asked for.
        min: u32,
        /// Tokens that fit.
        max: u32,
    },
    /// `prompt_logprobs_start` is not the index of a prompt token.
    #[error("expected the index of a token of the prompt, at most {}, got {start}", prompt - 1)]
    PromptLogprobsStart {
        /// The index.
        start: u32,
        /// Tokens of the prompt; at least 1.
        prompt: usize,
    },
    /// The constraint on the answer cannot be compiled.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The engine's refusal.
    #[error(transparent)]
    Rejected(#[from] Reject),
    /// The refusal of one of several prompts to score.
    #[error("{refusal}")]
    OfPrompt {
        /// Index of the prompt.
        index: usize,
        /// Why it was refused.
        refusal: Box<Refusal>,
    },
    /// A bug of the server.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// The refusal of this one of several prompts.
    pub(super) fn of_prompt(self, index: usize) -> Self {
        Self::OfPrompt { index, refusal: Box::new(self) }
    }

    /// The index of the prompt that it is about, if it is known, and the refusal itself.
    pub(crate) fn located(self) -> (Option<usize>, Self) {
        match self {
            Self::OfPrompt { index, refusal } => (Some(index), *refusal),
            refusal => (None, refusal),
        }
    }
}

/// Why a request failed after it was taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The engine failed the request.
    #[error("{0}")]
    Engine(String),
    /// The next step of the grammar takes more work than is allowed.
    #[error("{0}")]
    TooComplex(String),
    /// The client's deadline passed.
    #[error("the request's deadline has passed")]
    Late,
}
