//! The cost model of steps as two batches.

use octant::cost::{CostModel, RowShape, StepTime};
use octant::device::KvDtype;

use super::{cost, decode, h100};

fn prompt(cost: &CostModel, tokens: u32) -> StepTime {
    cost.step([RowShape { tokens, position: 0, logits: 1 }])
}

#[test]
fn sums_run_beside_the_products_of_the_other_batch() {
    let one = cost(KvDtype::Fp8, h100());
    let two = one.clone().with_two_batches(Some(768));
    assert_eq!(prompt(&two, 767), prompt(&one, 767));
    // Tokens that were sampled last are all in the first batch.
    assert_eq!(decode(&two, 1024, 512), decode(&one, 1024, 512));
    for tokens in [768, 1024, 1536, 2048, 4096] {
        let (one, two) = (prompt(&one, tokens), prompt(&two, tokens));
        // Little waiting is left, but the weights are read twice and the products cut less evenly.
        assert!(two.reduce < 0.15 * one.reduce, "{tokens}: {two:?}");
        assert!(two.weights > 1.9 * one.weights && two.cuts > one.cuts, "{tokens}: {two:?}");
        assert!(two.total() < 0.96 * one.total(), "{tokens}: {}, one batch {}", two.total(), one.total());
    }
}

#[test]
fn sums_that_take_longer_than_products_are_waited_for() {
    let slow = |factor: f64| {
        let mut gpu = h100();
        gpu.all_reduce.iter_mut().for_each(|(_, seconds)| *seconds *= factor);
        prompt(&cost(KvDtype::Fp8, gpu).with_two_batches(Some(768)), 2048)
    };
    let (one, ten, twenty) = (slow(1.0), slow(10.0), slow(20.0));
    assert!(one.reduce < 0.02 * one.total(), "{one:?}");
    // From there on the sums alone limit the step: twice the time per sum, twice the step.
    let ratio = twenty.total() / ten.total();
    assert!((ratio - 2.0).abs() < 0.2, "{ratio}: {ten:?}, {twenty:?}");
}
