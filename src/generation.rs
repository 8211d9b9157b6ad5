//! The data path of one request, above the engine: queue → template → tokens → submit → updates → text.
//!
//! [`Generator::start`] and [`Generation::next`] are that path, to be read from top to bottom; `prompt` makes tokens,
//! `choice` makes text of one sequence's tokens again and keeps scores beside the text they belong to.
//!
//! Nothing here waits for a client: a [`Generation`] is pulled, and dropping it (or having it matched a stop string)
//! aborts the engine's requests, which frees their KV blocks within the step.

mod choice;
mod prompt;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::Semaphore;

pub use choice::{Candidate, FinishReason, Scored};
pub use prompt::{Prompt, Prompts};

use crate::engine::{AbortedRequest, EngineHandle, QueuePermit, SubmitOptions, UpdateStream};
use crate::machine;
pub use crate::request::Cost;
use crate::request::{Reject, Request, SamplingParams, StopRules, Tenant, Update};
pub use crate::text::{ChatMessage, ChatTemplate, RenderOptions, Role, TextError, Tokenizer};
use choice::Choice;

/// What to generate: validated, nothing left to a default.
#[derive(Debug, Clone)]
pub struct Ask {
    /// One conversation, or one or more texts.
    pub prompts: Prompts,
    /// Choices per prompt. Choice `i` draws with the seed plus `i`; greedy choices are equal.
    pub n: u32,
    /// How tokens are drawn; the seed is that of choice 0.
    pub sampling: SamplingParams,
    /// The most tokens per choice.
    pub max_tokens: MaxTokens,
    /// Ids that end a choice.
    pub stop_ids: Vec<u32>,
    /// What becomes of the tokens.
    pub output: OutputRules,
    /// Smaller runs first.
    pub priority: i32,
    /// For whom.
    pub tenant: Tenant,
    /// Prefixes are shared within a salt.
    pub cache_salt: Option<Arc<str>>,
}

/// The most tokens a choice may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxTokens {
    /// As asked for; a prompt that leaves less room is refused.
    Exactly(u32),
    /// At most this, and at most the rest of the context; a prompt that leaves no room is refused.
    UpTo(u32),
}

/// What becomes of a choice's tokens.
#[derive(Debug, Clone)]
pub struct OutputRules {
    /// Texts that end a choice, found once `min_tokens` have been generated.
    pub stop: Vec<String>,
    /// Whether the text that ended a choice, or the text of the stop id, is part of it.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Begin with the prompt, and if scores are asked for, with its scores.
    pub echo: bool,
    /// Report the score of a stop id too, whose text is not part of the output. Who scores prompts by echo counts
    /// on one entry per token generated.
    pub score_stop_id: bool,
}

/// Why nothing was begun.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no chat template.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The template, or the tokenizer, refused the messages.
    #[error("{0}")]
    Text(String),
    /// So much text that it cannot fit, whatever its tokens.
    #[error("{bytes} bytes of text do not fit {limit} tokens")]
    TooManyBytes {
        /// Of the prompt.
        bytes: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// A prompt without a token.
    #[error("expected at least one token, got an empty prompt")]
    EmptyPrompt,
    /// Prompt and answer do not fit.
    #[error("{prompt} + {completion} tokens do not fit {limit}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for, at least 1.
        completion: u32,
        /// Tokens that fit.
        limit: usize,
    },
    /// The rest of the context is less than the tokens to be generated at least.
    #[error("expected at most max_tokens = {max}, got {min}")]
    MinTokens {
        /// What was asked for.
        min: u32,
        /// What there is room for.
        max: u32,
    },
    /// The engine's refusal.
    #[error(transparent)]
    Rejected(#[from] Reject),
    /// Our bug.
    #[error("{0}")]
    Internal(String),
}

/// A request that was begun and failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The engine failed it.
    #[error("{0}")]
    Engine(String),
    /// Its deadline has passed.
    #[error("the request's deadline has passed")]
    Late,
}

/// What one token did to one choice.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    /// The choice: the prompt's index times `n` plus the index among its choices.
    pub index: usize,
    /// Tokens generated: 0 or 1.
    pub tokens: u32,
    /// Text that is now certain: whole characters, no beginning of a stop string.
    pub text: String,
    /// The scores of the tokens whose text is now out.
    pub scored: Vec<Scored>,
    /// Set on the choice's last delta.
    pub finish: Option<FinishReason>,
    /// What the choice has cost so far.
    pub cost: Cost,
    /// When the token was there, which may be before it is read.
    pub made: Option<Instant>,
}

