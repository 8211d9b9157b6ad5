//! Turns one sequence's tokens into text. The detokenizer holds back incomplete characters, and the stop
//! matcher holds back text that may be the beginning of a stop string. A token's log-probability is held back
//! as long as its text, so that both are released together.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{Ask, Delta, Failure, OutputRules, Prompt};
use crate::request::{Finish, SampledToken, TokenLogprob, Update};
use crate::text::{Detokenizer, StopMatcher, Tokenizer, shown};
use crate::tools::ToolCallParser;

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id or a stop string.
    Stop,
    /// `max_tokens` tokens were generated.
    Length,
    /// The same as [`Self::Stop`], after tool calls.
    ToolCalls,
}

impl FinishReason {
    /// The value of `finish_reason` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// An alternative to a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The token's id.
    pub id: u32,
    /// The token's text as it stands in the choice's text, or `bytes:\x..` if its bytes are not valid UTF-8.
    pub token: String,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, at least -9999.
    pub logprob: f32,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The token's id.
    pub id: u32,
    /// The token's text as it stands in the choice's text, or `bytes:\x..` if its bytes are not valid UTF-8.
    pub token: String,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The most probable tokens, most probable first; empty for the first token of a prompt.
    pub top: Vec<Candidate>,
    /// Offset of its text, in characters of the choice's text.
    pub text_offset: usize,
}

/// The part of a reply that is about the prompt.
#[derive(Debug, Clone, Default)]
pub struct PromptReport {
    /// Ids of the prompt, if they are asked for.
    pub ids: Option<Arc<[u32]>>,
    /// For each prompt token from the first to report on its candidates, the token itself first, if they are
    /// asked for. The first token of the prompt has none.
    pub scores: Option<Vec<Vec<RankedCandidate>>>,
}

/// A token of a prompt, or an alternative to it.
#[derive(Debug, Clone)]
pub struct RankedCandidate {
    /// The token's id.
    pub id: u32,
    /// The token's text, with U+FFFD for bytes that are not valid UTF-8.
    pub token: String,
    /// Natural logarithm of its probability, at least -9999.
    pub logprob: f32,
    /// The token's place among all tokens, 1 for the most probable one.
    pub rank: u32,
}

/// A log-probability whose text has not been released.
struct Held {
    scored: Scored,
    /// Bytes of generated text before the token.
    begin: usize,
    /// Bytes of generated text up to the token's end; `None` while the detokenizer holds the token back.
    end: Option<usize>,
}

/// One choice.
pub(super) struct Choice {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    rules: Arc<OutputRules>,
    min_tokens: u32,
    generated: u32,
    scores: bool,
    /// Number of alternatives to report for each token of an echoed prompt.
    echo_top: usize,
    /// The prompt to echo; taken with the first token.
    echo: Option<Prompt>,
    prompt_scores: Vec<TokenLogprob>,
    /// The prompt to report; taken with the first token.
    report: Option<Arc<[u32]>>,
    /// Number of alternatives to report for each prompt token.
    report_top: Option<usize>,
    /// Index of the first prompt token to report on.
    report_start: usize,
    held: VecDeque<Held>,
    /// Characters of echoed and generated text that the detokenizer has returned.
    chars: usize,
    /// Bytes of generated text that the detokenizer has returned.
    decoded: usize,
    /// Bytes of generated text that have been released.
    released: usize,
    /// Finds tool calls in the text.
    parser: Option<ToolCallParser>,
}

