//! Compilation of constraints, with a cache.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};

use super::fault::{Fault, SEARCH};
use super::relax::Relaxer;
use super::{Grammar, GrammarError, GrammarSource, SchemaRule, is_dead_end, limits, schema, short};

/// Compiled grammars that are kept.
const CACHED: usize = 128;

/// Bytes of the stack on which a grammar is compiled. The deepest grammar within the limits needs an eighth
/// of it.
const STACK: usize = 64 << 20;

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
        *factory.limits_mut() = limits::of_parser();
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
        limits::check(source)?;
        // Compiling recurses as deep as rules and definitions refer to one another.
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || self.matcher_of(source));
            let thread = thread.map_err(|error| GrammarError::Internal(error.to_string()))?;
            thread.join().map_err(|_panic| GrammarError::Internal("the compiler panicked".to_owned()))?
        });
        let (initial, ignored) = compiled?;
        let initial = Some(Arc::new(Mutex::new(initial)));
        let (source, vocab) = (Some(source.clone()), self.vocab);
        let grammar = Arc::new(Grammar { source, initial, rules: None, vocab, ignored });
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.push_front(Arc::clone(&grammar));
        cache.truncate(CACHED);
        Ok(grammar)
    }

    /// A matcher at the start of an answer, and the keywords that the grammar ignores, with their paths.
    fn matcher_of(&self, source: &GrammarSource) -> Result<(Matcher, Vec<String>), GrammarError> {
        let grammar = match source {
            GrammarSource::JsonSchema(text) => {
                let matcher = self.matcher_of_schema(&schema::parse(text)?, &GrammarError::from)?;
                return Ok((matcher, Vec::new()));
            }
            GrammarSource::WithSchemas { lark, schemas } => return self.matcher_of_rules(lark, schemas),
            GrammarSource::Regex(text) => GrammarWithLexer::from_regex(text),
            GrammarSource::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
                GrammarWithLexer::from_regex(&texts.join("|"))
            }
            GrammarSource::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
        };
        Ok((self.initial_matcher(grammar)?, Vec::new()))
    }

    /// A matcher of a schema. `error_of` makes the error of a fault.
    fn matcher_of_schema(
        &self,
        schema: &Value,
        error_of: &dyn Fn(Fault) -> GrammarError,
    ) -> Result<Matcher, GrammarError> {
        if let Some(fault) = schema::repeats_names(schema) {
            return Err(error_of(fault));
        }
        let compile = |schema: &Value| {
            let grammar = GrammarWithLexer::from_json_schema(schema::prepared(schema.clone()));
            self.initial_matcher(grammar)
        };
        compile(schema).map_err(|error| match (schema::fault(schema), error) {
            (Some(fault), GrammarError::Invalid(_)) => error_of(fault),
            // The fault is not in the schema alone.
            (None, GrammarError::Invalid(text)) => {
                let error = |schema: &Value| compile(schema).err().map(|error| error.to_string());
                error_of(Fault::find(schema, &text, &error, &mut SEARCH.clone()))
            }
            (_, internal) => internal,
        })
    }

    /// A matcher of a grammar with rules that are schemas. Keywords that cannot be enforced are left out of
    /// parts that are lenient.
    fn matcher_of_rules(
        &self,
        lark: &str,
        rules: &[SchemaRule],
    ) -> Result<(Matcher, Vec<String>), GrammarError> {
        let mut schemas: Vec<Value> = rules.iter().map(schema::parse_rule).collect::<Result<_, _>>()?;
        let matcher = |schemas: &[Value]| {
            let rule = |(rule, schema): (&SchemaRule, &Value)| {
                format!("\n{}: %json {}", rule.rule, schema::prepared(schema.clone()))
            };
            let rules: String = rules.iter().zip(schemas).map(rule).collect();
            self.initial_matcher(GrammarWithLexer::from_lark(format!("{lark}{rules}")))
        };
        let mut relaxer = Relaxer::new();
        for (rule, schema) in rules.iter().zip(&mut schemas) {
            relaxer.allow_few_properties(schema, rule)?;
        }
        let error = match matcher(&schemas) {
            Ok(matcher) => return Ok((matcher, relaxer.into_ignored())),
            Err(error) => error,
        };
        let mut has_changed = false;
        for (rule, schema) in rules.iter().zip(&mut schemas) {
            has_changed |= relaxer.relax(schema, rule)?;
            self.matcher_of_schema(schema, &|fault| rule.error(fault))?;
        }
        if !has_changed {
            return Err(error);
        }
        Ok((matcher(&schemas)?, relaxer.into_ignored()))
    }

    /// A matcher at the start of an answer.
    fn initial_matcher(&self, grammar: GrammarWithLexer) -> Result<Matcher, GrammarError> {
        let grammar = TopLevelGrammar::from_grammar(grammar);
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

    fn cached(&self, source: &GrammarSource) -> Option<Arc<Grammar>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cache.iter().position(|grammar| grammar.source() == Some(source))?;
        let found = cache.remove(at)?;
        cache.push_front(Arc::clone(&found));
        Some(found)
    }
}
