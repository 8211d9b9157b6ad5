//! How requests with a grammar end on a device.

use std::sync::Arc;

use octant::engine::SubmitOptions;
use octant::grammar::{Grammar, GrammarCompiler, GrammarSource, Vocabulary};
use octant::request::{Finish, Request, SamplingParams};

use super::determinism::{answer, block_on};
use super::model::{engine, fixture, request};

/// Token ids of the model.
const VOCAB: usize = 384;
/// The end of an answer.
pub const END: u32 = 0;

/// A grammar over a vocabulary of lower-case letters: token `i` is letter number `i` modulo 26.
pub fn letters(regex: &str) -> Arc<Grammar> {
    of_letters(&GrammarSource::Regex(regex.to_owned()))
}

fn of_letters(source: &GrammarSource) -> Arc<Grammar> {
    let mut tokens: Vec<Vec<u8>> = (0..VOCAB).map(|id| vec![b'a' + (id % 26) as u8]).collect();
    tokens[END as usize] = b"<end>".to_vec();
    let special = (0..VOCAB).map(|id| id == END as usize).collect();
    let compiler = GrammarCompiler::new(Vocabulary { tokens, special, eos: vec![END] }).unwrap();
    compiler.compile(source).unwrap()
}

/// The text of a request's answer, without its end, and its finish.
fn run(regex: &str, change: impl FnOnce(&mut Request, &mut SamplingParams)) -> (String, Finish) {
    let mut request = request(&[5, 6, 7], 12, 1.0, 3);
    request.stop.stop_ids = vec![END];
    let mut sampling = SamplingParams::clone(&request.sampling);
    sampling.grammar = Some(letters(regex));
    sampling.barred = vec![END];
    change(&mut request, &mut sampling);
    request.sampling = Arc::new(sampling);
    let (handle, _thread) = engine(&fixture("nemotron"), |_| {}, 2);
    block_on(async {
        let permit = handle.enter(1).unwrap();
        let mut stream = permit.submit(vec![request], SubmitOptions::default()).await.unwrap().remove(0);
        let mut text = String::new();
        loop {
            let update = stream.next().await;
            let letter = |id: u32| (id != END).then(|| char::from(b'a' + (id % 26) as u8));
            text.extend(update.tokens.iter().filter_map(|token| letter(token.id)));
            if let Some(finish) = update.finish {
                return (text, finish);
            }
        }
    })
}

/// Its tokens and the bits of its log-probabilities are those that it has alone.
#[test]
fn a_request_beside_a_grammar_that_takes_too_much_work_keeps_its_bits() {
    let innocent = || request(&[9, 8, 7, 6], 12, 1.0, 4);
    let dir = fixture("nemotron");
    let alone = block_on(answer(&engine(&dir, |_| {}, 2).0, innocent()));
    let (handle, _thread) = engine(&dir, |_| {}, 2);
    // A row of the parser has the 300 rules again for each letter.
    let rules: String = (0..300).map(|i| format!("r{i}: r{} \"Z\"?\n", i + 1)).collect();
    let lark = format!("start: r0 \"Q\"\n{rules}r300: \"a\" r0 | \"a\"\n");
    let grammar = of_letters(&GrammarSource::Lark(lark));
    let guilty = || async {
        let mut request = request(&[5, 6, 7], 12, 1.0, 3);
        let sampling = SamplingParams::clone(&request.sampling);
        request.sampling = Arc::new(SamplingParams { grammar: Some(Arc::clone(&grammar)), ..sampling });
        let permit = handle.enter(1).unwrap();
        let mut stream = permit.submit(vec![request], SubmitOptions::default()).await.unwrap().remove(0);
        loop {
            if let Some(finish) = stream.next().await.finish {
                return finish;
            }
        }
    };
    let all = async { futures_util::future::join3(guilty(), answer(&handle, innocent()), guilty()).await };
    let (first, beside, last) = block_on(all);
    assert!(matches!(first, Finish::TooComplex(_)) && first == last, "{first:?}, {last:?}");
    assert!(beside == alone);
}

fn complete(text: &str) -> (String, Finish) {
    (text.to_owned(), Finish::Complete)
}

#[test]
fn a_request_with_a_grammar_ends_where_the_grammar_does() {
    assert_eq!(run("ab", |_, _| {}), complete("ab"));
    // Also where the end of the sequence does not stop it, and before the least number of tokens.
    assert_eq!(run("ab", |request, _| request.stop.stop_ids.clear()), complete("ab"));
    assert_eq!(run("ab", |_, sampling| sampling.min_tokens = 9), complete("ab"));
    // Where the end is one of several choices, the least number of tokens holds.
    let (text, finish) = run("(ab)+", |_, sampling| sampling.min_tokens = 9);
    assert!(text.len() >= 9 && text.starts_with("ababababa"), "{text}: {finish:?}");
    assert_eq!(run("a{50}", |_, _| {}), ("a".repeat(12), Finish::Length));
    // No token has an upper-case letter.
    assert_eq!(run("ab(c|C)C", |_, _| {}), ("abc".to_owned(), Finish::Length));
    // A greedy request, without a report of log-probabilities.
    let greedy = |_: &mut Request, sampling: &mut SamplingParams| {
        (sampling.temperature, sampling.logprobs) = (0.0, None);
    };
    assert_eq!(run("xyz", greedy), complete("xyz"));
}
