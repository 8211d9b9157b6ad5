//! Prompts without duplicates and without texts of test sets.

use super::super::choice::chosen;
use super::super::decontaminate::TestSets;
use super::super::dedup::Deduplicator;
use super::super::error::SynthError;
use super::super::records::{Prompt, Reject, Stage};
use super::super::workers::Context;
use super::reject;

/// The prompts that are used.
pub(in super::super) fn selected(
    context: &Context<'_>,
    prompts: Vec<Prompt>,
) -> Result<Vec<Prompt>, SynthError> {
    let select = &context.recipe.select;
    let sets = match &select.decontaminate {
        Some(options) => Some(TestSets::read(options, &context.recipe_folder)?),
        None => None,
    };
    // The recipe's check has made one with the same settings.
    let mut kept = select.dedup.clone().and_then(|options| Deduplicator::new(options).ok());
    let taken = prompts.len();
    let (mut selected, mut rejects) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let rejected = |reason: &str, detail: Option<String>| Reject {
            detail,
            ..reject(&prompt.id, reason, Some(&prompt.prompt))
        };
        if let Some(found) = sets.as_ref().and_then(|sets| sets.find(&prompt.prompt)) {
            let detail = format!("{}:{}: {}", found.file, found.line, found.ngram);
            rejects.push(rejected("shares words with a test set", Some(detail)));
        } else if let Some(same) = kept.as_mut().and_then(|kept| kept.keep(&prompt.id, &prompt.prompt)) {
            let detail = format!("{} with similarity {:.3}", same.of, same.similarity);
            rejects.push(rejected("duplicate", Some(detail)));
        } else {
            selected.push(prompt);
        }
    }
    if let Some(most) = select.most {
        let is_chosen = chosen(&selected, most, |id| context.seed(&format!("select.most {id}")));
        let mut left_out = Vec::new();
        for (prompt, is_chosen) in std::mem::take(&mut selected).into_iter().zip(is_chosen) {
            let stays = if is_chosen { &mut selected } else { &mut left_out };
            stays.push(prompt);
        }
        let reason = "more than select.most";
        rejects.extend(left_out.iter().map(|prompt| reject(&prompt.id, reason, Some(&prompt.prompt))));
    }
    context.write_local(Stage::Selected, taken, selected, rejects)
}
