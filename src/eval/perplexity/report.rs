//! The table and the JSON form of the figures.

use serde_json::{Value, json};

use super::PerplexityReport;
use super::texts::Text;
use crate::eval::table::Table;

/// Figures of one text or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    tokens: usize,
    words: usize,
    bytes: usize,
    log_likelihood: f64,
}

impl Figures {
    /// e to the negative log-likelihood per unit.
    fn perplexity(self, units: usize) -> f64 {
        (-self.log_likelihood / units as f64).exp()
    }

    fn bits_per_byte(self) -> f64 {
        -self.log_likelihood / self.bytes as f64 / std::f64::consts::LN_2
    }

    fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "log_likelihood": self.log_likelihood,
            "word_perplexity": self.perplexity(self.words),
            "byte_perplexity": self.perplexity(self.bytes),
            "bits_per_byte": self.bits_per_byte(),
            "token_perplexity": (self.tokens > 0).then(|| self.perplexity(self.tokens)),
        })
    }
}

/// The report on all texts.
pub(super) fn report(texts: &[Text], tokens: &[usize], likelihoods: &[f64]) -> PerplexityReport {
    let mut all = Figures::default();
    let mut rows = Vec::with_capacity(texts.len());
    for ((text, tokens), log_likelihood) in texts.iter().zip(tokens).zip(likelihoods) {
        let figures = Figures {
            tokens: *tokens,
            words: text.words,
            bytes: text.bytes,
            log_likelihood: *log_likelihood,
        };
        all.tokens += figures.tokens;
        all.words += figures.words;
        all.bytes += figures.bytes;
        all.log_likelihood += figures.log_likelihood;
        let mut row = figures.json();
        row["line"] = json!(text.place.line);
        rows.push(row);
    }
    let mut table = Table::new(&["measure", "value"]);
    let mut add = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    add("texts", texts.len().to_string());
    add("tokens", all.tokens.to_string());
    add("words", all.words.to_string());
    add("bytes", all.bytes.to_string());
    add("log-likelihood", format!("{:.4}", all.log_likelihood));
    add("word perplexity", format!("{:.4}", all.perplexity(all.words)));
    add("byte perplexity", format!("{:.4}", all.perplexity(all.bytes)));
    add("bits per byte", format!("{:.4}", all.bits_per_byte()));
    let mut json = json!({ "benchmark": "perplexity", "texts": texts.len() });
    if let (Value::Object(json), Value::Object(figures)) = (&mut json, all.json()) {
        json.extend(figures);
    }
    json["rows"] = json!(rows);
    PerplexityReport { table: table.text(), json }
}
