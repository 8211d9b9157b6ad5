//! The inputs of the cost model: from a server's settings, from a recording, or from the arguments of a
//! simulation.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use super::prepared::Prepared;
use super::simulated::SimulatedGpus;
use crate::config::{SimulationArgs, Speculate};
use crate::cost::{CostModel, Hardware, RowShape};
use crate::device::KvDtype;
use crate::engine::{Forecast, SchedulerConfig};
use crate::model::{HeadDtype, ModelConfig, Precision};
use crate::scheduler::{ContextTime, StepTime, StepTimes};
use crate::simulator::SimulatedDraftModel;

/// A model on GPUs, whose step times are to be predicted. A recording stores the same as text.
pub(crate) struct CostInputs {
    /// The whole model, not one rank's share.
    pub(crate) model: ModelConfig,
    /// The whole draft model, if there is one.
    pub(crate) draft: Option<ModelConfig>,
    /// Description of one GPU.
    pub(crate) hardware: Hardware,
    /// Number of GPUs.
    pub(crate) ranks: usize,
    /// Number format of linear layers.
    pub(crate) precision: Precision,
    /// Element type of the KV cache.
    pub(crate) kv: KvDtype,
    /// Deterministic products, without cuBLASLt.
    pub(crate) deterministic: bool,
    /// Tokens from which a step is computed as two batches, if any is.
    pub(crate) two_batch_tokens: Option<usize>,
}

/// Arguments that override a recording or the defaults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// Directory of the model's config.json.
    pub(crate) config: Option<PathBuf>,
    /// Source of drafts.
    pub(crate) speculate: Option<Speculate>,
    /// Name or file of the GPU.
    pub(crate) gpu: Option<String>,
    /// Number of GPUs.
    pub(crate) ranks: Option<usize>,
    /// Number format of linear layers.
    pub(crate) precision: Option<Precision>,
    /// Element type of the LM head.
    pub(crate) head: Option<HeadDtype>,
    /// Element type of the KV cache.
    pub(crate) kv: Option<KvDtype>,
    /// Deterministic products.
    pub(crate) deterministic: Option<bool>,
    /// Tokens from which a step is computed as two batches.
    pub(crate) two_batch_tokens: Option<usize>,
}

impl CostInputs {
    /// The inputs of a simulating server.
    pub(crate) fn of_server(gpus: &SimulatedGpus, p: &Prepared) -> Self {
        Self {
            model: p.model.clone(),
            draft: p.draft.as_ref().map(|draft| draft.model.clone()),
            hardware: gpus.hardware.clone(),
            ranks: gpus.ranks,
            precision: p.precision,
            kv: p.kv,
            deterministic: p.config.device.deterministic,
            two_batch_tokens: p.config.device.two_batch_tokens,
        }
    }

    /// Takes each input from the arguments, else from the recording's header, else the default: 8 H100s in
    /// FP8, deterministic. The model has no default.
    pub(crate) fn new(args: &Overrides, recorded: Option<&[(String, String)]>) -> anyhow::Result<Self> {
        let field = |name: &str| recorded.and_then(|fields| find(fields, name));
        let mut model = match (&args.config, field("config")) {
            (Some(dir), _) => ModelConfig::from_dir(dir)?,
            (None, Some(text)) => ModelConfig::from_text(text).context("of the recording")?,
            (None, None) => anyhow::bail!("--config: missing; expected a directory"),
        };
        let gpu = args.gpu.as_deref().or(field("gpu")).unwrap_or(Hardware::H100);
        let ranks = match field("ranks") {
            Some(text) => text.parse().with_context(|| format!("the recording's ranks: {text}"))?,
            None => SimulationArgs::RANKS,
        };
        let hardware = Hardware::named(gpu).map_err(anyhow::Error::msg).context("--gpu")?;
        let deterministic =
            field("deterministic").map_or(SimulationArgs::DETERMINISTIC, |value| value == "true");
        let two_batch_tokens = match field("two_batch_tokens") {
            Some(text) => {
                Some(text.parse().with_context(|| format!("the recording's two_batch_tokens: {text}"))?)
            }
            None => None,
        };
        let precision =
            args.precision.map_or_else(|| parsed(field("precision"), SimulationArgs::PRECISION), Ok)?;
        // Recordings of earlier versions have no element type of the head, which was BF16.
        let head = if recorded.is_some() { HeadDtype::Bf16 } else { HeadDtype::beside(precision) };
        model.head_dtype = args.head.map_or_else(|| parsed(field("lm_head_dtype"), head), Ok)?;
        let ranks = args.ranks.unwrap_or(ranks);
        let deterministic = args.deterministic.unwrap_or(deterministic);
        let draft = match (&args.speculate, field("draft_config")) {
            (Some(Speculate::Draft(dir)), _) => Some(ModelConfig::from_dir(dir).context("--speculate")?),
            (None, Some(text)) => {
                Some(ModelConfig::from_text(text).context("of the recording's draft model")?)
            }
            _ => None,
        };
        let draft = draft.map(|draft| draft.drafting_for(&model));
        Ok(Self {
            model,
            draft,
            hardware,
            ranks,
            precision,
            kv: args.kv.map_or_else(|| parsed(field("kv"), SimulationArgs::KV), Ok)?,
            deterministic,
            // A recorded setting does not hold for other ranks or products that have no two batches.
            two_batch_tokens: args
                .two_batch_tokens
                .or(two_batch_tokens)
                .filter(|_| ranks > 1 && deterministic),
        })
    }

