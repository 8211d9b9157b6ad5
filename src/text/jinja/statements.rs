//! Statements of Jinja2 with the extensions of transformers: `break`, `continue`, `generation`.

use super::SyntaxError;
use super::expressions::literal;
use super::lexer::{Kind, Token};
use super::parser::Parser;

/// Most nested statements.
const MAX_DEPTH: usize = 40;

/// Writes the template for minijinja.
pub(super) fn rewrite(tokens: Vec<Token>) -> Result<String, SyntaxError> {
    let mut writer =
        Writer { parser: Parser::new(tokens), out: String::new(), line: 1, depth: 0, scopes: Vec::new() };
    writer.body(&[])?;
    Ok(writer.out)
}

/// The kind of block around a statement, which decides whether `break` and `continue` are possible.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Loop,
    /// Anything else with variables or an output of its own. minijinja cannot leave it early.
    Other,
}

struct Writer {
    parser: Parser,
    out: String,
    /// Line of `out`.
    line: usize,
    depth: usize,
    scopes: Vec<Scope>,
}

impl Writer {
    /// Writes code, preceded by line ends so that it stands on the given line of the template.
    fn write(&mut self, line: usize, open: &str, code: &str) {
        self.out.push_str(open);
        while self.line < line {
            self.out.push('\n');
            self.line += 1;
        }
        self.out.push_str(code);
    }

    fn statement(&mut self, line: usize, code: &str) {
        self.write(line, "{%", &format!(" {code} %}}"));
    }

    fn output(&mut self, line: usize, code: &str) {
        self.write(line, "{{", &format!(" {code} }}}}"));
    }

    fn data(&mut self, line: usize, text: &str) {
        let literally = ["{{", "{%", "{#"].iter().any(|tag| text.contains(tag)) || text.ends_with('{');
        if literally {
            self.output(line, &literal(text));
        } else {
            self.out.push_str(text);
            self.line += text.matches('\n').count();
        }
    }

    /// Reads and writes up to a tag that begins with one of `ends`, or to the end of the template. Returns
    /// the tag's name and line.
    fn body(&mut self, ends: &[&str]) -> Result<(String, usize), SyntaxError> {
        if self.depth == MAX_DEPTH {
            return self.parser.error(format!("more than {MAX_DEPTH} levels of nested statements"));
        }
        self.depth += 1;
        while let Some(token) = self.parser.peek().cloned() {
            let line = self.parser.line();
            self.parser.next();
            match token {
                Kind::Data(text) => self.data(line, &text),
                Kind::VariableBegin => {
                    let code = self.parser.tuple(true)?;
                    if self.parser.next() != Some(Kind::VariableEnd) {
                        return self.back().unexpected("}}");
                    }
                    self.parser.check_names()?;
                    self.output(line, &code);
                }
                _ => {
                    let Some(Kind::Name(name)) = self.parser.peek().cloned() else {
                        return self.parser.unexpected("the name of a tag");
                    };
                    self.parser.next();
                    if ends.contains(&name.as_str()) {
                        self.depth -= 1;
                        return Ok((name, line));
                    }
                    self.tag(&name, line)?;
                    self.parser.check_names()?;
                    self.end_of_tag()?;
                }
            }
        }
        self.depth -= 1;
        match ends {
            [] => Ok((String::new(), self.parser.line())),
            _ => self.parser.error(format!("unexpected end of template, expected {}", ends.join(" or "))),
        }
    }

    /// Steps back to the token that was read last.
    fn back(&mut self) -> &mut Parser {
        self.parser.back();
        &mut self.parser
    }

    fn end_of_tag(&mut self) -> Result<(), SyntaxError> {
        match self.parser.peek() {
            Some(Kind::BlockEnd) => {
                self.parser.next();
                Ok(())
            }
            _ => self.parser.unexpected("%}"),
        }
    }

    /// Reads the end of an opening tag, its body and its closing tag's name.
    fn block(&mut self, ends: &[&str]) -> Result<(String, usize), SyntaxError> {
        self.parser.skip_operator(":");
        self.end_of_tag()?;
        self.body(ends)
    }

