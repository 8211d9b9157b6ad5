//! Rows of TRL: conversational data sets, as "Dataset formats and types" of its documentation names them.

use serde_json::{Value, json};

use super::{Dialogue, Preference, Rows, Turn};

/// `messages`: the loss is on the assistant's turns if the trainer's `assistant_only_loss` says so.
pub(super) fn sft(dialogue: &Dialogue) -> Rows {
    Ok(vec![json!({ "messages": dialogue.turns })])
}

/// `prompt`, `chosen`, `rejected`: lists of messages; the responses are one assistant message each.
pub(super) fn preference(preference: &Preference) -> Rows {
    Ok(vec![json!({
        "prompt": preference.prompt,
        "chosen": [assistant(&preference.chosen)],
        "rejected": [assistant(&preference.rejected)],
    })])
}

/// `chosen` and `rejected`: whole conversations, and the `margin` that the reward model's loss subtracts. It
/// is 0 where the scores do not rank the responses like the pair does: a negative margin would ask for less
/// than no difference.
pub(super) fn preference_implicit(preference: &Preference) -> Rows {
    let margin = preference.agreeing_scores().map_or(0.0, |scores| scores.chosen - scores.rejected);
    Ok(vec![json!({
        "chosen": conversation(&preference.prompt, &preference.chosen),
        "rejected": conversation(&preference.prompt, &preference.rejected),
        "margin": margin,
    })])
}

/// `prompt`, `completion`, `label`: two rows for each pair.
pub(super) fn kto(preference: &Preference) -> Rows {
    let row = |response: &str, label: bool| {
        let completion = [assistant(response)];
        json!({ "prompt": preference.prompt, "completion": completion, "label": label })
    };
    Ok(vec![row(&preference.chosen, true), row(&preference.rejected, false)])
}

/// A response as a message.
pub(super) fn assistant(content: &str) -> Value {
    json!({ "role": "assistant", "content": content })
}

fn conversation(prompt: &[Turn], response: &str) -> Value {
    let mut turns: Vec<Value> = prompt.iter().map(|turn| json!(turn)).collect();
    turns.push(assistant(response));
    Value::Array(turns)
}
