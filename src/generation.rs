//! The path of one request between the server and the engine: queue → template → tokens → submit → updates →
//! text.
//!
//! [`Generator::start`] and [`Generation::next`] are that path. `prompt` renders and tokenises, `choice`
//! turns one sequence's tokens into text and keeps log-probabilities with the text they belong to.
//!
//! Nothing here waits for a client: the caller pulls a [`Generation`]. Dropping it, or a stop string, aborts
//! the engine's requests, which frees their KV blocks within the step.

mod ask;
mod choice;
mod conversation;
mod cpu_work;
mod parts;
mod prompt;
mod refusal;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

pub use ask::{Ask, MaxTokens, OutputRules, ToolCalls, Truncate};
pub use choice::{Candidate, FinishReason, PromptReport, RankedCandidate, Scored};
pub use conversation::Conversation;
pub use cpu_work::CpuWork;
pub(crate) use parts::AnswerPart;
pub use prompt::{Prompt, Prompts};
pub use refusal::{Failure, Refusal};

use crate::engine::{AbortedRequest, EngineHandle, QueuePermit, SubmitOptions, UpdateStream};
use crate::grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource, TokenRules, Vocabulary};
use crate::machine;
pub use crate::request::Cost;
use crate::request::{Request, StopRules, Update};
pub use crate::text::{ChatMessage, ChatTemplate, Content, RenderOptions, Role, TextError, Tokenizer};
use crate::tools::ToolCallDelta;
use choice::Choice;

/// The addition of one update to one choice.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    /// The choice: the prompt's index times `n` plus the index among its choices.
    pub index: usize,
    /// Tokens generated.
    pub tokens: u32,
    /// New text, in whole characters and without a possible beginning of a stop string.
    pub text: String,
    /// New parts of tool calls.
    pub calls: Vec<ToolCallDelta>,
    /// Log-probabilities of the tokens whose text is complete now.
    pub scored: Vec<Scored>,
    /// Ids of the tokens generated, if they are asked for.
    pub ids: Vec<u32>,
    /// The values of the reward head, on the last delta of a choice that asks for them.
    pub reward: Option<Arc<[f32]>>,
    /// Set on the first delta with a token or with the finish, if anything of it is asked for.
    pub prompt: Option<Box<PromptReport>>,
    /// Set on the choice's last delta.
    pub finish: Option<FinishReason>,
    /// The stop string that ended the choice.
    pub stop_string: Option<String>,
    /// The choice's cost so far.
    pub cost: Cost,
    /// When the step's results came, which may be before the update is read.
    pub made: Option<Instant>,
}

/// Token counts of a generation so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens of all prompts; each prompt counts once however many choices it has.
    pub prompt_tokens: usize,
    /// Generated tokens of all choices.
    pub completion_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
}

/// Starts generations: renders, tokenises and submits. All requests share it.
pub struct Generator {
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    max_text_bytes: usize,
    tokenizing: CpuWork,
    /// Apart from `tokenizing`, so that slow constraints delay no text.
    compiling: CpuWork,
    /// Compiles constraints; made by the first request with one.
    grammars: Arc<Mutex<Option<Arc<GrammarCompiler>>>>,
}

impl Generator {
    /// Makes a generator. `max_text_bytes` limits the text of one prompt.
    pub fn new(
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        max_text_bytes: usize,
    ) -> Self {
        let template = template.map(Arc::new);
        let tokenizing = CpuWork::new(machine::cores());
        let compiling = CpuWork::new(machine::cores().div_ceil(2));
        let grammars = Arc::default();
        Self { engine, tokenizer, template, max_text_bytes, tokenizing, compiling, grammars }
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Whether the chat template reads a variable of this name.
    pub(crate) fn template_reads(&self, variable: &str) -> bool {
        self.template.as_ref().is_some_and(|template| template.reads(variable))
    }

    /// Number of token ids that both the tokenizer and the model have.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size().min(self.engine.config().vocab_size)
    }

    /// Renders and tokenises off the async threads.
    ///
    /// # Errors
    /// A refusal of the text; never [`Refusal::Rejected`].
    pub async fn tokenize(&self, prompts: Prompts) -> Result<Vec<Prompt>, Refusal> {
        self.tokenize_with(prompts, false, false).await
    }

