//! Prompts about topics, documents and keywords, those of a file, and more detailed versions.

use std::path::Path;

use minijinja::{Value as Variables, context};
use serde_json::{Map, Value, json};

use super::super::error::SynthError;
use super::super::journal::read_lines;
use super::super::records::{Keyword, Prompt, PromptKind, Stage, Topic};
use super::super::servers::Who;
use super::super::templates::render;
use super::super::workers::{Context, Item, StagePlan};
use super::lists::{ListRequest, ask};
use super::{depends, input, of_role};

/// A list of prompts to ask for.
struct Source {
    kind: PromptKind,
    parent: String,
    request: String,
    count: usize,
    document: Option<Document>,
}

struct Document {
    id: String,
    text: String,
}

/// The prompts of all kinds.
pub(in super::super) fn prompts(
    context: &Context<'_>,
    topics: &[Topic],
    keywords: &[Keyword],
) -> Result<Vec<Prompt>, SynthError> {
    let recipe = context.recipe;
    let mut all = given(context)?;
    let items = sources(context, topics, keywords)?;
    if items.is_empty() {
        return context.write_local(Stage::Prompts, all.len(), all, Vec::new());
    }
    let wanted: usize = items.iter().map(|item| item.input.count).sum();
    let requests: Vec<_> = items.iter().map(|item| (&item.id, &item.input.request)).collect();
    let plan = StagePlan {
        stage: Stage::Prompts,
        depends: depends([
            ("seed", json!(recipe.seed)),
            // The requests have what the recipe and its templates say about prompts, and the topics.
            ("topics, templates or a table of prompts", input(&requests)),
            ("templates.closed_prompt", json!(recipe.templates.closed_prompt)),
            ("given", input(&all)),
            ("roles.prompt_writer", of_role(recipe.roles.prompt_writer.as_ref())),
        ]),
        wanted: Some(wanted as u64),
        groups: vec![vec![Who::PromptWriter]],
        items,
    };
    let made = context.run_stage(&plan, |item, endpoints, job, finished| {
        let source = &item.input;
        let (text, count) = (source.request.clone(), source.count);
        let request = ListRequest { id: &item.id, text, count, seed: context.seed(&item.id) };
        for (number, text) in ask(&request, &endpoints[0], job, finished)?.into_iter().enumerate() {
            let prompt = match &source.document {
                Some(document) => {
                    let variables = context! { document => document.text, question => text };
                    render(&recipe.templates.closed_prompt, &variables)
                }
                None => text,
            };
            finished.records.push(Prompt {
                id: format!("{}{number}", item.id),
                parent: source.parent.clone(),
                kind: source.kind,
                prompt,
                document: source.document.as_ref().map(|document| document.id.clone()),
                answer: None,
            });
        }
        Ok(())
    })?;
    all.extend(made);
    Ok(all)
}

/// The lists to ask for, in the order of their prompts.
fn sources(
    context: &Context<'_>,
    topics: &[Topic],
    keywords: &[Keyword],
) -> Result<Vec<Item<Source>>, SynthError> {
    let recipe = context.recipe;
    let templates = &recipe.templates;
    let mut items = Vec::new();
    let mut add = |id: String, kind, parent: &str, count: usize, list: (&str, Variables)| {
        let request = templates.list_request(list.0, &list.1, count);
        let source = Source { kind, parent: parent.to_owned(), request, count, document: None };
        items.push(Item { id, group: 0, input: source });
    };
    for topic in topics {
        if let Some(open) = &recipe.open_questions {
            let n = open.per_topic;
            let list = (&*templates.open_questions, context! { topic => topic.topic, n });
            add(format!("{}.q", topic.id), PromptKind::OpenQuestion, &topic.id, n, list);
        }
        let Some(writing) = &recipe.writing else { continue };
        for (number, document_type) in writing.document_types.iter().enumerate() {
            let n = writing.per_topic;
            let list = (&*templates.writing, context! { topic => topic.topic, document_type, n });
            add(format!("{}.w{number}.", topic.id), PromptKind::Writing, &topic.id, n, list);
        }
    }
    for keyword in keywords {
        let (template, problems) = match keyword.kind {
            PromptKind::Mathematics => (&templates.mathematics, recipe.mathematics.as_ref()),
            _ => (&templates.coding, recipe.coding.as_ref()),
        };
        let Some(problems) = problems else { continue };
        let n = problems.per_keyword;
        let (level, language) = (&problems.level, &problems.language);
        let list = (&**template, context! { keyword => keyword.keyword, level, language, n });
        add(format!("{}.q", keyword.id), keyword.kind, &keyword.id, n, list);
    }
    if let Some(closed) = &recipe.closed_questions {
        let path = context.recipe_folder.join(&closed.file);
        for (number, text) in fields(&path, &closed.field)?.into_iter().enumerate() {
            let n = closed.per_document;
            let id = format!("d{number}");
            let variables = context! { document => text, n };
            let source = Source {
                kind: PromptKind::ClosedQuestion,
                parent: id.clone(),
                request: templates.list_request(&templates.closed_questions, &variables, n),
                count: n,
                document: Some(Document { id: id.clone(), text }),
            };
            items.push(Item { id: format!("{id}.q"), group: 0, input: source });
        }
    }
    Ok(items)
}

