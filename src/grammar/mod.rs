//! Grammars that constrain answers (structured output), by the crate `llguidance`.
//!
//! [`GrammarCompiler`] compiles a [`GrammarSource`], which is text, into a [`Grammar`]. Each sequence has its
//! own [`GrammarMatcher`]: it follows the tokens of the answer and says which tokens may come next. All ranks
//! of a step share one matcher, and the first rank that needs a mask computes it.
//!
//! Work is bounded by counts and sizes, never by time, so that the same request gets the same answer on a
//! busy machine.

mod budget;
mod compiler;
mod fault;
mod gbnf;
mod json_options;
mod keywords;
mod limits;
mod matcher;
mod relax;
mod schema;
mod token_rules;

pub use compiler::{GrammarCompiler, Vocabulary};
pub use gbnf::gbnf_to_lark;
pub use json_options::JsonOptions;
pub(crate) use keywords::OPTIONS;
pub use matcher::{Accepted, GrammarMatcher, GrammarProgress, TokenMask, next_allowed};
pub use token_rules::TokenRules;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::api::StopReason;

use fault::Fault;

/// A constraint on an answer, as a client states it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrammarSource {
    /// A JSON schema, as JSON text.
    JsonSchema(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// The answer is one of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in the Lark syntax of `llguidance`.
    Lark(String),
    /// A grammar in the same syntax with rules that are JSON schemas.
    WithSchemas {
        /// The other rules.
        lark: String,
        /// The rules that are schemas.
        schemas: Vec<SchemaRule>,
    },
}

/// A rule of a grammar that is a JSON schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SchemaRule {
    /// Name of the rule.
    pub rule: String,
    /// The schema, as JSON text.
    pub schema: String,
    /// Where the schema comes from in the request. The first place is that of the whole schema; the others
    /// are those of its parts.
    pub places: Vec<SchemaPlace>,
}

/// The place in the request of a schema or of its part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SchemaPlace {
    /// JSON pointer of the part; empty for the whole schema.
    pub pointer: String,
    /// Its path in the request, for errors.
    pub path: String,
    /// Whether keywords that cannot be enforced are ignored. If not, they are errors.
    pub lenient: bool,
}

impl SchemaPlace {
    /// A JSON pointer of the schema as a pointer within this place. `None` if it points elsewhere.
    fn within<'a>(&self, pointer: &'a str) -> Option<&'a str> {
        let rest = pointer.strip_prefix(self.pointer.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }
}

impl SchemaRule {
    /// A rule whose whole schema comes from one field of the request.
    pub(crate) fn new(rule: String, schema: String, path: String, lenient: bool) -> Self {
        Self { rule, schema, places: vec![SchemaPlace { pointer: String::new(), path, lenient }] }
    }

    /// The lenient place with this JSON pointer, and the pointer within it. `None` if keywords there must be
    /// enforced.
    fn lenient_place<'a>(&self, pointer: &'a str) -> Option<(&SchemaPlace, &'a str)> {
        let mut parts = self.parts().iter().filter(|place| place.lenient);
        parts.find_map(|place| Some((place, place.within(pointer)?)))
    }

    /// The places of the schema's parts, or that of the whole schema if it comes from one field.
    fn parts(&self) -> &[SchemaPlace] {
        match self.places.as_slice() {
            [_, parts @ ..] if !parts.is_empty() => parts,
            whole => whole,
        }
    }

    /// The path in the request of the whole schema.
    fn path(&self) -> &str {
        self.places.first().map_or("", |place| &place.path)
    }

    /// The error of a fault of the schema, with the fault's place in the request.
    fn error(&self, mut fault: Fault) -> GrammarError {
        let pointer = std::mem::take(&mut fault.pointer);
        match self.parts().iter().find_map(|place| place.within(&pointer).map(|inner| (place, inner))) {
            Some((place, inner)) => {
                fault.pointer = inner.to_owned();
                GrammarError::from(fault).at(&place.path)
            }
            // The request has no pointer to a schema around several of its fields.
            None => GrammarError::from(fault).at(self.path()),
        }
    }
}

impl GrammarSource {
    /// The constraint to any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(r#"{"type":"object"}"#.to_owned())
    }
}

/// Why a constraint was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The constraint is invalid, is not supported, or is too large. The client has to act.
    #[error("{0}")]
    Invalid(String),
    /// The machine cannot start a thread, or the compiler failed. The operator has to act.
    #[error("cannot compile the constraint: {0}")]
    Internal(String),
}

impl GrammarError {
    fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// The error with the path of the schema that it is about.
    fn at(self, path: &str) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(format!("{path}: {text}")),
            internal @ Self::Internal(_) => internal,
        }
    }
}

/// A compiled constraint: a grammar, rules on tokens, or both.
pub struct Grammar {
    /// `None` if only rules constrain the answer.
    source: Option<GrammarSource>,
    /// A matcher of the grammar at the start of an answer. It never advances.
    initial: Option<Arc<Mutex<Matcher>>>,
    rules: Option<TokenRules>,
    /// Ids that the tokenizer knows.
    vocab: usize,
    /// Paths of keywords that are not enforced.
    ignored: Vec<String>,
}

impl Grammar {
    /// Adds rules over the same `vocab` ids to a grammar, if there is one.
    pub fn with_rules(grammar: Option<&Self>, rules: TokenRules, vocab: usize) -> Self {
        let source = grammar.and_then(|grammar| grammar.source.clone());
        let initial = grammar.and_then(|grammar| grammar.initial.clone());
        let ignored = grammar.map(|grammar| grammar.ignored.clone()).unwrap_or_default();
        Self { source, initial, rules: Some(rules), vocab, ignored }
    }

    /// Paths of the keywords that cannot be enforced, in schemas that are lenient.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The text that was compiled.
    pub fn source(&self) -> Option<&GrammarSource> {
        self.source.as_ref()
    }

    /// Token ids that the grammar's masks have a bit for.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// A matcher at the start of an answer, which shares no state with others: the work that a mask may take
    /// is bounded, and must not depend on what other requests have computed.
    fn start(&self) -> Option<Matcher> {
        let initial = self.initial.as_ref()?;
        Some(initial.lock().unwrap_or_else(PoisonError::into_inner).deep_clone())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.source).field(&self.rules).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        (&self.source, &self.rules) == (&other.source, &other.rules)
    }
}

/// The longest error text of `llguidance`, in characters.
const ERROR_CHARS: usize = 300;

/// An error of `llguidance` on one line, cut to a readable length.
fn short(error: &anyhow::Error) -> String {
    short_text(&error.to_string())
}

/// The text of an error of `llguidance` on one line, cut to a readable length.
fn short_text(text: &str) -> String {
    if text.starts_with("panic: ") {
        return "the compiler of grammars failed".to_owned();
    }
    let text = text.replace("<non-verbose/>", "");
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(ERROR_CHARS).collect()
}

/// Whether a mask could not be computed because no token is allowed. The error has no type of its own: its
/// text begins with the reason.
fn is_dead_end(error: &anyhow::Error) -> bool {
    error.to_string().starts_with(&StopReason::NoExtensionBias.to_string())
}
