//! `octant plan`: what fits on GPUs that need not be there, and what steps would take.
//!
//! All figures are made once, as a [`Report`]; the tables show them rounded, and JSON as they are. What fits is the
//! arithmetic with which the server starts, over the layout of the CUDA device; times are the cost model's.

mod tables;

use std::process::ExitCode;

use serde::Serialize;

use crate::config::{PlanArgs, Quantization};
use crate::cost::{CostModel, Hardware, RowShape, StepTime};
use crate::device::{BLOCK_TOKENS, KvDtype, Layout};
use crate::model::{ModelConfig, Precision, StepRoom};
use crate::runner::{GRAPH_LAUNCH_BYTES, MemoryNeeds, MemoryPlan, WeightBytes, graph_rows, token_bytes};

pub use tables::tables;

/// Bytes are plain numbers of bytes, times are seconds.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Class of the model.
    pub architecture: &'static str,
    /// Of the whole model.
    pub parameters: u64,
    /// What is planned for.
    pub gpu: String,
    /// GPUs that share the model. What follows is of one of them.
    pub tp: usize,
    /// `fp8` or `none`.
    pub quantization: &'static str,
    /// Tokens of the longest sequence.
    pub max_model_len: usize,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens per step.
    pub max_num_batched_tokens: usize,
    /// Whether products are deterministic.
    pub deterministic: bool,
    /// Every line of the memory plan but the KV cache.
    pub memory: Vec<Line>,
    /// Bytes that a server may plan with.
    pub available: u64,
    /// For each storage of the KV cache, what fits and what steps take.
    pub kv: Vec<Kv>,
}

/// A part of the memory.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// What.
    pub name: &'static str,
    /// How many.
    pub bytes: u64,
    /// Whether the figure is an estimate, rather than what is allocated.
    pub estimate: bool,
    /// Where it comes from.
    pub from: String,
}

/// What a KV cache of one element type is to the plan.
#[derive(Debug, Clone, Serialize)]
pub struct Kv {
    /// `fp8` or `bf16`.
    pub dtype: &'static str,
    /// Keys and values of one token.
    pub token_bytes: u64,
    /// A block of 64 tokens as it is planned with: padding and attention's scratch included.
    pub block_bytes: u64,
    /// Working memory of operations, which has a spare block of this type.
    pub scratch: u64,
    /// Bytes that the plan lacks for one full-length request; 0 if it fits.
    pub short_by: u64,
    /// Blocks for which there is room.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Full-length requests in them.
    pub requests: u64,
    /// Blocks that the server would allocate, for `max_num_seqs` full-length requests at most.
    pub server_blocks: u64,
    /// Steps in which sequences generate one token each.
    pub decode: Vec<Decode>,
    /// Prompts taken in.
    pub prefill: Vec<Prefill>,
}

/// A step in which sequences generate one token each.
#[derive(Debug, Clone, Serialize)]
pub struct Decode {
    /// Sequences.
    pub batch: usize,
    /// Tokens that each has behind it.
    pub context: usize,
    /// Whether the cache holds them.
    pub fits: bool,
    /// The whole step.
    pub seconds: f64,
    /// Of all sequences together.
    pub tokens_per_second: f64,
    /// What the step is bound by.
    pub bound: &'static str,
    /// What takes how long.
    pub terms: StepTime,
}

/// A prompt taken in while nothing else runs.
#[derive(Debug, Clone, Serialize)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Steps, of at most `max_num_batched_tokens` tokens each.
    pub steps: usize,
    /// Until its first token.
    pub seconds: f64,
    /// Of the prompt.
    pub tokens_per_second: f64,
    /// What most of it is bound by.
    pub bound: &'static str,
    /// What takes how long, added up over the steps.
    pub terms: StepTime,
}

/// Prints the plan. 1 if not even one full-length request fits, with either cache.
pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let report = report(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", tables(&report));
    }
    let fits = report.kv.iter().any(|kv| kv.short_by == 0);
    Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that the arguments ask for.
