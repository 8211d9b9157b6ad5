//! Exports for trainers and the report for people.

use super::error::SynthError;
use super::export::{DataSet, Dialogue, Export, Preference, Rating, write_exports};
use super::journal::StageSummary;
use super::records::{Kept, Pair, Reward};
use super::report::{ExportReport, RejectCount, Report, ScoreReport, StageReport, write_report};
use super::samples::{Products, samples};
use super::workers::Context;

/// The scores with the threshold, then each attribute of the last turns.
pub(super) fn score_reports(context: &Context<'_>, rewards: &[Reward]) -> Vec<ScoreReport> {
    let Some(options) = &context.recipe.reward else { return Vec::new() };
    let score = ScoreReport {
        name: "score".to_owned(),
        values: rewards.iter().map(|reward| reward.score).collect(),
        threshold: Some(options.threshold),
    };
    let mut names: Vec<&String> =
        rewards.iter().filter_map(|reward| reward.turns.last()).flat_map(|values| values.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let attribute = |name: &String| ScoreReport {
        name: name.clone(),
        values: rewards.iter().filter_map(|reward| reward.turns.last()?.get(name).copied()).collect(),
        threshold: None,
    };
    [score].into_iter().chain(names.into_iter().map(attribute)).collect()
}

/// Writes the files for trainers and the report, and says where they are.
pub(super) fn write(
    context: &Context<'_>,
    products: Products<'_>,
    scores: Vec<ScoreReport>,
) -> Result<(), SynthError> {
    let dialogues: Vec<Dialogue> = products.kept.iter().map(dialogue).collect();
    let preferences: Vec<Preference> = products.pairs.iter().map(preference).collect();
    let folder = context.folder.join("exports");
    let data = DataSet { dialogues: &dialogues, preferences: &preferences };
    let exports = write_exports(&folder, &context.recipe.export.formats, data);
    let exports = exports.map_err(SynthError::file(&folder))?;
    for export in &exports {
        let mut line = format!("{}: {} rows", folder.join(export.format.file()).display(), export.rows);
        if let Some(first) = export.left_out.first() {
            let count = export.left_out.len();
            line += &format!("; {count} items left out, the first {}: {}", first.id, first.reason);
        }
        (context.say)(&format!("{line}\n"));
    }
    let path = context.folder.join("report.html");
    let report = Report { scores, ..report(context, products, &exports)? };
    write_report(&report, &path).map_err(SynthError::file(&path))?;
    (context.say)(&format!("{}\n", path.display()));
    Ok(())
}

fn dialogue(kept: &Kept) -> Dialogue {
    let rating = |(name, value): (&String, &f64)| Rating { name: name.clone(), value: *value };
    let ratings = kept.turns.iter().map(|values| values.iter().map(rating).collect());
    Dialogue { id: kept.id.clone(), turns: kept.messages.clone(), ratings: ratings.collect() }
}

fn preference(pair: &Pair) -> Preference {
    Preference {
        id: pair.id.clone(),
        prompt: pair.prompt.clone(),
        chosen: pair.chosen.clone(),
        rejected: pair.rejected.clone(),
        chosen_score: pair.chosen_score,
        rejected_score: pair.rejected_score,
    }
}

fn report(context: &Context<'_>, products: Products<'_>, exports: &[Export]) -> Result<Report, SynthError> {
    let samples = samples(context, products)?;
    let recipe = context.recipe;
    let roles = &recipe.roles;
    let single = [("prompt writer", &roles.prompt_writer), ("user", &roles.user), ("judge", &roles.judge)];
    let mut models: Vec<String> =
        single.iter().filter_map(|(name, role)| Some(format!("{name}: {}", role.as_ref()?.model))).collect();
    models.extend(roles.responders.iter().map(|role| format!("responder: {}", role.model)));
    let short: u64 = products.stages.iter().map(|stage| stage.missing).sum();
    let mut notes = Vec::new();
    if short > 0 {
        notes.push(format!("Lists were {short} items shorter than asked for; what they have was used."));
    }
    let against = |pair: &&Pair| pair.margin.is_some_and(|margin| margin <= 0.0);
    let against = products.pairs.iter().filter(against).count();
    if against > 0 {
        notes.push(format!(
            "In {against} pairs ground truth decided against the scores; their exports have no margin and \
             the trainer's default rewards."
        ));
    }
    if let Some(reward) = &recipe.reward {
        let weights = reward.weights.iter().map(|(name, weight)| format!("{weight} × {name}"));
        let weights = weights.collect::<Vec<_>>().join(" + ").replace("+ -", "− ");
        notes.push(format!("The score is {weights}; conversations from {} are kept.", reward.threshold));
    }
    Ok(Report {
        title: recipe.name.clone(),
        subtitle: models,
        stages: products.stages.iter().map(stage).collect(),
        scores: Vec::new(),
        samples,
        exports: exports.iter().map(export).collect(),
        notes,
    })
}

fn export(export: &Export) -> ExportReport {
    ExportReport {
        file: export.format.file().to_owned(),
        trainer: export.format.trainer().to_owned(),
        rows: export.rows,
        left_out: export.left_out.len() as u64,
        why: export.left_out.first().map(|first| first.reason.to_string()).unwrap_or_default(),
    }
}

fn stage(summary: &StageSummary) -> StageReport {
    let mut rejects: Vec<RejectCount> = summary
        .rejects
        .iter()
        .map(|(reason, count)| RejectCount { reason: reason.clone(), count: *count })
        .collect();
    rejects.sort_by_key(|reject| std::cmp::Reverse(reject.count));
    StageReport {
        name: summary.stage.name().to_owned(),
        wanted: summary.wanted,
        taken: summary.taken,
        made: summary.made,
        rejects,
        requests: summary.requests,
        prompt_tokens: summary.prompt_tokens,
        completion_tokens: summary.completion_tokens,
        seconds: summary.seconds,
    }
}
