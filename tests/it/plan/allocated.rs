//! The memory plan matches what a device allocates for a rank: weights, buffers and KV cache.

use std::path::Path;

use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::{Device, KvDtype, Layout};
use octant::model::{HeadDtype, Model, ModelConfig, Precision, Shard, StepBytes, StepRoom, Workspace};
use octant::offline::{Conversion, Granularity};
use octant::runner::{MemoryNeeds, MemoryPlan, WeightBytes};

use crate::device::model::fixture;
use crate::device::reward::reward_golden;

const ROWS: usize = 96;
const SLOTS: usize = 5;

/// More sequences than rows of logits at a time.
const MANY_SLOTS: usize = 90;

/// Loads one rank, allocates its buffers and its KV cache, and compares each with the plan.
fn agrees(dir: &Path, ranks: usize, form: (Precision, KvDtype)) {
    for slots in [SLOTS, MANY_SLOTS] {
        agrees_with(dir, ranks, form, Variant { head_dtype: HeadDtype::Bf16, slots, two_batch_tokens: None });
    }
}

/// How a model is served.
#[derive(Clone, Copy)]
struct Variant {
    head_dtype: HeadDtype,
    slots: usize,
    two_batch_tokens: Option<usize>,
}

fn agrees_with(dir: &Path, ranks: usize, form: (Precision, KvDtype), variant: Variant) {
    let Variant { head_dtype, slots, two_batch_tokens } = variant;
    let config = ModelConfig { head_dtype, ..ModelConfig::from_dir(dir).unwrap() };
    let share = config.share(ranks).unwrap();
    let room = StepRoom { ranks, rows: ROWS, slots, deterministic: true, two_batch_tokens };
    let needs = MemoryNeeds::new(&share, &Cpu::LAYOUT, form.0, form.1, &room);
    let plan = MemoryPlan::new(needs, 1 << 40, None, share.max_positions, slots).unwrap();

    let device = Cpu::new(CpuOptions { threads: 2, ..Default::default() }).unwrap();
    let (shard, what) = (Shard { rank: 0, ranks }, format!("{} over {ranks}, {form:?}", dir.display()));
    let model = Model::load(dir, &config, shard, form.0, &device, &mut |_| {}).unwrap();
    let weights = device.allocated();
    assert_eq!(weights, needs.weights, "weights of {what}");
    assert_eq!(weights, WeightBytes::new(&share, &Cpu::LAYOUT, form.0).total());

    let mut space = Workspace::new(&device, &model, ROWS, slots).unwrap();
    if let Some(tokens) = two_batch_tokens {
        space = space.with_second_batch(&device, &model, ROWS, tokens).unwrap();
    }
    let workspace = device.allocated() - weights;
    assert_eq!(workspace, needs.workspace(), "buffers of {what}");
    let bytes = StepBytes::new(&share, &Cpu::LAYOUT, form.0, &room);
    assert_eq!(bytes.communication == 0, ranks == 1, "{what}");

    let cache = device.cache(plan.cache(&share, form.1)).unwrap();
    assert_eq!(device.allocated() - weights - workspace, plan.kv_bytes(), "cache of {what}");
    drop((space, cache));
}

#[test]
fn allocations_match_the_memory_plan() {
    for (name, ranks) in [("nemotron", 1), ("llama", 1), ("wide", 1), ("wide", 2), ("wide", 8)] {
        for precision in [Precision::Fp8, Precision::None] {
            for kv in [KvDtype::Fp8, KvDtype::Bf16] {
                agrees(&fixture(name), ranks, (precision, kv));
            }
        }
    }
}

#[test]
fn allocations_with_an_fp8_head_match_the_memory_plan() {
    for (name, ranks) in [("nemotron", 1), ("llama", 1), ("wide", 2)] {
        for precision in [Precision::Fp8, Precision::None] {
            let variant = Variant { head_dtype: HeadDtype::Fp8, slots: SLOTS, two_batch_tokens: None };
            agrees_with(&fixture(name), ranks, (precision, KvDtype::Fp8), variant);
        }
    }
}

#[test]
fn allocations_for_two_batches_match_the_memory_plan() {
    for (name, ranks) in [("nemotron", 1), ("wide", 2)] {
        for precision in [Precision::Fp8, Precision::None] {
            let variant = Variant { head_dtype: HeadDtype::Bf16, slots: SLOTS, two_batch_tokens: Some(64) };
            agrees_with(&fixture(name), ranks, (precision, KvDtype::Fp8), variant);
        }
    }
}

#[test]
fn allocations_of_reward_models_match_the_memory_plan() {
    for golden in reward_golden() {
        let dir = golden.checkpoint();
        agrees(dir.path(), 1, (Precision::Fp8, KvDtype::Fp8));
        agrees(dir.path(), 2, (Precision::None, KvDtype::Bf16));
    }
}

#[test]
fn counts_that_no_machine_can_hold_do_not_wrap() {
    let share = ModelConfig::from_dir(&fixture("wide")).unwrap().share(2).unwrap();
    for layout in [Layout::CPU, Layout::CUDA] {
        let needs = |rows, slots| {
            let room = StepRoom { ranks: 2, rows, slots, deterministic: true, two_batch_tokens: None };
            MemoryNeeds::new(&share, &layout, Precision::Fp8, KvDtype::Fp8, &room)
        };
        let plan = |needs, kv, len, seqs| MemoryPlan::new(needs, 1 << 40, kv, len, seqs);
        for rows in [1 << 50, 1 << 60, 1 << 62, usize::MAX / 2 + 1, usize::MAX] {
            let lack = plan(needs(rows, SLOTS), None, share.max_positions, SLOTS).unwrap_err();
            assert!(lack.need >= rows as u64, "{rows}: {lack}");
        }
        // `* 4` of the bytes of a slot wrapped to less than one slot.
        let lack = plan(needs(ROWS, (1 << 62) + 1), None, share.max_positions, SLOTS).unwrap_err();
        assert!(lack.need > 1 << 62, "{lack}");
        let small = needs(ROWS, SLOTS);
        let blocks = plan(small, None, share.max_positions, usize::MAX).unwrap().blocks as u64;
        assert_eq!(blocks, small.blocks_within(1 << 40));
        for (kv, len) in [(Some(u64::MAX), share.max_positions), (None, usize::MAX)] {
            assert!(plan(small, kv, len, SLOTS).unwrap_err().need > 1 << 40);
        }
    }
}

#[test]
fn the_memory_plan_of_fp8_checkpoints_matches_too() {
    let dir = tempfile::tempdir().unwrap();
    let conversion = Conversion {
        input: fixture("wide"),
        output: dir.path().join("fp8"),
        granularity: Some(Granularity::Channel),
        tokenizer: false,
        shard_size: 8_000_000_000,
        threads: 2,
    };
    octant::offline::quantize(&conversion, &|_| {}).unwrap();
    for precision in [Precision::Fp8, Precision::None] {
        agrees(&conversion.output, 2, (precision, KvDtype::Fp8));
    }
}