    /// Renders and tokenises like [`Self::tokenize`], for a line of a `batch` or a live request. `ranges`
    /// says whether to find the bytes of the text that each token comes from.
    async fn tokenize_with(
        &self,
        prompts: Prompts,
        batch: bool,
        ranges: bool,
    ) -> Result<Vec<Prompt>, Refusal> {
        let (index, bytes) = prompts.longest_text();
        if bytes > self.max_text_bytes {
            let limit = self.engine.config().max_sequence_tokens();
            return Err(Refusal::TooManyBytes { bytes, limit }.of_prompt(index));
        }
        let (tokenizer, template) = (Arc::clone(&self.tokenizer), self.template.clone());
        let work = move || prompts.tokenize(&tokenizer, template.as_deref(), ranges);
        self.tokenizing.run(batch, work).await?
    }

    /// Decodes ids, special tokens included, off the async threads.
    ///
    /// # Errors
    /// [`Refusal::Internal`].
    pub async fn detokenize(&self, ids: Vec<u32>) -> Result<String, Refusal> {
        let tokenizer = Arc::clone(&self.tokenizer);
        self.tokenizing.run(false, move || tokenizer.decode(&ids, false)).await
    }

    /// Compiles a constraint off the async threads.
    async fn compile(&self, source: GrammarSource, batch: bool) -> Result<Arc<Grammar>, Refusal> {
        let (tokenizer, grammars) = (Arc::clone(&self.tokenizer), Arc::clone(&self.grammars));
        let vocab = self.vocab_size();
        let compiled = self.compiling.run(batch, move || {
            let mut made = grammars.lock().unwrap_or_else(PoisonError::into_inner);
            let compiler = match &*made {
                Some(compiler) => Arc::clone(compiler),
                None => {
                    Arc::clone(made.insert(Arc::new(GrammarCompiler::new(vocabulary(&tokenizer, vocab))?)))
                }
            };
            drop(made);
            compiler.compile(&source)
        });
        compiled.await?.map_err(|error| match error {
            GrammarError::Internal(_) => Refusal::Internal(error.to_string()),
            GrammarError::Invalid(_) => Refusal::Grammar(error),
        })
    }

    /// Starts a generation with one place in the queue. Returns when the scheduler has taken every choice of
    /// every prompt, or refused them all.
    ///
    /// # Errors
    /// Why the request was refused.
    pub async fn start(
        &self,
        permit: QueuePermit,
        mut ask: Ask,
        mut options: SubmitOptions,
    ) -> Result<Generation, Refusal> {
        let permit = permit.for_group(ask.prompts.count() * ask.n as usize)?;
        // Tokens that the engine computes after a stop string are wasted.
        options.flush_every_token |= !ask.output.stop.is_empty();
        // Tokenising is the most expensive part of a refusal.
        permit.check_wait(&ask.tenant, ask.priority, &options)?;
        let batch = permit.is_batch();
        let ranges = ask.echoes_scores();
        let mut prompts = self.tokenize_with(std::mem::take(&mut ask.prompts), batch, ranges).await?;
        if let Some(truncate) = ask.truncate {
            let most = self.kept_tokens(truncate, ask.max_tokens);
            prompts.iter_mut().for_each(|prompt| prompt.keep_last(most));
        }
        if let Some(source) = ask.grammar.take() {
            ask.sampling.grammar = Some(self.compile(source, batch).await?);
        }
        self.add_token_rules(&mut ask, batch).await?;
        let ignored = ask.sampling.grammar.as_ref().map(|grammar| grammar.ignored().to_vec());
        let ignored = ignored.unwrap_or_default();
        let (mut requests, mut choices) = (Vec::new(), Vec::new());
        let mut most = 0;
        for (index, prompt) in prompts.iter().enumerate() {
            let room = self.room(prompt.ids.len(), &ask);
            let max_tokens = room.map_err(|refusal| refusal.of_prompt(index))?;
            most = max_tokens.max(most);
            for i in 0..ask.n {
                requests.push(request(prompt, i, max_tokens, &ask));
                choices.push(Choice::new(&self.tokenizer, prompt, &ask, i == 0));
            }
        }
        let submitted = Instant::now();
        let streams = permit.submit(requests, options).await?.into_iter().map(Some).collect();
        let costs = vec![Cost::default(); choices.len()];
        let prompts: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let usage = Usage { prompt_tokens: prompts.iter().sum(), ..Usage::default() };
        let n = ask.n as usize;
        Ok(Generation {
            choices,
            streams,
            aborted: Vec::new(),
            next_choice: 0,
            usage,
            costs,
            prompts,
            n,
            submitted,
            max_tokens: most,
            ignored,
        })
    }

