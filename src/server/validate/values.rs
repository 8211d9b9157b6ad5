//! Checks of single values: integers in a range, and token ids.

use serde_json::Value;

use super::limits::MAX_TOP_LOGPROBS;
use crate::server::error::ApiError;
use crate::server::fields::{integer, wrong_type};

/// Checks that an integer is from `least` to `most`.
pub(super) fn in_range(
    param: &str,
    value: Option<i128>,
    least: i128,
    most: i128,
) -> Result<Option<i128>, ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(ApiError::invalid(param, format!("expected an integer from {least} to {most}, got {value}")))
        }
        in_range => Ok(in_range),
    }
}

/// Checks a number of alternatives to report per token.
pub(super) fn alternatives(param: &str, value: Option<i128>) -> Result<Option<u8>, ApiError> {
    Ok(in_range(param, value, 0, i128::from(MAX_TOP_LOGPROBS))?.map(|count| count as u8))
}

/// Reads a token id: an integer from 0 to `vocab_size` - 1.
pub(super) fn token_id(param: &str, item: &Value, vocab_size: usize) -> Result<u32, ApiError> {
    let id = integer(item).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
    id.ok_or_else(|| {
        let expected = format!("a token id from 0 to {}", vocab_size.saturating_sub(1));
        wrong_type(param, &expected, item)
    })
}

/// Reads at most `most` token ids.
pub(super) fn token_ids(
    param: &str,
    items: Option<&[Value]>,
    most: usize,
    vocab_size: usize,
) -> Result<Vec<u32>, ApiError> {
    let items = items.unwrap_or_default();
    if items.len() > most {
        return Err(ApiError::invalid(
            param,
            format!("expected at most {most} token ids, got {}", items.len()),
        ));
    }
    items.iter().map(|item| token_id(param, item, vocab_size)).collect()
}
