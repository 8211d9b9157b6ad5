//! The conditions of `--two-batch-tokens`, for every command that has it.

use crate::model::LEAST_TWO_BATCH_TOKENS;

/// The settings that steps of two batches depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TwoBatches {
    /// Tokens from which a step is computed as two batches.
    pub(crate) tokens: usize,
    /// Ranks that share the model.
    pub(crate) ranks: usize,
    /// The option that sets their number.
    pub(crate) ranks_option: &'static str,
    /// Whether the ranks' products are deterministic.
    pub(crate) deterministic: bool,
    /// The most tokens of a step.
    pub(crate) max_num_batched_tokens: usize,
}

impl TwoBatches {
    /// The option.
    pub(crate) const OPTION: &str = "--two-batch-tokens";

    /// Checks that a step can be computed as two batches if it has enough tokens.
    ///
    /// # Errors
    /// If no step can. The message says what is expected, and does not name the option.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { tokens, ranks, ranks_option, deterministic, max_num_batched_tokens: most } = *self;
        if ranks == 1 {
            return Err(format!("expected {ranks_option} of at least 2, got 1"));
        }
        // cuBLASLt chooses its algorithm by the number of rows, so bits would change, and leaves no
        // multiprocessors free for sums.
        if !deterministic {
            return Err("expected --deterministic true, got false".to_owned());
        }
        if most < LEAST_TWO_BATCH_TOKENS {
            let least = LEAST_TWO_BATCH_TOKENS;
            return Err(format!("expected --max-num-batched-tokens of at least {least}, got {most}"));
        }
        if tokens > most {
            return Err(format!("expected at most --max-num-batched-tokens, {most}, got {tokens}"));
        }
        Ok(())
    }
}
