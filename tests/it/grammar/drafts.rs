//! Masks of tokens that follow drafts: those that the answer has if the drafts are accepted, and no trace of
//! drafts that are rejected.

use octant::grammar::{
    Accepted, Grammar, GrammarMatcher, GrammarProgress, GrammarSource, TokenMask, TokenRules,
};
use octant::random::Random;
use serde_json::json;
use std::sync::Arc;

use super::{EOS, allowed, bytes, random_answer, schema, too_complex};

/// Rules over the ids of [`bytes`].
fn rules() -> TokenRules {
    TokenRules::new(263, None, vec![vec![u32::from(b'a'), u32::from(b'b')], vec![u32::from(b'q')]])
}

fn grammars() -> Vec<Arc<Grammar>> {
    let compiler = bytes();
    let object = schema(json!({ "type": "object", "properties": { "name": { "type": "string" },
        "on": { "type": "boolean" }, "list": { "type": "array", "items": { "type": "integer" } } },
        "required": ["name", "on", "list"], "additionalProperties": false }));
    let mut all: Vec<Arc<Grammar>> =
        [object, GrammarSource::json_object(), GrammarSource::Regex("(ab|ac|x[0-9]{2,5})+z".to_owned())]
            .map(|source| compiler.compile(&source).unwrap())
            .to_vec();
    all.push(Arc::new(Grammar::with_rules(None, rules(), 263)));
    all.push(Arc::new(Grammar::with_rules(Some(&all[2]), rules(), 263)));
    all
}

/// Masks and progress of an answer, token by token.
struct Followed {
    tokens: Vec<u32>,
    masks: Vec<TokenMask>,
    progress: GrammarProgress,
}

fn followed(grammar: &Arc<Grammar>, random: &mut Random) -> Followed {
    let matcher = || GrammarMatcher::new(Arc::clone(grammar), vec![EOS], Vec::new());
    let (tokens, progress) = random_answer(&matcher(), random, 60);
    let again = matcher();
    let mask = |(index, token): (usize, &u32)| {
        let mask = again.mask(index).unwrap();
        again.advance(index, *token);
        mask
    };
    Followed { masks: tokens.iter().enumerate().map(mask).collect(), tokens, progress }
}

#[test]
fn drafts_change_neither_masks_nor_progress() {
    let (mut random, mut after_drafts, mut refused) = (Random::new(5), 0, 0);
    for grammar in grammars() {
        for _ in 0..12 {
            let Followed { tokens, masks, progress } = followed(&grammar, &mut random);
            let matcher = GrammarMatcher::new(Arc::clone(&grammar), vec![EOS], Vec::new());
            let mut at = 0;
            while at < tokens.len() {
                let count = (random.bits() as usize % 8).min(tokens.len() - at - 1);
                let mut drafts = tokens[at..at + count].to_vec();
                let wrong = random.bits() as usize % 10;
                if let Some(draft) = drafts.get_mut(wrong) {
                    *draft = random.bits() as u32 % 300;
                }
                let right = drafts.iter().zip(&tokens[at..]).take_while(|(one, other)| one == other).count();
                let followed = matcher.count_allowed(at, &drafts);
                // A draft model asks for the masks one by one.
                let mut first = None;
                for known in 0..random.bits() as usize % (count + 1) {
                    let before = matcher.masks(at, &drafts[..known]);
                    assert!(before.len() <= known + 1 && matcher.is_ready(at, &drafts[..known]));
                    first = before.first().cloned();
                }
                let got = matcher.masks(at, &drafts);
                if let Some(first) = first {
                    assert!(Arc::ptr_eq(&first, &got[0]), "a mask is computed once");
                }
                follows(&got, &drafts, followed);
                refused += count - followed;
                assert_eq!(matcher.masks(at, &drafts[..count / 2])[..], got[..got.len().min(count / 2 + 1)]);
                // Masks after a wrong draft belong to another answer.
                for (got, expected) in got.iter().zip(&masks[at..=at + right]) {
                    assert_eq!(got, expected, "{grammar:?} at {at} of {tokens:?} with {drafts:?}");
                }
                assert!(got.len() > right || progress != GrammarProgress::Open, "{} of {right}", got.len());
                assert!(matcher.is_ready(at, &drafts));
                after_drafts += right;
                let sampled = &tokens[at..=at + right];
                let accepted = matcher.accept(at, sampled);
                at += sampled.len();
                let progress = if at == tokens.len() { &progress } else { &GrammarProgress::Open };
                assert_eq!(accepted, Accepted { tokens: sampled.len(), progress: progress.clone() });
                // A rank that comes later.
                assert_eq!(matcher.accept(at - sampled.len(), sampled), accepted);
            }
        }
    }
    assert!(after_drafts > 500, "{after_drafts} masks after drafts");
    assert!(refused > 100, "{refused} drafts refused");
}