    /// Adds `bad_words` and `allowed_tokens` to the constraint on the answer.
    async fn add_token_rules(&self, ask: &mut Ask, batch: bool) -> Result<(), Refusal> {
        let (words, allowed) = (std::mem::take(&mut ask.bad_words), ask.allowed_tokens.take());
        if words.is_empty() && allowed.is_none() {
            return Ok(());
        }
        let (tokenizer, vocab) = (Arc::clone(&self.tokenizer), self.vocab_size());
        let sequences = self.tokenizing.run(batch, move || prompt::bad_words(&tokenizer, &words)).await??;
        let rules = TokenRules::new(vocab, allowed.as_deref(), sequences);
        let grammar = Grammar::with_rules(ask.sampling.grammar.as_deref(), rules, vocab);
        ask.sampling.grammar = Some(Arc::new(grammar));
        Ok(())
    }

    /// The most tokens that are kept of a prompt.
    fn kept_tokens(&self, truncate: Truncate, max_tokens: MaxTokens) -> usize {
        let limit = self.engine.config().max_sequence_tokens();
        match (truncate, max_tokens) {
            (Truncate::Last(tokens), _) => tokens as usize,
            (Truncate::Fit, MaxTokens::Exactly(tokens)) => limit.saturating_sub(tokens as usize).max(1),
            (Truncate::Fit, MaxTokens::UpTo(_)) => limit.saturating_sub(1).max(1),
        }
    }

    /// The most tokens of each choice of a prompt with `prompt` tokens.
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
            let completion = if ask.reward { 0 } else { max_tokens.max(1) };
            return Err(Refusal::TooLong { prompt, completion, limit });
        }
        let min = ask.sampling.min_tokens;
        if min > max_tokens {
            return Err(Refusal::MinTokens { min, max: max_tokens });
        }
        let start = ask.prompt_logprobs_start;
        if start as usize >= prompt {
            return Err(Refusal::PromptLogprobsStart { start, prompt });
        }
        Ok(max_tokens)
    }
}

/// The first `vocab` tokens of the tokenizer.
fn vocabulary(tokenizer: &Tokenizer, vocab: usize) -> Vocabulary {
    let ids = 0..vocab as u32;
    Vocabulary {
        tokens: ids.clone().map(|id| tokenizer.token_bytes(id)).collect(),
        special: ids.map(|id| tokenizer.is_special(id)).collect(),
        eos: tokenizer.eos().into_iter().collect(),
    }
}

/// The engine's request of one choice.
fn request(prompt: &Prompt, choice: u32, max_tokens: u32, ask: &Ask) -> Request {
    let mut sampling = ask.sampling.clone();
    sampling.seed = sampling.seed.wrapping_add(u64::from(choice));
    // All choices of a prompt would report the same.
    let report = ask.prompt_logprobs.filter(|_| choice == 0);
    let echo = sampling.logprobs.filter(|_| ask.output.echo);
    let (top, start) = match echo.max(report) {
        scores if echo.is_some() => (scores, 0),
        _ if ask.reward => (None, 0),
        Some(top) => (Some(top), ask.prompt_logprobs_start),
        // The engine takes a request for no tokens only if it scores the prompt.
        None if max_tokens == 0 => (Some(0), (prompt.ids.len() - 1) as u32),
        None => (None, 0),
    };
    Request {
        prompt: Arc::clone(&prompt.ids),
        prompt_logprobs: top,
        prompt_logprobs_start: start,
        sampling: Arc::new(sampling),
        stop: StopRules { max_tokens, stop_ids: ask.stop_ids.clone() },
        priority: ask.priority,
        tenant: ask.tenant.clone(),
        cache_salt: ask.cache_salt.clone(),
        reward: ask.reward,
        batch: false,
    }
}

