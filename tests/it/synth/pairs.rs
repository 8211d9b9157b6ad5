//! Which responses make a pair, and why others make none.

use octant::synth::pairs::{
    Candidate, Choice, DecidedBy, NoPair, PairOptions, PairOptionsError, choose_pair,
};

const TEXTS: [&str; 5] = ["zero", "one", "two", "three", "four"];

fn scored(scores: &[Option<f64>]) -> Vec<Candidate<'static>> {
    let texts = TEXTS.iter().zip(scores);
    texts.map(|(text, score)| Candidate { text, score: *score, correct: None }).collect()
}

fn judged(verdicts: &[Option<bool>], scores: &[f64]) -> Vec<Candidate<'static>> {
    let rows = TEXTS.iter().zip(verdicts).zip(scores);
    rows.map(|((text, correct), score)| Candidate { text, score: Some(*score), correct: *correct }).collect()
}

fn choose(candidates: &[Candidate<'_>]) -> Result<Choice, NoPair> {
    choose_pair(candidates, &PairOptions::default())
}

#[test]
fn the_highest_score_is_chosen_and_the_lowest_rejected() {
    let choice = choose(&scored(&[Some(1.0), Some(3.5), Some(0.5), Some(2.0)])).unwrap();
    let decided_by = DecidedBy::Score;
    assert_eq!(choice, Choice { chosen: 1, rejected: 2, margin: Some(3.0), decided_by });
}

#[test]
fn ties_go_to_the_earlier_response() {
    let choice = choose(&scored(&[Some(1.0), Some(2.0), Some(2.0), Some(1.0)])).unwrap();
    assert_eq!((choice.chosen, choice.rejected), (1, 0));
}

#[test]
fn equal_scores_make_no_pair() {
    assert_eq!(choose(&scored(&[Some(2.0), Some(2.0), Some(2.0)])), Err(NoPair::EqualScores));
}

#[test]
fn responses_without_a_score_are_left_out() {
    let choice = choose(&scored(&[None, Some(1.0), Some(f64::NAN), Some(2.0)])).unwrap();
    assert_eq!((choice.chosen, choice.rejected), (3, 1));
    for few in [&[Some(1.0)][..], &[None, Some(1.0)], &[]] {
        assert_eq!(choose(&scored(few)), Err(NoPair::TooFewResponses));
    }
}

#[test]
fn the_margin_and_the_best_score_have_to_be_reached() {
    let candidates = scored(&[Some(1.0), Some(1.5)]);
    let with = |min_margin, min_chosen_score| {
        choose_pair(&candidates, &PairOptions { min_margin, min_chosen_score })
    };
    assert!(with(0.5, Some(1.5)).is_ok());
    assert_eq!(with(0.6, None), Err(NoPair::SmallMargin { margin: 0.5 }));
    assert_eq!(with(0.0, Some(1.6)), Err(NoPair::LowScore { score: 1.5 }));
}

#[test]
fn ground_truth_precedes_the_scores() {
    let verdicts = [Some(false), Some(true), Some(false), Some(true)];
    let choice = choose(&judged(&verdicts, &[4.0, 1.0, 3.0, 2.0])).unwrap();
    let decided_by = DecidedBy::GroundTruth;
    assert_eq!(choice, Choice { chosen: 3, rejected: 2, margin: Some(-1.0), decided_by });
}

#[test]
fn ground_truth_needs_no_margin_and_no_scores() {
    let mut candidates = judged(&[Some(false), Some(true)], &[2.0, 2.0]);
    let options = PairOptions { min_margin: 1.0, min_chosen_score: Some(3.0) };
    assert_eq!(choose_pair(&candidates, &options).unwrap().margin, Some(0.0));
    for candidate in &mut candidates {
        candidate.score = None;
    }
    let choice = choose_pair(&candidates, &options).unwrap();
    assert_eq!((choice.chosen, choice.rejected, choice.margin), (1, 0, None));
}

#[test]
fn equal_verdicts_make_no_pair_whatever_the_scores() {
    assert_eq!(choose(&judged(&[Some(true); 3], &[1.0, 2.0, 3.0])), Err(NoPair::AllRight));
    assert_eq!(choose(&judged(&[Some(false); 3], &[1.0, 2.0, 3.0])), Err(NoPair::AllWrong));
    assert_eq!(choose(&judged(&[Some(true), None], &[1.0, 2.0])), Err(NoPair::TooFewResponses));
}

#[test]
fn responses_that_the_checker_could_not_judge_are_left_out() {
    let choice = choose(&judged(&[None, Some(true), Some(false)], &[9.0, 1.0, 2.0])).unwrap();
    assert_eq!((choice.chosen, choice.rejected), (1, 2));
}

#[test]
fn one_text_is_never_both_chosen_and_rejected() {
    let text = |text, score| Candidate { text, score: Some(score), correct: None };
    assert_eq!(choose(&[text("same", 1.0), text(" same\n", 2.0)]), Err(NoPair::SameText));
}

#[test]
fn options_out_of_range_are_named() {
    let check = |min_margin, min_chosen_score| PairOptions { min_margin, min_chosen_score }.check();
    assert_eq!(check(0.0, None), Ok(()));
    assert_eq!(check(-0.1, None), Err(PairOptionsError::MinMargin(-0.1)));
    let error = check(f64::INFINITY, None).unwrap_err().to_string();
    assert_eq!(error, "min_margin: expected a number of at least 0; got inf");
    let error = check(0.0, Some(f64::NEG_INFINITY)).unwrap_err().to_string();
    assert_eq!(error, "min_chosen_score: expected a finite number; got -inf");
}