    fn tag(&mut self, name: &str, line: usize) -> Result<(), SyntaxError> {
        match name {
            "if" => self.condition(line),
            "for" => self.for_loop(line),
            "set" => self.set(line),
            "macro" => self.macro_tag(line),
            "call" => self.call(line),
            "filter" => {
                let filters = self.filters("")?;
                self.statement(line, &format!("filter {filters}"));
                self.closed("endfilter")
            }
            "with" => self.with(line),
            "block" => {
                let block = self.parser.identifier()?;
                let _ = self.parser.skip_name("scoped") | self.parser.skip_name("required");
                self.statement(line, &format!("block {block}"));
                self.closed("endblock")?;
                self.parser.skip_name(&block);
                Ok(())
            }
            "print" => {
                while self.parser.peek() != Some(&Kind::BlockEnd) {
                    let code = self.parser.expression()?;
                    self.output(line, &code);
                    if !self.parser.skip_operator(",") {
                        break;
                    }
                }
                Ok(())
            }
            "break" | "continue" => {
                if self.scopes.last() != Some(&Scope::Loop) {
                    let outside = !self.scopes.contains(&Scope::Loop);
                    let place =
                        if outside { "outside of a loop" } else { "within this tag is not supported" };
                    return self.parser.error(format!("{name} {place}"));
                }
                self.statement(line, name);
                Ok(())
            }
            "generation" => self.scope(line, "endgeneration"),
            "autoescape" if self.parser.skip_name("false") => self.scope(line, "endautoescape"),
            "include" | "import" | "from" | "extends" => self.other_template(name, line),
            _ => self.parser.error(format!("Encountered unknown tag {name:?}.")),
        }
    }

    /// Writes the body and the closing tag of a statement whose opening tag is written.
    fn closed(&mut self, end: &str) -> Result<(), SyntaxError> {
        self.scopes.push(Scope::Other);
        let (_, line) = self.block(&[end])?;
        self.scopes.pop();
        self.statement(line, end);
        Ok(())
    }

    /// Writes a statement whose only effect is a scope for variables.
    fn scope(&mut self, line: usize, end: &str) -> Result<(), SyntaxError> {
        self.statement(line, "with");
        self.scopes.push(Scope::Other);
        let (_, line) = self.block(&[end])?;
        self.scopes.pop();
        self.statement(line, "endwith");
        Ok(())
    }

    fn condition(&mut self, line: usize) -> Result<(), SyntaxError> {
        self.parser.conditions += 1;
        let (mut word, mut at) = ("if".to_owned(), line);
        while word != "endif" {
            let ends: &[&str] = if word == "else" {
                self.statement(at, "else");
                &["endif"]
            } else {
                let test = self.parser.tuple(false)?;
                self.statement(at, &format!("{word} {test}"));
                &["elif", "else", "endif"]
            };
            (word, at) = self.block(ends)?;
        }
        self.statement(at, "endif");
        self.parser.conditions -= 1;
        Ok(())
    }

    /// Reads one or more variables. Returns their code, and whether there are several.
    fn target(&mut self) -> Result<(String, bool), SyntaxError> {
        let mut targets = Vec::new();
        let mut several = false;
        while targets.is_empty() || !self.parser.is_operator(")") {
            targets.push(if self.parser.skip_operator("(") {
                let (target, nested) = self.target()?;
                self.parser.expect_operator(")")?;
                several |= nested;
                target
            } else {
                self.variable()?
            });
            if !self.parser.skip_operator(",") {
                break;
            }
            several = true;
        }
        match &targets[..] {
            [] => self.parser.unexpected("a name"),
            [one] if !several => Ok((one.clone(), false)),
            [one] if one.starts_with('(') => Ok((one.clone(), true)),
            [one] => Ok((format!("({one},)"), true)),
            _ => Ok((format!("({})", targets.join(", ")), true)),
        }
    }

    /// Reads the name of a variable that can be assigned.
    fn variable(&mut self) -> Result<String, SyntaxError> {
        let name = self.parser.identifier()?;
        match name.as_str() {
            "true" | "false" | "none" | "True" | "False" | "None" | "loop" | "self" => {
                self.parser.error(format!("can't assign to {name:?}"))
            }
            _ => Ok(name),
        }
    }

    fn for_loop(&mut self, line: usize) -> Result<(), SyntaxError> {
        let (target, several) = self.target()?;
        if !self.parser.skip_name("in") {
            return self.parser.unexpected("'in'");
        }
        let items = self.parser.tuple(false)?;
        let mut code = format!("for {target} in {items}|_iter{}", if several { "(true)" } else { "" });
        if self.parser.skip_name("if") {
            code = format!("{code} if {}", self.parser.expression()?);
        }
        if self.parser.skip_name("recursive") {
            code.push_str(" recursive");
        }
        self.statement(line, &code);
        self.scopes.push(Scope::Loop);
        let (mut word, mut at) = self.block(&["endfor", "else"])?;
        self.scopes.pop();
        if word == "else" {
            self.statement(at, "else");
            // minijinja has no scope of its own here.
            self.statement(at, "with");
            self.scopes.push(Scope::Other);
            (word, at) = self.block(&["endfor"])?;
            self.scopes.pop();
            self.statement(at, "endwith");
        }
        self.statement(at, &word);
        Ok(())
    }

