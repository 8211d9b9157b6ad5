//! Rows of NeMo-Aligner: chat SFT, SteerLM and DPO with rewards, as its user guide names the fields.

use serde_json::{Value, json};

use super::{Dialogue, Preference, Rating, Rows, Turn, Unfit};

/// Attributes of SteerLM's labels, in the order of the reward head with nine values.
const ATTRIBUTES: [&str; 9] = [
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
];

/// Largest label of an attribute.
const MAX_LABEL: f64 = 4.0;

/// Every marker of the Nemotron-4 template begins like this.
const MARKER: &str = "<extra_id_";

/// NeMo-Aligner's rewards of a pair whose row has none.
const DEFAULT_REWARDS: [f64; 2] = [1.0, 0.0];

/// A conversation without labels; the loss leaves out the turns of `mask`.
pub(super) fn sft(dialogue: &Dialogue) -> Rows {
    without_markers(dialogue.turns.iter().map(|turn| &turn.content))?;
    Ok(vec![row(dialogue, &Value::Null, |_| None)])
}

/// A conversation whose assistant turns have attribute labels: the reward head's values, rounded and clamped
/// to 0 to 4. Turns without values have no label.
pub(super) fn steerlm(dialogue: &Dialogue) -> Rows {
    without_markers(dialogue.turns.iter().map(|turn| &turn.content))?;
    let label_of = |number: usize| label(dialogue.ratings.get(number)?);
    if (0..dialogue.ratings.len()).all(|number| label_of(number).is_none()) {
        return Err(Unfit::NoRatings);
    }
    Ok(vec![row(dialogue, &json!("VALUE_TO_TEXT"), label_of)])
}

/// `prompt` and responses as strings in the Nemotron-4 template, with the rewards that RPO compares. Where
/// the scores do not rank the responses like the pair does, the rewards are NeMo-Aligner's defaults, 1 and 0:
/// RPO would otherwise learn the reverse.
pub(super) fn dpo(preference: &Preference) -> Rows {
    let responses = [&preference.chosen, &preference.rejected];
    without_markers(preference.prompt.iter().map(|turn| &turn.content).chain(responses))?;
    let scores = preference.agreeing_scores();
    let [chosen_reward, rejected_reward] =
        scores.map_or(DEFAULT_REWARDS, |scores| [scores.chosen, scores.rejected]);
    Ok(vec![json!({
        "prompt": templated(&preference.prompt),
        "chosen_response": response(&preference.chosen),
        "rejected_response": response(&preference.rejected),
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
    })])
}

/// Checks that no text has a marker: the trainer would see a turn begin or end there.
fn without_markers<'a>(mut texts: impl Iterator<Item = &'a String>) -> Result<(), Unfit> {
    if texts.any(|text| text.contains(MARKER)) { Err(Unfit::Marker(MARKER)) } else { Ok(()) }
}

/// A row of the chat data set; `label_of` has the labels by number of the assistant's turn.
fn row(dialogue: &Dialogue, kind: &Value, label_of: impl Fn(usize) -> Option<String>) -> Value {
    let (system, turns) = split_system(&dialogue.turns);
    let mut answers = 0;
    let mut conversations = Vec::with_capacity(turns.len());
    for turn in turns {
        let is_answer = turn.role == "assistant";
        let label = if is_answer { label_of(answers) } else { None };
        answers += usize::from(is_answer);
        let from = if is_answer { "Assistant" } else { "User" };
        conversations.push(json!({ "from": from, "value": turn.content, "label": label }));
    }
    json!({ "system": system, "mask": "User", "type": kind, "conversations": conversations })
}

/// The label of a turn: `helpfulness:4,correctness:3`, in the order of [`ATTRIBUTES`]. Only SteerLM's
/// attributes count: the one value of a head one wide has another scale.
fn label(ratings: &[Rating]) -> Option<String> {
    let value_of =
        |name: &&str| ratings.iter().find(|rating| rating.name == **name).map(|rating| rating.value);
    let known = ATTRIBUTES.iter().filter_map(|name| Some((name, value_of(name)?)));
    let known = known.filter(|(_, value)| value.is_finite());
    let labels: Vec<String> =
        known.map(|(name, value)| format!("{name}:{}", value.round().clamp(0.0, MAX_LABEL) as u8)).collect();
    (!labels.is_empty()).then(|| labels.join(","))
}

fn split_system(turns: &[Turn]) -> (&str, &[Turn]) {
    match turns {
        [system, rest @ ..] if system.role == "system" => (&system.content, rest),
        _ => ("", turns),
    }
}

/// The prompt as the Nemotron-4 template has it, up to the marker of the response.
fn templated(prompt: &[Turn]) -> String {
    let (system, turns) = split_system(prompt);
    let mut out = format!("<extra_id_0>System\n{system}\n");
    for turn in turns {
        let side = if turn.role == "assistant" { "Assistant" } else { "User" };
        out.push_str(&format!("<extra_id_1>{side}\n{}\n", turn.content));
    }
    out.push_str("<extra_id_1>Assistant\n");
    out
}

/// A response with the marker that ends it.
fn response(text: &str) -> String {
    format!("{text}\n<extra_id_1>")
}
