//! Everything that a server knows before it reads weights: model, tokenizer, memory plan, scheduler
//! configuration.

use std::sync::Arc;

use anyhow::Context;

use super::devices::{Devices, UsableMemory};
use super::draft::PreparedDraft;
use crate::config::{SchedulingArgs, ServeArgs};
use crate::device::KvDtype;
use crate::engine::{Recorder, SchedulerConfig};
use crate::model::{GenerationConfig, HeadDtype, ModelConfig, Precision, StepRoom};
use crate::runner::{MemoryNeeds, MemoryPlan};
use crate::server::validate::Defaults;
use crate::server::{Scoring, ServerStatus};
use crate::stdio::LogHandle;
use crate::text::{ChatTemplate, Tokenizer};

/// The inputs of [`super::start()`], and of the server above the engine.
pub(crate) struct Prepared {
    /// The operator's settings.
    pub(crate) config: ServeArgs,
    /// The architecture. Its longest sequence is limited to `--max-model-len`.
    pub(crate) model: ModelConfig,
    /// The draft model.
    pub(crate) draft: Option<PreparedDraft>,
    /// The ids that end a generation.
    pub(crate) eos: Vec<u32>,
    /// The model's own sampling defaults.
    pub(crate) defaults: Defaults,
    /// Number format of linear layers.
    pub(crate) precision: Precision,
    /// Element type of the KV cache.
    pub(crate) kv: KvDtype,
    /// Sizes of weights, workspace and KV cache.
    pub(crate) memory: MemoryPlan,
    /// Memory that the plan was made for.
    pub(crate) usable: UsableMemory,
    /// Receives the progress of the start.
    pub(crate) status: Arc<ServerStatus>,
    /// Shows the progress of the start, and counts lost lines of the log.
    pub(crate) log: LogHandle,
    /// The model's tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Records the scheduler's input, with `--record`.
    pub(crate) recorder: Option<Recorder>,
    /// The model's chat template.
    pub(crate) template: Option<ChatTemplate>,
    /// The values and weights of a model with a reward head.
    pub(crate) scoring: Option<Scoring>,
}

/// Reads everything but the weights, and plans the memory.
///
/// # Errors
/// A file that cannot be read, or a model that cannot be served or does not fit.
pub(crate) fn prepare(
    config: ServeArgs,
    devices: &Devices,
    status: Arc<ServerStatus>,
) -> anyhow::Result<Prepared> {
    let dir = &config.model.model;
    let (flag, config_dir) = match &config.simulation.simulate_config {
        Some(simulated) => ("--simulate-config", simulated),
        None => ("--model", dir),
    };
    let mut model = ModelConfig::from_dir(config_dir).context(flag)?;
    let scoring = scoring(&model, &config).context("--reward-weights")?;
    model.head_dtype = head_dtype(&model, &config).context("--lm-head-dtype")?;
    limit_length(&mut model, config.model.max_model_len)?;
    let (precision, kv) = (config.model.quantization, config.model.kv_dtype());
    let share = model.share(devices.ranks()).map_err(anyhow::Error::msg).context("--tensor-parallel-size")?;
    let scheduling = &config.scheduling;
    let room = StepRoom {
        ranks: devices.ranks(),
        rows: scheduling.max_num_batched_tokens,
        slots: scheduling.max_num_seqs,
        deterministic: config.device.deterministic,
        two_batch_tokens: config.device.two_batch_tokens,
    };
    let layout = devices.layout();
    let draft = PreparedDraft::new(&config, &model, &layout, &room).context("--speculate")?;
    let needs = MemoryNeeds::new(&share, &layout, precision, kv, &room);
    // Refuses early, before the tokenizer is read.
    let fraction = config.device.gpu_memory_utilization;
    plan_memory(needs, draft.as_ref(), &devices.memory(fraction)?, &model, scheduling)?;
    let generation = GenerationConfig::from_dir(dir)?;
    let (defaults, unused) = Defaults::of_model(&generation.sampling);
    for warning in model.warnings.iter().chain(&generation.warnings).chain(&unused) {
        tracing::warn!("{}: {warning}", dir.display());
    }
    let tokenizer = Arc::new(Tokenizer::from_dir(dir)?);
    let vocab = model.vocab.min(tokenizer.vocab_size());
    if let Some(draft) = &draft {
        draft.check_tokenizer(&tokenizer, dir, vocab).context("--speculate")?;
    }
    let eos = generation.eos_within(tokenizer.eos(), vocab)?;
    let template = ChatTemplate::from_dir(dir, &tokenizer)?;
    // Looks at the memory again, since tokenizer and template have taken theirs.
    let usable = devices.memory(fraction)?;
    let memory = plan_memory(needs, draft.as_ref(), &usable, &model, scheduling)?;
    let (recorder, log) = (None, LogHandle::default());
    Ok(Prepared {
        config,
        model,
        draft,
        eos,
        defaults,
        precision,
        kv,
        memory,
        usable,
        status,
        log,
        tokenizer,
        recorder,
        template,
        scoring,
    })
}