    fn set(&mut self, line: usize) -> Result<(), SyntaxError> {
        let (mut target, mut several) = self.target()?;
        if !several && self.parser.skip_operator(".") {
            let attribute = self.parser.identifier()?;
            if attribute.starts_with('_') {
                return self.parser.error(format!("a namespace cannot have the attribute {attribute:?}"));
            }
            target = format!("{target}.{attribute}");
            if self.parser.is_operator(",") {
                return self.parser.error("several targets with attributes are not supported");
            }
            several = false;
        }
        if self.parser.skip_operator("=") {
            let value = self.parser.tuple(true)?;
            self.statement(line, &format!("set {target} = {value}{}", if several { "|_iter" } else { "" }));
            return Ok(());
        }
        let filters = if self.parser.skip_operator("|") { self.filters("| ")? } else { String::new() };
        self.statement(line, &format!("set {target} {filters}"));
        self.closed("endset")
    }

    /// Reads one or more filters without a value.
    fn filters(&mut self, prefix: &str) -> Result<String, SyntaxError> {
        let mut code = self.parser.filter("")?;
        while self.parser.skip_operator("|") {
            code = self.parser.filter(&code)?;
        }
        Ok(format!("{prefix}{}", &code[1..]))
    }

    fn with(&mut self, line: usize) -> Result<(), SyntaxError> {
        let (mut targets, mut values) = (Vec::new(), Vec::new());
        while self.parser.peek() != Some(&Kind::BlockEnd) {
            if !targets.is_empty() {
                self.parser.expect_operator(",")?;
            }
            targets.push(self.variable()?);
            self.parser.expect_operator("=")?;
            values.push(self.parser.expression()?);
        }
        // All values are computed before any of the variables is set.
        let code = match &targets[..] {
            [] => "with".to_owned(),
            _ => format!("with ({},) = [{}]", targets.join(", "), values.join(", ")),
        };
        self.statement(line, &code);
        self.closed("endwith")
    }

    /// Reads the parameters of a macro or of a `call` block. Returns them, and code that sets defaults.
    fn parameters(&mut self) -> Result<(String, String), SyntaxError> {
        let (mut names, mut defaults) = (Vec::new(), String::new());
        while !self.parser.skip_operator(")") {
            if !names.is_empty() {
                self.parser.expect_operator(",")?;
            }
            let name = self.variable()?;
            if self.parser.skip_operator("=") {
                let value = self.parser.expression()?;
                // A default can use the parameters before it.
                defaults.push_str(&format!(
                    "{{% if {name}|_is(\"undefined\") %}}{{% set {name} = {value} %}}{{% endif %}}"
                ));
            } else if !defaults.is_empty() {
                return self.parser.error("non-default argument follows default argument");
            }
            names.push(name);
        }
        Ok((names.join(", "), defaults))
    }

    fn macro_tag(&mut self, line: usize) -> Result<(), SyntaxError> {
        let name = self.variable()?;
        self.parser.expect_operator("(")?;
        let (parameters, defaults) = self.parameters()?;
        self.statement(line, &format!("macro {name}({parameters})"));
        self.out.push_str(&defaults);
        self.closed("endmacro")
    }

    fn call(&mut self, line: usize) -> Result<(), SyntaxError> {
        let (parameters, defaults) =
            if self.parser.skip_operator("(") { self.parameters()? } else { Default::default() };
        self.parser.plain_calls = true;
        let call = self.parser.expression()?;
        self.parser.plain_calls = false;
        if !self.parser.ends_with_call {
            return self.parser.error("expected call");
        }
        self.statement(line, &format!("call({parameters}) {call}"));
        self.out.push_str(&defaults);
        self.closed("endcall")
    }

    /// Writes a tag that names another template. It fails when it runs: a chat template is a single file.
    fn other_template(&mut self, tag: &str, line: usize) -> Result<(), SyntaxError> {
        while !matches!(self.parser.peek(), Some(Kind::BlockEnd) | None) {
            self.parser.next();
        }
        let message = format!("{tag}: a chat template cannot load other templates");
        self.output(line, &format!("\"\"|_fail({})", literal(&message)));
        Ok(())
    }
}
