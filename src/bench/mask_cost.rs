//! The CPU time of the masks of constrained answers, and the cores that a simulated step leaves for them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::engine_overhead::{VOCAB, config, request};
use crate::config::{BenchHostArgs, ConstrainedBy};
use crate::cost::{CostModel, Hardware};
use crate::device::KvDtype;
use crate::engine::RequestId;
use crate::grammar::{Grammar, GrammarCompiler, GrammarSource, Vocabulary};
use crate::model::{ModelConfig, Precision};
use crate::random::Random;
use crate::request::{Request, SamplingParams};
use crate::scheduler::step_plan::{Row, SlotStart, StepPlan};
use crate::scheduler::{PlannedStep, Scheduler};
use crate::simulator::{SimulatedModel, SyntheticAnswers};
use crate::statistics::Distribution;
use crate::text::Tokenizer;

/// Ranks of the simulated model.
const RANKS: usize = 8;
/// GPUs of the simulated model.
const GPU: &str = "h100-80gb";
/// Tokens of each prompt.
const PROMPT: usize = 512;

/// An object as an application asks for it.
const SCHEMA: &str = r#"{"type":"object","properties":{
    "id":{"type":"string","format":"uuid"},"name":{"type":"string","maxLength":60},
    "kind":{"enum":["person","company","place"]},"score":{"type":"number","minimum":0,"maximum":1},
    "tags":{"type":"array","items":{"type":"string","maxLength":20},"maxItems":5},
    "address":{"type":"object","properties":{"street":{"type":"string"},"zip":{"type":"string",
        "pattern":"^[0-9]{5}$"}},"required":["street","zip"],"additionalProperties":false}},
    "required":["id","name","kind","score","tags","address"],"additionalProperties":false}"#;

/// The model, the grammar and the length of a measurement, whatever its number of rows.
pub(super) struct ConstrainedRows {
    cost: CostModel,
    answers: SyntheticAnswers,
    grammar: Arc<Grammar>,
    steps: u32,
    /// Ids whose bytes are synthetic: the tokenizer has fewer than the measured vocabulary.
    pub(super) synthetic: usize,
}

/// Figures of a number of rows. Times are means over the steps, in milliseconds, unless stated otherwise.
#[derive(Debug, Serialize)]
pub(super) struct MaskFigures {
    rows: usize,
    /// CPU time of the masks of a step.
    masks: f64,
    /// The 99th percentile of that.
    p99: f64,
    /// The modelled time of the step's decoding rows.
    step: f64,
    /// Cores that are busy with masks: `masks` divided by `step`.
    cores: f64,
}

impl ConstrainedRows {
    /// # Errors
    /// The model's directory has no tokenizer or no configuration that can be simulated.
    pub(super) fn new(args: &BenchHostArgs, by: ConstrainedBy) -> anyhow::Result<Self> {
        let source = match by {
            ConstrainedBy::Json => GrammarSource::json_object(),
            ConstrainedBy::Schema => GrammarSource::JsonSchema(SCHEMA.to_owned()),
        };
        let (vocabulary, synthetic) = vocabulary(&args.model)?;
        let (eos, special) = (vocabulary.eos.clone(), vocabulary.special.clone());
        let words = (0..VOCAB as u32).filter(|id| !special[*id as usize] && !eos.contains(id)).collect();
        let grammar = GrammarCompiler::new(vocabulary)?.compile(&source)?;
        let model = ModelConfig::from_dir(args.simulate_config.as_ref().unwrap_or(&args.model))?;
        let hardware = Hardware::named(GPU).context(GPU)?;
        let cost = CostModel::new(&model, RANKS, Precision::Fp8, KvDtype::Fp8, hardware)?;
        let answers = SyntheticAnswers::new(words, eos, 1e9, VOCAB)?;
        Ok(Self { cost, answers, grammar, steps: args.tokens, synthetic })
    }

