//! Deduplication: exact matches after normalising, and near duplicates by MinHash with locality-sensitive
//! hashing (LSH).
//!
//! Two texts are duplicates if their normalised words are the same, or if the sets of their shingles (runs of
//! consecutive words) have at least the wanted Jaccard similarity. LSH only proposes candidates; the
//! similarity that decides and is recorded is computed from the sets. A text shorter than a shingle is
//! compared as a whole. The first of several duplicates is kept, so the result depends on the order of the
//! texts alone.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use txtfp::{
    Canonicalizer, CanonicalizerBuilder, CaseFold, Fingerprinter, LshIndex, MinHashFingerprinter,
    Normalization, ShingleTokenizer, Tokenizer,
};

use super::words::{count, ngrams, normalize};

/// Hash functions of a signature.
const HASHES: usize = 128;

/// Share of pairs at the wanted similarity that LSH has to propose, at least.
const RECALL: f64 = 0.99;

/// Settings of deduplication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DedupOptions {
    /// Words of a shingle. Prompts are short, and one changed word changes this many shingles.
    pub shingle_words: usize,
    /// Smallest Jaccard similarity of duplicates, above 0 and at most 1.
    pub similarity: f64,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self { shingle_words: 3, similarity: 0.7 }
    }
}

/// Settings that deduplication cannot work with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DedupError {
    /// A shingle has no words.
    #[error("shingle_words: expected at least 1; got 0")]
    ShingleWords,
    /// The similarity is outside its range.
    #[error("similarity: expected a number above 0 and at most 1; got {0}")]
    Similarity(f64),
}

/// A text that repeats an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Duplicate {
    /// Id of the earlier text.
    pub of: String,
    /// Jaccard similarity of the sets of shingles; 1 where the normalised texts are the same.
    pub similarity: f64,
}

/// The words of a normalised text, as txtfp asks for them.
#[derive(Debug, Clone, Copy)]
struct Words;

impl Tokenizer for Words {
    fn tokens<'a>(&'a self, input: &'a str) -> txtfp::tokenize::TokenStream<'a> {
        txtfp::tokenize::TokenStream::Borrowed(Box::new(input.split(' ').filter(|word| !word.is_empty())))
    }

    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed("normalized-words")
    }
}

type Sketch = MinHashFingerprinter<ShingleTokenizer<Words>, HASHES>;

/// The texts that were kept so far.
pub struct Deduplicator {
    options: DedupOptions,
    sketch: Sketch,
    /// Numbers of kept texts by their signatures.
    index: LshIndex<HASHES>,
    /// Numbers of kept texts by their normalised words.
    exact: HashMap<Arc<str>, usize>,
    kept: Vec<Kept>,
}

struct Kept {
    id: String,
    words: Arc<str>,
}

impl Deduplicator {
    /// No texts yet.
    ///
    /// # Errors
    /// A setting is out of its range.
    pub fn new(options: DedupOptions) -> Result<Self, DedupError> {
        let DedupOptions { shingle_words, similarity } = options;
        if shingle_words == 0 {
            return Err(DedupError::ShingleWords);
        }
        if !(similarity > 0.0 && similarity <= 1.0) {
            return Err(DedupError::Similarity(similarity));
        }
        let rows = rows(similarity);
        let index = LshIndex::with_bands_rows(HASHES / rows, rows);
        let index = index.map_err(|_| DedupError::Similarity(similarity))?;
        let sketch = Sketch::new(untouched(), ShingleTokenizer { k: shingle_words, inner: Words });
        Ok(Self { options, sketch, index, exact: HashMap::new(), kept: Vec::new() })
    }

    /// Keeps a text that repeats none of the kept ones. Otherwise, the most similar kept text is returned,
    /// the earliest of several.
    pub fn keep(&mut self, id: &str, text: &str) -> Option<Duplicate> {
        let words: Arc<str> = normalize(text).into();
        if let Some(number) = self.exact.get(&words) {
            return Some(Duplicate { of: self.kept[*number].id.clone(), similarity: 1.0 });
        }
        let number = self.kept.len();
        if count(&words) >= self.options.shingle_words
            && let Ok(signature) = self.sketch.fingerprint(&words)
        {
            let candidates = self.index.query(&signature);
            if let Some(duplicate) = self.most_similar(&words, &candidates) {
                return Some(duplicate);
            }
            self.index.insert(number as u64, signature);
        }
        self.exact.insert(words.clone(), number);
        self.kept.push(Kept { id: id.to_owned(), words });
        None
    }

    fn most_similar(&self, words: &str, candidates: &[u64]) -> Option<Duplicate> {
        let shingles: HashSet<&str> = ngrams(words, self.options.shingle_words).collect();
        let mut best: Option<Duplicate> = None;
        for kept in candidates.iter().filter_map(|number| self.kept.get(usize::try_from(*number).ok()?)) {
            let other: HashSet<&str> = ngrams(&kept.words, self.options.shingle_words).collect();
            let similarity = jaccard(&shingles, &other);
            let is_better = best.as_ref().is_none_or(|best| similarity > best.similarity);
            if similarity >= self.options.similarity && is_better {
                best = Some(Duplicate { of: kept.id.clone(), similarity });
            }
        }
        best
    }
}

/// Rows of a band of the index: as many as propose [`RECALL`] of the pairs at this similarity.
fn rows(similarity: f64) -> usize {
    let found = |rows: &usize| {
        let band = similarity.powf(*rows as f64);
        1.0 - (1.0 - band).powf((HASHES / rows) as f64) >= RECALL
    };
    [32, 16, 8, 4, 2].into_iter().find(found).unwrap_or(1)
}

fn jaccard(a: &HashSet<&str>, b: &HashSet<&str>) -> f64 {
    let common = a.intersection(b).count();
    let all = a.len() + b.len() - common;
    if all == 0 { 0.0 } else { common as f64 / all as f64 }
}

/// A canonicalizer that changes nothing: the words are normalised already.
fn untouched() -> Canonicalizer {
    CanonicalizerBuilder {
        normalization: Normalization::None,
        case_fold: CaseFold::None,
        strip_bidi: false,
        strip_format: false,
        apply_confusable: false,
    }
    .build()
}
