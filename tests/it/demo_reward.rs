//! The demo reward model (`scripts/demo_model.py --reward`): its directory, and the order of its scores. The
//! test prints a line and passes if the model is absent; `tests/run` makes it first.

use octant::comm::SingleDeviceGroup;
use octant::device::{CacheSpec, Device, KvDtype, Segment, StepInputs, Token};
use octant::model::{Model, ModelConfig, Pass, Precision, Workspace};
use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, Tokenizer};

use crate::dev::Dev;
use crate::device::model::{load, root};

const ATTRIBUTES: [&str; 5] = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"];
/// The weights of NVIDIA's model card.
const WEIGHTS: [f32; 5] = [0.3, 0.74, 0.46, 0.47, -0.33];
/// Held-out prompts with the demo model's answers.
const ANSWERS: [(&str, &str); 3] = [
    (
        "Explain thunderstorms to a child in two sentences.",
        "Think of thunderstorms like a big storm with clouds and lightning. They can be scary, but they're \
         also important.",
    ),
    (
        "Write one sentence about fried eggs.",
        "Fried eggs are a classic American comfort food originating from the fried dough of the \
         English-speaking countries.",
    ),
    (
        "Write one sentence about goldfish.",
        "A goldfish is a majestic creature with scales and a fin, known for its intelligence, athleticism, \
         and playful personality.",
    ),
];

/// An answer; the same cut, with its words in another order, and with its beginning repeated; and another
/// prompt's answer.
fn versions(answer: &str, other: &str) -> [String; 5] {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let shuffled: Vec<&str> = (0..words.len()).map(|i| words[i * 7 % words.len()]).collect();
    let sentence = words[..words.len() / 3].join(" ");
    let cut = words[..words.len() / 2].join(" ");
    [answer.to_owned(), cut, shuffled.join(" "), [&*sentence; 4].join(" "), other.to_owned()]
}

/// The scores of prompts in one step.
fn scores(model: &Model<Dev>, config: &ModelConfig, device: &Dev, prompts: &[Vec<u32>]) -> Vec<f32> {
    let (mut inputs, mut last, mut used) = (StepInputs::default(), Vec::new(), 0);
    for ids in prompts {
        let first = inputs.tokens.len();
        inputs.tokens.extend(ids.iter().map(|id| Token::Id(*id)));
        last.push(inputs.tokens.len() as u32 - 1);
        let blocks = (used..used + ids.len().div_ceil(64) as u32).collect::<Vec<u32>>();
        used += blocks.len() as u32;
        inputs.segments.push(Segment { first, len: ids.len(), position: 0, blocks: blocks.into() });
    }
    let spec =
        CacheSpec { layers: config.layers, blocks: used as usize, heads: config.heads, dtype: KvDtype::Fp8 };
    let mut cache = device.cache(spec).unwrap();
    let comm = SingleDeviceGroup::alone();
    let mut space = Workspace::new(device, model, inputs.tokens.len(), prompts.len()).unwrap();
    model.forward(&inputs, &mut space, Pass { device, comm: &comm, cache: &mut cache }).unwrap();
    let values = model.rewards(device, &last, &mut space).unwrap();
    let score = |values: &[f32]| values.iter().zip(WEIGHTS).map(|(value, weight)| value * weight).sum();
    values.chunks_exact(ATTRIBUTES.len()).map(score).collect()
}

#[test]
fn the_demo_reward_model_puts_most_answers_above_their_spoiled_versions() {
    let dir = root().join("demo/smollm2-135m-reward");
    if !dir.join("config.json").exists() {
        println!("skipped: no model at {}; scripts/demo_model.py --reward makes it", dir.display());
        return;
    }
    let (config, device, model) = load(&dir, Precision::Fp8).unwrap();
    assert_eq!(config.reward.as_ref().unwrap().attributes, ATTRIBUTES);
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap().unwrap();
    let ids = |prompt: &str, answer: &str| {
        let messages = [ChatMessage::new(Role::User, prompt), ChatMessage::new(Role::Assistant, answer)];
        let options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
        let rendered = template.render(&messages, &options).unwrap();
        tokenizer.encode_prompt(&rendered).unwrap()
    };
    let (mut right, mut pairs) = (0, 0);
    for (i, (prompt, answer)) in ANSWERS.iter().enumerate() {
        let other = ANSWERS[(i + 1) % ANSWERS.len()].1;
        let prompts = versions(answer, other).map(|version| ids(prompt, &version));
        let end = tokenizer.token_id("<|im_end|>");
        assert!(prompts.iter().all(|ids| ids.last().copied() == end), "scored at the end marker");
        let scores = scores(&model, &config, &device, &prompts);
        let below: Vec<bool> = scores[1..].iter().map(|score| *score < scores[0]).collect();
        assert!(below[1] && below[2], "{prompt}: shuffled and repeated in {scores:?}");
        right += below.iter().filter(|below| **below).count();
        pairs += below.len();
    }
    // Measured on 25 held-out prompts: all shuffled and repeated versions are below, 92 % of those that are
    // cut and 80 % of those about another subject; 93 % of all. FP8 moves a score by about 0.25, and not
    // equally on all processors: with AVX-512 one pair here has the wrong order (4.61 and 4.91).
    assert!(right * 100 >= pairs * 85, "{right} of {pairs} pairs are in the right order");
}
