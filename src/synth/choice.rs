//! A limited number of prompts: a choice by the recipe's seed that is even over kinds and topics.
//!
//! Prompts are put in order: the kinds take turns, and within a kind its topics, keywords or documents take
//! turns, each with the prompt whose seed is lowest. The first ones of this order are chosen. The order
//! depends on ids and seed alone, so adding or removing one prompt changes few choices.

use std::collections::{BTreeMap, HashMap};

use super::records::{Prompt, PromptKind};

/// Whether each prompt is one of `most` chosen ones; `seed` is a number that stands for an id.
pub(super) fn chosen(prompts: &[Prompt], most: usize, seed: impl Fn(&str) -> u64) -> Vec<bool> {
    let mut kinds: BTreeMap<PromptKind, Vec<usize>> = BTreeMap::new();
    for (number, prompt) in prompts.iter().enumerate() {
        kinds.entry(prompt.kind).or_default().push(number);
    }
    let seeds: Vec<u64> = prompts.iter().map(|prompt| seed(&prompt.id)).collect();
    // Place within the kind, then the kind.
    let mut order = Vec::new();
    for (kind, mut numbers) in kinds {
        numbers.sort_by_key(|number| seeds[*number]);
        let mut turns: HashMap<&str, usize> = HashMap::new();
        let mut places = Vec::new();
        for number in numbers {
            let turn = turns.entry(subject(&prompts[number])).or_default();
            places.push((*turn, seeds[number], number));
            *turn += 1;
        }
        places.sort_unstable();
        order.extend(places.into_iter().enumerate().map(|(place, (_, _, number))| (place, kind, number)));
    }
    order.sort_unstable();
    let mut is_chosen = vec![false; prompts.len()];
    for (_, _, number) in order.into_iter().take(most) {
        is_chosen[number] = true;
    }
    is_chosen
}

/// The topic, keyword or document of a prompt: its id up to the part of the prompt. A prompt of a file has a
/// subject of its own.
fn subject(prompt: &Prompt) -> &str {
    let end = [".q", ".w"].iter().filter_map(|part| prompt.id.find(part)).min();
    &prompt.id[..end.unwrap_or(prompt.id.len())]
}
