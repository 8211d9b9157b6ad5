//! Tests of stop strings.

use octant::text::StopMatcher;
use proptest::prelude::*;

/// Pushes the pieces of a text. Returns the text that was output and the stop string that ended it.
fn run(pieces: &[&str], stops: &[&str], include: bool) -> (String, Option<String>) {
    let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
    let (mut text, mut matched) = (String::new(), None);
    for piece in pieces {
        let step = matcher.push(piece);
        assert!(matched.is_none() || step == Default::default(), "text after the stop");
        text.push_str(&step.text);
        matched = matched.or(step.matched);
    }
    let rest = matcher.finish();
    assert!(matched.is_none() || rest.is_empty());
    (text + &rest, matched)
}

/// Reference implementation: tries every end of the text; the longest stop string that ends there wins.
fn reference(text: &str, stops: &[&str], include: bool) -> (String, Option<String>) {
    let ends = (1..=text.len()).filter(|&end| text.is_char_boundary(end));
    for end in ends {
        let best = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(*stop));
        if let Some(stop) = best.max_by_key(|stop| stop.len()) {
            let shown = if include { end } else { end - stop.len() };
            return (text[..shown].to_owned(), Some((*stop).to_owned()));
        }
    }
    (text.to_owned(), None)
}

const CASES: [(&str, &[&str]); 12] = [
    ("one two three", &["two"]),
    ("one two three", &["four"]),
    ("aaaaab", &["aab"]),
    ("abababac", &["ababac", "abac"]),
    ("xabcx", &["abc", "b"]),
    ("xabcx", &["bc", "abc"]),
    ("text\n\nUser: hi", &["\n\nUser:", "\nUser:"]),
    ("naïve é è 東京 😀!", &["é è", "京 😀"]),
    ("😀😁😂", &["😂"]),
    ("èéè", &["é"]),
    ("almost <|im_end|", &["<|im_end|>"]),
    ("nothing to stop", &["", ""]),
];

#[test]
fn the_result_is_the_same_for_every_division_into_three_pieces() {
    for (text, stops) in CASES {
        let cuts: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
        for include in [false, true] {
            let expected = reference(text, stops, include);
            for &a in &cuts {
                for &b in cuts.iter().filter(|&&b| b >= a) {
                    let pieces = [&text[..a], &text[a..b], &text[b..]];
                    assert_eq!(run(&pieces, stops, include), expected, "{pieces:?} {stops:?}");
                }
            }
        }
    }
}

#[test]
fn only_text_that_could_become_a_stop_string_is_held_back() {
    let mut matcher = StopMatcher::new(vec!["<end>".into(), "\n\n".into()], false);
    assert_eq!(matcher.push("Hello <").text, "Hello ");
    assert_eq!(matcher.push("b").text, "<b");
    assert_eq!(matcher.push("\n").text, "");
    assert_eq!(matcher.push("<").text, "\n");
    assert_eq!(matcher.push("en").text, "");
    assert_eq!(matcher.finish(), "<en");
}

#[test]
fn without_stop_strings_no_text_is_held_back() {
    let mut matcher = StopMatcher::new(Vec::new(), true);
    assert_eq!(matcher.push("anything").text, "anything");
    assert_eq!(matcher.finish(), "");
}

proptest! {
    #[test]
    fn the_result_is_the_same_for_any_division(
        pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        stops in prop::collection::vec("[abé]{0,4}", 0..4),
        include: bool,
    ) {
        let text = pieces.concat();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&pieces, &stops, include), reference(&text, &stops, include));
    }
}
