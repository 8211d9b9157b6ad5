//! Rules of recipes beyond the types of their keys, and the lines of errors.

use regex::Regex;
use toml::de::DeTable;

use super::{Problems, Recipe, Role};

/// A key whose value cannot be used.
#[derive(Debug)]
pub(super) struct WrongKey {
    /// The path of the key.
    pub(super) key: Vec<String>,
    /// Expected and got.
    pub(super) message: String,
}

type Checked = Result<(), WrongKey>;

fn wrong<T>(key: &str, message: impl Into<String>) -> Result<T, WrongKey> {
    Err(WrongKey { key: key.split('.').map(str::to_owned).collect(), message: message.into() })
}

/// Fields of requests that stages set themselves.
const OWN_FIELDS: [&str; 6] = ["model", "messages", "stream", "n", "seed", "response_format"];

/// Most items of one list. A longer list does not fit in an answer.
const MOST_ITEMS: usize = 1000;

pub(super) fn check(recipe: &Recipe) -> Checked {
    roles(recipe)?;
    sources(recipe)?;
    needed_roles(recipe)?;
    if let Some(dialogues) = &recipe.dialogues {
        between("dialogues.turns", dialogues.turns, 1, 100)?;
        if dialogues.personalities.is_empty() {
            return wrong("dialogues.personalities", "expected at least one; got an empty list");
        }
        for pattern in &dialogues.cut {
            if let Err(error) = Regex::new(pattern) {
                return wrong("dialogues.cut", format!("expected regular expressions; {error}"));
            }
        }
    }
    if let Some(responses) = &recipe.responses {
        between("responses.per_responder", responses.per_responder, 1, MOST_ITEMS)?;
        if responses.two_turn && recipe.dialogues.as_ref().is_none_or(|dialogues| dialogues.turns < 2) {
            return wrong("responses.two_turn", "expected [dialogues] with turns >= 2");
        }
    }
    reward(recipe)?;
    if let Err(error) = recipe.pairs.check() {
        return wrong("pairs", error.to_string());
    }
    if let Some(Err(error)) = recipe.answers.as_ref().map(super::Checker::compile) {
        return wrong("answers.pattern", format!("expected a regular expression; {error}"));
    }
    if let Some(Err(error)) = recipe.select.dedup.clone().map(super::super::dedup::Deduplicator::new) {
        return wrong("select.dedup", error.to_string());
    }
    recipe.templates.check().or_else(|error| wrong(&format!("templates.{}", error.name), error.message))
}

fn roles(recipe: &Recipe) -> Checked {
    let roles = &recipe.roles;
    let single = [
        ("roles.prompt_writer", &roles.prompt_writer),
        ("roles.user", &roles.user),
        ("roles.judge", &roles.judge),
    ];
    for (key, role) in single {
        if let Some(role) = role {
            check_role(key, role)?;
        }
    }
    roles.responders.iter().try_for_each(|role| check_role("roles.responders", role))
}

fn check_role(key: &str, role: &Role) -> Checked {
    let at = |name: &str| format!("{key}.{name}");
    if role.model.trim().is_empty() {
        return wrong(&at("model"), "expected a name or a directory; got an empty text");
    }
    if let Some(url) = &role.endpoint {
        let host = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let is_url = host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
        if !is_url || url.contains(|c: char| c.is_whitespace() || "?#@".contains(c)) {
            return wrong(&at("endpoint"), format!("expected http://HOST or https://HOST; got `{url}`"));
        }
        if !role.serve_args.is_empty() {
            return wrong(&at("serve_args"), "expected none beside `endpoint`: no child process is started");
        }
    }
    between(&at("concurrency"), role.concurrency, 1, 4096)?;
    between(&at("timeout"), usize::try_from(role.timeout).unwrap_or(usize::MAX), 1, 86_400)?;
    between(&at("attempts"), role.attempts as usize, 1, 1000)?;
    if let Some(field) = role.sampling.keys().find(|field| OWN_FIELDS.contains(&field.as_str())) {
        return wrong(
            &at("sampling"),
            format!("expected sampling fields; got `{field}`, which the stage sets"),
        );
    }
    let rates = [
        ("tokens_per_second", role.tokens_per_second),
        ("prompt_tokens_per_second", role.prompt_tokens_per_second),
    ];
    match rates.into_iter().find_map(|(name, rate)| Some((name, rate?)).filter(|(_, rate)| !is_rate(*rate))) {
        Some((name, rate)) => wrong(&at(name), format!("expected a number above 0; got {rate}")),
        None => Ok(()),
    }
}

fn is_rate(rate: f64) -> bool {
    rate > 0.0 && rate.is_finite()
}

