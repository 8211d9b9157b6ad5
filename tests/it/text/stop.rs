//! Stop strings.

use octant::text::StopMatcher;
use proptest::prelude::*;

/// The text shown and the string that ended it, of a stream cut into pieces.
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

/// What the documentation says: byte by byte, the first string complete ends the text, the longest of several.
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
fn every_pair_of_cuts_gives_the_same() {
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
fn holds_back_only_what_may_become_a_stop_string() {
    let mut matcher = StopMatcher::new(vec!["<end>".into(), "\n\n".into()], false);
    assert_eq!(matcher.push("Hello <").text, "Hello ");
    assert_eq!(matcher.push("b").text, "<b");
    assert_eq!(matcher.push("\n").text, "");
    assert_eq!(matcher.push("<").text, "\n");
    assert_eq!(matcher.push("en").text, "");
    assert_eq!(matcher.finish(), "<en");
}

#[test]
fn without_stop_strings_nothing_is_held() {
    let mut matcher = StopMatcher::new(Vec::new(), true);
    assert_eq!(matcher.push("anything").text, "anything");
    assert_eq!(matcher.finish(), "");
}

proptest! {
    #[test]
    fn any_cuts_give_the_same(
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