/// Tokens so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all prompts, each counted once however many choices it has.
    pub prompt_tokens: usize,
    /// Of all choices.
    pub completion_tokens: usize,
    /// Of the prompts, found in the prefix cache.
    pub cached_tokens: usize,
}

/// From text to the engine and back; shared by all requests.
pub struct Generator {
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    max_text_bytes: usize,
    /// Texts tokenised at once: it is work of the CPU, and more than this would only starve the engine.
    tokenizing: Arc<Semaphore>,
}

impl Generator {
    /// `max_text_bytes` bounds the text of one prompt.
    pub fn new(
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        max_text_bytes: usize,
    ) -> Self {
        let template = template.map(Arc::new);
        let cores = machine::cores();
        Self { engine, tokenizer, template, max_text_bytes, tokenizing: Arc::new(Semaphore::new(cores)) }
    }

    /// The engine behind.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The token ids that exist both in the tokenizer and in the model are below this.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size().min(self.engine.config().vocab_size)
    }

    /// Renders and tokenises off the async threads.
    ///
    /// # Errors
    /// [`Refusal`]; never of the engine.
    pub async fn tokenize(&self, prompts: Prompts) -> Result<Vec<Prompt>, Refusal> {
        let bytes = prompts.text_bytes();
        if bytes > self.max_text_bytes {
            return Err(Refusal::TooManyBytes { bytes, limit: self.engine.config().max_sequence_tokens() });
        }
        let (tokenizer, template) = (Arc::clone(&self.tokenizer), self.template.clone());
        self.blocking(move || prompts.tokenize(&tokenizer, template.as_deref())).await?
    }

    /// The text of ids, special tokens included, off the async threads.
    ///
    /// # Errors
    /// [`Refusal::Internal`].
    pub async fn detokenize(&self, ids: Vec<u32>) -> Result<String, Refusal> {
        let tokenizer = Arc::clone(&self.tokenizer);
        self.blocking(move || tokenizer.decode(&ids, false)).await
    }

    /// Runs the tokenizer's work on a thread that may block, a few at a time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let permit = Arc::clone(&self.tokenizing).acquire_owned().await;
        let permit = permit.map_err(|e| Refusal::Internal(e.to_string()))?;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work itself, which goes on if the client leaves.
            let _permit = permit;
            work()
        });
        work.await.map_err(|_| Refusal::Internal("the tokenizer failed".to_owned()))
    }

    /// Begins in a place of the queue: returns when the scheduler has taken every choice of every prompt, or refused
    /// them all.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was begun.
    pub async fn start(
        &self,
        permit: QueuePermit,
        mut ask: Ask,
        mut options: SubmitOptions,
    ) -> Result<Generation, Refusal> {
        let permit = permit.for_group(ask.prompts.count() * ask.n as usize)?;
        // Tokens that the engine computes after a stop string are wasted.
        options.flush_every_token |= !ask.output.stop.is_empty();
        // Checked before tokenising, which is the most expensive part of a refusal.
        self.engine.check_wait(&ask.tenant, ask.priority, &options)?;
        let prompts = self.tokenize(std::mem::take(&mut ask.prompts)).await?;
        let mut requests = Vec::new();
        let mut choices = Vec::new();
        let mut most = 0;
        for prompt in &prompts {
            let max_tokens = self.room(prompt.ids.len(), &ask)?;
            most = max_tokens.max(most);
            for i in 0..ask.n {
                requests.push(request(prompt, i, max_tokens, &ask));
                choices.push(Choice::new(&self.tokenizer, prompt, &ask));
            }
        }
        let submitted = Instant::now();
        let streams = permit.submit(requests, options).await?.into_iter().map(Some).collect();
        let costs = vec![Cost::default(); choices.len()];
        let prompts: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let usage = Usage { prompt_tokens: prompts.iter().sum(), ..Usage::default() };
        let n = ask.n as usize;
        let left = Vec::new();
        Ok(Generation {
            choices,
            streams,
            left,
            turn: 0,
            usage,
            costs,
            prompts,
            n,
            submitted,
            max_tokens: most,
        })
    }

    /// How many tokens each choice of a prompt may have.
    fn room(&self, prompt: usize, ask: &Ask) -> Result<u32, Refusal> {
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        let limit = self.engine.config().max_sequence_tokens();
        let rest = u32::try_from(limit.saturating_sub(prompt)).unwrap_or(u32::MAX);
        let (max_tokens, fits) = match ask.max_tokens {
            MaxTokens::Exactly(tokens) => (tokens, tokens <= rest && prompt <= limit),
            MaxTokens::UpTo(tokens) => (tokens.min(rest), rest > 0),
        };
        if !fits {
            return Err(Refusal::TooLong { prompt, completion: max_tokens.max(1), limit });
        }
        let min = ask.sampling.min_tokens;
        if min > max_tokens {
            return Err(Refusal::MinTokens { min, max: max_tokens });
        }
        Ok(max_tokens)
    }
}

