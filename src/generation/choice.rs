//! Turns one sequence's tokens into text. The detokenizer holds back incomplete characters, and the stop
//! matcher holds back text that may be the beginning of a stop string. A token's log-probability is held back
//! as long as its text, so that both are released together.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Ask, Delta, Failure, OutputRules, Prompt};
use crate::request::{Finish, SampledToken, TokenLogprob, Update};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id or a stop string.
    Stop,
    /// `max_tokens` tokens were generated.
    Length,
}

impl FinishReason {
    /// The value of `finish_reason` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// An alternative to a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its text, or `bytes:\x..` if its bytes are not valid UTF-8.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, at least -9999.
    pub logprob: f32,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Its text, or `bytes:\x..` if its bytes are not valid UTF-8.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The most probable tokens, most probable first; empty for the first token of a prompt.
    pub top: Vec<Candidate>,
    /// Offset of its text, in characters of the choice's text.
    pub text_offset: usize,
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
    /// The prompt to echo; taken with the first token.
    echo: Option<Prompt>,
    prompt_scores: Vec<TokenLogprob>,
    held: VecDeque<Held>,
    /// Characters of echoed and generated text that the detokenizer has returned.
    chars: usize,
    /// Bytes of generated text that the detokenizer has returned.
    decoded: usize,
    /// Bytes of generated text that have been released.
    released: usize,
}

impl Choice {
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, prompt: &Prompt, ask: &Ask) -> Self {
        let rules = Arc::new(ask.output.clone());
        Self {
            tokenizer: Arc::clone(tokenizer),
            detokenizer: Detokenizer::new(Arc::clone(tokenizer), rules.skip_special, &prompt.ids),
            matcher: StopMatcher::new(rules.stop.clone(), rules.include_stop),
            min_tokens: ask.sampling.min_tokens,
            generated: 0,
            scores: ask.sampling.logprobs.is_some(),
            echo: rules.echo.then(|| prompt.clone()),
            rules,
            prompt_scores: Vec::new(),
            held: VecDeque::new(),
            chars: 0,
            decoded: 0,
            released: 0,
        }
    }

    /// Applies an update of the engine.
    ///
    /// # Errors
    /// The update says that the request failed.
    pub(super) fn push(&mut self, update: Update) -> Result<Delta, Failure> {
        let mut delta = Delta::default();
        self.prompt_scores.extend(update.prompt_logprobs);
        if update.finish == Some(Finish::Late) {
            return Err(Failure::Late);
        }
        if let Some(Finish::Error(reason)) = update.finish {
            return Err(Failure::Engine(reason));
        }
        if !update.tokens.is_empty() || update.finish.is_some() {
            self.begin(&mut delta);
        }
        let stopped_by_id = matches!(update.finish, Some(Finish::Stop(_)));
        let last = update.tokens.len().saturating_sub(1);
        for (i, token) in update.tokens.into_iter().enumerate() {
            delta.tokens += 1;
            self.generated += 1;
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
        Ok(delta)
    }

    /// Writes the echo, once, before the first token.
    fn begin(&mut self, delta: &mut Delta) {
        let Some(prompt) = self.echo.take() else { return };
        let skip_special = self.rules.skip_special && prompt.text.is_none();
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.tokenizer), skip_special, &[]);
        let (mut text, mut offset) = (String::new(), 0);
        let mut scores = std::mem::take(&mut self.prompt_scores).into_iter();
        for (i, &id) in prompt.ids.iter().enumerate() {
            if self.scores {
                let score = if i == 0 { None } else { scores.next() };
                delta.scored.push(self.scored(id, score, offset));
            }
            if i >= prompt.added {
                let piece = detokenizer.push(id);
                offset += piece.chars().count();
                text.push_str(&piece);
            }
        }
        text.push_str(&detokenizer.finish());
        let text = prompt.text.unwrap_or(text);
        self.chars = text.chars().count();
        delta.text.push_str(&text);
    }

    /// Applies one generated token.
    fn token(&mut self, token: SampledToken, is_stop: bool, delta: &mut Delta) {
        let SampledToken { id, logprob: score } = token;
        let silent = is_stop && !self.rules.include_stop;
        if self.scores && (!silent || self.rules.score_stop_id) {
            let scored = self.scored(id, score, self.chars);
            self.held.push_back(Held { scored, begin: self.decoded, end: None });
        }
        if !silent {
            let piece = self.detokenizer.push(id);
            self.release(&piece, delta);
        }
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

    fn scored(&self, id: u32, score: Option<TokenLogprob>, text_offset: usize) -> Scored {
        let candidate = |&(id, logprob): &(u32, f32)| Candidate {
            token: self.tokenizer.token_str(id),
            bytes: self.tokenizer.token_bytes(id),
            logprob: floored(logprob),
        };
        Scored {
            token: self.tokenizer.token_str(id),
            bytes: self.tokenizer.token_bytes(id),
            logprob: score.as_ref().map(|score| floored(score.logprob)),
            top: score.map(|score| score.top.iter().map(candidate).collect()).unwrap_or_default(),
            text_offset,
        }
    }
}

/// Replaces NaN and values below -9999, since JSON has neither NaN nor infinity.
fn floored(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
