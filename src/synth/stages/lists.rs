//! Topics, subtopics and keywords: lists by constrained JSON.

use minijinja::context;
use serde_json::json;

use super::super::endpoint::{CallError, Endpoint, Job};
use super::super::error::SynthError;
use super::super::export::Turn;
use super::super::journal::Finished;
use super::super::list;
use super::super::recipe::Problems;
use super::super::records::{Keyword, PromptKind, Reject, ShortList, Stage, Topic};
use super::super::servers::Who;
use super::super::workers::{Context, Item, StagePlan};
use super::{depends, of_role, reject};

/// A request for a list.
pub(super) struct ListRequest<'a> {
    /// The item, for ids of rejects.
    pub(super) id: &'a str,
    pub(super) text: String,
    pub(super) count: usize,
    pub(super) seed: u64,
}

/// The items of a list, trimmed. Empty, repeated and surplus items are rejected, and a list that is short is
/// accepted and noted.
pub(super) fn ask<R>(
    request: &ListRequest<'_>,
    writer: &Endpoint,
    job: &mut Job<'_>,
    finished: &mut Finished<R>,
) -> Result<Vec<String>, CallError> {
    let turn = Turn { role: "user".to_owned(), content: request.text.clone() };
    let format = list::response_format(request.count);
    let answer = writer.chat(&[turn], Some(format), request.seed, job)?;
    let mut items: Vec<String> = Vec::new();
    let found = list::parse(&answer.text);
    if found.is_none() {
        finished.rejects.push(Reject {
            detail: Some("expected a JSON object with a list `items` of strings".to_owned()),
            ..reject(request.id, "no list", Some(&answer.text))
        });
    }
    for item in found.unwrap_or_default() {
        let text = item.trim();
        let reason = if text.is_empty() {
            "empty item"
        } else if items.iter().any(|before| before == text) {
            "repeated item"
        } else if items.len() == request.count {
            "surplus item"
        } else {
            items.push(text.to_owned());
            continue;
        };
        finished.rejects.push(reject(request.id, reason, Some(&item)));
    }
    if items.len() < request.count {
        let (id, raw) = (request.id.to_owned(), answer.text);
        let (wanted, made) = (request.count as u64, items.len() as u64);
        finished.short.push(ShortList { id, wanted, made, raw });
    }
    Ok(items)
}

/// The recipe's topics, then those that a model lists.
pub(in super::super) fn topics(context: &Context<'_>) -> Result<Vec<Topic>, SynthError> {
    let recipe = context.recipe;
    let topics = &recipe.topics;
    let needed = recipe.open_questions.is_some() || recipe.writing.is_some();
    let given = topics.given.iter().filter(|_| needed).enumerate();
    let topic = |number: usize, topic: &str| Topic {
        id: format!("t{number}"),
        parent: None,
        topic: topic.to_owned(),
    };
    let mut all: Vec<Topic> = given.map(|(number, text)| topic(number, text)).collect();
    if !needed || topics.generate == 0 {
        return Ok(all);
    }
    let plan = StagePlan {
        stage: Stage::Topics,
        depends: depends([
            ("seed", json!(recipe.seed)),
            ("topics", json!([topics.generate, topics.given])),
            ("templates", json!([recipe.templates.topics, recipe.templates.list])),
            ("roles.prompt_writer", of_role(recipe.roles.prompt_writer.as_ref())),
        ]),
        wanted: Some(topics.generate as u64),
        groups: vec![vec![Who::PromptWriter]],
        items: vec![Item { id: "topics".to_owned(), group: 0, input: () }],
    };
    let first = all.len();
    let made = context.run_stage(&plan, |item, endpoints, job, finished| {
        let count = topics.generate;
        let text = recipe.templates.list_request(&recipe.templates.topics, &context! { n => count }, count);
        let request = ListRequest { id: &item.id, text, count, seed: context.seed(&item.id) };
        for (number, text) in ask(&request, &endpoints[0], job, finished)?.iter().enumerate() {
            finished.records.push(topic(first + number, text));
        }
        Ok(())
    })?;
    all.extend(made);
    Ok(all)
}

