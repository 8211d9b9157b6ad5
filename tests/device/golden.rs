//! Logits against transformers in float32. The bounds are the errors of transformers' own bfloat16 and of a
//! simulation of FP8.

use octant::device::KvDtype;
use octant::model::{ModelConfig, Precision};
use serde::Deserialize;

use super::model::{fixture, logits, logits_of_fp8_head, logprobs};

/// The reference of a fixture.
#[derive(Deserialize)]
pub struct Golden {
    /// The largest error of a prompt token's log-probability in transformers' bfloat16.
    pub bf16_worst: f64,
    /// The mean KL divergence of a simulation of FP8 from float32.
    pub fp8_mean_kl: f64,
    pub prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Log-probabilities of the prompt's tokens from the second on, in float32.
    pub logprobs: Vec<f64>,
    /// The greedy continuation.
    pub greedy: Vec<u32>,
    /// The margin between the two largest logits at each token of `greedy`.
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

/// Checks that unquantised log-probabilities of the prompts are at most as far from float32 as bfloat16 ones.
fn check_unquantised_logprobs(name: &str) {
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

/// Checks the greedy choice at each position of the reference's continuation. It may differ only if the
/// margin is small.
fn check_greedy_choices(name: &str) {
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
    assert!(decided > 30, "{name}: only {decided} choices have a large margin, too few for a test");
}

/// Checks the divergence of the FP8 model.
fn check_fp8_divergence(name: &str) {
    fp8_logits_are_near(name, |ids| logits(&fixture(name), Precision::Fp8, KvDtype::Fp8, ids));
}

/// Checks the mean KL divergence from float32 over all positions of all prompts. `logits_of` computes the
/// logits of a prompt.
pub fn fp8_logits_are_near(name: &str, logits_of: impl Fn(&[u32]) -> Vec<f32>) {
    logits_are_near(name, 1.3, logits_of);
}

/// Checks that the mean KL divergence is above 0, and at most `most` times that of the simulation.
fn logits_are_near(name: &str, most: f64, logits_of: impl Fn(&[u32]) -> Vec<f32>) {
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
    println!("{name}: mean KL {mean}, simulation {}", golden.fp8_mean_kl);
    assert!(mean <= most * golden.fp8_mean_kl, "{name}: mean KL {mean}, simulation {}", golden.fp8_mean_kl);
    assert!(mean > 0.0, "{name}: FP8 must change the logits");
}

#[test]
fn unquantised_nemotron_is_within_the_bfloat16_error_of_float32() {
    check_unquantised_logprobs("nemotron");
}

/// The fixture has an odd vocabulary size and two KV heads.
#[test]
fn unquantised_wide_fixture_is_within_the_bfloat16_error_of_float32() {
    check_unquantised_logprobs("wide");
}

#[test]
fn unquantised_llama_is_within_the_bfloat16_error_of_float32() {
    check_unquantised_logprobs("llama");
}

#[test]
fn greedy_choices_with_a_large_margin_are_equal() {
    check_greedy_choices("nemotron");
    check_greedy_choices("llama");
    check_greedy_choices("wide");
}

#[test]
fn fp8_diverges_at_most_1_3_times_as_much_as_its_simulation() {
    check_fp8_divergence("nemotron");
    check_fp8_divergence("llama");
    check_fp8_divergence("wide");
}

/// The simulation has a BF16 head. The fixtures have an LM head of their own and one that is the embedding.
#[test]
fn an_fp8_head_adds_a_small_divergence() {
    for name in ["nemotron", "llama", "wide"] {
        let of = |ids: &[u32]| logits_of_fp8_head(&fixture(name), Precision::Fp8, KvDtype::Fp8, ids);
        logits_are_near(name, 2.0, of);
    }
}
