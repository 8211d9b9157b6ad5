//! The memory plan and the predicted step times of `octant plan`.

use anyhow::Context;
use serde::Serialize;

use crate::config::{PlanArgs, TwoBatches, name};
use crate::cost::{CostModel, Figure, Hardware, RowShape, StepTime, TermOrigin};
use crate::device::{BLOCK_TOKENS, KvDtype, Layout};
use crate::launch::prepared::limit_length;
use crate::model::{HeadDtype, ModelConfig, StepRoom};
use crate::runner::{GRAPH_LAUNCH_BYTES, MemoryNeeds, MemoryPlan, WeightBytes, graph_rows, token_bytes};

/// The plan. Sizes are in bytes, times in seconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Architecture class of the model.
    pub(super) architecture: &'static str,
    /// Parameters of the whole model.
    pub(super) parameters: u64,
    /// Name of the GPU.
    pub(super) gpu: String,
    /// GPUs that share the model. The figures below are for one of them.
    pub(super) tp: usize,
    /// `fp8` or `none`.
    pub(super) quantization: String,
    /// Element type of an LM head that is stored as floats: `fp8` or `bf16`.
    pub(super) lm_head_dtype: String,
    /// Maximum tokens of a sequence.
    pub(super) max_model_len: usize,
    /// Maximum sequences that run at once.
    pub(super) max_num_seqs: usize,
    /// Maximum tokens per step.
    pub(super) max_num_batched_tokens: usize,
    /// Whether products are deterministic.
    pub(super) deterministic: bool,
    /// Tokens from which a step is computed as two batches, if any is.
    pub(super) two_batch_tokens: Option<usize>,
    /// All parts of the memory plan except the KV cache.
    pub(super) memory: Vec<Line>,
    /// Bytes that a server may use.
    pub(super) available: u64,
    /// The figures that times are predicted from, with their sources.
    pub(super) figures: Vec<Figure>,
    /// The weakest source of each term of a step's time.
    pub(super) origins: Vec<TermOrigin>,
    /// The plan of each element type of the KV cache.
    pub(super) kv: Vec<Kv>,
}

/// A part of the memory plan.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    /// Name of the part.
    pub(super) name: &'static str,
    /// Size.
    pub(super) bytes: u64,
    /// Whether the size is an estimate rather than the exact allocation.
    pub(super) estimate: bool,
    /// Explanation of how the size is computed.
    pub(super) from: String,
}

/// The plan of a KV cache with one element type.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Kv {
    /// `fp8` or `bf16`.
    pub(super) dtype: String,
    /// Bytes of keys and values of one token.
    pub(super) token_bytes: u64,
    /// Bytes of a block of 64 tokens, with padding and attention's scratch.
    pub(super) block_bytes: u64,
    /// Bytes of scratch memory of the operations, with a spare block.
    pub(super) scratch: u64,
    /// Bytes that are missing for one full-length request; 0 if the request fits.
    pub(super) short_by: u64,
    /// Blocks that fit.
    pub(super) blocks: u64,
    /// Bytes of these blocks.
    pub(super) bytes: u64,
    /// Tokens in these blocks.
    pub(super) tokens: u64,
    /// Full-length requests in these blocks.
    pub(super) requests: u64,
    /// Blocks that the server allocates: at most those of `max_num_seqs` full-length requests.
    pub(super) server_blocks: u64,
    /// Predicted decode steps.
    pub(super) decode: Vec<Decode>,
    /// Predicted prefills.
    pub(super) prefill: Vec<Prefill>,
}

/// A predicted decode step: every sequence generates one token.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Decode {
    /// Sequences in the step.
    pub(super) batch: usize,
    /// Tokens of each sequence before the step.
    pub(super) context: usize,
    /// Whether the cache holds these sequences.
    pub(super) fits: bool,
    /// Length of the step.
    pub(super) seconds: f64,
    /// Generated tokens per second of all sequences.
    pub(super) tokens_per_second: f64,
    /// The resource that bounds the step.
    pub(super) bound: &'static str,
    /// Time of each term.
    pub(super) terms: StepTime,
}

/// A predicted prefill of one prompt while nothing else runs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Prefill {
    /// Tokens of the prompt.
    pub(super) tokens: usize,
    /// Steps, of at most `max_num_batched_tokens` tokens each.
    pub(super) steps: usize,
    /// Time to the first token.
    pub(super) seconds: f64,
    /// Prompt tokens per second.
    pub(super) tokens_per_second: f64,
    /// The resource that bounds most of the time.
    pub(super) bound: &'static str,
    /// Time of each term, summed over the steps.
    pub(super) terms: StepTime,
}