/// The drafts that can be accepted are those that the masks allow. The last of them may end the answer, so
/// that no mask follows it.
fn follows(masks: &[TokenMask], drafts: &[u32], followed: usize) {
    assert!(masks.len() == followed + 1 || masks.len() == followed, "{} masks of {followed}", masks.len());
    let is_allowed = |(mask, draft): (&TokenMask, &u32)| allowed(mask).contains(draft) && *draft != EOS;
    assert!(masks.iter().zip(&drafts[..followed]).all(is_allowed), "{followed} of {drafts:?}");
    if let (Some(mask), Some(draft)) = (masks.get(followed), drafts.get(followed)) {
        assert!(!is_allowed((mask, draft)), "{followed} of {drafts:?}");
    }
}

#[test]
fn masks_end_at_a_draft_that_is_not_allowed_or_ends_the_answer() {
    let compiler = bytes();
    let grammar = compiler.compile(&GrammarSource::Regex("ab?c".to_owned())).unwrap();
    let ids = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
    // (drafts, number of masks, number of drafts that the grammar allows)
    let all =
        [("", 1, 0), ("x", 1, 0), ("abc", 3, 3), ("ac", 2, 2), ("acc", 2, 2), ("abb", 3, 2), ("ax", 2, 1)];
    for (drafts, masks, count) in all {
        let matcher = GrammarMatcher::new(Arc::clone(&grammar), vec![EOS], Vec::new());
        assert_eq!(matcher.count_allowed(0, &ids(drafts)), count, "{drafts}");
        assert_eq!(matcher.masks(0, &ids(drafts)).len(), masks, "{drafts}");
        assert_eq!(allowed(&matcher.mask(0).unwrap()), ids("a"), "{drafts}: they are taken back");
        // The tokens after the end of the answer do not belong to it.
        let complete = Accepted { tokens: 2, progress: GrammarProgress::Complete };
        assert_eq!(matcher.accept(0, &ids("acc")), complete, "{drafts}");
        assert!(matcher.masks(2, &ids("c")).is_empty());
    }
    // Without stop ids, the vocabulary's end of an answer is no draft either.
    let matcher = GrammarMatcher::new(Arc::clone(&grammar), Vec::new(), Vec::new());
    let ended = [ids("abc"), vec![EOS]].concat();
    assert_eq!((matcher.count_allowed(0, &ended), matcher.masks(0, &ended).len()), (3, 3));
    let matcher = GrammarMatcher::new(grammar, vec![EOS], Vec::new());
    let first = Accepted { tokens: 1, progress: GrammarProgress::Open };
    assert_eq!(matcher.accept(0, &ids("ax")), first, "the fault of the second token comes later");
    assert!(matches!(matcher.accept(1, &ids("x")).progress, GrammarProgress::Failed(_)));
}

/// A step of the grammar that takes too much work ends drafts, and the answer only if it comes to that step.
#[test]
fn work_for_drafts_does_not_count() {
    let compiler = bytes();
    let grammar = compiler.compile(&GrammarSource::Lark(too_complex())).unwrap();
    let matcher = || GrammarMatcher::new(Arc::clone(&grammar), vec![EOS], Vec::new());
    let a = u32::from(b'a');
    let until = |with: &GrammarMatcher, drafts: usize| {
        let fails = |index: &usize| {
            let allowed = with.count_allowed(*index, &vec![a; drafts]);
            assert!(allowed <= drafts);
            let _masks = with.masks(*index, &vec![a; drafts]);
            with.accept(*index, &[a]).progress != GrammarProgress::Open
        };
        (0..12).find(fails).expect("a step takes too much work")
    };
    let expected = until(&matcher(), 0);
    assert!(expected > 0);
    for drafts in [1, 3, 12] {
        assert_eq!(until(&matcher(), drafts), expected, "{drafts} drafts");
    }
}
