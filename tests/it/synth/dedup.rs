//! Duplicates that are found, texts that are kept, and the order that decides.

use octant::synth::dedup::{DedupError, DedupOptions, Deduplicator, Duplicate};

const PROMPT: &str = "Write a short newsletter for the members of a community garden that explains how to \
                      prepare raised beds for the winter, which plants can stay, and when the next meeting \
                      is.";

fn deduplicator() -> Deduplicator {
    Deduplicator::new(DedupOptions::default()).unwrap()
}

/// The earlier text that each text repeats, by number.
fn repeats(texts: &[&str]) -> Vec<Option<String>> {
    let mut kept = deduplicator();
    let numbered = texts.iter().enumerate();
    numbered.map(|(number, text)| kept.keep(&number.to_string(), text).map(|found| found.of)).collect()
}

#[test]
fn texts_equal_after_normalising_are_duplicates() {
    let texts =
        ["Tidal power", "tidal  POWER.", "\u{ff34}idal power!", "“Tidal” power", "Tidal\npow\u{200b}er"];
    let first = Some("0".to_owned());
    assert_eq!(repeats(&texts), [None, first.clone(), first.clone(), first.clone(), first]);
}

#[test]
fn short_texts_that_differ_are_kept() {
    let texts = ["3 + 4", "3 - 4", "3.4", "34", "f(x)", "fx", "tide", "tides", "?", "!", ""];
    assert_eq!(repeats(&texts), vec![None; texts.len()]);
}

#[test]
fn an_empty_text_repeats_an_empty_text() {
    assert_eq!(repeats(&["", " \n"]), [None, Some("0".to_owned())]);
}

#[test]
fn near_duplicates_are_found_with_their_similarity() {
    let near = PROMPT.replace("short newsletter", "brief newsletter");
    let mut kept = deduplicator();
    assert_eq!(kept.keep("a", PROMPT), None);
    // 31 words have 29 shingles of three. The changed word is the third: three shingles differ on each side.
    let found = kept.keep("b", &near).unwrap();
    assert_eq!(found, Duplicate { of: "a".to_owned(), similarity: 26.0 / 32.0 });
}

#[test]
fn texts_on_one_subject_are_kept() {
    let others = [
        "Write a short newsletter for the members of a chess club that explains the rules of the summer \
         tournament, who can enter, and where the results are published.",
        "Which plants in a raised bed survive the winter, and how is the soil prepared for spring?",
    ];
    assert_eq!(repeats(&[PROMPT, others[0], others[1]]), vec![None; 3]);
}

#[test]
fn the_most_similar_text_is_named() {
    let far = PROMPT.replace("short newsletter", "brief letter");
    let near = PROMPT.replace("next meeting", "next gathering");
    let mut kept = deduplicator();
    assert_eq!(kept.keep("far", &far), None);
    assert_eq!(kept.keep("near", &near), None);
    let found = kept.keep("prompt", PROMPT).unwrap();
    assert_eq!(found, Duplicate { of: "near".to_owned(), similarity: 27.0 / 31.0 });
}

#[test]
fn words_of_scripts_without_spaces_are_compared() {
    let text = "请写一篇关于潮汐发电的短文，说明它的优点和缺点，并举出三个国家的例子。";
    let near = text.replace("三个", "四个");
    assert_eq!(
        repeats(&[text, &near, "请解释光合作用的过程，以及它为什么对地球上的生命很重要。"]),
        [None, Some("0".to_owned()), None]
    );
}

#[test]
fn each_run_finds_the_same_duplicates() {
    let texts: Vec<String> = (0..200)
        .map(|i| format!("{PROMPT} Mention the number {} and the tool {} at the end.", i % 40, i % 7))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = repeats(&texts);
    assert_eq!(found, repeats(&texts));
    assert!(found[0].is_none() && found[1..].iter().any(Option::is_some));
}

#[test]
fn no_kept_pair_reaches_the_similarity() {
    // A word list makes texts of many degrees of similarity.
    let words: Vec<String> = (0..60).map(|i| format!("word{i}")).collect();
    let text = |from: usize, changed: usize| {
        let mut text: Vec<&str> = words[..40].iter().map(String::as_str).collect();
        text[changed % 40] = &words[40 + from % 20];
        text.rotate_left(from % 3);
        text.join(" ")
    };
    let mut kept = deduplicator();
    let mut texts: Vec<String> = Vec::new();
    for i in 0..300 {
        let candidate = text(i, i * 7);
        if kept.keep(&i.to_string(), &candidate).is_none() {
            texts.push(candidate);
        }
    }
    let shingles = |text: &str| -> std::collections::BTreeSet<Vec<String>> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.windows(3).map(<[String]>::to_vec).collect()
    };
    let sets: Vec<_> = texts.iter().map(|text| shingles(text)).collect();
    for (i, a) in sets.iter().enumerate() {
        for b in &sets[..i] {
            let common = a.intersection(b).count() as f64;
            assert!(common / ((a.len() + b.len()) as f64 - common) < 0.7);
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let with =
        |shingle_words, similarity| Deduplicator::new(DedupOptions { shingle_words, similarity }).err();
    assert_eq!(with(0, 0.7), Some(DedupError::ShingleWords));
    assert_eq!(with(3, 0.0), Some(DedupError::Similarity(0.0)));
    let error = with(3, 1.5).unwrap().to_string();
    assert_eq!(error, "similarity: expected a number above 0 and at most 1; got 1.5");
    assert!(with(3, f64::NAN).is_some() && with(1, 1.0).is_none() && with(5, 0.01).is_none());
}
