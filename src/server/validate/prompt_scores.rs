//! Validation of the fields about log-probabilities of the prompt.

use crate::server::error::ApiError;
use crate::server::types::CommonFields;

/// The index of the first prompt token in `prompt_logprobs`.
pub(super) fn start(wire: &CommonFields, stream: bool) -> Result<u32, ApiError> {
    if wire.prompt_logprobs.is_some() && stream {
        let text = "expected stream = false with this field, got true";
        return Err(ApiError::invalid("prompt_logprobs", text));
    }
    match wire.prompt_logprobs_start.unwrap_or(0) as u32 {
        start if start > 0 && wire.prompt_logprobs.is_none() => {
            let text = format!("expected prompt_logprobs with this field, or 0, got {start}");
            Err(ApiError::invalid("prompt_logprobs_start", text))
        }
        start => Ok(start),
    }
}