/// One choice as the engine takes it.
fn request(prompt: &Prompt, choice: u32, max_tokens: u32, ask: &Ask) -> Request {
    let mut sampling = ask.sampling.clone();
    sampling.seed = sampling.seed.wrapping_add(u64::from(choice));
    // An echo without an answer is only taken as a scoring of the prompt.
    let score_only = (max_tokens == 0).then_some(0);
    Request {
        prompt: Arc::clone(&prompt.ids),
        prompt_logprobs: ask.output.echo.then_some(sampling.logprobs.or(score_only)).flatten(),
        sampling: Arc::new(sampling),
        stop: StopRules { max_tokens, stop_ids: ask.stop_ids.clone() },
        priority: ask.priority,
        tenant: ask.tenant.clone(),
        cache_salt: ask.cache_salt.clone(),
    }
}

/// An answer on its way: all choices of one wire request.
pub struct Generation {
    choices: Vec<Choice>,
    /// Of each choice that has not finished.
    streams: Vec<Option<UpdateStream>>,
    /// Choices that were aborted.
    left: Vec<(usize, AbortedRequest)>,
    /// The choice to look at first, so that none is kept waiting by those before it.
    turn: usize,
    usage: Usage,
    /// Of each choice, as last heard.
    costs: Vec<Cost>,
    /// The length of each prompt.
    prompts: Vec<usize>,
    n: usize,
    submitted: Instant,
    max_tokens: u32,
}

impl Generation {
    /// The next token of any choice, as text; `None` once every choice has finished. After a failure the other
    /// choices are aborted and there is nothing more to come.
    ///
    /// # Errors
    /// [`Failure`] if the engine failed this request.
    pub async fn next(&mut self) -> Option<Result<Delta, Failure>> {
        let (index, update) = poll_fn(|context| self.poll_update(context)).await?;
        self.costs[index] = update.cost;
        // Only the first choice of a prompt reports its cached tokens: later ones may hit the first one's blocks.
        if index.is_multiple_of(self.n) {
            self.usage.cached_tokens += update.cached_tokens.unwrap_or(0) as usize;
        }
        let (cost, made) = (update.cost, update.made);
        match self.choices[index].push(update) {
            Ok(delta) => {
                self.usage.completion_tokens += delta.tokens as usize;
                if delta.finish.is_some() {
                    // Where a stop string ended it, this is its abort.
                    self.part(index);
                }
                Some(Ok(Delta { index, cost, made, ..delta }))
            }
            Err(failure) => {
                (0..self.streams.len()).for_each(|index| self.part(index));
                Some(Err(failure))
            }
        }
    }

    /// Nothing more is wanted of a choice.
    fn part(&mut self, index: usize) {
        let stream = self.streams[index].take().filter(|stream| !stream.is_finished());
        self.left.extend(stream.map(|stream| (index, stream.abort())));
    }

    /// Aborts what has not finished. Returns the choices that were aborted at any time, whose costs are still to come.
    pub fn leave(&mut self) -> Vec<(usize, AbortedRequest)> {
        (0..self.streams.len()).for_each(|index| self.part(index));
        std::mem::take(&mut self.left)
    }

    /// The next update of any choice, and which.
    fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Update)>> {
        let choices = self.streams.len();
        let mut open = false;
        for index in (self.turn..choices).chain(0..self.turn) {
            let Some(stream) = &mut self.streams[index] else { continue };
            if let Poll::Ready(update) = stream.poll_next(context) {
                self.turn = (index + 1) % choices;
                return Poll::Ready(Some((index, update)));
            }
            open = true;
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Choices in all.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The length of each choice's prompt, in tokens.
    pub fn prompt_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.prompts.iter().flat_map(|&length| std::iter::repeat_n(length, self.n))
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// What all choices have cost so far. Of one that a stop string ended, up to that string: what the engine had begun
    /// before it heard of it is on the payer's counters alone.
    pub fn cost(&self) -> Cost {
        self.costs.iter().fold(Cost::default(), |sum, cost| sum.and(*cost))
    }

    /// What each choice has cost so far.
    pub fn costs(&self) -> &[Cost] {
        &self.costs
    }

    /// Choices per prompt.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The most tokens that a choice may have.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// When the choices were handed to the engine.
    pub fn submitted(&self) -> Instant {
        self.submitted
    }
}
