//! Templates in Jinja2's language, rewritten for the template engine.
//!
//! minijinja executes the templates: loops, macros, scopes, limits. Its expressions follow Rust's rules in
//! places where Jinja2 follows Python's: operators on strings and lists, methods, attributes, printing.
//! [`rewrite`] therefore parses a template as Jinja2 does, and writes every operation of an expression as a
//! call of a function in `text/python`. The statements stay.

mod expressions;
mod lexer;
mod parser;
mod statements;

/// A template that is not Jinja2, or uses a part of it that is not supported.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Returns the template for minijinja. Lines keep their numbers.
pub(super) fn rewrite(source: &str) -> Result<String, SyntaxError> {
    statements::rewrite(lexer::tokens(source)?)
}
