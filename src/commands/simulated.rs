//! GPUs that are not there, as a place to serve from: their memory, and the parts of a simulated executor.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::serve::Prepared;
use crate::config::{KvCacheDtype, Quantization, Simulation};
use crate::cost::{CostModel, Hardware, RowShape};
use crate::device::{KvDtype, Layout};
use crate::engine::{Forecast, Recorder, SchedulerConfig};
use crate::model::{ModelConfig, Precision};
use crate::simulator::trace::{Recording, TraceHeader};
use crate::simulator::{SimulatedModel, Simulator, SyntheticAnswers};
use crate::text::Tokenizer;

/// Some GPUs, and how they are to be simulated.
#[derive(Debug, Clone)]
pub struct SimulatedGpus {
    /// One of them.
    pub hardware: Hardware,
    /// As many.
    pub ranks: usize,
    /// The operator's settings.
    pub settings: Simulation,
}

impl SimulatedGpus {
    /// Reads what the GPU is.
    pub fn new(settings: &Simulation, ranks: usize) -> anyhow::Result<Self> {
        let hardware = Hardware::named(&settings.gpu).map_err(anyhow::Error::msg).context("--gpu")?;
        Ok(Self { hardware, ranks, settings: settings.clone() })
    }

    /// For people.
    pub fn describe(&self) -> String {
        let Simulation { pace, answer_tokens, .. } = self.settings;
        let pace = match pace {
            0.0 => "not waiting for them".to_owned(),
            pace => format!("{pace} times as long"),
        };
        let name = &self.hardware.name;
        format!("simulated {name}, steps {pace}, answers of {answer_tokens} tokens on average")
    }

    /// Bytes of one that a server plans with.
    pub fn memory(&self) -> u64 {
        memory_of(&self.hardware)
    }

    /// What costs of the model are counted from.
    pub fn about(&self, p: &Prepared) -> About {
        About {
            model: p.model.clone(),
            hardware: self.hardware.clone(),
            ranks: self.ranks,
            precision: p.precision,
            kv: p.kv,
            deterministic: p.config.deterministic,
        }
    }

    /// The executor of a model on these GPUs.
    pub fn executor(&self, p: &Prepared) -> anyhow::Result<Simulator> {
        let cost = self.about(p).cost()?;
        let vocab = p.model.vocab.min(p.tokenizer.vocab_size());
        let words = words(&p.tokenizer, vocab);
        let eos = p.generation.eos.clone();
        let answers = SyntheticAnswers::new(words, eos, self.settings.answer_tokens, vocab)
            .context("--device simulate")?;
        let pace = self.settings.pace;
        Simulator::new(SimulatedModel::new(cost, answers), pace).context("--simulate-pace")
    }
}

/// Ids below `vocab` that a simulated model may say: whole words, a space before ASCII letters, or where a vocabulary
/// has none, printable ASCII.
pub fn words(tokenizer: &Tokenizer, vocab: usize) -> Vec<u32> {
    let limit = u32::try_from(vocab.min(tokenizer.vocab_size())).unwrap_or(u32::MAX);
    let plain = |id: &u32| !tokenizer.is_special(*id);
    let word = |id: &u32| {
        let bytes = tokenizer.token_bytes(*id);
        let letters = bytes.strip_prefix(b" ").unwrap_or_default();
        !letters.is_empty() && letters.iter().all(u8::is_ascii_alphabetic)
    };
    let words: Vec<u32> = (0..limit).filter(plain).filter(word).collect();
    if !words.is_empty() {
        return words;
    }
    let printable = |id: &u32| {
        let bytes = tokenizer.token_bytes(*id);
        !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
    };
    (0..limit).filter(plain).filter(printable).collect()
}

/// Bytes of a GPU that a server plans with.
pub fn memory_of(hardware: &Hardware) -> u64 {
    (hardware.memory as f64 * hardware.usable) as u64
}

/// What costs are counted from: a model, on GPUs. A recording keeps it as text.
pub struct About {
    /// The whole model.
    pub model: ModelConfig,
    /// One GPU.
    pub hardware: Hardware,
    /// GPUs.
    pub ranks: usize,
    /// Of linear layers.
    pub precision: Precision,
    /// Of keys and values.
    pub kv: KvDtype,
    /// Whether products of many rows read the weights again and again, as those do whose bits do not depend on them.
    pub deterministic: bool,
}