/// All choices of one wire request while they are generated.
pub struct Generation {
    choices: Vec<Choice>,
    /// The update stream of each choice; `None` once it has finished.
    streams: Vec<Option<UpdateStream>>,
    /// Aborted choices.
    aborted: Vec<(usize, AbortedRequest)>,
    /// The choice to poll first, which rotates so that every choice gets its turn.
    next_choice: usize,
    usage: Usage,
    /// The last known cost of each choice.
    costs: Vec<Cost>,
    /// The length of each prompt.
    prompts: Vec<usize>,
    n: usize,
    submitted: Instant,
    max_tokens: u32,
    /// Paths of keywords in schemas that the answer need not follow.
    ignored: Vec<String>,
}

impl Generation {
    /// Paths of keywords in schemas that the answer need not follow, and that cannot be enforced.
    pub(crate) fn ignored_keywords(&self) -> &[String] {
        &self.ignored
    }

    /// Waits for the next update of any choice; `None` once every choice has finished. A failure of one
    /// choice aborts the others.
    ///
    /// # Errors
    /// The engine failed this request, or its deadline passed.
    pub async fn next(&mut self) -> Option<Result<Delta, Failure>> {
        let (index, update) = poll_fn(|context| self.poll_update(context)).await?;
        self.costs[index] = update.cost;
        // Only the first choice of a prompt reports its cached tokens: later ones may hit the first one's
        // blocks.
        if index.is_multiple_of(self.n) {
            self.usage.cached_tokens += update.cached_tokens.unwrap_or(0) as usize;
        }
        let (cost, made) = (update.cost, update.made);
        match self.choices[index].push(update) {
            Ok(delta) => {
                self.usage.completion_tokens += delta.tokens as usize;
                if delta.finish.is_some() {
                    // If a stop string ended the choice, the engine still computes it.
                    self.abort(index);
                }
                Some(Ok(Delta { index, cost, made, ..delta }))
            }
            Err(failure) => {
                (0..self.streams.len()).for_each(|index| self.abort(index));
                Some(Err(failure))
            }
        }
    }

    /// Aborts a choice, unless it has finished.
    fn abort(&mut self, index: usize) {
        let stream = self.streams[index].take().filter(|stream| !stream.is_finished());
        self.aborted.extend(stream.map(|stream| (index, stream.abort())));
    }

    /// Aborts all choices that have not finished. Returns all choices that were aborted so far, with their
    /// final costs.
    pub(crate) fn abort_all(&mut self) -> Vec<(usize, AbortedRequest)> {
        (0..self.streams.len()).for_each(|index| self.abort(index));
        std::mem::take(&mut self.aborted)
    }

    /// Polls for the next update of any choice, with the choice's index.
    fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Update)>> {
        let choices = self.streams.len();
        let mut open = false;
        for index in (self.next_choice..choices).chain(0..self.next_choice) {
            let Some(stream) = &mut self.streams[index] else { continue };
            if let Poll::Ready(update) = stream.poll_next(context) {
                self.next_choice = (index + 1) % choices;
                return Poll::Ready(Some((index, update)));
            }
            open = true;
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Prompt tokens of each choice.
    pub(crate) fn prompt_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.prompts.iter().flat_map(|&length| std::iter::repeat_n(length, self.n))
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The cost of all choices so far. The cost of a choice that a stop string ended does not include what
    /// the engine computed after the string; the key's counters do include it.
    pub fn cost(&self) -> Cost {
        self.costs.iter().fold(Cost::default(), |sum, cost| sum.and(*cost))
    }

    /// The cost of each choice so far.
    pub fn costs(&self) -> &[Cost] {
        &self.costs
    }

    /// Choices per prompt.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The most tokens of the longest choice.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// When the choices were submitted to the engine.
    pub fn submitted(&self) -> Instant {
        self.submitted
    }
}
