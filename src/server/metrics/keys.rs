//! Counters of usage by API key or user. The operator's keys have counters from the start. Users get theirs
//! with their first request; their number and the length of their labels are limited, because clients choose
//! these names.
//!
//! These samples can number thousands, so they are not in the registry: name and labels of each sample are
//! formatted once, and a scrape formats its value alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{Counter, IntCounter};
use sha2::{Digest, Sha256};

use super::exposition::{Format, labelled, sample, write_title};
use super::names::find;
use crate::engine::KeyCounters;

/// Most users that have counters of their own. Further users share the counters of [`OTHER_USERS`].
const MAX_USERS: usize = 256;
/// Longest label of a user, in characters.
const MAX_LABEL_CHARS: usize = 64;
/// Separates the kept part of a changed label from the digest of the full name. Replaced by `?` where a name
/// has it, so no user can choose the label of another.
const DIGEST_MARK: char = '…';
/// Hexadecimal digits of the digest in a changed label.
const DIGEST_DIGITS: usize = 8;
/// Label of all users beyond [`MAX_USERS`].
const OTHER_USERS: &str = "other";

/// A sample of a metric: the value of its label `kind`, if it has one, and the counter that it shows.
type KindOfSample = (Option<&'static str>, fn(&KeyCounters) -> f64);

/// The metrics, each with its samples for one key.
const FAMILIES: [(&str, &[KindOfSample]); 6] = [
    ("octant_key_requests_total", &[(None, |key| key.requests.get() as f64)]),
    ("octant_key_queue_seconds_total", &[(None, |key| key.queue.get())]),
    ("octant_key_prefill_seconds_total", &[(None, |key| key.prefill.get())]),
    ("octant_key_decode_seconds_total", &[(None, |key| key.decode.get())]),
    ("octant_key_kv_block_seconds_total", &[(None, |key| key.kv_block_seconds.get())]),
    (
        "octant_key_tokens_total",
        &[
            (Some("prompt"), |key| key.prompt_tokens.get() as f64),
            (Some("generated"), |key| key.generated_tokens.get() as f64),
            (Some("cached"), |key| key.cached_tokens.get() as f64),
            (Some("computed"), |key| key.computed_tokens.get() as f64),
            (Some("recomputed"), |key| key.recomputed_tokens.get() as f64),
        ],
    ),
];

/// Counters of all keys and users.
pub(super) struct KeyMetrics {
    /// Name and value of the labels that all metrics have.
    common: Vec<(String, String)>,
    table: Mutex<KeyTable>,
}

#[derive(Default)]
struct KeyTable {
    by_label: BTreeMap<String, Arc<KeyUsage>>,
    /// Number of entries that are users and not keys of the operator.
    users: usize,
}

/// Usage of one key or user.
struct KeyUsage {
    counters: Arc<KeyCounters>,
    /// Whether this is one of the operator's API keys and not a user.
    registered: bool,
    /// For each metric of [`FAMILIES`], the name and labels of its samples.
    samples: [Vec<String>; FAMILIES.len()],
}

impl KeyMetrics {
    /// An empty table. `common` are the labels that all metrics have, as (name, value).
    pub(super) fn new(common: Vec<(String, String)>) -> Self {
        Self { common, table: Mutex::default() }
    }

    /// Adds counters for one of the operator's API keys, under its own label.
    pub(super) fn register(&self, label: &str) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_label.entry(label.to_owned()).or_insert_with(|| self.new_usage(label, true));
    }

    /// Returns the label and counters of a key or user. A new user gets new counters, or those of
    /// [`OTHER_USERS`] if there are [`MAX_USERS`] users already.
    pub(super) fn counters(&self, name: &str) -> (String, Arc<KeyCounters>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = table.by_label.get(name).is_some_and(|usage| usage.registered);
        let mut label = if registered { Cow::Borrowed(name) } else { user_label(name) };
        if !table.by_label.contains_key(&*label) {
            if table.users < MAX_USERS {
                table.users += 1;
            } else {
                label = Cow::Borrowed(OTHER_USERS);
            }
        }
        let usage = table.by_label.entry(label.to_string()).or_insert_with(|| self.new_usage(&label, false));
        (label.into_owned(), Arc::clone(&usage.counters))
    }

    /// Writes the counters of all keys and users.
    pub(super) fn write(&self, format: Format, out: &mut String) {
        // The lock is released before writing, so that new requests do not wait.
        let usages: Vec<Arc<KeyUsage>> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.by_label.values().cloned().collect()
        };
        for (index, (name, kinds)) in FAMILIES.iter().enumerate() {
            let help = find(name).expect("the table has every name").help;
            write_title(name, "counter", help, format, out);
            for usage in &usages {
                for ((_, value), begin) in kinds.iter().zip(&usage.samples[index]) {
                    sample(out, begin, value(&usage.counters));
                }
            }
        }
    }

    /// An entry with all counters at 0.
    fn new_usage(&self, label: &str, registered: bool) -> Arc<KeyUsage> {
        let begin = |name: &str, kind: Option<&str>| {
            let common = self.common.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let own = [("key", label)].into_iter().chain(kind.map(|kind| ("kind", kind)));
            labelled(name, own.chain(common))
        };
        let samples =
            FAMILIES.map(|(name, kinds)| kinds.iter().map(|(kind, _)| begin(name, *kind)).collect());
        Arc::new(KeyUsage { counters: Arc::new(zero_counters()), registered, samples })
    }
}

/// New counters, all at 0. Their names do not matter, because they are not in the registry.
fn zero_counters() -> KeyCounters {
    let integer = || IntCounter::new("key", "Usage of one key").expect("the name is valid");
    let float = || Counter::new("key", "Usage of one key").expect("the name is valid");
    KeyCounters {
        requests: integer(),
        queue: float(),
        prefill: float(),
        decode: float(),
        kv_block_seconds: float(),
        prompt_tokens: integer(),
        generated_tokens: integer(),
        cached_tokens: integer(),
        computed_tokens: integer(),
        recomputed_tokens: integer(),
    }
}

/// The label of a user. A name that is too long or has control characters is changed; then the label ends
/// with a digest of the full name, so that two names that are changed in the same way keep different labels.
fn user_label(name: &str) -> Cow<'_, str> {
    let replaced = |c: char| c.is_control() || c == DIGEST_MARK;
    if !name.chars().any(replaced) && name.chars().count() <= MAX_LABEL_CHARS {
        return Cow::Borrowed(name);
    }
    let kept = name.chars().take(MAX_LABEL_CHARS - DIGEST_DIGITS - 1);
    let kept = kept.map(|c| if replaced(c) { '?' } else { c });
    let digest = Sha256::digest(name.as_bytes());
    let digits: String = digest.iter().take(DIGEST_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    Cow::Owned(kept.chain([DIGEST_MARK]).chain(digits.chars()).collect())
}
