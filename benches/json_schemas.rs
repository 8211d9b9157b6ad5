//! Samples answers to JSON schemas, without a model: at each step the grammar's mask gives the allowed
//! tokens, and a seeded generator takes one. `scripts/json_schema_suite.py` and
//! `scripts/realistic_schemas.py` run it and validate the answers.
//!
//!     cargo bench --bench json_schemas -- MODEL-DIR SCHEMAS OUTPUT
//!
//! SCHEMAS is a file of JSON lines, each with a `schema`, and with `sample` set to false if it need only be
//! compiled. OUTPUT has as many lines, each with the `error` of the compiler, or with `samples`: arrays of
//! the answer's text and of how it ended (`complete`, `cut`, or the fault). Answers are generated until
//! there are 20 complete ones, at most 100.

use std::fmt::Write as _;
use std::path::Path;

use octant::grammar::{
    GrammarCompiler, GrammarError, GrammarMatcher, GrammarProgress, GrammarSource, Vocabulary,
};
use octant::random::Random;
use octant::text::Tokenizer;
use serde_json::{Value, json};

/// Complete answers to each schema.
const SAMPLES: usize = 20;
/// The most answers to each schema.
const ATTEMPTS: usize = 100;
/// Tokens of an answer before the generator prefers tokens that close what is open: of the first 20 answers,
/// of the 20 after them, and of all others.
const FREE: [usize; 3] = [40, 10, 0];
/// The most tokens of an answer.
const MOST: usize = 300;

/// The vocabulary, its compiler, and what the generator prefers.
struct Setup {
    compiler: GrammarCompiler,
    tokens: Vec<Vec<u8>>,
    eos: u32,
    /// Tokens of punctuation and digits, which change the structure of a JSON text.
    structural: Vec<u32>,
    /// Tokens that close what is open, the best first.
    closing: Vec<u32>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [model, schemas, output] = args.as_slice() else {
        panic!("expected three arguments: a model's directory, a file of schemas, a file to write");
    };
    let setup = Setup::new(Path::new(model));
    let schemas = std::fs::read_to_string(schemas).expect("the schemas can be read");
    let mut out = String::new();
    for (number, line) in schemas.lines().enumerate() {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        let attempts = if line["sample"] == false { 0 } else { ATTEMPTS };
        let answer = setup.answers(number as u64, &line["schema"], attempts);
        writeln!(out, "{answer}").expect("a string takes everything");
    }
    std::fs::write(output, out).expect("the output can be written");
}

impl Setup {
    fn new(model: &Path) -> Self {
        let tokenizer = Tokenizer::from_dir(model).expect("the tokenizer loads");
        let ids = 0..tokenizer.vocab_size() as u32;
        let tokens: Vec<Vec<u8>> = ids.clone().map(|id| tokenizer.token_bytes(id)).collect();
        let eos = tokenizer.eos().expect("the tokenizer has an end");
        let special: Vec<bool> = ids.clone().map(|id| tokenizer.is_special(id)).collect();
        let is_plain = |id: &u32| !special[*id as usize] && !tokens[*id as usize].is_empty();
        let of = |set: &[u8], most: usize| -> Vec<u32> {
            let fits = |id: &u32| {
                let bytes = &tokens[*id as usize];
                bytes.len() <= most && bytes.iter().all(|byte| set.contains(byte))
            };
            ids.clone().filter(is_plain).filter(fits).collect()
        };
        let structural = of(b"{}[]\",:0123456789.-e", 2);
        let closing = [&b"\""[..], b"@", b"}", b"]", b":", b",", b"Z", b"D", b"0", b"1", b"-", b"T"]
            .iter()
            .flat_map(|set| of(set, 1))
            .collect();
        let vocabulary = Vocabulary { tokens: tokens.clone(), special: special.clone(), eos: vec![eos] };
        let compiler = GrammarCompiler::new(vocabulary).expect("the vocabulary is valid");
        Self { compiler, tokens, eos, structural, closing }
    }

    fn answers(&self, number: u64, schema: &Value, attempts: usize) -> Value {
        let grammar = match self.compiler.compile(&GrammarSource::JsonSchema(schema.to_string())) {
            Ok(grammar) => grammar,
            Err(GrammarError::Internal(error)) => panic!("{error}"),
            Err(error @ GrammarError::Invalid(_)) => return json!({ "error": error.to_string() }),
        };
        let (mut samples, mut complete) = (Vec::new(), 0);
        while samples.len() < attempts && complete < SAMPLES {
            let matcher = GrammarMatcher::new(grammar.clone(), vec![self.eos], Vec::new());
            let mut random = Random::new(number * ATTEMPTS as u64 + samples.len() as u64);
            let free = FREE[(samples.len() / SAMPLES).min(FREE.len() - 1)];
            let (text, end) = self.answer(&matcher, &mut random, free);
            complete += usize::from(end == "complete");
            samples.push(json!([String::from_utf8_lossy(&text), end]));
        }
        json!({ "samples": samples })
    }

    /// One answer and how it ended.
    fn answer(&self, matcher: &GrammarMatcher, random: &mut Random, free: usize) -> (Vec<u8>, String) {
        let mut text = Vec::new();
        for index in 0..MOST {
            let token = matcher.mask(index).and_then(|mask| self.choose(&mask, index >= free, random));
            // Without a mask, the matcher says why.
            let token = token.unwrap_or(self.eos);
            let progress = matcher.advance(index, token);
            if token != self.eos {
                text.extend_from_slice(&self.tokens[token as usize]);
            }
            match progress {
                GrammarProgress::Open => {}
                GrammarProgress::Complete => return (text, "complete".to_owned()),
                fault => return (text, format!("{fault:?}")),
            }
        }
        (text, "cut".to_owned())
    }

    /// An allowed token; with `closes` one that closes what is open, if there is one.
    fn choose(&self, mask: &[u32], closes: bool, random: &mut Random) -> Option<u32> {
        let is_allowed = |id: &u32| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
        if closes {
            let end = Some(self.eos).filter(is_allowed);
            let closing = || self.closing.iter().copied().find(is_allowed);
            return end.or_else(closing).or_else(|| any(mask, random.bits()));
        }
        let structural: Vec<u32> = self.structural.iter().copied().filter(is_allowed).collect();
        let bits = random.bits();
        match bits.is_multiple_of(2) && !structural.is_empty() {
            true => structural.get((bits >> 1) as usize % structural.len()).copied(),
            false => any(mask, bits >> 1),
        }
    }
}

/// One of the allowed tokens.
fn any(mask: &[u32], bits: u64) -> Option<u32> {
    let allowed: u64 = mask.iter().map(|word| u64::from(word.count_ones())).sum();
    let mut rest = bits.checked_rem(allowed)? as u32;
    for (at, word) in mask.iter().enumerate() {
        if rest < word.count_ones() {
            let mut set = (0..32).filter(|bit| word >> bit & 1 == 1);
            return set.nth(rest as usize).map(|bit| at as u32 * 32 + bit);
        }
        rest -= word.count_ones();
    }
    None
}