/// What is to be other than recorded, or than usual.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Directory of the model's config.json.
    pub config: Option<PathBuf>,
    /// Name or file of the GPU.
    pub gpu: Option<String>,
    /// GPUs.
    pub ranks: Option<usize>,
    /// Of linear layers.
    pub quantization: Option<Quantization>,
    /// Of keys and values.
    pub kv_cache_dtype: Option<KvCacheDtype>,
    /// Whether tokens never depend on what else runs.
    pub deterministic: Option<bool>,
}

impl About {
    /// What the arguments say, or else the recording, or else 8 H100s in FP8.
    pub fn new(args: &Changes, recorded: Option<&[(String, String)]>) -> anyhow::Result<Self> {
        let field = |name: &str| recorded.and_then(|about| find(about, name));
        let model = match (&args.config, field("config")) {
            (Some(dir), _) => ModelConfig::from_dir(dir)?,
            (None, Some(text)) => ModelConfig::from_text(text).context("of the recording")?,
            (None, None) => anyhow::bail!("--config: missing; expected a directory"),
        };
        let gpu = args.gpu.as_deref().or(field("gpu")).unwrap_or("h100-80gb");
        let ranks = match field("ranks") {
            Some(text) => text.parse().with_context(|| format!("the recording's ranks: {text}"))?,
            None => 8,
        };
        let fp8 = |name| field(name).is_none_or(|value| value == "fp8");
        let precision = match args.quantization {
            Some(Quantization::Fp8) => Precision::Fp8,
            Some(Quantization::None) => Precision::None,
            None if fp8("precision") => Precision::Fp8,
            None => Precision::None,
        };
        let kv = match args.kv_cache_dtype {
            Some(KvCacheDtype::Fp8) => KvDtype::Fp8,
            Some(KvCacheDtype::Bf16) => KvDtype::Bf16,
            None if fp8("kv") => KvDtype::Fp8,
            None => KvDtype::Bf16,
        };
        let hardware = Hardware::named(gpu).map_err(anyhow::Error::msg).context("--gpu")?;
        let deterministic =
            args.deterministic.unwrap_or(field("deterministic").is_none_or(|value| value == "true"));
        Ok(Self { model, hardware, ranks: args.ranks.unwrap_or(ranks), precision, kv, deterministic })
    }

    /// What a step costs.
    pub fn cost(&self) -> anyhow::Result<CostModel> {
        let hardware = self.hardware.clone();
        let cost = CostModel::new(&self.model, self.ranks, self.precision, self.kv, hardware)
            .map_err(anyhow::Error::msg)
            .context("the number of ranks")?;
        Ok(if self.deterministic { cost.in_passes_of(Layout::CUDA.pass_rows) } else { cost })
    }
}

/// What the cost model says of steps at both ends and in the middle, on GPUs that take `pace` times as long.
pub fn forecast(cost: &CostModel, config: &SchedulerConfig, pace: f64) -> Forecast {
    let most = config.max_num_batched_tokens.max(2);
    let step = |tokens: usize| {
        let row = RowShape { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), position: 0, logits: 1 };
        (tokens, cost.step([row]).total() * pace)
    };
    Forecast::new(&[1, most / 2, most].map(step))
}

fn find<'a>(about: &'a [(String, String)], name: &str) -> Option<&'a str> {
    about.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Begins the recording that the configuration asks for.
pub fn record(
    p: &Prepared,
    ranks: usize,
    scheduler: SchedulerConfig,
    in_flight: usize,
    path: &Path,
) -> anyhow::Result<(Recorder, Recording)> {
    let simulation = p.config.simulation.as_ref();
    let dir = simulation.and_then(|simulation| simulation.config.as_ref()).unwrap_or(&p.config.model);
    let gpu = simulation.map_or("h100-80gb", |simulation| simulation.gpu.as_str());
    let fp8 = |is: bool, other: &str| if is { "fp8".to_owned() } else { other.to_owned() };
    let about = [
        ("config", std::fs::read_to_string(dir.join("config.json"))?),
        ("gpu", gpu.to_owned()),
        ("ranks", ranks.to_string()),
        ("precision", fp8(p.precision == Precision::Fp8, "none")),
        ("kv", fp8(p.kv == KvDtype::Fp8, "bf16")),
        ("deterministic", p.config.deterministic.to_string()),
    ];
    let about = about.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let header = TraceHeader { config: scheduler, in_flight, about };
    Recording::start(path, &header).with_context(|| format!("--record: {}", path.display()))
}
