//! Expressions of Jinja2, written as calls of the filters in `text/python`.
//!
//! Each function reads one level of Jinja2's grammar and returns code to which minijinja's `|` can be
//! attached without parentheses.

use super::SyntaxError;
use super::lexer::Kind;
use super::parser::Parser;
use crate::text::python::{UNSUPPORTED_FILTERS, is_filter, is_test};

/// Words that do not begin an operand when they follow the name of a test.
const AFTER_TEST: [&str; 3] = ["else", "or", "and"];

impl Parser {
    /// Reads an expression, or a tuple without parentheses.
    pub(super) fn tuple(&mut self, conditional: bool) -> Result<String, SyntaxError> {
        let read = |parser: &mut Self| if conditional { parser.expression() } else { parser.or() };
        let first = read(self)?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_operator(",") {
            let ends = matches!(self.peek(), Some(Kind::BlockEnd | Kind::VariableEnd) | None)
                || self.is_operator(")");
            if ends {
                break;
            }
            items.push(read(self)?);
        }
        self.ends_with_call = false;
        Ok(format!("[{}]|_tuple", items.join(", ")))
    }

    /// Reads an expression.
    pub(super) fn expression(&mut self) -> Result<String, SyntaxError> {
        self.nested(|parser| {
            let unknown = parser.unknown.len();
            let mut value = parser.or()?;
            while parser.is_name("if") {
                parser.unknown.truncate(unknown);
                parser.conditions += 1;
                parser.at += 1;
                let test = parser.or()?;
                let other = if parser.skip_name("else") {
                    format!(" else {}", parser.expression()?)
                } else {
                    String::new()
                };
                parser.conditions -= 1;
                parser.ends_with_call = false;
                value = format!("({value} if {test}{other})");
            }
            Ok(value)
        })
    }

    fn or(&mut self) -> Result<String, SyntaxError> {
        self.joined("or", |parser| parser.joined("and", Self::not))
    }

    fn joined(
        &mut self,
        word: &str,
        read: impl Fn(&mut Self) -> Result<String, SyntaxError>,
    ) -> Result<String, SyntaxError> {
        let first = read(self)?;
        if !self.is_name(word) {
            return Ok(first);
        }
        let mut items = vec![operand(first)];
        while self.skip_name(word) {
            items.push(operand(read(self)?));
        }
        self.ends_with_call = false;
        Ok(format!("({})", items.join(&format!(" {word} "))))
    }

    fn not(&mut self) -> Result<String, SyntaxError> {
        if !self.skip_name("not") {
            return self.compare();
        }
        let value = self.nested(Self::not)?;
        self.ends_with_call = false;
        Ok(format!("(not {value})"))
    }

    fn compare(&mut self) -> Result<String, SyntaxError> {
        let mut code = self.sum()?;
        let mut count = 0;
        let mut list = String::new();
        loop {
            let operator = match (self.peek(), self.second()) {
                (Some(Kind::Operator(operator @ ("==" | "!=" | "<" | "<=" | ">" | ">="))), _) => *operator,
                (Some(Kind::Name(word)), _) if word == "in" => "in",
                (Some(Kind::Name(not)), Some(Kind::Name(word))) if not == "not" && word == "in" => "not in",
                _ => break,
            };
            self.at += 1 + usize::from(operator == "not in");
            let right = self.sum()?;
            list.push_str(&format!(", \"{operator}\", {right}"));
            count += 1;
        }
        if count > 0 {
            self.ends_with_call = false;
            code = format!("{code}|_compare({})", &list[2..]);
        }
        Ok(code)
    }

    fn sum(&mut self) -> Result<String, SyntaxError> {
        self.binary(&[("+", "_add"), ("-", "_sub")], Self::concat)
    }

    fn concat(&mut self) -> Result<String, SyntaxError> {
        let first = self.product()?;
        let mut rest = Vec::new();
        while self.skip_operator("~") {
            rest.push(self.product()?);
        }
        if rest.is_empty() {
            return Ok(first);
        }
        self.ends_with_call = false;
        Ok(format!("{first}|_concat({})", rest.join(", ")))
    }

    fn product(&mut self) -> Result<String, SyntaxError> {
        let operators = [("*", "_mul"), ("/", "_div"), ("//", "_floordiv"), ("%", "_mod")];
        self.binary(&operators, |parser| parser.binary(&[("**", "_pow")], |parser| parser.unary(true)))
    }

    fn binary(
        &mut self,
        operators: &[(&str, &str)],
        read: impl Fn(&mut Self) -> Result<String, SyntaxError>,
    ) -> Result<String, SyntaxError> {
        let mut code = read(self)?;
        while let Some((_, filter)) = operators.iter().find(|(operator, _)| self.is_operator(operator)) {
            self.at += 1;
            let right = read(self)?;
            self.ends_with_call = false;
            code = format!("{code}|{filter}({right})");
        }
        Ok(code)
    }

