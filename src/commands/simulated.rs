//! GPUs that are not there, as a place to serve from: their memory, and the parts of a simulated executor.

use anyhow::Context;

use super::serve::Prepared;
use crate::config::Simulation;
use crate::cost::{CostModel, Hardware};
use crate::device::cpu::Cpu;
use crate::device::{BLOCK_TOKENS, KvDtype};
use crate::model::{ModelConfig, Precision};
use crate::runner::MemoryNeeds;
use crate::simulator::{Machine, Simulator, Voice};
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
        (self.hardware.memory as f64 * self.hardware.usable) as u64
    }

    /// The executor of a model on these GPUs.
    pub fn executor(&self, p: &Prepared) -> anyhow::Result<Simulator> {
        let cost = CostModel::new(&p.model, self.ranks, p.precision, p.kv, self.hardware.clone())
            .map_err(anyhow::Error::msg)?;
        let vocab = p.model.vocab.min(p.tokenizer.vocab_size());
        let words = words(&p.tokenizer, vocab);
        let voice = Voice::new(words, p.generation.eos.clone(), self.settings.answer_tokens, vocab)
            .map_err(anyhow::Error::msg)
            .context("--device simulate")?;
        let pace = self.settings.pace;
        Simulator::new(Machine::new(cost, voice), pace).map_err(anyhow::Error::msg).context("--simulate-pace")
    }
}

/// What each of `ranks` GPUs needs, `share` being one's: weights and workspace are counted as a processor lays them out,
/// which differs by the padding; a KV block as a GPU does, by its heads alone.
pub fn needs(
    share: &ModelConfig,
    ranks: usize,
    precision: Precision,
    kv: KvDtype,
    rows: usize,
) -> MemoryNeeds {
    let element = if kv == KvDtype::Fp8 { 1 } else { 2 };
    let heads = share.heads;
    let block = 2 * share.layers * heads.kv_heads * heads.head_dim * BLOCK_TOKENS * element;
    MemoryNeeds { block: block as u64, ..MemoryNeeds::new::<Cpu>(share, ranks, precision, kv, rows) }
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
