//! As near to transformers in float32 as transformers' own reduced-precision runs are.

use octant::device::KvDtype;
use octant::model::Precision;
use serde::Deserialize;

use super::{fixture, logits, logprobs};

#[derive(Deserialize)]
struct Golden {
    /// Worst difference of a prompt token's log-probability in transformers' bfloat16.
    bf16_worst: f64,
    /// Mean KL divergence of a simulation of FP8.
    fp8_mean_kl: f64,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    /// Of tokens 1.., in float32.
    logprobs: Vec<f64>,
    /// All log-probabilities after the last token, in float32.
    last: Vec<f64>,
    greedy: Vec<u32>,
    margins: Vec<f64>,
}

fn golden(name: &str) -> Golden {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden.json")).unwrap()).unwrap()
}

fn vocab(prompt: &Prompt) -> usize {
    prompt.last.len()
}

fn unquantised_is_near(name: &str) {
    let golden = golden(name);
    for prompt in &golden.prompts {
        let logits = logits(&fixture(name), Precision::None, KvDtype::Bf16, &prompt.ids);
        let rows = logprobs(&logits, vocab(prompt));
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
        let rows: Vec<&[f32]> = logits.chunks_exact(vocab(prompt)).collect();
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

/// Over the full distribution after each prompt: the mean of as many divergences as there are prompts is noisy, so
/// the scored tokens' differences are held to the same bound by their own mean KL below.
fn fp8_is_near(name: &str) {
    let golden = golden(name);
    let mut sum = 0.0;
    let mut count = 0.0;
    for prompt in &golden.prompts {
        let exact =
            logprobs(&logits(&fixture(name), Precision::None, KvDtype::Bf16, &prompt.ids), vocab(prompt));
        let fp8 = logprobs(&logits(&fixture(name), Precision::Fp8, KvDtype::Fp8, &prompt.ids), vocab(prompt));
        // The reference's float32 rows are stored for the last position; elsewhere our unquantised rows, which the
        // test above holds to float32, stand for them.
        let last = exact.len() - 1;
        for (i, (e, f)) in exact.iter().zip(&fp8).enumerate() {
            let e: &[f64] = if i == last { &prompt.last } else { e };
            sum += e.iter().zip(f).map(|(e, f)| e.exp() * (e - f)).sum::<f64>();
            count += 1.0;
        }
    }
    let mean = sum / count;
    assert!(mean <= 1.3 * golden.fp8_mean_kl, "{name}: mean KL {mean}, simulation {}", golden.fp8_mean_kl);
    assert!(mean > 0.0, "{name}: FP8 changes something");
}

#[test]
fn nemotron_unquantised_is_as_near_to_float32_as_bfloat16_is() {
    unquantised_is_near("nemotron");
}

#[test]
fn llama_unquantised_is_as_near_to_float32_as_bfloat16_is() {
    unquantised_is_near("llama");
}

#[test]
fn greedy_continuations_are_equal_where_the_margin_decides() {
    greedy_is_equal("nemotron");
    greedy_is_equal("llama");
}

#[test]
fn fp8_diverges_no_more_than_its_simulation() {
    fp8_is_near("nemotron");
    fp8_is_near("llama");
}