impl Choice {
    /// `is_first`: whether it is the first choice of its prompt, which alone reports the prompt's scores.
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, prompt: &Prompt, ask: &Ask, is_first: bool) -> Self {
        let rules = Arc::new(ask.output.clone());
        let report_top = ask.prompt_logprobs.filter(|_| is_first).map(usize::from);
        Self {
            tokenizer: Arc::clone(tokenizer),
            detokenizer: Detokenizer::new(Arc::clone(tokenizer), rules.skip_special, &prompt.ids),
            matcher: StopMatcher::new(rules.stop.clone(), rules.include_stop),
            min_tokens: ask.sampling.min_tokens,
            generated: 0,
            scores: ask.sampling.logprobs.is_some(),
            echo_top: ask.sampling.logprobs.map_or(0, usize::from),
            report: (rules.token_ids || report_top.is_some()).then(|| Arc::clone(&prompt.ids)),
            report_top,
            report_start: ask.prompt_logprobs_start as usize,
            echo: rules.echo.then(|| prompt.clone()),
            rules,
            prompt_scores: Vec::new(),
            held: VecDeque::new(),
            chars: 0,
            decoded: 0,
            released: 0,
            parser: ask.tools.as_ref().map(|tools| ToolCallParser::new(tools.format, tools.names.clone())),
        }
    }

    /// Applies an update of the engine.
    ///
    /// # Errors
    /// The update says that the request failed.
    pub(super) fn push(&mut self, update: Update) -> Result<Delta, Failure> {
        let mut delta = Delta::default();
        self.prompt_scores.extend(update.prompt_logprobs);
        delta.reward = update.reward;
        if update.finish == Some(Finish::Late) {
            return Err(Failure::Late);
        }
        match update.finish {
            Some(Finish::Error(reason)) => return Err(Failure::Engine(reason)),
            Some(Finish::TooComplex(reason)) => return Err(Failure::TooComplex(reason)),
            _ => {}
        }
        if !update.tokens.is_empty() || update.finish.is_some() {
            self.report_prompt(&mut delta);
            self.begin(&mut delta);
        }
        let stopped_by_id = matches!(update.finish, Some(Finish::Stop(_)));
        let last = update.tokens.len().saturating_sub(1);
        for (i, token) in update.tokens.into_iter().enumerate() {
            delta.tokens += 1;
            self.generated += 1;
            if self.rules.token_ids {
                delta.ids.push(token.id);
            }
            self.token(token, stopped_by_id && i == last, &mut delta);
            if delta.finish.is_some() {
                // Tokens after a stop string are not part of the choice.
                break;
            }
        }
        if delta.finish.is_none()
            && let Some(finish) = update.finish
        {
            self.end(&mut delta);
            let reason = if finish == Finish::Length { FinishReason::Length } else { FinishReason::Stop };
            delta.finish = delta.finish.or(Some(reason));
        }
        self.find_calls(&mut delta);
        Ok(delta)
    }

    /// Takes tool calls out of the text of a delta.
    fn find_calls(&mut self, delta: &mut Delta) {
        let Some(parser) = &mut self.parser else { return };
        let text = std::mem::take(&mut delta.text);
        parser.push(&text, &mut delta.text, &mut delta.calls);
        if let Some(finish) = &mut delta.finish {
            parser.finish(&mut delta.text);
            if *finish == FinishReason::Stop && parser.calls() > 0 {
                *finish = FinishReason::ToolCalls;
            }
        }
    }

    /// Reports the prompt, once, with the first token.
    fn report_prompt(&mut self, delta: &mut Delta) {
        let Some(prompt) = self.report.take() else { return };
        let scores = self.report_top.map(|top| {
            // The engine has scored the whole prompt if the echo shows it too.
            let start = self.report_start;
            let unasked = if self.echo.is_some() && self.scores { start.saturating_sub(1) } else { 0 };
            let scores = self.prompt_scores.iter().skip(unasked).map(|score| self.ranked(score, top));
            let first = (start == 0).then(Vec::new);
            first.into_iter().chain(scores).collect()
        });
        let ids = self.rules.token_ids.then_some(prompt);
        delta.prompt = Some(Box::new(PromptReport { ids, scores }));
    }

    /// A prompt token and its `top` alternatives, the token itself first.
    fn ranked(&self, score: &TokenLogprob, top: usize) -> Vec<RankedCandidate> {
        let candidate = |id: u32, logprob: f32, rank: u32| RankedCandidate {
            id,
            token: String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned(),
            logprob: floored(logprob),
            rank,
        };
        let own = candidate(score.token, score.logprob, score.rank);
        let others = (1..).zip(score.top.iter().take(top)).filter(|(_, (id, _))| *id != score.token);
        let others = others.map(|(rank, (id, logprob))| candidate(*id, *logprob, rank));
        std::iter::once(own).chain(others).collect()
    }

    /// Writes the echo, once, before the first token.
    fn begin(&mut self, delta: &mut Delta) {
        let Some(prompt) = self.echo.take() else { return };
        let mut scores = std::mem::take(&mut self.prompt_scores).into_iter();
        let top = self.echo_top;
        let mut score = |i: usize| {
            let mut score = if i == 0 { None } else { scores.next() };
            score.iter_mut().for_each(|score: &mut TokenLogprob| score.top.truncate(top));
            score
        };
        match &prompt.text {
            Some(text) => {
                if self.scores {
                    for (i, (&id, place)) in prompt.ids.iter().zip(self.places(&prompt, text)).enumerate() {
                        delta
                            .scored
                            .push(scored(id, score(i), place.offset, &|id| self.cut_bytes(id, place.cut)));
                    }
                }
                self.chars = text.chars().count();
                delta.text.push_str(text);
            }
            None => {
                // The answer continues this text: its first token can complete a character of the prompt.
                let skip_special = self.rules.skip_special;
                self.detokenizer = Detokenizer::new(Arc::clone(&self.tokenizer), skip_special, &[]);
                for (i, &id) in prompt.ids.iter().enumerate() {
                    if self.scores {
                        let shown = |id| self.detokenizer.shown_bytes(id);
                        delta.scored.push(scored(id, score(i), self.chars, &shown));
                    }
                    let piece = self.detokenizer.push(id);
                    if let Some(scored) = delta.scored.last_mut() {
                        scored.text_offset += ended_before(&piece, &scored.bytes);
                    }
                    self.chars += piece.chars().count();
                    delta.text.push_str(&piece);
                }
            }
        }
    }

    /// The place of each prompt token in the client's text. Added tokens are at the text's start or end.
    fn places(&self, prompt: &Prompt, text: &str) -> Vec<Place> {
        let ranges = prompt.ranges.as_deref().unwrap_or_default();
        let (mut byte, mut offset) = (0, 0);
        let place = |(i, &id): (usize, &u32)| {
            let found = match i.checked_sub(prompt.added) {
                None => (0, 0),
                Some(i) => ranges
                    .get(i)
                    .map_or((text.len(), 0), |range| find(text, range, &self.tokenizer.token_bytes(id))),
            };
            if found.0 < byte {
                (byte, offset) = (0, 0);
            }
            offset += text[byte..found.0].chars().count();
            byte = found.0;
            Place { offset, cut: found.1 }
        };
        prompt.ids.iter().enumerate().map(place).collect()
    }

    /// The bytes of a token without at most `cut` leading spaces.
    fn cut_bytes(&self, id: u32, cut: usize) -> Vec<u8> {
        let mut bytes = self.tokenizer.token_bytes(id);
        let spaces = bytes.iter().take(cut).take_while(|&&byte| byte == b' ').count();
        bytes.split_off(spaces)
    }

    /// Applies one generated token.
    fn token(&mut self, token: SampledToken, is_stop: bool, delta: &mut Delta) {
        let SampledToken { id, logprob: score } = token;
        let score = score.map(|score| *score);
        let silent = is_stop && !self.rules.include_stop;
        let scored = (self.scores && (!silent || self.rules.score_stop_id))
            .then(|| scored(id, score, self.chars, &|id| self.detokenizer.shown_bytes(id)));
        let piece = if silent { String::new() } else { self.detokenizer.push(id) };
        if let Some(mut scored) = scored {
            scored.text_offset += ended_before(&piece, &scored.bytes);
            self.held.push_back(Held { scored, begin: self.decoded, end: None });
        }
        self.release(&piece, delta);
    }

    /// Passes new text through the stop matcher, and releases the log-probabilities whose text is released.
    fn release(&mut self, piece: &str, delta: &mut Delta) {
        if piece.is_empty() {
            return;
        }
        self.chars += piece.chars().count();
        self.decoded += piece.len();
        for held in self.held.iter_mut().rev().take_while(|held| held.end.is_none()) {
            held.end = Some(self.decoded);
        }
        if self.generated <= self.min_tokens {
            self.released += piece.len();
            delta.text.push_str(piece);
        } else {
            let step = self.matcher.push(piece);
            self.released += step.text.len();
            delta.text.push_str(&step.text);
            if step.matched.is_some() {
                delta.finish = Some(FinishReason::Stop);
                delta.stop_string = step.matched;
                // Tokens that lie wholly within or behind the stop string are not part of the output.
                let released = self.released;
                self.held.retain(|held| held.begin < released);
                delta.scored.extend(self.held.drain(..).map(|held| held.scored));
                return;
            }
        }
        while self.held.front().is_some_and(|held| held.end.is_some_and(|end| end <= self.released)) {
            delta.scored.extend(self.held.pop_front().map(|held| held.scored));
        }
    }

    /// Ends the choice: releases everything that was held back.
    fn end(&mut self, delta: &mut Delta) {
        let tail = self.detokenizer.finish();
        self.release(&tail, delta);
        if delta.finish.is_none() {
            let tail = self.matcher.finish();
            delta.text.push_str(&tail);
            delta.scored.extend(self.held.drain(..).map(|held| held.scored));
        }
    }
}

