//! The stages of a recipe.

mod answers;
mod lists;
mod prompts;
mod scores;
mod select;

pub(super) use answers::{dialogues, responses};
pub(super) use lists::{keywords, subtopics, topics};
pub(super) use prompts::{fields, prompts, refined};
pub(super) use scores::{MOST_TOGETHER, Scored, filtered, pairs, rewards};
pub(super) use select::selected;

use serde::Serialize;
use serde_json::{Value, json};

use super::journal::{Depends, hash};
use super::recipe::Role;
use super::records::Reject;

/// The settings of a role that decide its answers. Its address, key and limits do not.
fn of_role(role: Option<&Role>) -> Value {
    role.map_or(
        Value::Null,
        |role| json!({ "model": role.model, "sampling": role.sampling, "api": role.api }),
    )
}

/// The hashes of what a stage depends on.
fn depends<const N: usize>(parts: [(&str, Value); N]) -> Depends {
    parts.into_iter().map(|(key, value)| (key.to_owned(), hash(&value))).collect()
}

/// A hash in place of records, which may be many.
fn input<R: Serialize>(records: &[R]) -> Value {
    Value::String(hash(&records))
}

fn reject(id: &str, reason: &str, raw: Option<&str>) -> Reject {
    Reject { id: id.to_owned(), reason: reason.to_owned(), detail: None, raw: raw.map(str::to_owned) }
}