    /// Measures steps of `rows` decoding rows. Answers that end are followed by others.
    ///
    /// # Errors
    /// The scheduler fails.
    pub(super) fn measure(&self, rows: usize) -> anyhow::Result<MaskFigures> {
        let mut model = SimulatedModel::new(self.cost.clone(), self.answers.clone());
        let mut scheduler = Scheduler::new(config(rows, PROMPT, rows));
        let mut slots: Vec<Option<Arc<SlotStart>>> = vec![None; rows];
        let mut ids = 0..;
        let mut submit = |scheduler: &mut Scheduler, count: usize| {
            for id in ids.by_ref().take(count) {
                let group = vec![(RequestId(id as u64), self.request(id))];
                scheduler.submit(group).map_err(|_| anyhow::anyhow!("the queue is full"))?;
            }
            anyhow::Ok(())
        };
        submit(&mut scheduler, rows)?;
        let (mut times, mut modelled) = (Vec::new(), 0.0);
        while times.len() < self.steps as usize {
            let PlannedStep { plan, rows: planned } = scheduler.plan(None).context("a request waits")?;
            for row in plan.rows.iter().filter(|row| row.start.is_some()) {
                slots[row.slot as usize].clone_from(&row.start);
            }
            let began = cpu_ms();
            plan.rows.iter().filter(|row| row.sample).for_each(|row| compute(row, &slots));
            let took = cpu_ms() - began;
            // The model finds the masks computed.
            let (output, _) = model.step(&plan);
            let decodes: Vec<Row> = plan.rows.iter().filter(|row| row.start.is_none()).cloned().collect();
            // Rows that begin are prompts, without which the device would be faster.
            if plan.rows.len() == rows && decodes.len() * 2 >= rows {
                times.push(took);
                modelled += model.predict(&StepPlan { id: plan.id, rows: decodes }).total() * 1e3;
            }
            let updates = scheduler.commit(planned, output)?;
            submit(&mut scheduler, updates.iter().filter(|(_, update)| update.finish.is_some()).count())?;
        }
        let steps = times.len() as f64;
        let (masks, step) = (times.iter().sum::<f64>() / steps, modelled / steps);
        Ok(MaskFigures { rows, masks, p99: Distribution::of(times).p99, step, cores: masks / step })
    }

    /// A request with the grammar and with a seed of its own.
    fn request(&self, id: usize) -> Request {
        let request = request(id, PROMPT, 2 * self.steps);
        let (grammar, seed) = (Some(Arc::clone(&self.grammar)), id as u64);
        let sampling = SamplingParams { grammar, seed, ..SamplingParams::clone(&request.sampling) };
        Request { sampling: Arc::new(sampling), ..request }
    }
}

/// Computes the mask of a row's next token.
fn compute(row: &Row, slots: &[Option<Arc<SlotStart>>]) {
    if let Some(start) = &slots[row.slot as usize] {
        let index = row.position as usize + row.tokens.len() - start.prompt_len;
        std::hint::black_box(start.grammar.as_ref().and_then(|grammar| grammar.mask(index)));
    }
}

impl std::fmt::Display for MaskFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, masks, p99, step, cores } = self;
        write!(f, "{rows:>8} {masks:>10.2} {p99:>10.2} {step:>10.2} {cores:>8.2}")
    }
}

/// The tokenizer's tokens, and pairs of them up to [`VOCAB`]; and the number of these pairs.
fn vocabulary(model: &Path) -> anyhow::Result<(Vocabulary, usize)> {
    let tokenizer = Tokenizer::from_dir(model)?;
    let ids = 0..tokenizer.vocab_size().min(VOCAB) as u32;
    let mut tokens: Vec<Vec<u8>> = ids.clone().map(|id| tokenizer.token_bytes(id)).collect();
    let mut special: Vec<bool> = ids.map(|id| tokenizer.is_special(id)).collect();
    let known = tokens.len();
    let plain: Vec<Vec<u8>> = tokens
        .iter()
        .zip(&special)
        .filter(|(_, special)| !**special)
        .map(|(bytes, _)| bytes.clone())
        .collect();
    let mut seen: HashSet<Vec<u8>> = tokens.iter().cloned().collect();
    let mut random = Random::new(1);
    let mut any = || plain[random.bits() as usize % plain.len()].as_slice();
    while tokens.len() < VOCAB {
        let pair = [any(), any()].concat();
        if seen.insert(pair.clone()) {
            tokens.push(pair);
            special.push(false);
        }
    }
    let eos = tokenizer.eos().into_iter().collect();
    Ok((Vocabulary { tokens, special, eos }, VOCAB - known))
}

/// CPU time of this thread in milliseconds.
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}
