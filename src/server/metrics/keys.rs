//! Counters by key: what each user, or holder of a key, has cost. Labels are of bounded number and length, since whoever
//! sends requests decides what they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{CounterVec, IntCounterVec};

use crate::engine::Payer;

/// Keys that have counters of their own; all later ones share those of [`OTHERS`].
const MOST: usize = 256;
/// Characters of a label.
const MOST_CHARS: usize = 64;
/// Whoever came after too many.
const OTHERS: &str = "other";

/// The counters of all keys.
pub struct Keys {
    pub(super) requests: IntCounterVec,
    pub(super) queue: CounterVec,
    pub(super) prefill: CounterVec,
    pub(super) decode: CounterVec,
    pub(super) kv_block_seconds: CounterVec,
    pub(super) tokens: IntCounterVec,
    pub(super) known: Mutex<HashMap<String, Arc<Payer>>>,
}

impl Keys {
    /// The counters of a key, and the label that it has.
    pub fn payer(&self, key: &str) -> (String, Arc<Payer>) {
        let tame = |c: char| if c.is_control() { '?' } else { c };
        let mut label: String = key.chars().take(MOST_CHARS).map(tame).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&label) {
            OTHERS.clone_into(&mut label);
        }
        let payer = known.entry(label.clone()).or_insert_with(|| Arc::new(self.make(&label)));
        (label, Arc::clone(payer))
    }

    fn make(&self, key: &str) -> Payer {
        let tokens = |kind| self.tokens.with_label_values(&[key, kind]);
        Payer {
            requests: self.requests.with_label_values(&[key]),
            queue: self.queue.with_label_values(&[key]),
            prefill: self.prefill.with_label_values(&[key]),
            decode: self.decode.with_label_values(&[key]),
            kv_block_seconds: self.kv_block_seconds.with_label_values(&[key]),
            prompt_tokens: tokens("prompt"),
            generated_tokens: tokens("generated"),
            cached_tokens: tokens("cached"),
            computed_tokens: tokens("computed"),
            recomputed_tokens: tokens("recomputed"),
        }
    }
}
