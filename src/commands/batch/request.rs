//! The requests that servers get for lines, and their replies as a record has them.

use bytes::Bytes;

use super::fields::RawFields;
use crate::batch::{Endpoint, Line, OfflineLine};
use crate::server::error::ApiError;

/// The body that a server gets for a line: the line's, with a seed if it has none and samples.
///
/// # Errors
/// The line asks for what a batch cannot have.
pub(super) fn body(line: &Line) -> Result<Bytes, ApiError> {
    let internal = |error: serde_json::Error| ApiError::invalid("body", error.to_string());
    let mut fields: RawFields = serde_json::from_str(&line.body).map_err(internal)?;
    for field in ["stream", "return_cost"] {
        if fields.get(field) == Some("true") {
            return Err(ApiError::unsupported(field, "expected false in a batch, got true"));
        }
    }
    let samples = line.endpoint != Endpoint::Reward;
    if let (None, Some(OfflineLine { seed, .. })) = (fields.get("seed"), line.offline.filter(|_| samples)) {
        fields.set("seed", &seed).map_err(internal)?;
    }
    serde_json::to_vec(&fields).map(Bytes::from).map_err(internal)
}

/// A server's reply with an id and a time that are the same in each run, and without the number of cached
/// tokens. `None` if it is not an object.
pub(super) fn reply(endpoint: Endpoint, line: Option<OfflineLine>, reply: &[u8]) -> Option<String> {
    let mut fields: RawFields = serde_json::from_slice(reply).ok()?;
    if let Some(OfflineLine { id: [high, low], .. }) = line {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl-",
            Endpoint::Completions => "cmpl-",
            Endpoint::Reward => "reward-",
        };
        fields.replace(&["id"], &format!("{prefix}{high:016x}{low:016x}")).ok()?;
        fields.replace(&["created"], &0).ok()?;
        fields.replace(&["usage", "prompt_tokens_details", "cached_tokens"], &0).ok()?;
    }
    serde_json::to_string(&fields).ok()
}
