//! Texts that share words with a test set, where the shared words stand, and files that cannot be read.

use std::fs::write;
use std::path::PathBuf;

use octant::synth::decontaminate::{Contamination, DecontaminationOptions, TestSetSummary, TestSets};
use tempfile::TempDir;

const QUESTION: &str = "Natalia sold clips to 48 of her friends in April, and then she sold half as many \
                        clips in May. How many clips did she sell altogether?";

/// A folder with one test set.
fn folder(file: &str, text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join(file), text).unwrap();
    folder
}

fn options(file: &str) -> DecontaminationOptions {
    DecontaminationOptions { files: vec![PathBuf::from(file)], ..DecontaminationOptions::default() }
}

fn read(file: &str, text: &str, options: &DecontaminationOptions) -> TestSets {
    TestSets::read(options, folder(file, text).path()).unwrap()
}

fn error(file: &str, text: &str, options: &DecontaminationOptions) -> String {
    let folder = folder(file, text);
    let error = TestSets::read(options, folder.path()).unwrap_err().to_string();
    error.replace(&folder.path().display().to_string(), "FOLDER")
}

#[test]
fn a_shared_run_is_found_with_its_file_and_line() {
    let rows =
        format!("{{\"question\": \"What?\", \"id\": 1}}\n\n{{\"question\": \"{QUESTION}\", \"id\": 2}}\n");
    let sets = read("gsm8k.jsonl", &rows, &options("gsm8k.jsonl"));
    let text = "Solve it: natalia SOLD clips to 48 of her friends in April and then she had none.";
    let found = sets.find(text).unwrap();
    let ngram = "natalia sold clips to 48 of her friends in april and then she".to_owned();
    assert_eq!(found, Contamination { ngram, file: "gsm8k.jsonl".to_owned(), line: 3 });
}

#[test]
fn one_word_less_is_no_match() {
    let sets = read("a.txt", QUESTION, &options("a.txt"));
    assert!(sets.find("Natalia sold clips to 48 of her friends in April, and then she sang.").is_some());
    assert_eq!(sets.find("Natalia sold clips to 48 of her friends in April, and then he sang."), None);
}

#[test]
fn a_short_test_text_matches_as_a_whole() {
    let eight = "Name the capital cities of all Baltic states";
    let sets = read("a.txt", &format!("{eight}\nName three rivers\n"), &options("a.txt"));
    let summary = TestSetSummary { file: "a.txt".to_owned(), texts: 1, too_short: 1 };
    assert_eq!(sets.summaries(), [summary]);
    let found = sets.find(&format!("First: {eight}! Then name three rivers.")).unwrap();
    assert_eq!(found.ngram, "name the capital cities of all baltic states");
    assert_eq!(sets.find("Name the capital cities of all Nordic states. Name three rivers."), None);
}

#[test]
fn only_the_wanted_fields_are_compared() {
    let row =
        format!("{{\"prompt\": [\"Short.\", \"{QUESTION}\"], \"answer\": \"{}\"}}\n", "word ".repeat(20));
    let mut options = options("a.jsonl");
    assert!(read("a.jsonl", &row, &options).find(&"word ".repeat(13)).is_some());
    options.fields = vec!["prompt".to_owned()];
    let sets = read("a.jsonl", &row, &options);
    assert_eq!(sets.find(&"word ".repeat(13)), None);
    assert!(sets.find(QUESTION).is_some());
}

#[test]
fn wording_that_many_test_texts_share_can_be_left_out() {
    let rule = "Your response should contain at least three placeholders in square brackets such as [name].";
    let lines = format!("Write a letter. {rule}\nWrite a poem. {rule}\n{QUESTION}\n");
    let mut options = options("ifeval.txt");
    assert_eq!(read("ifeval.txt", &lines, &options).find(rule).map(|found| found.line), Some(1));
    options.max_test_texts = Some(1);
    let sets = read("ifeval.txt", &lines, &options);
    assert_eq!(sets.find(rule), None);
    assert!(sets.find(QUESTION).is_some());
}

#[test]
fn the_first_file_with_the_run_is_named() {
    let folder = folder("a.txt", "Nothing of it is here, only other words of no use.\n");
    write(folder.path().join("b.txt"), QUESTION).unwrap();
    write(folder.path().join("c.txt"), QUESTION).unwrap();
    let files = ["a.txt", "b.txt", "c.txt"].map(PathBuf::from).to_vec();
    let options = DecontaminationOptions { files, ..DecontaminationOptions::default() };
    let sets = TestSets::read(&options, folder.path()).unwrap();
    assert_eq!(sets.find(QUESTION).map(|found| found.file), Some("b.txt".to_owned()));
    assert_eq!(sets.summaries().len(), 3);
}

#[test]
fn errors_name_the_file_and_the_line() {
    let jsonl = options("a.jsonl");
    assert!(
        error("a.jsonl", "{}\n{\"a\": }\n", &jsonl).starts_with("FOLDER/a.jsonl:2: expected a JSON value: ")
    );
    let mut fields = jsonl.clone();
    fields.fields = vec!["prompt".to_owned(), "question".to_owned()];
    assert_eq!(
        error("a.jsonl", "{\"prompt\": \"x\"}\n{\"problem\": \"x\", \"level\": 1}\n", &fields),
        "FOLDER/a.jsonl:2: expected one of the fields prompt, question; got problem, level"
    );
    assert_eq!(
        error("a.jsonl", "[1]\n", &fields),
        "FOLDER/a.jsonl:1: expected one of the fields prompt, question; got a row that is no object"
    );
    assert_eq!(
        error("a.parquet", "PAR1", &options("a.parquet")),
        "FOLDER/a.parquet: expected .jsonl, .ndjson, .txt, .text or .md; got .parquet"
    );
    assert!(
        error("a.txt", "x", &options("b.txt"))
            .starts_with("FOLDER/b.txt: cannot read this file of decontaminate.files: ")
    );
    let words = DecontaminationOptions { min_words: 14, ..options("a.txt") };
    assert_eq!(
        error("a.txt", "x", &words),
        "min_words and ngram_words: expected 1 <= min_words <= ngram_words; got 14 and 13"
    );
}
