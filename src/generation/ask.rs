//! A validated request, as the server gives it to the generator.

use std::sync::Arc;

use super::Prompts;
use crate::grammar::GrammarSource;
use crate::request::{SamplingParams, Tenant};
use crate::tools::ToolFormat;

/// A validated request, with every default resolved.
#[derive(Debug, Clone)]
pub struct Ask {
    /// One conversation, or one or more texts.
    pub prompts: Prompts,
    /// Choices per prompt. Choice `i` samples with the seed plus `i`; greedy choices are equal.
    pub n: u32,
    /// Sampling parameters; the seed is that of choice 0.
    pub sampling: SamplingParams,
    /// The most tokens of a choice.
    pub max_tokens: MaxTokens,
    /// Token ids that end a choice.
    pub stop_ids: Vec<u32>,
    /// Rules for the output text.
    pub output: OutputRules,
    /// A smaller priority runs first.
    pub priority: i32,
    /// The tenant of the request.
    pub tenant: Tenant,
    /// Requests share cached prefixes only within one salt.
    pub cache_salt: Option<Arc<str>>,
    /// The constraint on the answer.
    pub grammar: Option<GrammarSource>,
    /// How tool calls are found in the answer; `None` if all of it is text.
    pub tools: Option<ToolCalls>,
    /// Texts that never occur in an answer, each as the tokens that it has alone and after a space.
    pub bad_words: Vec<String>,
    /// The only tokens that may occur in an answer.
    pub allowed_tokens: Option<Vec<u32>>,
    /// The number of tokens that are kept of a prompt: its last ones.
    pub truncate: Option<Truncate>,
    /// `Some(k)`: report the log-probability of each prompt token and of `k` alternatives.
    pub prompt_logprobs: Option<u8>,
    /// Index of the first prompt token that `prompt_logprobs` reports; it must be below each prompt's length.
    pub prompt_logprobs_start: u32,
    /// Whether the values of the reward head are asked for. Then nothing is generated.
    pub reward: bool,
}

impl Ask {
    /// A request for the values of the reward head after each prompt.
    pub(crate) fn scores(prompts: Prompts) -> Self {
        let output = OutputRules {
            stop: Vec::new(),
            include_stop: false,
            skip_special: true,
            echo: false,
            score_stop_id: false,
            token_ids: false,
        };
        Self {
            prompts,
            n: 1,
            sampling: SamplingParams::greedy(),
            max_tokens: MaxTokens::Exactly(0),
            stop_ids: Vec::new(),
            output,
            priority: 0,
            tenant: Tenant::default(),
            cache_salt: None,
            grammar: None,
            tools: None,
            bad_words: Vec::new(),
            allowed_tokens: None,
            truncate: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
            reward: true,
        }
    }

    /// Whether log-probabilities of the whole prompt stand in the echo.
    pub(super) fn echoes_scores(&self) -> bool {
        self.output.echo && self.sampling.logprobs.is_some()
    }
}

/// How tool calls are found in an answer.
#[derive(Debug, Clone)]
pub struct ToolCalls {
    /// The format of calls.
    pub format: ToolFormat,
    /// Names of the tools.
    pub names: Arc<[String]>,
}

/// The most tokens of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxTokens {
    /// This number; a prompt that leaves less room in the context is refused.
    Exactly(u32),
    /// This number or the rest of the context, whichever is less; a prompt that leaves no room is refused.
    UpTo(u32),
}

/// How many tokens of a prompt are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// This number of tokens.
    Last(u32),
    /// The most tokens that fit the context beside the answer.
    Fit,
}

/// Rules for a choice's output text.
#[derive(Debug, Clone)]
pub struct OutputRules {
    /// Stop strings: texts that end a choice. They match only after `min_tokens` tokens.
    pub stop: Vec<String>,
    /// Includes the stop string, or the text of the stop id, in the output.
    pub include_stop: bool,
    /// Leaves special tokens out of the text.
    pub skip_special: bool,
    /// Puts the prompt before the output, with its log-probabilities if they are asked for.
    pub echo: bool,
    /// Reports the log-probability of a stop id too, whose text is not part of the output. Clients that score
    /// prompts by echo expect one entry per generated token.
    pub score_stop_id: bool,
    /// Reports the ids of the prompt and of the generated tokens.
    pub token_ids: bool,
}
