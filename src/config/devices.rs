//! Settings of `octant serve` about devices, real and simulated.

use std::path::PathBuf;

use anyhow::bail;
use clap::{ArgAction, Args, ValueEnum};

use super::parsers::{at_least_0, at_least_1, boolean, got, model, number, positive_fraction};
use crate::cost::Hardware;
use crate::device::KvDtype;
use crate::device::cpu::Isa;
use crate::machine;
use crate::model::Precision;

/// The most threads for masks. They are enough for 256 rows of a vocabulary of 256,000 ids.
const MAX_MASK_THREADS: usize = 16;

/// Devices and their ranks.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Device that runs the model
    #[arg(long, env = "OCTANT_DEVICE", value_name = "DEVICE", default_value = "cpu", ignore_case = true)]
    pub(crate) device: DeviceName,
    /// Tensor-parallel ranks: 1, 2, 4 or 8; also -tp. Each rank holds a part of every layer [default: 1; 8
    /// with --device simulate]
    #[arg(
        long,
        env = "OCTANT_TENSOR_PARALLEL_SIZE",
        value_name = "N",
        value_parser = tensor_parallel_size,
        visible_alias = "tp",
        aliases = ["tp-size", "num-shard"]
    )]
    pub(crate) tensor_parallel_size: Option<usize>,
    /// GPU number of each rank, separated by commas; ranks may share a GPU [default: the first GPUs]
    #[arg(
        long,
        env = "OCTANT_GPUS",
        value_name = "NUMBERS",
        value_delimiter = ',',
        value_parser = at_least_0::<usize>
    )]
    pub(crate) gpus: Option<Vec<usize>>,
    /// Fraction of the memory that is free on a rank's device when the server starts, for weights, workspace
    /// and KV cache together [default: 0.8 of the memory of a CPU; on a GPU what `octant plan` counts as
    /// usable]
    #[arg(
        long,
        env = "OCTANT_GPU_MEMORY_UTILIZATION",
        value_name = "FRACTION",
        value_parser = positive_fraction,
        aliases = ["mem-fraction-static", "cuda-memory-fraction"]
    )]
    pub(crate) gpu_memory_utilization: Option<f64>,
    /// All-reduce between GPUs: p2p reads the other GPUs' memory and adds in rank order; nccl is not
    /// deterministic
    #[arg(long, env = "OCTANT_COMMUNICATOR", value_name = "NAME", default_value = "p2p", ignore_case = true)]
    pub(crate) communicator: CommunicatorName,
    /// Threads of the CPU device, divided between its ranks [default: all cores]
    #[arg(long, env = "OCTANT_THREADS", value_name = "N", value_parser = at_least_1)]
    pub(crate) threads: Option<usize>,
    /// Instruction set of the CPU device. Answers have the same bits on all processors that use the same set
    /// [default: the fastest of this processor]
    #[arg(long, env = "OCTANT_CPU_INSTRUCTIONS", value_name = "SET", ignore_case = true)]
    pub(crate) cpu_instructions: Option<CpuInstructions>,
    /// Make the tokens of a request independent of the other requests in its batch. With false, on CUDA only,
    /// cuBLASLt computes products of many rows if it was measured to be faster
    #[arg(
        long,
        env = "OCTANT_DETERMINISTIC",
        value_name = "BOOL",
        default_value_t = true,
        value_parser = boolean,
        action = ArgAction::Set
    )]
    pub(crate) deterministic: bool,
    /// Compute steps of at least this many tokens as two batches, so that the GPUs add the results of one
    /// while they compute the other. Changes no bit. Steps of fewer than 256 tokens are always one batch.
    /// With --deterministic true only [default: one batch]
    #[arg(long, env = "OCTANT_TWO_BATCH_TOKENS", value_name = "TOKENS", value_parser = at_least_1)]
    pub(crate) two_batch_tokens: Option<usize>,
}

/// Simulated GPUs and recordings.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct SimulationArgs {
    /// Simulated GPU: h100-80gb, h200-141gb, h100-nvl, or a .toml file like models/h100-80gb.toml
    #[arg(long, env = "OCTANT_GPU", value_name = "NAME", default_value = Hardware::H100)]
    pub(crate) gpu: String,
    /// Directory with the config.json of the simulated model, or its name ORG/NAME[@REVISION]; --model
    /// provides the tokenizer [default: --model]
    #[arg(long, env = "OCTANT_SIMULATE_CONFIG", value_name = "DIR|NAME", value_parser = model())]
    pub(crate) simulate_config: Option<PathBuf>,
    /// Factor on the length of simulated steps: 1 is real time, 0 does not wait
    #[arg(
        long,
        env = "OCTANT_SIMULATE_PACE",
        value_name = "FACTOR",
        default_value = "1",
        value_parser = number(0.0, 1e6)
    )]
    pub(crate) simulate_pace: f64,
    /// Mean length of simulated answers, in tokens
    #[arg(
        long,
        env = "OCTANT_SIMULATE_ANSWER_TOKENS",
        value_name = "MEAN",
        default_value = "256",
        value_parser = number(1.0, 1e9)
    )]
    pub(crate) simulate_answer_tokens: f64,
    /// File for a recording of all scheduler input, for `octant simulate --replay`. It contains prompts and
    /// answers
    #[arg(long, env = "OCTANT_RECORD", value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// This machine's CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// Modelled GPUs: steps take the time that the cost model predicts.
    Simulate,
}

/// An instruction set of the CPU device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CpuInstructions {
    /// AVX-512 with VBMI and BF16.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// No vector instructions beyond those of the build's target.
    Portable,
}

impl From<CpuInstructions> for Isa {
    fn from(set: CpuInstructions) -> Self {
        match set {
            CpuInstructions::Avx512 => Self::Avx512,
            CpuInstructions::Avx2 => Self::Avx2,
            CpuInstructions::Portable => Self::Portable,
        }
    }
}

/// The library for all-reduces between GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CommunicatorName {
    /// Octant's kernels, which read the memory of the other GPUs and add in rank order.
    P2p,
    /// NVIDIA's library.
    Nccl,
}

impl DeviceArgs {
    /// Tensor-parallel ranks.
    pub(crate) fn ranks(&self) -> usize {
        let default = if self.device == DeviceName::Simulate { SimulationArgs::RANKS } else { 1 };
        self.tensor_parallel_size.unwrap_or(default)
    }

    /// GPU number of each rank.
    pub(crate) fn gpus(&self) -> Vec<usize> {
        self.gpus.clone().unwrap_or_else(|| (0..self.ranks()).collect())
    }

    /// Threads of the CPU device, of all ranks together.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(machine::cores)
    }

    /// Threads that compute the masks of constrained answers, beside the ranks' own.
    pub(crate) fn mask_threads(&self) -> usize {
        machine::cores().saturating_sub(self.ranks()).clamp(1, MAX_MASK_THREADS)
    }
}

impl SimulationArgs {
    /// Default number of simulated GPUs.
    pub(crate) const RANKS: usize = 8;
    /// Default number format of linear layers in `octant simulate`.
    pub(crate) const PRECISION: Precision = Precision::Fp8;
    /// Default element type of the KV cache in `octant simulate`.
    pub(crate) const KV: KvDtype = KvDtype::Fp8;
    /// Whether `octant simulate` assumes deterministic products by default.
    pub(crate) const DETERMINISTIC: bool = true;
}

fn tensor_parallel_size(text: &str) -> anyhow::Result<usize> {
    match text.trim().parse() {
        Ok(size @ (1 | 2 | 4 | 8)) => Ok(size),
        _ => bail!("expected 1, 2, 4 or 8, {}", got(text)),
    }
}
