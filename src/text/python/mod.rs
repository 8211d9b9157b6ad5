//! Python and Jinja2's environment for templates, as transformers sets it up: an immutable sandbox.
//!
//! minijinja executes statements. Everything that an expression does is here: operators, methods, filters,
//! tests, functions, `str`, `repr` and `json.dumps`. Rewritten templates (`text/jinja`) call them as filters.

mod access;
mod args;
mod collections;
mod compare;
mod filters;
mod format;
mod functions;
mod json;
mod limits;
mod methods;
mod names;
mod numbers;
mod objects;
mod repr;
mod strings;
mod tests;
mod text_filters;

pub(super) use limits::charge;
pub(super) use names::{UNSUPPORTED_FILTERS, is_filter, is_test};
pub(super) use objects::is_space;
pub(super) use repr::to_str;

use minijinja::Environment;

/// Adds filters and functions to an environment that has none.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    filters::add(environment);
    functions::add(environment);
}