///
/// # Errors
/// What cannot be meant, naming the flag, or a file that cannot be read.
pub fn report(args: &PlanArgs) -> anyhow::Result<Report> {
    let mut model = ModelConfig::from_dir(&args.config)?;
    let hardware = Hardware::named(&args.gpu).map_err(|e| anyhow::anyhow!("--gpu: {e}"))?;
    if let Some(len) = args.max_model_len {
        let limit = model.max_positions;
        anyhow::ensure!(len <= limit, "--max-model-len: expected at most the model's {limit}, got {len}");
        model.max_positions = len;
    }
    let share = model.share(args.tp).map_err(|e| anyhow::anyhow!("--tp: {e}"))?;
    let precision = match args.quantization {
        Quantization::Fp8 => Precision::Fp8,
        Quantization::None => Precision::None,
    };
    let lists = Lists::new(args, model.max_positions)?;
    let kv = [KvDtype::Fp8, KvDtype::Bf16].map(|kv| {
        let cost = CostModel::new(&model, args.tp, precision, kv, hardware.clone())
            .map_err(|e| anyhow::anyhow!("--tp: {e}"))?;
        let cost = if args.deterministic { cost.in_passes_of(Layout::CUDA.pass_rows) } else { cost };
        let needs = MemoryNeeds::new(&share, &Layout::CUDA, precision, kv, &room(args));
        Ok(cache(args, &share, (kv, needs), &cost, (&hardware, &lists)))
    });
    Ok(Report {
        architecture: model.architecture,
        parameters: model.parameters(),
        gpu: hardware.name.clone(),
        tp: args.tp,
        quantization: if precision == Precision::Fp8 { "fp8" } else { "none" },
        max_model_len: model.max_positions,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        deterministic: args.deterministic,
        memory: memory(args, &share, precision, &hardware),
        available: hardware.available(),
        kv: kv.into_iter().collect::<anyhow::Result<_>>()?,
    })
}

/// The sizes that steps are predicted for.
struct Lists {
    contexts: Vec<usize>,
    prompts: Vec<usize>,
}

impl Lists {
    /// Those that were asked for, or the usual ones as far as sequences go.
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
            // One token comes on top.
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
    }
}

/// The lines of the memory plan that do not depend on how keys and values are stored.
fn memory(args: &PlanArgs, share: &ModelConfig, precision: Precision, hardware: &Hardware) -> Vec<Line> {
    let weights = WeightBytes::new(share, &Layout::CUDA, precision);
    let needs = MemoryNeeds::new(share, &Layout::CUDA, precision, KvDtype::Fp8, &room(args));
    let layers = weights.layers;
    let line = |name, bytes, from: String| Line { name, bytes, estimate: false, from };
    let product = |name, index: usize| {
        let (out, input) = share.linear_shapes()[index];
        line(name, layers * weights.products[index], format!("{layers} layers × [{out}, {input}]"))
    };
    let table = format!("BF16 [{}, {}]", share.vocab, share.hidden);
    let head = if weights.head == 0 { "the embedding".to_owned() } else { table.clone() };
    let recorded = graph_rows(args.max_num_seqs.min(args.max_num_batched_tokens)).count();
    let launches = Layout::CUDA.recorded_launches;
    let graphs =
        format!("{recorded} steps × {layers} layers × {launches} launches × {GRAPH_LAUNCH_BYTES} bytes");
    let rest = hardware.memory - hardware.context - hardware.available();
    vec![
        product("QKV", 0),
        product("attention output", 1),
        product("MLP up", 2),
        product("MLP down", 3),
        line("scales", layers * weights.scales, "F32, one for each output of E4M3".to_owned()),
        line("embedding", weights.embedding, table),
        line("head", weights.head, head),
        line("norms", weights.norms, "F32, whole on every GPU".to_owned()),
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
    ]
}

/// What fits with a cache, and what steps take.
fn cache(
    args: &PlanArgs,
    share: &ModelConfig,
    (kv, needs): (KvDtype, MemoryNeeds),
    cost: &CostModel,
    (hardware, lists): (&Hardware, &Lists),
) -> Kv {
    let (available, longest) = (hardware.available(), share.max_positions);
    let plan = MemoryPlan::new(needs, available, None, longest, args.max_num_seqs);
    let blocks = needs.blocks_within(available);
    Kv {
        dtype: if kv == KvDtype::Fp8 { "fp8" } else { "bf16" },
        token_bytes: token_bytes(share, kv),
        block_bytes: needs.block,
        scratch: needs.scratch,
        short_by: plan.as_ref().err().map_or(0, |lack| lack.need - lack.have),
        blocks,
        bytes: blocks * needs.block,
        tokens: blocks * BLOCK_TOKENS as u64,
        requests: blocks / longest.div_ceil(BLOCK_TOKENS) as u64,
        server_blocks: plan.map_or(0, |plan| plan.blocks as u64),
        decode: decodes(args, &lists.contexts, cost, blocks),
        prefill: lists.prompts.iter().map(|tokens| prefill(cost, *tokens, args)).collect(),
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
