//! Grammars over several ranks: one matcher of a sequence serves all of them.

use std::path::Path;
use std::sync::Arc;

use octant::comm::Local;
use octant::engine::{Engine, EngineHandle, EngineThread, SubmitOptions};
use octant::grammar::Grammar;
use octant::model::Shard;
use octant::request::{Finish, Request, SamplingParams, TokenLogprob};
use octant::runner::{Runner, RunnerOptions};

use super::{PATIENCE, parts_of, scheduler};
use crate::device::determinism::block_on;
use crate::device::golden::golden;
use crate::device::grammars::{END, letters};
use crate::device::model::{fixture, request};

/// Token ids of the model. Token `i` is letter number `i` modulo 26.
const VOCAB: usize = 384;
/// Tokens of an answer that no grammar ends.
const LENGTH: u32 = 16;
/// Whether a token may stand at this index of an answer.
type Follows = fn(usize, u8) -> bool;

/// Grammars as regular expressions, with the letters that they allow and the length at which they end.
const GRAMMARS: [(&str, Follows, Option<usize>); 4] = [
    ("([a-m][n-z]){200}", |at, letter| (letter <= b'm') == (at % 2 == 0), None),
    ("[a-e]{9}", |_, letter| letter <= b'e', Some(9)),
    ("x[a-z]{5}y", |at, letter| at % 6 != 0 || letter == if at == 0 { b'x' } else { b'y' }, Some(7)),
    ("([aeiou]{3}z){200}", |at, letter| (letter == b'z') == (at % 4 == 3), None),
];

/// How an engine runs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Setting {
    ranks: usize,
    mask_threads: usize,
    in_flight: usize,
    /// Whether log-probabilities are asked for. Without them a greedy request needs the ranks' shortlists
    /// only.
    logprobs: bool,
}

/// The ids of an answer, and the log-probabilities if they were asked for.
type Answer = Vec<(u32, Option<TokenLogprob>)>;

fn ids(answer: &Answer) -> Vec<u32> {
    answer.iter().map(|(id, _)| *id).collect()
}

fn engine(dir: &Path, setting: Setting) -> (EngineHandle, EngineThread) {
    let scheduler = scheduler(VOCAB);
    let parts = Local::group(setting.ranks, PATIENCE).into_iter().zip(Shard::all(setting.ranks));
    let parts = parts.map(|(comm, shard)| parts_of(dir, comm, shard, &scheduler)).collect();
    let options = RunnerOptions { step_timeout: PATIENCE, mask_threads: setting.mask_threads };
    Engine::start(scheduler, setting.in_flight, Box::new(Runner::start(parts, options))).unwrap()
}

/// A request for each of these grammars, greedy or at temperature 1, and one without a grammar.
fn requests(grammars: &[Arc<Grammar>], temperature: f32, logprobs: bool) -> Vec<Request> {
    let prompt = |i: u32| -> Vec<u32> { (0..24 - 3 * i).map(|at| 3 + (at * 37 + i * 101) % 380).collect() };
    let grammars = grammars.iter().cloned().map(Some).chain([None]);
    let asked = (0..).zip(grammars).map(|(i, grammar)| {
        let mut asked = request(&prompt(i), LENGTH, temperature, u64::from(i));
        asked.stop.stop_ids = vec![END];
        let plain = SamplingParams { temperature, seed: u64::from(i), ..SamplingParams::greedy() };
        let logprobs = logprobs.then_some(u8::MAX);
        asked.sampling = Arc::new(SamplingParams { grammar, logprobs, barred: vec![END], ..plain });
        asked
    });
    asked.collect()
}

/// The answers to requests at once, without the end of the sequence.
fn answers(dir: &Path, setting: Setting, requests: Vec<Request>) -> Vec<Answer> {
    let (handle, _thread) = engine(dir, setting);
    let one = async |request: Request| {
        let (constrained, permit) = (request.sampling.grammar.is_some(), handle.enter(1).unwrap());
        let mut stream = permit.submit(vec![request], SubmitOptions::default()).await.unwrap().remove(0);
        let mut answer = Answer::new();
        loop {
            let update = stream.next().await;
            let tokens = update.tokens.into_iter().map(|token| (token.id, token.logprob.map(|own| *own)));
            answer.extend(tokens.filter(|(id, _)| *id != END));
            match update.finish {
                None => {}
                Some(Finish::Complete) if constrained => return answer,
                Some(Finish::Length | Finish::Stop(_)) => return answer,
                Some(finish) => panic!("{setting:?}: {finish:?}"),
            }
        }
    };
    block_on(futures_util::future::join_all(requests.into_iter().map(one)))
}

