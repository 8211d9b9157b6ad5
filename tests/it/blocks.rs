//! The KV block pool and the prefix cache: handles, sharing, eviction.

use std::collections::HashSet;

use octant::scheduler::blocks::{Block, BlockTable, Pool};
use octant::scheduler::prefix::BlockKey;
use proptest::prelude::*;

/// The key of a sequence's first block if it holds this token 64 times.
fn key(token: u32) -> BlockKey {
    BlockKey::root(None).child(&[token; 64])
}

#[test]
fn every_block_can_be_taken_once() {
    let pool = Pool::new(5);
    let blocks: Vec<Block> = std::iter::from_fn(|| pool.take()).collect();
    let ids: HashSet<u32> = blocks.iter().map(Block::id).collect();
    assert_eq!(ids, HashSet::from([0, 1, 2, 3, 4]));
}

#[test]
fn a_dropped_block_is_free_again() {
    let pool = Pool::new(1);
    drop(pool.take().unwrap());
    assert_eq!((pool.free(), pool.used(), pool.cached()), (1, 0, 0));
}

#[test]
fn a_shared_block_is_free_when_its_last_handle_is_dropped() {
    let pool = Pool::new(1);
    let first = pool.take().unwrap();
    let second = first.clone();
    drop(first);
    assert!(pool.take().is_none());
    drop(second);
    assert!(pool.take().is_some());
}

#[test]
fn a_published_block_is_cached_when_dropped_and_found_by_its_key() {
    let pool = Pool::new(2);
    let block = pool.take().unwrap();
    pool.publish(key(1), &block);
    let id = block.id();
    drop(block);
    assert_eq!((pool.free(), pool.used(), pool.cached()), (1, 0, 1));
    assert_eq!(pool.find(&key(1)).map(|block| block.id()), Some(id));
}

#[test]
fn a_block_in_use_is_shared_by_its_key() {
    let pool = Pool::new(2);
    let block = pool.take().unwrap();
    pool.publish(key(1), &block);
    let other = pool.find(&key(1)).unwrap();
    assert_eq!((other.id(), other.holders()), (block.id(), 2));
}

#[test]
fn free_blocks_are_taken_before_cached_ones() {
    let pool = Pool::new(2);
    let block = pool.take().unwrap();
    pool.publish(key(1), &block);
    let id = block.id();
    drop(block);
    assert_ne!(pool.take().unwrap().id(), id);
}

#[test]
fn the_least_recently_used_block_is_evicted_first() {
    let pool = Pool::new(3);
    let blocks: Vec<Block> = std::iter::from_fn(|| pool.take()).collect();
    for (token, block) in (0..).zip(&blocks) {
        pool.publish(key(token), block);
    }
    drop(blocks);
    drop(pool.find(&key(0)));
    let held = [pool.take().unwrap(), pool.take().unwrap()];
    assert!(pool.find(&key(1)).is_none() && pool.find(&key(2)).is_none());
    assert!(pool.find(&key(0)).is_some(), "its handle was dropped last");
    drop(held);
}

#[test]
fn a_block_in_use_is_never_evicted() {
    let pool = Pool::new(1);
    let block = pool.take().unwrap();
    pool.publish(key(1), &block);
    assert!(pool.take().is_none());
}

#[test]
fn the_second_of_two_equal_blocks_is_not_cached() {
    let pool = Pool::new(2);
    let blocks = [pool.take().unwrap(), pool.take().unwrap()];
    blocks.iter().for_each(|block| pool.publish(key(1), block));
    drop(blocks);
    assert_eq!((pool.free(), pool.cached()), (1, 1));
}

#[test]
fn a_forgotten_block_is_not_found_and_stays_held() {
    let pool = Pool::new(1);
    let block = pool.take().unwrap();
    pool.publish(key(1), &block);
    pool.forget(&block);
    assert!(pool.find(&key(1)).is_none() && pool.take().is_none());
    drop(block);
    assert_eq!(pool.free(), 1);
}

#[test]
fn a_table_returns_its_last_block_first() {
    let pool = Pool::new(2);
    let mut table = BlockTable::default();
    for token in 0..2 {
        let block = pool.take().unwrap();
        pool.publish(key(token), &block);
        table.push(block);
    }
    drop(table);
    let _taken = pool.take().unwrap();
    assert!(pool.find(&key(1)).is_none(), "the tail was evicted");
    assert!(pool.find(&key(0)).is_some(), "the head was not");
}

#[test]
fn a_table_lists_the_blocks_of_the_first_positions() {
    let pool = Pool::new(3);
    let mut table = BlockTable::default();
    std::iter::from_fn(|| pool.take()).for_each(|block| table.push(block));
    assert_eq!([1, 64, 65, 192].map(|tokens| table.ids(tokens).len()), [1, 1, 2, 3]);
}

#[test]
fn a_key_depends_on_salt_parent_and_every_token() {
    let tokens = [7; 64];
    let mut last = tokens;
    last[63] = 8;
    let root = BlockKey::root(None);
    let keys = [
        root.child(&tokens),
        root.child(&last),
        root.child(&tokens).child(&tokens),
        BlockKey::root(Some("")).child(&tokens),
        BlockKey::root(Some("a")).child(&tokens),
        BlockKey::root(Some("b")).child(&tokens),
    ];
    assert_eq!(HashSet::from(keys).len(), keys.len());
}

/// An operation of a random trace on a pool.
#[derive(Debug, Clone)]
enum Operation {
    Take,
    Find(u32),
    Share(usize),
    Publish(usize, u32),
    Forget(usize),
    Drop(usize),
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => Just(Operation::Take),
        2 => (0..6u32).prop_map(Operation::Find),
        1 => (0..9usize).prop_map(Operation::Share),
        2 => (0..9usize, 0..6u32).prop_map(|(i, token)| Operation::Publish(i, token)),
        1 => (0..9usize).prop_map(Operation::Forget),
        3 => (0..9usize).prop_map(Operation::Drop),
    ]
}

proptest! {
    /// No block is lost, handed out twice, or evicted while held.
    #[test]
    fn a_pool_is_consistent_after_every_operation(
        operations in prop::collection::vec(any_operation(), 1..200),
    ) {
        let pool = Pool::new(6);
        let mut held: Vec<Block> = Vec::new();
        for operation in operations {
            let pick = |i: usize| if held.is_empty() { None } else { Some(i % held.len()) };
            match operation {
                Operation::Take => {
                    if let Some(block) = pool.take() {
                        prop_assert!(held.iter().all(|other| other.id() != block.id()), "taken twice");
                        held.push(block);
                    } else {
                        prop_assert_eq!(held.iter().map(Block::id).collect::<HashSet<_>>().len(), 6);
                    }
                }
                Operation::Find(token) => held.extend(pool.find(&key(token))),
                Operation::Share(i) => {
                    let share = pick(i).map(|i| held[i].clone());
                    held.extend(share);
                }
                Operation::Publish(i, token) => {
                    if let Some(i) = pick(i) {
                        pool.publish(key(token), &held[i]);
                    }
                }
                Operation::Forget(i) => {
                    if let Some(i) = pick(i) {
                        pool.forget(&held[i]);
                    }
                }
                Operation::Drop(i) => {
                    if let Some(i) = pick(i) {
                        held.swap_remove(i);
                    }
                }
            }
            let mut counts = vec![0; 6];
            held.iter().for_each(|block| counts[block.id() as usize] += 1);
            prop_assert_eq!(pool.check(&counts), Ok(()));
        }
    }
}
