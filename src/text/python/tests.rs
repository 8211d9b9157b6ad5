//! Jinja2's tests: what stands after `is`.

use minijinja::{Error, State, Value};

use super::access::is_callable;
use super::args::Args;
use super::compare::{compare, equal, same};
use super::limits::charge;
use super::names::{is_filter, is_test};
use super::numbers::binary;
use super::objects::{Kind, SequenceKind, length, size};
use super::repr::to_str;
use super::strings::{is_lower, is_upper};

/// The operator of a test that compares.
fn operator(name: &str) -> Option<&'static str> {
    Some(match name {
        "==" | "eq" | "equalto" => "==",
        "!=" | "ne" => "!=",
        "<" | "lt" | "lessthan" => "<",
        "<=" | "le" => "<=",
        ">" | "gt" | "greaterthan" => ">",
        ">=" | "ge" => ">=",
        "in" => "in",
        _ => return None,
    })
}

/// Runs a test. The first argument is the value.
pub(super) fn test(state: &State, name: &str, args: &Args) -> Result<bool, Error> {
    if let Some(operator) = operator(name) {
        let [value, other] = args.bind(2, ["value", if operator == "in" { "seq" } else { "" }])?;
        let (value, other) = (value.unwrap_or_default(), other.unwrap_or_default());
        charge(state, size(&value) + size(&other))?;
        return compare(&value, operator, &other);
    }
    if matches!(name, "divisibleby" | "sameas") {
        let [value, other] = args.bind(2, ["value", if name == "sameas" { "other" } else { "num" }])?;
        let (value, other) = (value.unwrap_or_default(), other.unwrap_or_default());
        if name == "sameas" {
            return Ok(same(&value, &other));
        }
        return equal(&binary(state, "_mod", &value, &other)?, &Value::from(0));
    }
    let [value] = args.bind(1, ["value"])?;
    let value = value.unwrap_or_default();
    let kind = Kind::of(&value);
    Ok(match name {
        "defined" => kind != Kind::Undefined,
        "undefined" => kind == Kind::Undefined,
        "none" => kind == Kind::None,
        "boolean" => kind == Kind::Bool,
        "true" => kind == Kind::Bool && value.is_true(),
        "false" => kind == Kind::Bool && !value.is_true(),
        "integer" => kind == Kind::Int,
        "float" => kind == Kind::Float,
        "number" => matches!(kind, Kind::Bool | Kind::Int | Kind::Float),
        "string" => kind == Kind::Str,
        "mapping" => kind == Kind::Dict,
        "sequence" => match kind {
            Kind::Sequence(SequenceKind::Keys | SequenceKind::Values | SequenceKind::Items) => false,
            _ => length(&value).is_some(),
        },
        "iterable" => match kind {
            Kind::None | Kind::Bool | Kind::Int | Kind::Float => false,
            Kind::Other => value.as_object().is_some_and(|object| object.type_name().ends_with("::Loop")),
            _ => true,
        },
        // Undefined values can be called, to fail.
        "callable" => kind == Kind::Undefined || is_callable(&value),
        "escaped" => value.is_safe(),
        "odd" | "even" => {
            let rest = binary(state, "_mod", &value, &Value::from(2))?;
            equal(&rest, &Value::from(i64::from(name == "odd")))?
        }
        "lower" => is_lower(&to_str(&value)?),
        "upper" => is_upper(&to_str(&value)?),
        "filter" => value.as_str().is_some_and(is_filter),
        "test" => value.as_str().is_some_and(is_test),
        _ => return super::objects::type_error(format!("No test named '{name}'.")),
    })
}