fn follows_its_grammar(answers: &[Answer], setting: Setting) {
    for (answer, (regex, follows, end)) in answers.iter().zip(GRAMMARS) {
        let letters: Vec<u8> = ids(answer).into_iter().map(|id| b'a' + (id % 26) as u8).collect();
        let text = String::from_utf8_lossy(&letters);
        assert_eq!(letters.len(), end.unwrap_or(LENGTH as usize), "{setting:?}, {regex}: {text}");
        assert!(letters.iter().enumerate().all(|(at, c)| follows(at, *c)), "{setting:?}, {regex}: {text}");
    }
}

/// The settings of a group of ranks.
fn settings(ranks: usize) -> impl Iterator<Item = Setting> {
    [(1, 1, true), (0, 2, true), (0, 1, false), (1, 2, false)]
        .into_iter()
        .map(move |(mask_threads, in_flight, logprobs)| Setting { ranks, mask_threads, in_flight, logprobs })
}

/// The number of greedy tokens before the first whose log-probability exceeds that of the next one that the
/// grammar allows by no more than `margin`.
fn sure(answer: &Answer, allowed: impl Fn(usize, u32) -> bool, margin: f32) -> usize {
    let is_tie = |(at, (id, logprob)): (usize, &(u32, Option<TokenLogprob>))| {
        let TokenLogprob { logprob, top, .. } = logprob.as_ref().expect("log-probabilities were asked for");
        let others = top.iter().filter(|(other, _)| other != id && allowed(at, *other));
        let least = top.last().expect("the most probable tokens were asked for").1;
        let second = others.map(|(_, logprob)| *logprob).fold(least, f32::max);
        logprob - second <= margin
    };
    answer.iter().enumerate().position(is_tie).unwrap_or(answer.len())
}

#[test]
fn answers_over_several_ranks_follow_their_grammars_as_those_of_one_rank_do() {
    let dir = fixture("nemotron");
    let grammars = GRAMMARS.map(|(regex, ..)| letters(regex));
    let mut alone: Option<Vec<Answer>> = None;
    for ranks in [1, 2, 4] {
        let mut reference: Option<Vec<Answer>> = None;
        for setting in settings(ranks) {
            let mut asked = requests(&grammars, 0.0, setting.logprobs);
            let greedy = asked.len();
            asked.extend(requests(&grammars, 1.0, setting.logprobs));
            let got = answers(&dir, setting, asked);
            follows_its_grammar(&got[..greedy], setting);
            follows_its_grammar(&got[greedy..], setting);
            let first = reference.get_or_insert_with(|| got.clone());
            // Threads, steps in flight and shortlists change no token.
            let tokens = |all: &[Answer]| -> Vec<Vec<u32>> { all.iter().map(ids).collect() };
            assert_eq!(tokens(&got), tokens(first), "{setting:?}");
            assert!(!setting.logprobs || got == *first, "{setting:?}: the same bits");
        }
        let got = reference.expect("there are settings");
        let alone = alone.get_or_insert_with(|| got.clone());
        equal_up_to_a_near_tie(alone, &got, ranks);
    }
}

/// Greedy tokens equal those of one rank up to the first near-tie among allowed tokens.
fn equal_up_to_a_near_tie(alone: &[Answer], got: &[Answer], ranks: usize) {
    let margin = 2.0 * golden("nemotron").bf16_worst as f32 / 8.0;
    let mut decided = 0;
    for ((alone, got), (regex, follows, _)) in alone.iter().zip(got).zip(GRAMMARS) {
        let allowed = |at, id: u32| id != END && follows(at, b'a' + (id % 26) as u8);
        let sure = sure(alone, allowed, margin);
        assert_eq!(ids(got)[..sure], ids(alone)[..sure], "{ranks} ranks: {regex}");
        decided += sure;
    }
    assert!(decided >= 12, "{ranks} ranks: only {decided} tokens before the first near-ties");
}