    /// The cost model of one step.
    pub(crate) fn cost(&self) -> anyhow::Result<CostModel> {
        let cost = self.cost_of(&self.model)?;
        let cost = if self.deterministic { cost } else { cost.with_library() };
        Ok(cost.with_two_batches(self.two_batch_tokens))
    }

    /// The draft model, of whose drafts this share is accepted.
    pub(crate) fn draft_model(&self, acceptance: f64) -> anyhow::Result<Option<SimulatedDraftModel>> {
        let cost = self.draft.as_ref().map(|draft| self.cost_of(draft)).transpose()?;
        Ok(cost.map(|cost| SimulatedDraftModel { cost, acceptance }))
    }

    fn cost_of(&self, model: &ModelConfig) -> anyhow::Result<CostModel> {
        CostModel::new(model, self.ranks, self.precision, self.kv, self.hardware.clone())
            .map_err(anyhow::Error::msg)
            .context("the number of ranks")
    }
}

/// Predicted lengths of steps with 1 token, half of the maximum and the maximum, in seconds times `pace`.
pub(crate) fn forecast(cost: &CostModel, config: &SchedulerConfig, pace: f64) -> Forecast {
    let most = config.max_num_batched_tokens.max(2);
    let step = |tokens: usize| {
        let row = RowShape { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), position: 0, logits: 1 };
        (tokens, cost.step([row]).total() * pace)
    };
    Forecast::new(&[1, most / 2, most].map(step))
}

/// Predicted times of steps of few rows and of a draft model's passes, by which drafts are chosen.
pub(crate) fn step_times(
    cost: &CostModel,
    draft: Option<&SimulatedDraftModel>,
    config: &SchedulerConfig,
) -> StepTimes {
    let step = |rows: usize, position: u32| {
        let count = u32::try_from(rows).unwrap_or(u32::MAX);
        let row = RowShape { tokens: count, position, logits: count };
        StepTime { rows, seconds: cost.step([row]).total() }
    };
    let short = StepTimes::rows_to_measure(config.max_num_batched_tokens).map(|rows| step(rows, 0));
    let context: u32 = 2048;
    let long = |rows: usize| ContextTime { context: context as usize, time: step(rows, context) };
    let pass = |draft: &SimulatedDraftModel, sequences: usize| {
        let row = RowShape { tokens: 1, position: 0, logits: 1 };
        let seconds = draft.cost.step(std::iter::repeat_n(row, sequences)).total();
        StepTime { rows: sequences, seconds }
    };
    let passes = |draft: &SimulatedDraftModel| {
        StepTimes::rows_to_measure(config.max_num_batched_tokens).map(|rows| pass(draft, rows)).collect()
    };
    StepTimes::new(short.collect())
        .with_context(StepTimes::WITH_CONTEXT.map(long))
        .with_draft_model(draft.map(passes).unwrap_or_default())
}

/// A recorded number format.
fn parsed<T: ValueEnum>(text: Option<&str>, default: T) -> anyhow::Result<T> {
    let Some(text) = text else { return Ok(default) };
    T::from_str(text, false)
        .map_err(|_| anyhow::anyhow!("the recording has the number format `{text}`, which is unknown"))
}

fn find<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
