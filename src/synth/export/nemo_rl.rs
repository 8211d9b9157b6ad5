//! Rows of NeMo-RL: ranked completions, and pairs of strings.

use serde_json::json;

use super::trl::assistant;
use super::{Preference, Rows};

/// `context` and exactly two `completions`; rank 0 is the better one.
pub(super) fn preference(preference: &Preference) -> Rows {
    let completion = |rank: u8, text: &str| json!({ "rank": rank, "completion": [assistant(text)] });
    Ok(vec![json!({
        "context": preference.prompt,
        "completions": [completion(0, &preference.chosen), completion(1, &preference.rejected)],
    })])
}

/// `prompt` as messages; `chosen` and `rejected` as strings, because the loader makes messages of them.
pub(super) fn binary_preference(preference: &Preference) -> Rows {
    Ok(vec![json!({
        "prompt": preference.prompt,
        "chosen": preference.chosen,
        "rejected": preference.rejected,
    })])
}
