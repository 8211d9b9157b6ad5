//! The reader of a template's tokens.

use super::SyntaxError;
use super::lexer::{Kind, Token};

/// Most nested parentheses, lists and operators in an expression. minijinja's own limit is 150 levels.
const MAX_DEPTH: usize = 60;

/// Reader of tokens.
pub(super) struct Parser {
    tokens: Vec<Token>,
    /// Position of the next token.
    pub(super) at: usize,
    depth: usize,
    /// Number of conditions around the next token. Within a condition, Jinja2 reports an unknown filter or
    /// test only when it is used.
    pub(super) conditions: usize,
    /// Whether a method call is written as a call of an attribute instead of the filter `_call`. A `call`
    /// block needs a call.
    pub(super) plain_calls: bool,
    /// Whether the last thing that was read is a call.
    pub(super) ends_with_call: bool,
    /// Unknown filters and tests outside of conditions.
    pub(super) unknown: Vec<SyntaxError>,
}

impl Parser {
    pub(super) fn new(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            at: 0,
            depth: 0,
            conditions: 0,
            plain_calls: false,
            ends_with_call: false,
            unknown: Vec::new(),
        }
    }

    /// Returns an error if unknown filters or tests were read.
    pub(super) fn check_names(&mut self) -> Result<(), SyntaxError> {
        if self.unknown.is_empty() { Ok(()) } else { Err(self.unknown.swap_remove(0)) }
    }

    pub(super) fn unknown_name(&mut self, message: String) {
        if self.conditions == 0 {
            self.unknown.push(SyntaxError { line: self.line(), message });
        }
    }

    pub(super) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn second(&self) -> Option<&Kind> {
        self.tokens.get(self.at + 1).map(|token| &token.kind)
    }

    pub(super) fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    pub(super) fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get(self.at).map(|token| token.kind.clone());
        self.at += 1;
        token
    }

    /// Steps back to the token that was read last.
    pub(super) fn back(&mut self) {
        self.at -= 1;
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line(), message: message.into() })
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> Result<T, SyntaxError> {
        let got = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Kind::Data(_)) => "text".to_owned(),
            Some(Kind::BlockBegin) => "{%".to_owned(),
            Some(Kind::BlockEnd) => "%}".to_owned(),
            Some(Kind::VariableBegin) => "{{".to_owned(),
            Some(Kind::VariableEnd) => "}}".to_owned(),
            Some(Kind::Name(text) | Kind::Integer(text)) => text.clone(),
            Some(Kind::Text(text)) => format!("{text:?}"),
            Some(Kind::Float(number)) => number.to_string(),
            Some(Kind::Operator(operator)) => (*operator).to_owned(),
        };
        self.error(format!("expected {expected}, got {got}"))
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Kind::Operator(found)) if *found == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> Result<(), SyntaxError> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    /// Reads the name of a variable.
    pub(super) fn identifier(&mut self) -> Result<String, SyntaxError> {
        let Some(Kind::Name(name)) = self.peek().cloned() else { return self.unexpected("a name") };
        if !name.is_ascii() {
            return self.error(format!("names with other characters than ASCII are not supported: {name}"));
        }
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return self.error("Invalid character in identifier");
        }
        self.at += 1;
        Ok(name)
    }

    pub(super) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<T, SyntaxError> {
        if self.depth == MAX_DEPTH {
            return self.error(format!("more than {MAX_DEPTH} levels of nested expressions"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }
}
