//! The memory plan is what the device allocates for a rank of a server: weights, buffers, scratch and cache.

use std::time::Duration;

use octant::comm::{Message, OneShotRows, P2p};
use octant::device::{Device, FloatType, KvDtype, Layout};
use octant::model::{Model, ModelConfig, Precision, Shard, StepRoom, Workspace};
use octant::runner::MemoryNeeds;

use crate::dev::{self, Dev};
use crate::device::model::fixture;

const ROWS: usize = 96;
const SLOTS: usize = 5;
/// KV blocks of sequences. Together with the spare block they fill whole splits of attention.
const BLOCKS: usize = 7;
/// Buffers of fewer than 16 bytes take 16.
const SLACK: u64 = 64;

/// Compares the planned bytes with those allocated after a rank's model, buffers and cache are made.
fn compare(name: &str, device: &Dev, shard: Shard, form: (Precision, KvDtype), slots: usize) {
    // Ranks that share a model may compute steps as two batches.
    let two_batch_tokens = (shard.ranks == 2).then_some(64);
    let (dir, ranks) = (fixture(name), shard.ranks);
    let config = ModelConfig::from_dir(&dir).unwrap();
    let share = config.share(ranks).unwrap();
    let room = StepRoom { ranks, rows: ROWS, slots, deterministic: true, two_batch_tokens };
    let needs = MemoryNeeds::new(&share, &Layout::CUDA, form.0, form.1, &room);
    let model = Model::load(&dir, &config, shard, form.0, device, &mut |_| {}).unwrap();
    let mut space = Workspace::new(device, &model, ROWS, slots).unwrap();
    if let Some(tokens) = two_batch_tokens {
        space = space.with_second_batch(device, &model, ROWS, tokens).unwrap();
    }
    let spec =
        octant::device::CacheSpec { layers: share.layers, blocks: BLOCKS, heads: share.heads, dtype: form.1 };
    let cache = device.cache(spec).unwrap();
    // Captured graphs are in the driver's own memory, and an estimate.
    let planned = needs.weights + needs.workspace() - needs.graphs + BLOCKS as u64 * needs.block;
    let allocated = device.allocated();
    assert!(planned.abs_diff(allocated) < SLACK, "{name} over {ranks}, {form:?}: {planned}, got {allocated}");
    drop((space, cache));
}

#[test]
fn allocated_memory_is_as_planned() {
    for name in ["nemotron", "llama", "wide"] {
        for form in [(Precision::Fp8, KvDtype::Fp8), (Precision::None, KvDtype::Bf16)] {
            compare(name, &dev::one(), Shard::WHOLE, form, SLOTS);
        }
    }
    // Ranks that access one another's memory have mailboxes and packets too. With more sequences than rows of
    // logits at a time they have a buffer for the rows of one product with the LM head.
    for (count, slots) in [(2, 90), (8, SLOTS)] {
        let devices = dev::ranks(count);
        let cols = ModelConfig::from_dir(&fixture("wide")).unwrap().hidden;
        let largest = Message { float_type: FloatType::Bf16, rows: ROWS, cols };
        let _group = P2p::group(&devices, Duration::from_secs(60), largest, OneShotRows::Fixed(0)).unwrap();
        std::thread::scope(|scope| {
            for (device, shard) in devices.iter().zip(Shard::all(count)) {
                let form = (Precision::Fp8, KvDtype::Fp8);
                scope.spawn(move || compare("wide", device, shard, form, slots));
            }
        });
    }
}