fn sources(recipe: &Recipe) -> Checked {
    let topics = &recipe.topics;
    between("topics.generate", topics.generate, 0, MOST_ITEMS)?;
    between("topics.subtopics", topics.subtopics, 0, MOST_ITEMS)?;
    let has_topics = topics.generate > 0 || !topics.given.is_empty();
    let need_topics = |key: &str| match has_topics {
        true => Ok(()),
        false => wrong(key, "expected topics.generate above 0 or topics.given; got no topics"),
    };
    if let Some(open) = &recipe.open_questions {
        between("open_questions.per_topic", open.per_topic, 1, MOST_ITEMS)?;
        need_topics("open_questions")?;
    }
    if let Some(writing) = &recipe.writing {
        between("writing.per_topic", writing.per_topic, 1, MOST_ITEMS)?;
        need_topics("writing")?;
        if writing.document_types.is_empty() {
            return wrong("writing.document_types", "expected at least one; got an empty list");
        }
    }
    if let Some(closed) = &recipe.closed_questions {
        between("closed_questions.per_document", closed.per_document, 1, MOST_ITEMS)?;
    }
    problems("mathematics", recipe.mathematics.as_ref())?;
    problems("coding", recipe.coding.as_ref())?;
    if let Some(refine) = &recipe.refine {
        between("refine.per_prompt", refine.per_prompt, 1, MOST_ITEMS)?;
    }
    let given = recipe.given.as_ref();
    if given.is_some_and(|given| given.answer_field.is_some()) && recipe.answers.is_none() {
        return wrong("given.answer_field", "expected a checker in [answers]; got none");
    }
    if recipe.answers.is_some() && given.is_none_or(|given| given.answer_field.is_none()) {
        return wrong("answers", "expected given.answer_field; no prompt has an answer to check");
    }
    if needs_writer(recipe) || given.is_some() {
        return Ok(());
    }
    let tables = "[open_questions], [writing], [closed_questions], [mathematics], [coding] or [given]";
    wrong("name", format!("expected a source of prompts: {tables}; got none"))
}

fn problems(key: &str, problems: Option<&Problems>) -> Checked {
    let Some(problems) = problems else { return Ok(()) };
    between(&format!("{key}.per_keyword"), problems.per_keyword, 1, MOST_ITEMS)?;
    between(&format!("{key}.generate"), problems.generate, 0, MOST_ITEMS)?;
    if problems.generate == 0 && problems.keywords.is_empty() {
        return wrong(key, "expected `keywords` or `generate` above 0; got no keywords");
    }
    Ok(())
}

fn needs_writer(recipe: &Recipe) -> bool {
    recipe.open_questions.is_some()
        || recipe.writing.is_some()
        || recipe.closed_questions.is_some()
        || recipe.mathematics.is_some()
        || recipe.coding.is_some()
}

fn needed_roles(recipe: &Recipe) -> Checked {
    let roles = &recipe.roles;
    if needs_writer(recipe) && roles.prompt_writer.is_none() {
        return wrong("roles", "expected roles.prompt_writer, which writes topics and prompts; got none");
    }
    if recipe.dialogues.is_some() && roles.user.is_none() {
        return wrong("roles", "expected roles.user, which [dialogues] needs; got none");
    }
    let answers = recipe.dialogues.is_some() || recipe.responses.is_some();
    if answers && roles.responders.is_empty() {
        return wrong("roles", "expected at least one [[roles.responders]]; got none");
    }
    Ok(())
}

fn reward(recipe: &Recipe) -> Checked {
    let Some(reward) = &recipe.reward else {
        return match recipe.roles.judge {
            Some(_) => wrong("roles.judge", "expected [reward] with `weights` and `threshold`; got none"),
            None => Ok(()),
        };
    };
    if recipe.roles.judge.is_none() {
        return wrong("reward", "expected roles.judge, which scores; got none");
    }
    if reward.weights.is_empty() {
        return wrong("reward.weights", "expected the weight of each attribute; got an empty table");
    }
    if let Some((name, weight)) = reward.weights.iter().find(|(_, weight)| !weight.is_finite()) {
        return wrong("reward.weights", format!("{name}: expected a finite number; got {weight}"));
    }
    match reward.threshold.is_finite() {
        true => Ok(()),
        false => wrong("reward.threshold", format!("expected a finite number; got {}", reward.threshold)),
    }
}

fn between(key: &str, got: usize, least: usize, most: usize) -> Checked {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    wrong(key, format!("expected a whole number from {least} to {most}; got {got}"))
}

/// The line of a byte of the text, from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// The line of a key, or of the innermost table around it that the text has.
pub(super) fn line_of(text: &str, key: &[String]) -> usize {
    let Ok(document) = DeTable::parse(text) else { return 1 };
    let mut at = 0;
    let mut table = Some(document.get_ref());
    for part in key {
        let Some((name, value)) = table.and_then(|table| table.get_key_value(part.as_str())) else { break };
        at = name.span().start;
        table = value.get_ref().as_table();
    }
    line_at(text, at)
}

/// The parser's message on one line, with the text that it points to.
pub(super) fn described(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', "; ");
    let got = error.span().and_then(|span| text.get(span)).unwrap_or_default();
    let got = got.lines().next().unwrap_or_default().trim();
    if got.is_empty() { message } else { format!("{message}; got `{got}`") }
}