/// The prompts of the recipe's file.
fn given(context: &Context<'_>) -> Result<Vec<Prompt>, SynthError> {
    let Some(given) = &context.recipe.given else { return Ok(Vec::new()) };
    let path = context.recipe_folder.join(&given.file);
    let answers = match &given.answer_field {
        Some(field) => fields(&path, field)?.into_iter().map(Some).collect(),
        None => Vec::new(),
    };
    let checker = context.recipe.answers.as_ref().and_then(|checker| checker.compile().ok());
    let mut prompts = Vec::new();
    for (number, prompt) in fields(&path, &given.field)?.into_iter().enumerate() {
        let answer: Option<String> = answers.get(number).cloned().flatten();
        if let (Some(checker), Some(answer)) = (&checker, &answer)
            && !checker.can_check(answer)
        {
            let message = format!("expected a number in the answer; got `{answer}`");
            return Err(SynthError::Line { path, line: number + 1, message });
        }
        let (id, parent) = (format!("g{number}"), format!("{}:{}", given.file.display(), number + 1));
        prompts.push(Prompt { id, parent, kind: PromptKind::Given, prompt, document: None, answer });
    }
    Ok(prompts)
}

/// A field of each row of a JSONL file. A number counts as its text.
pub(in super::super) fn fields(path: &Path, field: &str) -> Result<Vec<String>, SynthError> {
    let rows: Vec<Map<String, Value>> = read_lines(path)?;
    let text = |(line, row): (usize, &Map<String, Value>)| match row.get(field) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        got => {
            let got = match got {
                Some(value) => value.to_string(),
                None => format!("the fields {}", row.keys().cloned().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("{field}: expected a text; got {got}");
            Err(SynthError::Line { path: path.to_owned(), line, message })
        }
    };
    (1..).zip(&rows).map(text).collect()
}

/// More detailed versions of open questions and writing tasks, and the other prompts as they are.
pub(in super::super) fn refined(
    context: &Context<'_>,
    prompts: Vec<Prompt>,
) -> Result<Vec<Prompt>, SynthError> {
    let recipe = context.recipe;
    let Some(refine) = &recipe.refine else { return Ok(prompts) };
    let is_refined = |prompt: &Prompt| matches!(prompt.kind, PromptKind::OpenQuestion | PromptKind::Writing);
    let (sources, others): (Vec<Prompt>, Vec<Prompt>) = prompts.into_iter().partition(is_refined);
    if sources.is_empty() {
        return Ok(others);
    }
    let count = refine.per_prompt;
    let templates = &recipe.templates;
    let plan = StagePlan {
        stage: Stage::Refined,
        depends: depends([
            ("seed", json!(recipe.seed)),
            ("refine", json!(count)),
            ("templates", json!([templates.refine, templates.list])),
            ("roles.prompt_writer", of_role(recipe.roles.prompt_writer.as_ref())),
            ("the prompts", input(&sources)),
        ]),
        wanted: Some((count * sources.len()) as u64),
        groups: vec![vec![Who::PromptWriter]],
        items: sources.into_iter().map(|p| Item { id: p.id.clone(), group: 0, input: p }).collect(),
    };
    let mut all = context.run_stage(&plan, |item, endpoints, job, finished| {
        let variables = context! { prompt => item.input.prompt, n => count };
        let text = templates.list_request(&templates.refine, &variables, count);
        let seed = context.seed(&format!("{}.r", item.id));
        let request = ListRequest { id: &item.id, text, count, seed };
        for (number, prompt) in ask(&request, &endpoints[0], job, finished)?.into_iter().enumerate() {
            let id = format!("{}.r{number}", item.id);
            finished.records.push(Prompt { id, parent: item.id.clone(), prompt, ..item.input.clone() });
        }
        Ok(())
    })?;
    all.extend(others);
    Ok(all)
}
