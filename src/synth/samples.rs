//! Items of a run to read in the report: kept ones, rejects of each reason, and short lists.

use std::collections::HashMap;

use serde::Deserialize;

use super::error::SynthError;
use super::export::Turn;
use super::journal::{StageFiles, StageSummary, read_lines};
use super::records::{Ended, Kept, Pair, Reject, Response, ShortList, Stage};
use super::report::{Fate, LabelledText, Sample};
use super::workers::Context;

/// Kept items of each kind.
const KEPT: usize = 5;
/// Rejects of each stage and reason, and short lists of each stage.
const OTHERS: usize = 3;

/// The products of a run.
#[derive(Clone, Copy)]
pub(super) struct Products<'a> {
    pub(super) kept: &'a [Kept],
    pub(super) pairs: &'a [Pair],
    pub(super) responses: &'a [Response],
    pub(super) stages: &'a [StageSummary],
}

/// The items of the report. Of many of a kind, some are taken at equal distances.
pub(super) fn samples(context: &Context<'_>, products: Products<'_>) -> Result<Vec<Sample>, SynthError> {
    let mut all: Vec<Sample> = spread(products.pairs, KEPT).map(pair).collect();
    all.extend(spread(products.kept, KEPT).map(conversation));
    let prompts = products.responses.iter().map(|response| (&*response.parent, response));
    let prompts: HashMap<&str, &Response> = prompts.collect();
    for summary in products.stages {
        let files = StageFiles::new(context.folder, summary.stage);
        if !summary.rejects.is_empty() {
            all.extend(rejects(summary, &read_lines(&files.rejects())?, &prompts));
        }
        if summary.missing > 0 {
            all.extend(short_lists(summary.stage, &read_lines(&files.short())?));
        }
    }
    Ok(all)
}

/// Some items at equal distances, at most `most`.
fn spread<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let count = items.len().min(most);
    (0..count).map(move |number| &items[number * items.len() / count])
}

fn text(label: &str, text: &str) -> LabelledText {
    LabelledText { label: label.to_owned(), text: text.to_owned() }
}

fn turns(turns: &[Turn]) -> Vec<LabelledText> {
    turns.iter().map(|turn| text(&turn.role, &turn.content)).collect()
}

fn pair(pair: &Pair) -> Sample {
    let mut texts = turns(&pair.prompt);
    let label = |name: &str, score: Option<f64>| match score {
        Some(score) => format!("{name}, score {score:.3}"),
        None => name.to_owned(),
    };
    texts.push(text(&label("chosen", pair.chosen_score), &pair.chosen));
    texts.push(text(&label("rejected", pair.rejected_score), &pair.rejected));
    let remark = match pair.margin {
        Some(margin) => format!("margin {margin:.3}"),
        None => "decided by ground truth".to_owned(),
    };
    Sample { heading: "pairs".to_owned(), id: pair.id.clone(), fate: Fate::Kept, remark, texts }
}

fn conversation(kept: &Kept) -> Sample {
    let remark = kept.score.map_or(String::new(), |score| format!("score {score:.3}"));
    let (heading, texts) = ("conversations".to_owned(), turns(&kept.messages));
    Sample { heading, id: kept.id.clone(), fate: Fate::Kept, remark, texts }
}

/// Rejects of each reason, the most frequent reason first.
fn rejects(summary: &StageSummary, rejects: &[Reject], prompts: &HashMap<&str, &Response>) -> Vec<Sample> {
    let stage = summary.stage;
    let mut reasons: Vec<(&String, &u64)> = summary.rejects.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut all = Vec::new();
    for (reason, count) in reasons {
        let these: Vec<&Reject> = rejects.iter().filter(|reject| reject.reason == *reason).collect();
        let shown = these.len().min(OTHERS);
        let heading = format!("{}: {reason} ({shown} of {count})", stage.name());
        for reject in spread(&these, OTHERS) {
            let (detail, texts) = match stage {
                Stage::Pairs => (None, compared(reject, prompts)),
                _ => (reject.detail.as_ref(), reject.raw.as_deref().map(raw_texts).unwrap_or_default()),
            };
            let remark = detail.cloned().unwrap_or_default();
            let (heading, id) = (heading.clone(), reject.id.clone());
            all.push(Sample { heading, id, fate: Fate::Rejected, remark, texts });
        }
    }
    all
}

/// The parts of a reject's raw text.
fn raw_texts(raw: &str) -> Vec<LabelledText> {
    match serde_json::from_str(raw) {
        Ok(Ended { messages, reply }) => {
            turns(&messages).into_iter().chain([text("reply", &reply)]).collect()
        }
        Err(_) => vec![text("raw text", raw)],
    }
}

/// The score of a response, as the detail of a rejected pair has it.
#[derive(Deserialize)]
struct Compared {
    id: String,
    score: Option<f64>,
    correct: Option<bool>,
}

/// The prompt and the responses that made no pair, each with its score and verdict.
fn compared(reject: &Reject, prompts: &HashMap<&str, &Response>) -> Vec<LabelledText> {
    let parent = reject.id.strip_suffix(".p").unwrap_or(&reject.id);
    let mut texts = prompts.get(parent).map(|response| turns(&response.prompt)).unwrap_or_default();
    let parsed = |text: &Option<String>| text.clone().unwrap_or_default();
    let scores: Vec<Compared> = serde_json::from_str(&parsed(&reject.detail)).unwrap_or_default();
    let responses: Vec<String> = serde_json::from_str(&parsed(&reject.raw)).unwrap_or_default();
    for (Compared { id, score, correct }, response) in scores.iter().zip(&responses) {
        let mut label = id.clone();
        if let Some(score) = score {
            label += &format!(", score {score:.3}");
        }
        if let Some(correct) = correct {
            label += if *correct { ", right" } else { ", wrong" };
        }
        texts.push(text(&label, response));
    }
    texts
}

fn short_lists(stage: Stage, lists: &[ShortList]) -> Vec<Sample> {
    let shown = lists.len().min(OTHERS);
    let sample = |list: &ShortList| Sample {
        heading: format!("{} ({shown} of {})", stage.name(), lists.len()),
        id: list.id.clone(),
        fate: Fate::Short,
        remark: format!("{} of {} items", list.made, list.wanted),
        texts: vec![text("raw text", &list.raw)],
    };
    spread(lists, OTHERS).map(sample).collect()
}
