//! The table and the JSON form of the scores.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::prompts::Prompt;
use super::score::Outcome;
use crate::eval::table::{Table, percent};

/// Counts of followed rules.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    all: usize,
    strict: usize,
    loose: usize,
}

impl Count {
    fn add(&mut self, strict: bool, loose: bool) {
        self.all += 1;
        self.strict += usize::from(strict);
        self.loose += usize::from(loose);
    }

    fn shares(self) -> [f64; 2] {
        [self.strict, self.loose].map(|count| count as f64 / self.all.max(1) as f64)
    }

    fn row(self, name: &str) -> Vec<String> {
        let [strict, loose] = self.shares();
        vec![name.to_owned(), self.all.to_string(), percent(strict), percent(loose)]
    }

    fn json(self) -> Value {
        let [strict, loose] = self.shares();
        json!({ "count": self.all, "strict_acc": strict, "loose_acc": loose })
    }
}

/// The table and the JSON form.
pub(super) fn report(
    prompts: &[Prompt],
    answers: &[Option<&str>],
    outcomes: &[Outcome],
    notes: &[String],
) -> (String, Value) {
    let (mut by_prompt, mut by_rule) = (Count::default(), Count::default());
    let mut rules: BTreeMap<&str, Count> = BTreeMap::new();
    for (prompt, outcome) in prompts.iter().zip(outcomes) {
        let followed = |values: &[bool]| values.iter().all(|value| *value);
        by_prompt.add(followed(&outcome.strict), followed(&outcome.loose));
        for ((rule, strict), loose) in prompt.rules.iter().zip(&outcome.strict).zip(&outcome.loose) {
            by_rule.add(*strict, *loose);
            rules.entry(rule.id).or_default().add(*strict, *loose);
        }
    }
    let mut table = Table::new(&["rule", "count", "strict %", "loose %"]);
    for (id, count) in &rules {
        table.row(count.row(id));
    }
    table.row(by_rule.row("all rules (instruction level)"));
    table.row(by_prompt.row("all prompts (prompt level)"));
    let mut text = table.text();
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    let [prompt_strict, prompt_loose] = by_prompt.shares();
    let [rule_strict, rule_loose] = by_rule.shares();
    let rules: Map<String, Value> =
        rules.iter().map(|(id, count)| ((*id).to_owned(), count.json())).collect();
    let rows = prompts.iter().zip(answers).zip(outcomes);
    let rows: Vec<Value> = rows.map(|((prompt, answer), outcome)| row(prompt, *answer, outcome)).collect();
    let json = json!({
        "benchmark": "ifeval",
        "prompt_level_strict_acc": prompt_strict,
        "inst_level_strict_acc": rule_strict,
        "prompt_level_loose_acc": prompt_loose,
        "inst_level_loose_acc": rule_loose,
        "prompts": by_prompt.all,
        "instructions": by_rule.all,
        "rules": rules,
        "notes": notes,
        "rows": rows,
    });
    (text, json)
}

fn row(prompt: &Prompt, answer: Option<&str>, outcome: &Outcome) -> Value {
    json!({
        "key": prompt.id,
        "prompt": prompt.text,
        "response": answer,
        "instruction_id_list": prompt.rules.iter().map(|rule| rule.id).collect::<Vec<_>>(),
        "follow_instruction_list_strict": outcome.strict,
        "follow_instruction_list_loose": outcome.loose,
    })
}