    fn unary(&mut self, with_filter: bool) -> Result<String, SyntaxError> {
        let sign = match self.peek() {
            Some(Kind::Operator("-")) => "_neg",
            Some(Kind::Operator("+")) => "_pos",
            _ => "",
        };
        let mut code = if sign.is_empty() {
            self.primary()?
        } else {
            self.at += 1;
            let value = self.nested(|parser| parser.unary(false))?;
            self.ends_with_call = false;
            format!("{value}|{sign}")
        };
        code = self.postfix(code)?;
        if !with_filter {
            return Ok(code);
        }
        loop {
            code = if self.skip_operator("|") {
                self.filter(&code)?
            } else if self.skip_name("is") {
                self.test(&code)?
            } else if self.is_operator("(") {
                self.call(&code)?
            } else {
                break;
            };
        }
        Ok(code)
    }

    fn primary(&mut self) -> Result<String, SyntaxError> {
        self.ends_with_call = false;
        match self.peek().cloned() {
            Some(Kind::Name(name)) => match name.as_str() {
                "true" | "True" | "false" | "False" | "none" | "None" => {
                    self.at += 1;
                    Ok(name.to_lowercase())
                }
                "self" if !matches!(self.second(), Some(Kind::Operator("."))) => {
                    self.error("self without a block is not supported")
                }
                _ => self.identifier(),
            },
            Some(Kind::Text(mut text)) => {
                self.at += 1;
                while let Some(Kind::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(literal(&text))
            }
            Some(Kind::Integer(digits)) => {
                self.at += 1;
                match digits.parse::<i128>() {
                    Ok(_) => Ok(digits),
                    Err(_) => self.error("integers of more than 127 bits are not supported"),
                }
            }
            Some(Kind::Float(number)) => {
                self.at += 1;
                Ok(if number.is_finite() { format!("{number:?}") } else { "\"inf\"|float".to_owned() })
            }
            Some(Kind::Operator("(")) => {
                self.at += 1;
                if self.skip_operator(")") {
                    return Ok("[]|_tuple".to_owned());
                }
                let code = self.nested(|parser| parser.tuple(true))?;
                self.expect_operator(")")?;
                self.ends_with_call = false;
                Ok(code)
            }
            Some(Kind::Operator("[")) => {
                self.at += 1;
                let items = self.items("]", Self::expression)?;
                Ok(format!("[{items}]"))
            }
            Some(Kind::Operator("{")) => {
                self.at += 1;
                let items = self.items("}", |parser| {
                    let key = parser.expression()?;
                    parser.expect_operator(":")?;
                    Ok(format!("{key}, {}", parser.expression()?))
                })?;
                Ok(if items.is_empty() { "{}".to_owned() } else { format!("[{items}]|_dict") })
            }
            _ => self.unexpected("an expression"),
        }
    }

    fn items(
        &mut self,
        end: &str,
        read: impl Fn(&mut Self) -> Result<String, SyntaxError>,
    ) -> Result<String, SyntaxError> {
        let mut items = Vec::new();
        while !self.is_operator(end) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator(end) {
                    break;
                }
            }
            items.push(read(self)?);
        }
        self.expect_operator(end)?;
        self.ends_with_call = false;
        Ok(items.join(", "))
    }

    fn postfix(&mut self, mut code: String) -> Result<String, SyntaxError> {
        loop {
            code = if self.skip_operator(".") {
                self.attribute(&code)?
            } else if self.skip_operator("[") {
                self.subscript(&code)?
            } else if self.is_operator("(") {
                self.call(&code)?
            } else {
                return Ok(code);
            };
        }
    }

    fn attribute(&mut self, object: &str) -> Result<String, SyntaxError> {
        self.ends_with_call = false;
        match self.next() {
            Some(Kind::Name(name)) if object == "self" && self.is_operator("(") => {
                self.call(&format!("self.{name}"))
            }
            Some(Kind::Name(name)) if self.is_operator("(") && !self.plain_calls => {
                let arguments = self.arguments()?;
                self.ends_with_call = true;
                Ok(format!("{object}|_call({}{arguments})", literal(&name) + separator(&arguments)))
            }
            Some(Kind::Name(name)) => Ok(format!("{object}|_attr({})", literal(&name))),
            Some(Kind::Integer(digits)) => Ok(format!("{object}|_item({digits})")),
            _ => {
                self.at -= 1;
                self.unexpected("a name or a number")
            }
        }
    }

    fn subscript(&mut self, object: &str) -> Result<String, SyntaxError> {
        let parts = self.nested(|parser| {
            let mut parts = vec![parser.bound()?];
            while parts.len() < 3 && parser.skip_operator(":") {
                parts.push(parser.bound()?);
            }
            Ok(parts)
        })?;
        // Several parts are a tuple.
        let mut keys = parts.clone();
        while keys.len() == parts.len() && self.skip_operator(",") {
            let Some(key) = self.bound()? else { return self.unexpected("an expression") };
            keys.push(Some(key));
        }
        self.expect_operator("]")?;
        self.ends_with_call = false;
        if keys.len() > parts.len() || parts == [None] {
            let keys: Option<Vec<String>> = keys.into_iter().filter(|_| parts != [None]).collect();
            return match keys.filter(|_| parts.len() == 1) {
                Some(keys) => Ok(format!("{object}|_item([{}]|_tuple)", keys.join(", "))),
                None => self.error("a slice among several indices is not supported"),
            };
        }
        let part = |i: usize| parts.get(i).cloned().flatten().unwrap_or_else(|| "none".to_owned());
        match &parts[..] {
            [Some(index)] => Ok(format!("{object}|_item({index})")),
            _ => Ok(format!("{object}|_slice({}, {}, {})", part(0), part(1), part(2))),
        }
    }

    /// Reads an index or one bound of a slice, which can be missing.
    fn bound(&mut self) -> Result<Option<String>, SyntaxError> {
        let missing = self.is_operator(":") || self.is_operator("]");
        if missing { Ok(None) } else { self.expression().map(Some) }
    }

    fn call(&mut self, function: &str) -> Result<String, SyntaxError> {
        let arguments = self.arguments()?;
        self.ends_with_call = true;
        // minijinja recurses into a loop only where the name `loop` is called.
        if function == "loop" {
            return Ok(format!("loop(({arguments})|_iter)"));
        }
        let is_name = function.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let is_block = function.starts_with("self.");
        if is_name || is_block {
            Ok(format!("{function}({arguments})"))
        } else {
            Ok(format!("({function})({arguments})"))
        }
    }

    /// Reads the arguments of a call, with their parentheses.
    pub(super) fn arguments(&mut self) -> Result<String, SyntaxError> {
        self.expect_operator("(")?;
        let (mut named, mut splat, mut splat_named) = (false, false, false);
        let mut list: Vec<String> = Vec::new();
        while !self.is_operator(")") {
            if !list.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            let keyword = matches!(self.peek(), Some(Kind::Name(_)))
                && matches!(self.second(), Some(Kind::Operator("=")));
            let invalid = if self.skip_operator("*") {
                let invalid = splat || splat_named;
                splat = true;
                let value = self.expression()?;
                list.push(format!("*{value}|_iter"));
                invalid
            } else if self.skip_operator("**") {
                let invalid = splat_named;
                splat_named = true;
                let value = self.expression()?;
                list.push(format!("**{value}"));
                invalid
            } else if keyword {
                named = true;
                let name = self.identifier()?;
                self.at += 1;
                let value = self.expression()?;
                list.push(format!("{name}={value}"));
                splat_named
            } else {
                list.push(self.expression()?);
                splat || splat_named || named
            };
            if invalid {
                return self.error("invalid syntax for function call expression");
            }
        }
        self.expect_operator(")")?;
        Ok(list.join(", "))
    }

    /// Reads the name and the arguments of a filter after `|`.
    pub(super) fn filter(&mut self, value: &str) -> Result<String, SyntaxError> {
        let name = self.dotted()?;
        let known = is_filter(&name);
        if UNSUPPORTED_FILTERS.contains(&name.as_str()) {
            return self.error(format!("the filter {name:?} is not supported"));
        }
        if !known {
            self.unknown_name(format!("No filter named {name:?}."));
        }
        let arguments = if self.is_operator("(") { self.arguments()? } else { String::new() };
        self.ends_with_call = false;
        Ok(match (known, arguments.is_empty()) {
            (false, _) => format!("{value}|_fail({})", literal(&format!("No filter named {name:?} found."))),
            (true, true) => format!("{value}|{name}"),
            (true, false) => format!("{value}|{name}({arguments})"),
        })
    }

    fn dotted(&mut self) -> Result<String, SyntaxError> {
        let mut name = self.identifier()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.identifier()?);
        }
        Ok(name)
    }

    /// Reads the name and the operand of a test after `is`.
    fn test(&mut self, value: &str) -> Result<String, SyntaxError> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        if !is_test(&name) {
            self.unknown_name(format!("No test named {name:?}."));
        }
        let begins_operand = match self.peek() {
            Some(Kind::Name(word)) => !AFTER_TEST.contains(&word.as_str()),
            Some(Kind::Text(_) | Kind::Integer(_) | Kind::Float(_) | Kind::Operator("[" | "{")) => true,
            _ => false,
        };
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if begins_operand {
            if self.is_name("is") {
                return self.error("You cannot chain multiple tests with is");
            }
            let operand = self.primary()?;
            self.postfix(operand)?
        } else {
            String::new()
        };
        self.ends_with_call = false;
        let test = format!("{value}|_is({}{arguments})", literal(&name) + separator(&arguments));
        Ok(if negated { format!("(not {test})") } else { test })
    }
}

fn separator(arguments: &str) -> &'static str {
    if arguments.is_empty() { "" } else { ", " }
}

/// The operand of `and` or `or`. minijinja evaluates operators between literals itself, and not always
/// as Python does.
fn operand(code: String) -> String {
    let constant = code.starts_with(|c: char| c == '"' || c == '[' || c == '{' || c.is_ascii_digit())
        || matches!(code.as_str(), "true" | "false" | "none");
    if constant { code + "|_id" } else { code }
}

/// A string literal for minijinja, which reads the escapes of JSON. It contains no line ends.
pub(super) fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
