//! Compares the log-likelihood of texts by an FP8 model on the CPU device and with the CUDA kernels, run on
//! the host. It takes minutes and so is no part of the tests.
//!
//!     cargo bench --profile dev --features host-kernels --bench host_perplexity -- DIR TEXTS.jsonl
//!
//! DIR is a model with its tokenizer. A line of TEXTS has `text`; the first 512 tokens of each count. With
//! `OCTANT_HOST_TRUNCATES=1` the emulated tensor cores sum with 13 fraction bits, as Hopper does.

use std::path::{Path, PathBuf};

use octant::comm::SingleDeviceGroup;
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::cuda::{Cuda, Products};
use octant::device::{BLOCK_TOKENS, CacheSpec, Device, KvDtype, Segment, StepInputs, Token};
use octant::model::{LOGIT_ROWS, Model, ModelConfig, Pass, Precision, Shard, Workspace};
use octant::text::Tokenizer;

const MOST_TOKENS: usize = 512;

/// A model on a device.
struct Scorer<D: Device> {
    device: D,
    config: ModelConfig,
    model: Model<D>,
    kv: KvDtype,
}

impl<D: Device> Scorer<D> {
    fn new(dir: &Path, device: D, precision: Precision, kv: KvDtype) -> Self {
        let config = ModelConfig::from_dir(dir).expect("a model");
        let model = Model::load(dir, &config, Shard::WHOLE, precision, &device, &mut |_| {});
        Self { device, config, model: model.expect("weights"), kv }
    }

    /// The negative log-likelihood of a text's tokens after the first, in nats per token.
    fn score(&self, ids: &[u32]) -> f64 {
        let blocks = ids.len().div_ceil(BLOCK_TOKENS);
        let spec = CacheSpec { layers: self.config.layers, blocks, heads: self.config.heads, dtype: self.kv };
        let mut cache = self.device.cache(spec).expect("a cache");
        let comm = SingleDeviceGroup::alone();
        let mut space = Workspace::new(&self.device, &self.model, ids.len(), 1).expect("buffers");
        let blocks = (0..blocks as u32).collect();
        let inputs = StepInputs {
            tokens: ids.iter().map(|id| Token::Id(*id)).collect(),
            segments: vec![Segment { first: 0, len: ids.len(), position: 0, blocks }],
            ..Default::default()
        };
        let pass = Pass { device: &self.device, comm: &comm, cache: &mut cache };
        self.model.forward(&inputs, &mut space, pass).expect("a step");
        let rows: Vec<u32> = (0..ids.len() as u32 - 1).collect();
        let mut sum = 0.0;
        for rows in rows.chunks(LOGIT_ROWS) {
            self.model.logits(&self.device, &comm, rows, &mut space).expect("logits");
            let logits = self.device.read(&space.logits).expect("a copy");
            for (row, logits) in rows.iter().zip(logits.chunks_exact(self.config.vocab)) {
                sum -= logprob(logits, ids[*row as usize + 1]);
            }
        }
        sum / (ids.len() - 1) as f64
    }
}

fn logprob(logits: &[f32], id: u32) -> f64 {
    let largest = logits.iter().fold(f32::MIN, |most, x| most.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(logits[id as usize] - largest) - sum.ln()
}

/// The texts as ids.
fn texts(dir: &Path, file: &Path) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_dir(dir).expect("a tokenizer");
    let lines = std::fs::read_to_string(file).expect("a file of texts");
    let ids = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        let mut ids = tokenizer.encode(line["text"].as_str().expect("`text`")).expect("ids");
        ids.truncate(MOST_TOKENS);
        ids
    };
    lines.lines().map(ids).filter(|ids| ids.len() > 1).collect()
}

/// The weighted mean, and its standard error.
fn mean(values: &[f64], weights: &[f64]) -> (f64, f64) {
    let all: f64 = weights.iter().sum();
    let mean = values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / all;
    let variance = |(value, weight): (&f64, &f64)| (weight / all * (value - mean)).powi(2);
    (mean, values.iter().zip(weights).map(variance).sum::<f64>().sqrt())
}

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let paths: Vec<&PathBuf> = paths.iter().filter(|path| !path.starts_with("--bench")).collect();
    let [dir, file] = paths[..] else {
        println!("usage: cargo bench ... --bench host_perplexity -- DIR TEXTS.jsonl");
        return;
    };
    let cpu = || Cpu::new(CpuOptions { threads: 1, ..Default::default() }).expect("a CPU device");
    let plain = Scorer::new(dir, cpu(), Precision::None, KvDtype::Bf16);
    let fp8 = Scorer::new(dir, cpu(), Precision::Fp8, KvDtype::Fp8);
    let host = Cuda::on_host(false, Products::default()).expect("kernels on the host");
    let host = Scorer::new(dir, host, Precision::Fp8, KvDtype::Fp8);
    let (mut scores, mut weights) = ([vec![], vec![], vec![]], Vec::new());
    for (i, ids) in texts(dir, file).iter().enumerate() {
        let of_text = [plain.score(ids), fp8.score(ids), host.score(ids)];
        println!("text {i}, {} tokens: {of_text:.5?}", ids.len());
        scores.iter_mut().zip(of_text).for_each(|(all, one)| all.push(one));
        weights.push((ids.len() - 1) as f64);
    }
    println!("{} tokens, each after the first of its text", weights.iter().sum::<f64>());
    let [plain, fp8, host] = &scores;
    for (name, scores) in [("unquantised, CPU", plain), ("FP8, CPU", fp8), ("FP8, kernels", host)] {
        println!("perplexity, {name}: {:.4}", mean(scores, &weights).0.exp());
    }
    for (name, from, to) in [("CPU", plain, fp8), ("kernels", plain, host), ("kernels", fp8, host)] {
        let differences: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        let (mean, error) = mean(&differences, &weights);
        let from = if std::ptr::eq(from, plain) { "unquantised" } else { "FP8 on the CPU" };
        println!("nats per token, {name} - {from}: {:.5}, standard error {error:.5}", -mean);
    }
}