/// The element type of the model's LM head, if it is stored as floats.
///
/// # Errors
/// The operator chose one, and the model has no LM head.
fn head_dtype(model: &ModelConfig, config: &ServeArgs) -> anyhow::Result<HeadDtype> {
    let chosen = config.model.lm_head_dtype.is_some();
    anyhow::ensure!(!chosen || model.reward.is_none(), "expected a model with an LM head; this one scores");
    Ok(config.model.head_dtype())
}

/// The values of the model's reward head, with the operator's weights.
///
/// # Errors
/// The weights are not those of the head, or the model has no reward head.
fn scoring(model: &ModelConfig, config: &ServeArgs) -> anyhow::Result<Option<Scoring>> {
    let weights = &config.model.reward_weights;
    let Some(head) = &model.reward else {
        anyhow::ensure!(weights.is_empty(), "expected a model with a reward head; this one generates");
        return Ok(None);
    };
    let mut scoring = Scoring::new(&head.attributes);
    if !weights.is_empty() {
        scoring.set_weights(weights.iter().map(|weight| (weight.name.as_str(), weight.weight)))?;
    }
    Ok(Some(scoring))
}

/// Plans each rank's memory.
///
/// # Errors
/// The models do not fit; the error has both numbers and the limit that is in the way.
fn plan_memory(
    needs: MemoryNeeds,
    draft: Option<&PreparedDraft>,
    usable: &UsableMemory,
    model: &ModelConfig,
    scheduling: &SchedulingArgs,
) -> anyhow::Result<MemoryPlan> {
    let Some(draft) = draft else { return plan_memory_of(needs, usable, model, scheduling) };
    plan_memory_of(needs.beside(&draft.needs), usable, model, scheduling)
        .with_context(|| draft.shown_needs())
        .context("--speculate")
}

/// Plans each rank's memory, with these needs of all models.
fn plan_memory_of(
    needs: MemoryNeeds,
    usable: &UsableMemory,
    model: &ModelConfig,
    scheduling: &SchedulingArgs,
) -> anyhow::Result<MemoryPlan> {
    let kv_memory = scheduling.kv_cache_memory.map(|size| size.0);
    let (len, seqs) = (model.max_positions, scheduling.max_num_seqs);
    let plan = MemoryPlan::new(needs, usable.bytes, kv_memory, len, seqs);
    // If --kv-cache-memory is too small for one request, no limit of the machine is in the way.
    let plan = plan.map_err(|lack| match lack.have == usable.bytes {
        true => anyhow::anyhow!("{lack} ({})", usable.from),
        false => lack.into(),
    });
    plan.context("the model does not fit; lower --max-model-len, --max-num-seqs or --kv-cache-memory")
}

/// Applies `--max-model-len`.
///
/// # Errors
/// It exceeds the model's own limit.
pub(crate) fn limit_length(model: &mut ModelConfig, max_model_len: Option<usize>) -> anyhow::Result<()> {
    let limit = model.max_positions;
    let len = max_model_len.unwrap_or(limit);
    anyhow::ensure!(len <= limit, "--max-model-len: expected at most the model's {limit}, got {len}");
    model.max_positions = len;
    Ok(())
}

/// The scheduler's limits and policy.
pub(crate) fn scheduler_config(p: &Prepared) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: p.config.scheduling.max_num_seqs,
        max_num_batched_tokens: p.config.scheduling.max_num_batched_tokens,
        max_model_len: p.model.max_positions,
        num_blocks: p.memory.blocks,
        vocab_size: p.model.vocab.min(p.tokenizer.vocab_size()),
        max_queue_requests: p.config.admission.max_queue_requests,
        max_queue_tokens: p.config.admission.max_queue_tokens,
        prefix_caching: p.config.scheduling.enable_prefix_caching,
        reward_width: p.model.reward_width(),
        policy: p.config.scheduling.policy(),
        // A model with a reward head generates nothing.
        max_drafts: if p.model.reward.is_some() { 0 } else { p.config.speculation.max_drafts() },
        draft_model: p.draft.is_some(),
    }
}