/// A token of a prompt in the client's text.
struct Place {
    /// Number of characters before the token.
    offset: usize,
    /// Leading spaces of the token that the text does not have.
    cut: usize,
}

/// The byte at which a token's text begins in `range` of a text, and the number of its leading spaces that
/// the text does not have: the tokenizer can put a space before a text, and count spaces beside an added
/// token to it.
fn find(text: &str, range: &Range<usize>, token: &[u8]) -> (usize, usize) {
    let mut start = range.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let Ok(token) = std::str::from_utf8(token) else { return (start, 0) };
    let spaces = token.len() - token.trim_start_matches(' ').len();
    if let Some(cut) = (0..=spaces).find(|&cut| text[start..].starts_with(&token[cut..])) {
        return (start, cut);
    }
    let within = text.get(start..range.end).and_then(|part| part.find(&token[spaces..]));
    within.map_or((start, 0), |at| (start + at, spaces))
}

/// Characters of `piece` before the text of the token that the detokenizer returned it for: U+FFFD, if the
/// token ends an incomplete character.
fn ended_before(piece: &str, token: &[u8]) -> usize {
    let own = std::str::from_utf8(token).ok().and_then(|text| piece.strip_suffix(text));
    own.map_or(0, |before| before.chars().count())
}

/// A token with its log-probability. `shown_bytes` gives the bytes of a token as they stand in the text.
fn scored(
    id: u32,
    score: Option<TokenLogprob>,
    text_offset: usize,
    shown_bytes: &dyn Fn(u32) -> Vec<u8>,
) -> Scored {
    let candidate = |&(id, logprob): &(u32, f32)| {
        let bytes = shown_bytes(id);
        Candidate { id, token: shown(&bytes), bytes, logprob: floored(logprob) }
    };
    let bytes = shown_bytes(id);
    Scored {
        id,
        token: shown(&bytes),
        bytes,
        logprob: score.as_ref().map(|score| floored(score.logprob)),
        top: score.map(|score| score.top.iter().map(candidate).collect()).unwrap_or_default(),
        text_offset,
    }
}

/// Replaces NaN and values below -9999, since JSON has neither NaN nor infinity.
fn floored(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
