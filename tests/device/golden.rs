//! As near to transformers in float32 as transformers' own reduced-precision runs are.

use octant::device::KvDtype;
use octant::model::{ModelConfig, Precision};
use serde::Deserialize;

use super::model::{fixture, logits, logprobs};

#[derive(Deserialize)]
pub struct Golden {
    /// Worst difference of a prompt token's log-probability in transformers' bfloat16.
    pub bf16_worst: f64,
    /// Mean KL divergence of a simulation of FP8.
    pub fp8_mean_kl: f64,
    pub prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Of tokens 1.., in float32.
    pub logprobs: Vec<f64>,
    pub greedy: Vec<u32>,
    pub margins: Vec<f64>,
}

pub fn golden(name: &str) -> Golden {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden.json")).unwrap()).unwrap()
}

/// Log-probabilities of all ids at every position of all prompts, in float32.
fn exact_rows(name: &str) -> Vec<Vec<f64>> {
    let bytes = std::fs::read(fixture(name).join("logprobs.f32")).unwrap();
    let values: Vec<f64> =
        bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    values.chunks_exact(vocab(name)).map(<[f64]>::to_vec).collect()
}

fn vocab(name: &str) -> usize {
    ModelConfig::from_dir(&fixture(name)).unwrap().vocab
}

fn unquantised_is_near(name: &str) {
    let golden = golden(name);
    for prompt in &golden.prompts {
        let logits = logits(&fixture(name), Precision::None, KvDtype::Bf16, &prompt.ids);
        let rows = logprobs(&logits, vocab(name));
        for (i, expected) in prompt.logprobs.iter().enumerate() {
            let got = rows[i][prompt.ids[i + 1] as usize];
            let error = (got - expected).abs();
            assert!(error <= golden.bf16_worst, "{name}: token {}: {got} for {expected}", i + 1);
        }
    }
}

/// Teacher-forced over the reference's own continuation: a choice may differ only where the margin is small.
fn greedy_is_equal(name: &str) {
    let golden = golden(name);
    let mut decided = 0;
    for prompt in &golden.prompts {
        let ids = [&prompt.ids[..], &prompt.greedy].concat();
        let logits = logits(&fixture(name), Precision::None, KvDtype::Bf16, &ids);
        let rows: Vec<&[f32]> = logits.chunks_exact(vocab(name)).collect();
        for (i, expected) in prompt.greedy.iter().enumerate() {
            let row = rows[prompt.ids.len() - 1 + i];
            let best = (0..row.len()).fold(0, |best, t| if row[t] > row[best] { t } else { best });
            if prompt.margins[i] > 2.0 * golden.bf16_worst {
                decided += 1;
                assert_eq!(best as u32, *expected, "{name}: generated token {i}");
            }
        }
    }
    assert!(decided > 30, "{name}: only {decided} choices were decided, too few to show anything");
}

/// Mean KL divergence from float32 over all positions of all prompts.
fn fp8_is_near(name: &str) {
    fp8_logits_are_near(name, |ids| logits(&fixture(name), Precision::Fp8, KvDtype::Fp8, ids));
}

pub fn fp8_logits_are_near(name: &str, logits_of: impl Fn(&[u32]) -> Vec<f32>) {
    let golden = golden(name);
    let mut exact = exact_rows(name).into_iter();
    let (mut sum, mut count) = (0.0, 0.0);
    for prompt in &golden.prompts {
        let fp8 = logprobs(&logits_of(&prompt.ids), vocab(name));
        for (f, e) in fp8.iter().zip(exact.by_ref()) {
            sum += e.iter().zip(f).map(|(e, f)| e.exp() * (e - f)).sum::<f64>();
            count += 1.0;
        }
    }
    assert!(exact.next().is_none(), "{name}: more reference rows than positions");
    let mean = sum / count;
    assert!(mean <= 1.3 * golden.fp8_mean_kl, "{name}: mean KL {mean}, simulation {}", golden.fp8_mean_kl);
    assert!(mean > 0.0, "{name}: FP8 changes something");
}

#[test]
fn nemotron_unquantised_is_as_near_to_float32_as_bfloat16_is() {
    unquantised_is_near("nemotron");
}

#[test]
fn an_odd_vocabulary_and_two_kv_heads_unquantised_are_too() {
    unquantised_is_near("wide");
}

#[test]
fn llama_unquantised_is_as_near_to_float32_as_bfloat16_is() {
    unquantised_is_near("llama");
}

#[test]
fn greedy_continuations_are_equal_where_the_margin_decides() {
    greedy_is_equal("nemotron");
    greedy_is_equal("llama");
    greedy_is_equal("wide");
}

#[test]
fn fp8_diverges_no_more_than_its_simulation() {
    fp8_is_near("nemotron");
    fp8_is_near("llama");
    fp8_is_near("wide");
}
