//! Checks of token ids.

use serde_json::Value;

use crate::server::error::ApiError;
use crate::server::fields::{integer, wrong_type};

/// Reads a token id: an integer from 0 to `vocab_size` - 1.
pub(super) fn token_id(param: &str, item: &Value, vocab_size: usize) -> Result<u32, ApiError> {
    let id = integer(item).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
    id.ok_or_else(|| {
        let expected = format!("a token id from 0 to {}", vocab_size.saturating_sub(1));
        wrong_type(param, &expected, item)
    })
}

/// Reads token ids.
pub(super) fn token_ids(param: &str, items: &[Value], vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    items.iter().map(|item| token_id(param, item, vocab_size)).collect()
}
