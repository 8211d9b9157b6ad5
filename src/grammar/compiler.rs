//! Compilation of constraints, with a cache.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};

use super::{Grammar, GrammarError, GrammarSource, SchemaRule, is_dead_end, keywords, limits, short};

/// Compiled grammars that are kept.
const CACHED: usize = 128;

/// Bytes of the stack on which a grammar is compiled. The deepest grammar within the limits needs an eighth
/// of it.
const STACK: usize = 64 << 20;

/// The most whitespace between two parts of a JSON text. Without a limit a model may generate whitespace
/// until `max_tokens`.
const JSON_WHITESPACE: &str = r"[ \t\r\n]{1,20}";

/// The tokens that a grammar is matched with.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// The bytes of each token; empty for an id without a token.
    pub tokens: Vec<Vec<u8>>,
    /// Whether a token is special, so that its bytes are no text.
    pub special: Vec<bool>,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
}

/// Compiles constraints for one vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    vocab: usize,
    /// Used last first.
    cache: Mutex<VecDeque<Arc<Grammar>>>,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// Builds the trie of a vocabulary: about 1 s for 256,000 tokens.
    ///
    /// # Errors
    /// The vocabulary is empty or has no id that ends an answer.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, GrammarError> {
        let Vocabulary { tokens, special, eos } = vocabulary;
        let vocab = tokens.len();
        let Some(&tok_eos) = eos.first() else {
            return Err(GrammarError::Internal("the model has no token that ends an answer".to_owned()));
        };
        let word = |(bytes, special): (Vec<u8>, bool)| match special {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat(),
            false => bytes,
        };
        let words: Vec<Vec<u8>> = tokens.into_iter().zip(special).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, tok_eos), &words).with_eos_tokens(&eos);
        // The environment is not canonical: the model chooses every token, none is forced without it.
        let environment: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| GrammarError::Internal(error.to_string()))?;
        factory.quiet();
        // Verbose errors contain the tokens of the answer.
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, vocab, cache: Mutex::default() })
    }

    /// Compiles a constraint, or takes it from the cache. Takes milliseconds, and longer for large ones: not
    /// for a thread that serves others.
    ///
    /// # Errors
    /// See [`GrammarError`].
    pub fn compile(&self, source: &GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        if let Some(found) = self.cached(source) {
            return Ok(found);
        }
        let grammar = grammar(source)?;
        // Compiling recurses as deep as rules and definitions refer to one another.
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || {
                self.initial_matcher(grammar).map_err(|error| self.of_a_schema(source).unwrap_or(error))
            });
            let thread = thread.map_err(|error| GrammarError::Internal(error.to_string()))?;
            thread.join().map_err(|_panic| GrammarError::Internal("the compiler panicked".to_owned()))?
        });
        let initial = compiled.map_err(|error| explained(error, source))?;
        let initial = Some(Arc::new(Mutex::new(initial)));
        let (source, vocab) = (Some(source.clone()), self.vocab);
        let grammar = Arc::new(Grammar { source, initial, rules: None, vocab });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.push_front(Arc::clone(&grammar));
        cache.truncate(CACHED);
        Ok(grammar)
    }

    /// A matcher at the start of an answer.
    fn initial_matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, GrammarError> {
        let parser =
            self.factory.create_parser(grammar).map_err(|error| GrammarError::Invalid(short(&error)))?;
        let mut matcher = Matcher::new(Ok(parser));
        // Finds what the parser does not: a grammar without any answer.
        matcher.compute_mask_or_eos().map_err(|error| match is_dead_end(&error) {
            true => GrammarError::invalid("no text of this model's tokens satisfies it"),
            false => GrammarError::Invalid(short(&error)),
        })?;
        Ok(matcher)
    }

    /// The error of the first schema within a grammar that cannot be compiled by itself.
    fn of_a_schema(&self, source: &GrammarSource) -> Option<GrammarError> {
        let GrammarSource::WithSchemas { schemas, .. } = source else { return None };
        schemas.iter().find_map(|rule| {
            let schema = schema_of(rule).map(GrammarWithLexer::from_json_schema);
            let compiled =
                schema.and_then(|schema| self.initial_matcher(TopLevelGrammar::from_grammar(schema)));
            compiled.err().map(|error| {
                let source = GrammarSource::JsonSchema(rule.schema.clone());
                explained(error, &source).at(&rule.path)
            })
        })
    }

    fn cached(&self, source: &GrammarSource) -> Option<Arc<Grammar>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|grammar| grammar.source() == Some(source))?;
        let found = cache.remove(at)?;
        cache.push_front(Arc::clone(&found));
        Some(found)
    }
}

fn grammar(source: &GrammarSource) -> Result<TopLevelGrammar, GrammarError> {
    limits::check(source)?;
    let grammar = match source {
        GrammarSource::JsonSchema(text) => GrammarWithLexer::from_json_schema(json_schema(text, false)?),
        GrammarSource::Regex(text) => GrammarWithLexer::from_regex(text),
        GrammarSource::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
            GrammarWithLexer::from_regex(&texts.join("|"))
        }
        GrammarSource::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
        GrammarSource::WithSchemas { lark, schemas } => {
            let mut lark = lark.clone();
            for rule in schemas {
                let schema = schema_of(rule).map_err(|error| error.at(&rule.path))?;
                _ = write!(lark, "\n{}: %json {schema}", rule.rule);
            }
            GrammarWithLexer::from_lark(lark)
        }
    };
    Ok(TopLevelGrammar::from_grammar(grammar))
}

/// The schema of a rule, as the compiler takes it.
fn schema_of(rule: &SchemaRule) -> Result<Value, GrammarError> {
    let mut schema = json_schema(&rule.schema, rule.lenient)?;
    if rule.lenient {
        schema["x-guidance"]["lenient"] = true.into();
    }
    Ok(schema)
}

/// The error of a constraint, with the keyword and its path in a schema.
fn explained(error: GrammarError, source: &GrammarSource) -> GrammarError {
    match (error, source) {
        (GrammarError::Invalid(text), GrammarSource::JsonSchema(schema)) => {
            let schema = serde_json::from_str(schema).unwrap_or_default();
            GrammarError::Invalid(keywords::explain(text, &schema))
        }
        (error, _) => error,
    }
}

/// The schema, with a limit on whitespace unless it sets one itself. With `lenient`, keywords that cannot be
/// enforced are ignored.
fn json_schema(text: &str, lenient: bool) -> Result<Value, GrammarError> {
    let mut schema: Value =
        serde_json::from_str(text).map_err(|error| GrammarError::Invalid(error.to_string()))?;
    limits::check_schema(&schema)?;
    let prepared = keywords::prepare(&mut schema);
    if !lenient {
        prepared?;
    }
    let options = json!({ "whitespace_flexible": true, "whitespace_pattern": JSON_WHITESPACE });
    match schema {
        Value::Object(mut schema) => {
            schema.entry("x-guidance").or_insert(options);
            Ok(Value::Object(schema))
        }
        Value::Bool(true) => Ok(json!({ "x-guidance": options })),
        Value::Bool(false) => Err(GrammarError::invalid("no text satisfies the schema false")),
        other => Err(GrammarError::Invalid(format!("expected a JSON schema, got {other}"))),
    }
}