/// Computes the plan.
///
/// # Errors
/// An argument is invalid, and the error names its flag; or a file cannot be read.
pub(super) fn report(args: &PlanArgs) -> anyhow::Result<Report> {
    let mut model = ModelConfig::from_dir(&args.config)?;
    let mut hardware = Hardware::named(&args.gpu).map_err(|e| anyhow::anyhow!("--gpu: {e}"))?;
    hardware.usable = args.gpu_memory_utilization.unwrap_or(hardware.usable);
    limit_length(&mut model, args.max_model_len)?;
    model.head_dtype = args.lm_head_dtype.unwrap_or(HeadDtype::beside(args.quantization));
    let share = model.share(args.tp).map_err(|e| anyhow::anyhow!("--tp: {e}"))?;
    let most = args.max_num_batched_tokens;
    if let Some(tokens) = args.two_batch_tokens {
        let two_batches = TwoBatches {
            tokens,
            ranks: args.tp,
            ranks_option: "--tp",
            deterministic: args.deterministic,
            max_num_batched_tokens: most,
        };
        two_batches.check().map_err(|e| anyhow::anyhow!("{}: {e}", TwoBatches::OPTION))?;
    }
    let precision = args.quantization;
    let draft = draft(args, &model)?;
    let lists = Lists::new(args, model.max_positions)?;
    let kv = [KvDtype::Fp8, KvDtype::Bf16].map(|kv| {
        let cost = CostModel::new(&model, args.tp, precision, kv, hardware.clone())
            .map_err(|e| anyhow::anyhow!("--tp: {e}"))?;
        let cost = if args.deterministic { cost } else { cost.with_library() };
        let cost = cost.with_two_batches(args.two_batch_tokens);
        let needs = needs(args, &share, draft.as_ref(), kv);
        let available = hardware.available();
        let draft_token = draft.as_ref().map_or(0, |draft| token_bytes(draft, kv));
        let token_bytes = token_bytes(&share, kv) + draft_token;
        Ok(Inputs { args, share: &share, kv, token_bytes, needs, cost, available, lists: &lists }.cache())
    });
    Ok(Report {
        architecture: model.architecture,
        parameters: model.parameters(),
        gpu: hardware.name.clone(),
        tp: args.tp,
        quantization: name(&precision),
        lm_head_dtype: name(&model.head_dtype),
        max_model_len: model.max_positions,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        deterministic: args.deterministic,
        two_batch_tokens: args.two_batch_tokens,
        memory: memory(args, &share, draft.as_ref(), &hardware),
        available: hardware.available(),
        figures: hardware.figures(),
        origins: hardware.term_origins(),
        kv: kv.into_iter().collect::<anyhow::Result<_>>()?,
    })
}

/// One rank's share of the draft model.
fn draft(args: &PlanArgs, model: &ModelConfig) -> anyhow::Result<Option<ModelConfig>> {
    let Some(dir) = args.speculate.draft_model() else { return Ok(None) };
    let draft = ModelConfig::from_dir(dir).context("--speculate")?.drafting_for(model);
    Ok(Some(draft.share(args.tp).map_err(|e| anyhow::anyhow!("--speculate: {e}"))?))
}

/// The memory that a GPU needs for its share of the model and of the draft model.
fn needs(args: &PlanArgs, share: &ModelConfig, draft: Option<&ModelConfig>, kv: KvDtype) -> MemoryNeeds {
    let room = room(args);
    let needs = MemoryNeeds::new(share, &Layout::CUDA, args.quantization, kv, &room);
    let Some(draft) = draft else { return needs };
    needs.beside(&MemoryNeeds::of_draft(draft, &Layout::CUDA, args.quantization, kv, &room))
}

/// Lengths for which steps are predicted.
struct Lists {
    contexts: Vec<usize>,
    prompts: Vec<usize>,
}

impl Lists {
    /// The given lengths, or the default ones up to the longest sequence.
    fn new(args: &PlanArgs, longest: usize) -> anyhow::Result<Self> {
        let list = |flag: &str, given: &Option<Vec<usize>>, usual: [usize; 3], most: usize| {
            let Some(given) = given else {
                return Ok(usual.into_iter().filter(|tokens| *tokens <= most).collect());
            };
            match given.iter().find(|tokens| **tokens > most) {
                Some(got) => {
                    anyhow::bail!(
                        "{flag}: expected at most {most}, as the longest sequence allows, got {got}"
                    )
                }
                None => Ok(given.clone()),
            }
        };
        Ok(Self {
            // The step adds one token to the context.
            contexts: list("--context", &args.context, [512, 2048, 3500], longest.saturating_sub(1))?,
            prompts: list("--prefill", &args.prefill, [512, 2048, 4096], longest)?,
        })
    }
}

fn room(args: &PlanArgs) -> StepRoom {
    StepRoom {
        ranks: args.tp,
        rows: args.max_num_batched_tokens,
        slots: args.max_num_seqs,
        deterministic: args.deterministic,
        two_batch_tokens: args.two_batch_tokens,
    }
}