/// Subtopics of each topic, or the topics themselves.
pub(in super::super) fn subtopics(
    context: &Context<'_>,
    topics: Vec<Topic>,
) -> Result<Vec<Topic>, SynthError> {
    let recipe = context.recipe;
    let count = recipe.topics.subtopics;
    if count == 0 || topics.is_empty() {
        return Ok(topics);
    }
    let plan = StagePlan {
        stage: Stage::Subtopics,
        depends: depends([
            ("seed", json!(recipe.seed)),
            ("topics", json!(count)),
            ("templates", json!([recipe.templates.subtopics, recipe.templates.list])),
            ("roles.prompt_writer", of_role(recipe.roles.prompt_writer.as_ref())),
            ("the topics", super::input(&topics)),
        ]),
        wanted: Some((count * topics.len()) as u64),
        groups: vec![vec![Who::PromptWriter]],
        items: topics
            .into_iter()
            .map(|topic| Item { id: topic.id.clone(), group: 0, input: topic })
            .collect(),
    };
    context.run_stage(&plan, |item, endpoints, job, finished| {
        let variables = context! { topic => item.input.topic, n => count };
        let text = recipe.templates.list_request(&recipe.templates.subtopics, &variables, count);
        let request = ListRequest { id: &item.id, text, count, seed: context.seed(&item.id) };
        for (number, topic) in ask(&request, &endpoints[0], job, finished)?.into_iter().enumerate() {
            let id = format!("{}.{number}", item.id);
            finished.records.push(Topic { id, parent: Some(item.id.clone()), topic });
        }
        Ok(())
    })
}

/// The recipe's keywords of mathematics and coding, then those that a model lists.
pub(in super::super) fn keywords(context: &Context<'_>) -> Result<Vec<Keyword>, SynthError> {
    let recipe = context.recipe;
    let kinds = [
        (PromptKind::Mathematics, "m", recipe.mathematics.as_ref()),
        (PromptKind::Coding, "c", recipe.coding.as_ref()),
    ];
    let mut all = Vec::new();
    let mut items = Vec::new();
    for (kind, letter, problems) in kinds {
        let Some(problems) = problems else { continue };
        for (number, keyword) in problems.keywords.iter().enumerate() {
            all.push(Keyword { id: format!("{letter}{number}"), kind, keyword: keyword.clone() });
        }
        if problems.generate > 0 {
            items.push(Item { id: letter.to_owned(), group: 0, input: (kind, problems) });
        }
    }
    if items.is_empty() {
        return Ok(all);
    }
    let wanted = items.iter().map(|item| item.input.1.generate as u64).sum();
    let templates = &recipe.templates;
    let plan = StagePlan {
        stage: Stage::Keywords,
        depends: depends([
            ("seed", json!(recipe.seed)),
            ("mathematics", json!(recipe.mathematics.as_ref().map(without_count))),
            ("coding", json!(recipe.coding.as_ref().map(without_count))),
            ("templates", json!([templates.mathematics_keywords, templates.coding_keywords, templates.list])),
            ("roles.prompt_writer", of_role(recipe.roles.prompt_writer.as_ref())),
        ]),
        wanted: Some(wanted),
        groups: vec![vec![Who::PromptWriter]],
        items,
    };
    let made = context.run_stage(&plan, |item, endpoints, job, finished| {
        let (kind, problems) = item.input;
        let count = problems.generate;
        let variables = context! { level => problems.level, language => problems.language, n => count };
        let template = match kind {
            PromptKind::Mathematics => &templates.mathematics_keywords,
            _ => &templates.coding_keywords,
        };
        let text = templates.list_request(template, &variables, count);
        let request = ListRequest { id: &item.id, text, count, seed: context.seed(&item.id) };
        for (number, keyword) in ask(&request, &endpoints[0], job, finished)?.into_iter().enumerate() {
            let id = format!("{}{}", item.id, problems.keywords.len() + number);
            finished.records.push(Keyword { id, kind, keyword });
        }
        Ok(())
    })?;
    all.extend(made);
    Ok(all)
}

/// The settings that keywords depend on: all but the number of problems.
fn without_count(problems: &Problems) -> Problems {
    Problems { per_keyword: 0, ..problems.clone() }
}
