//! Renders and tokenises prompts. Runs on a blocking thread.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Conversation, Refusal};
use crate::text::{ChatMessage, ChatTemplate, RenderOptions, TextError, Tokenizer};

/// The prompts of one request.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// A conversation, which the model's chat template renders.
    Chat {
        /// Messages of the conversation, at least one.
        messages: Vec<ChatMessage>,
        /// Options of the template.
        options: RenderOptions,
    },
    /// Conversations that each end with an answer to score, after which the template begins no turn.
    Conversations {
        /// One or more conversations.
        conversations: Vec<Conversation>,
        /// Further variables for the template.
        kwargs: Map<String, Value>,
    },
    /// Texts; special tokens that are written out in them are recognised.
    Texts {
        /// One or more texts.
        texts: Vec<String>,
        /// Whether the tokenizer's post-processor adds its tokens, such as a BOS, to each text.
        add_special: bool,
    },
    /// Token ids below the vocabulary size; no token is added.
    Ids(Vec<Vec<u32>>),
}

impl Default for Prompts {
    fn default() -> Self {
        Self::Ids(Vec::new())
    }
}

/// One tokenised prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Arc<[u32]>,
    /// The client's text; `None` for a conversation or token ids.
    pub text: Option<String>,
    /// Number of ids that were added before the client's text.
    pub added: usize,
    /// The bytes of the client's text that the other ids come from, if they were asked for.
    pub ranges: Option<Arc<[Range<usize>]>>,
}

impl Prompts {
    /// Whether the prompt is a conversation.
    pub(crate) fn is_chat(&self) -> bool {
        matches!(self, Self::Chat { .. })
    }

    /// Number of prompts.
    pub fn count(&self) -> usize {
        match self {
            Self::Chat { .. } => 1,
            Self::Conversations { conversations, .. } => conversations.len(),
            Self::Texts { texts, .. } => texts.len(),
            Self::Ids(prompts) => prompts.len(),
        }
    }

    /// Index of the prompt with the longest text, and the text's bytes; 0 for token ids.
    pub(super) fn longest_text(&self) -> (usize, usize) {
        let bytes: Vec<usize> = match self {
            Self::Chat { messages, options } => {
                let tools = options.kwargs.get("tools").map_or(0, |tools| tools.to_string().len());
                vec![messages.iter().map(ChatMessage::text_bytes).sum::<usize>() + tools]
            }
            Self::Conversations { conversations, .. } => {
                conversations.iter().map(Conversation::text_bytes).collect()
            }
            Self::Texts { texts, .. } => texts.iter().map(String::len).collect(),
            Self::Ids(_) => Vec::new(),
        };
        bytes.into_iter().enumerate().max_by_key(|&(_, bytes)| bytes).unwrap_or_default()
    }

    /// Renders a conversation, and tokenises the prompts. `ranges`: whether to find where each token of a
    /// text comes from.
    ///
    /// # Errors
    /// The model has no chat template, or the template or the tokenizer refuses the text.
    pub(super) fn tokenize(
        self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        ranges: bool,
    ) -> Result<Vec<Prompt>, Refusal> {
        match self {
            Self::Chat { messages, options } => {
                Ok(vec![one_conversation(tokenizer, template, &messages, &options)?])
            }
            Self::Conversations { conversations, kwargs } => {
                let options = RenderOptions { add_generation_prompt: false, kwargs, ..Default::default() };
                let one = |(index, conversation): (usize, &Conversation)| {
                    one_conversation(tokenizer, template, &conversation.messages(), &options)
                        .map_err(|refusal| refusal.of_prompt(index))
                };
                conversations.iter().enumerate().map(one).collect()
            }
            Self::Texts { texts, add_special } => {
                texts.into_iter().map(|text| one_text(tokenizer, text, add_special, ranges)).collect()
            }
            Self::Ids(prompts) => Ok(prompts.into_iter().map(Prompt::of_ids).collect()),
        }
    }
}

impl Prompt {
    /// A prompt without a text of the client.
    fn of_ids(ids: Vec<u32>) -> Self {
        Self { ids: ids.into(), text: None, added: 0, ranges: None }
    }

    /// Keeps the last tokens. What is left of a text is known by its tokens alone.
    pub(super) fn keep_last(&mut self, most: usize) {
        if let Some(cut) = self.ids.len().checked_sub(most).filter(|cut| *cut > 0) {
            *self = Self::of_ids(self.ids[cut..].to_vec());
        }
    }
}

fn one_conversation(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    messages: &[ChatMessage],
    options: &RenderOptions,
) -> Result<Prompt, Refusal> {
    let rendered = template.ok_or(Refusal::NoTemplate)?.render(messages, options).map_err(text)?;
    Ok(Prompt::of_ids(tokenizer.encode_prompt(&rendered).map_err(text)?))
}

fn one_text(
    tokenizer: &Tokenizer,
    written: String,
    add_special: bool,
    ranges: bool,
) -> Result<Prompt, Refusal> {
    let bare = tokenizer.encode(&written).map_err(text)?;
    let ranges = ranges.then(|| tokenizer.ranges(&written)).transpose().map_err(text)?.map(Arc::from);
    if !add_special {
        return Ok(Prompt { ids: bare.into(), text: Some(written), added: 0, ranges });
    }
    let all = tokenizer.add_special(bare.clone());
    let added = all.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    Ok(Prompt { ids: all.into(), text: Some(written), added, ranges })
}

/// The tokens of each word, as vLLM takes them: those of the word alone, and those after a space if their
/// number is the same and the first one is another.
pub(super) fn bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<u32>>, Refusal> {
    let mut all = Vec::with_capacity(2 * words.len());
    for word in words {
        let word = word.trim_start();
        let alone = tokenizer.encode(word).map_err(text)?;
        let spaced = tokenizer.encode(&format!(" {word}")).map_err(text)?;
        if spaced.first() != alone.first() && spaced.len() == alone.len() {
            all.push(spaced);
        }
        all.push(alone);
    }
    Ok(all)
}

fn text(error: TextError) -> Refusal {
    if error.is_client() { Refusal::Text(error.to_string()) } else { Refusal::Internal(error.to_string()) }
}