/// The parts of the memory plan that do not depend on the element type of the KV cache.
fn memory(
    args: &PlanArgs,
    share: &ModelConfig,
    draft: Option<&ModelConfig>,
    hardware: &Hardware,
) -> Vec<Line> {
    let weights = WeightBytes::new(share, &Layout::CUDA, args.quantization);
    let needs = needs(args, share, draft, KvDtype::Fp8);
    let layers = weights.layers;
    let line = |name, bytes, from: String| Line { name, bytes, estimate: false, from };
    let product = |name, index: usize| {
        let (out, input) = share.linear_shapes()[index];
        line(name, layers * weights.products[index], format!("{layers} layers × [{out}, {input}]"))
    };
    let table = format!("BF16 [{}, {}]", share.vocab, share.hidden);
    let head = match (&share.reward, weights.head) {
        (Some(head), _) => format!("F32 [{}, {}] and a bias, whole on every GPU", head.width, share.hidden),
        (None, 0) => "the embedding".to_owned(),
        (None, _) if share.head_dtype == HeadDtype::Fp8 => {
            format!("E4M3 [{}, {}] and its scales", share.vocab, share.hidden)
        }
        (None, _) => table.clone(),
    };
    let recorded = graph_rows(args.max_num_seqs.min(args.max_num_batched_tokens)).count();
    let launches = Layout::CUDA.graph_launches;
    let layers_of_both = layers + draft.map_or(0, |draft| draft.layers as u64);
    let graphs = format!(
        "{recorded} steps × {layers_of_both} layers × {launches} launches × {GRAPH_LAUNCH_BYTES} bytes"
    );
    let rest = hardware.memory - hardware.context - hardware.available();
    let draft_weights = needs.weights - weights.total();
    let draft = draft.map(|draft| format!("{} layers of {}", draft.layers, draft.hidden));
    let draft = draft.map(|from| line("draft model", draft_weights, from));
    let lines = [
        product("QKV", 0),
        product("attention output", 1),
        product("MLP up", 2),
        product("MLP down", 3),
        line("scales", layers * weights.scales, "F32, one for each output of E4M3".to_owned()),
        line("embedding", weights.embedding, table),
        line("head", weights.head, head),
        line("norms", weights.norms, "F32, whole on every GPU".to_owned()),
    ];
    let sums = [
        line("weights", needs.weights, "the lines above".to_owned()),
        line("activations", needs.activations, format!("steps of {} tokens", args.max_num_batched_tokens)),
        line("communication", needs.communication, "buffers that GPUs read from one another".to_owned()),
        Line { name: "graphs", bytes: needs.graphs, estimate: true, from: graphs },
        Line {
            name: "context",
            bytes: hardware.context,
            estimate: true,
            from: "the driver's, before the plan".to_owned(),
        },
        line("kept free", rest, format!("{:.0} % of the rest", (1.0 - hardware.usable) * 100.0)),
    ];
    lines.into_iter().chain(draft).chain(sums).collect()
}

/// Inputs of the plan of one KV cache.
struct Inputs<'a> {
    args: &'a PlanArgs,
    /// One rank's share of the model.
    share: &'a ModelConfig,
    kv: KvDtype,
    /// Bytes of keys and values of one token, with those of the draft model.
    token_bytes: u64,
    needs: MemoryNeeds,
    cost: CostModel,
    /// Bytes that a server may use.
    available: u64,
    lists: &'a Lists,
}

impl Inputs<'_> {
    fn cache(self) -> Kv {
        let Self { args, share, kv, token_bytes, needs, cost, available, lists } = self;
        let longest = share.max_positions;
        let plan = MemoryPlan::new(needs, available, None, longest, args.max_num_seqs);
        let blocks = needs.blocks_within(available);
        Kv {
            dtype: name(&kv),
            token_bytes,
            block_bytes: needs.block,
            scratch: needs.scratch,
            short_by: plan.as_ref().err().map_or(0, |lack| lack.need - lack.have),
            blocks,
            bytes: blocks * needs.block,
            tokens: blocks * BLOCK_TOKENS as u64,
            requests: blocks / longest.div_ceil(BLOCK_TOKENS) as u64,
            server_blocks: plan.map_or(0, |plan| plan.blocks as u64),
            decode: decodes(args, &lists.contexts, &cost, blocks),
            prefill: lists.prompts.iter().map(|tokens| prefill(&cost, *tokens, args)).collect(),
        }
    }
}

fn decodes(args: &PlanArgs, contexts: &[usize], cost: &CostModel, blocks: u64) -> Vec<Decode> {
    let decode = |context: usize, batch: usize| {
        let row = RowShape { tokens: 1, position: context as u32, logits: 1 };
        let terms = cost.step(std::iter::repeat_n(row, batch));
        Decode {
            batch,
            context,
            fits: (batch as u64) * ((context + 1).div_ceil(BLOCK_TOKENS) as u64) <= blocks,
            seconds: terms.total(),
            tokens_per_second: batch as f64 / terms.total(),
            bound: terms.bound(),
            terms,
        }
    };
    contexts.iter().flat_map(|context| args.batch.iter().map(move |batch| decode(*context, *batch))).collect()
}

fn prefill(cost: &CostModel, tokens: usize, args: &PlanArgs) -> Prefill {
    let steps = cost.prompt(0, tokens as u32, args.max_num_batched_tokens as u32);
    let seconds: f64 = steps.iter().map(StepTime::total).sum();
    let terms: StepTime = steps.iter().copied().sum();
    Prefill {
        tokens,
        steps: steps.len(),
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        bound: terms.bound(),
        terms,
    }
}
