//! Counters by key: what each user, or holder of a key, has cost. The operator's keys have theirs from the start; labels
//! of users are of bounded number and length, since whoever sends requests decides what they are.
//!
//! There may be thousands of these samples, most of them as they were, so that they are no part of the registry: all of
//! a sample but its value is written once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{Counter, IntCounter};
use sha2::{Digest, Sha256};

use super::exposition::{Format, labelled, sample, write_title};
use super::names::find;
use crate::engine::KeyCounters;

/// Users that have counters of their own; all later ones share those of [`OTHERS`].
const MOST: usize = 256;
/// Characters of a user's label.
const MOST_CHARS: usize = 64;
/// Stands in a changed label before digits of the name's digest, and so in no other.
const CHANGED: char = '…';
/// Digits of the digest.
const DIGITS: usize = 8;
/// Whoever came after too many.
const OTHERS: &str = "other";

/// The metrics, each with the kinds that it is divided by.
const FAMILIES: [(&str, &[&str]); 6] = [
    ("octant_key_requests_total", &[]),
    ("octant_key_queue_seconds_total", &[]),
    ("octant_key_prefill_seconds_total", &[]),
    ("octant_key_decode_seconds_total", &[]),
    ("octant_key_kv_block_seconds_total", &[]),
    ("octant_key_tokens_total", &["prompt", "generated", "cached", "computed", "recomputed"]),
];

/// The counters of all keys.
pub struct Keys {
    /// Name and value of the labels that all metrics have.
    common: Vec<(String, String)>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    accounts: BTreeMap<String, Arc<Account>>,
    /// How many of them are users'.
    users: usize,
}

struct Account {
    payer: Arc<KeyCounters>,
    /// Whether it is an operator's key, rather than a user.
    registered: bool,
    /// Of each metric its samples, up to their values.
    samples: [Vec<String>; FAMILIES.len()],
}

impl Keys {
    /// Of nobody yet.
    pub fn new(common: Vec<(String, String)>) -> Self {
        Self { common, known: Mutex::default() }
    }

    /// A key of the operator's has counters before anybody asks, under its own name, whatever users there are.
    pub fn register(&self, label: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.accounts.entry(label.to_owned()).or_insert_with(|| self.open(label, true));
    }

    /// The counters of a key or user, and the label that it has.
    pub fn payer(&self, name: &str) -> (String, Arc<KeyCounters>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = known.accounts.get(name).is_some_and(|account| account.registered);
        let mut label = if registered { Cow::Borrowed(name) } else { tame(name) };
        if !known.accounts.contains_key(&*label) {
            if known.users < MOST {
                known.users += 1;
            } else {
                label = Cow::Borrowed(OTHERS);
            }
        }
        let account = known.accounts.entry(label.to_string()).or_insert_with(|| self.open(&label, false));
        (label.into_owned(), Arc::clone(&account.payer))
    }

    /// Writes all of them.
    pub fn write(&self, format: Format, out: &mut String) {
        // Requests do not wait for the writing.
        let accounts: Vec<Arc<Account>> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.accounts.values().cloned().collect()
        };
        for (index, (name, _)) in FAMILIES.iter().enumerate() {
            let help = find(name).expect("the table has every name").help;
            write_title(name, "counter", help, format, out);
            for account in &accounts {
                for (kind, begin) in account.samples[index].iter().enumerate() {
                    sample(out, begin, account.value(index, kind));
                }
            }
        }
    }

    fn open(&self, label: &str, registered: bool) -> Arc<Account> {
        let begin = |name: &str, kind: Option<&&str>| {
            let common = self.common.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let own = [("key", label)].into_iter().chain(kind.map(|kind| ("kind", *kind)));
            labelled(name, own.chain(common))
        };
        let samples = FAMILIES.map(|(name, kinds)| match kinds {
            [] => vec![begin(name, None)],
            kinds => kinds.iter().map(|kind| begin(name, Some(kind))).collect(),
        });
        Arc::new(Account { payer: Arc::new(nobody()), registered, samples })
    }
}

impl Account {
    /// Of the metric of this index in [`FAMILIES`], the sample of this index.
    fn value(&self, metric: usize, kind: usize) -> f64 {
        let payer = &self.payer;
        let tokens = [
            &payer.prompt_tokens,
            &payer.generated_tokens,
            &payer.cached_tokens,
            &payer.computed_tokens,
            &payer.recomputed_tokens,
        ];
        match metric {
            0 => payer.requests.get() as f64,
            1 => payer.queue.get(),
            2 => payer.prefill.get(),
            3 => payer.decode.get(),
            4 => payer.kv_block_seconds.get(),
            _ => tokens[kind].get() as f64,
        }
    }
}

/// Who has paid nothing.
fn nobody() -> KeyCounters {
    let whole = || IntCounter::new("key", "Of one key").expect("the name is valid");
    let part = || Counter::new("key", "Of one key").expect("the name is valid");
    KeyCounters {
        requests: whole(),
        queue: part(),
        prefill: part(),
        decode: part(),
        kv_block_seconds: part(),
        prompt_tokens: whole(),
        generated_tokens: whole(),
        cached_tokens: whole(),
        computed_tokens: whole(),
        recomputed_tokens: whole(),
    }
}

/// A name as a label. Where it must be changed, digits of its digest tell it from others that would be changed alike.
fn tame(name: &str) -> Cow<'_, str> {
    let wild = |c: char| c.is_control() || c == CHANGED;
    if !name.chars().any(wild) && name.chars().count() <= MOST_CHARS {
        return Cow::Borrowed(name);
    }
    let kept = name.chars().take(MOST_CHARS - DIGITS - 1).map(|c| if wild(c) { '?' } else { c });
    let digest = Sha256::digest(name.as_bytes());
    let digits: String = digest.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    Cow::Owned(kept.chain([CHANGED]).chain(digits.chars()).collect())
}
