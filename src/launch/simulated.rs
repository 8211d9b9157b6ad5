//! Modelled GPUs as devices of a server, and the words that a simulated model generates.

use anyhow::Context;

use crate::config::SimulationArgs;
use crate::cost::Hardware;
use crate::text::Tokenizer;

/// Modelled GPUs and the settings of their simulation.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedGpus {
    /// Description of one GPU.
    pub(crate) hardware: Hardware,
    /// Number of GPUs, which is the number of ranks.
    pub(crate) ranks: usize,
    /// The operator's settings.
    pub(crate) settings: SimulationArgs,
}

impl SimulatedGpus {
    /// Reads the description of the GPU.
    pub(crate) fn new(settings: &SimulationArgs, ranks: usize) -> anyhow::Result<Self> {
        let hardware = Hardware::named(&settings.gpu).map_err(anyhow::Error::msg).context("--gpu")?;
        Ok(Self { hardware, ranks, settings: settings.clone() })
    }

    /// One line of text for logs.
    pub(crate) fn describe(&self) -> String {
        let SimulationArgs { simulate_pace, simulate_answer_tokens, .. } = self.settings;
        let pace = match simulate_pace {
            0.0 => "without waiting".to_owned(),
            pace => format!("{pace} times as long"),
        };
        let name = &self.hardware.name;
        format!("simulated {name}, steps {pace}, answers of {simulate_answer_tokens} tokens on average")
    }

    /// Bytes of one GPU's memory that a server may use: this fraction, or the GPU's usable one.
    pub(crate) fn memory(&self, fraction: Option<f64>) -> u64 {
        match fraction {
            Some(fraction) => (self.hardware.memory as f64 * fraction) as u64,
            None => usable_memory(&self.hardware),
        }
    }
}

/// Token ids below `vocab` that a simulated model generates: words of a space and ASCII letters, or printable
/// ASCII if the vocabulary has no such words.
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

/// Bytes of a GPU's memory that a simulated server may use.
pub(crate) fn usable_memory(hardware: &Hardware) -> u64 {
    (hardware.memory as f64 * hardware.usable) as u64
}
