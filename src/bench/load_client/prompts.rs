//! Prompts: those of a file, or synthetic ones of a given length.
//!
//! | file | prompts |
//! |---|---|
//! | `.jsonl` | per line, a string or an object with `prompt` or `messages` and optionally `max_tokens` |
//! | `.json` | conversations in ShareGPT's format: the first human turn of each |
//! | any other | the text of each line that is not blank |
//!
//! If a run has more requests than the file has prompts, the prompts repeat, and a prefix cache then helps;
//! the report names the number of prompts.
//!
//! Synthetic prompts consist of short common words, about a token each in the usual tokenizers; the report
//! gives the server's count of tokens. After the shared prefix, if one is requested, two prompts differ
//! from the first words on. A prefix cache therefore helps with the shared prefix only.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SetupError;
use crate::random::Random;

/// Words that are one token each, including the space before them, in the vocabularies of the GPT and Llama
/// families.
const WORDS: &str = "\
    the of and to in is that for it as was with be by on not he this are or his from at which but have an \
    had they you were their one all we can her has there been if more when will would who so no what up \
    out about into than them only some could time these two may then do first any my now such like our \
    over man me even most made after also did many before must through back years where much your way well \
    down should because each just those people how too little state good very make world still own see men \
    work long get here between both life being under never day same another know while last might us great \
    old year off come since against go came right used take three";

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchPrompt {
    /// Text or messages.
    pub content: PromptContent,
    /// `max_tokens` of this prompt, if it has its own.
    pub max_tokens: Option<u64>,
}

/// Content of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptContent {
    /// A text. In a chat request it is the content of the only message, which is the user's.
    Text(String),
    /// Messages of a chat.
    Messages(Value),
}

/// The reason why a prompt file is not valid.
#[derive(Debug, thiserror::Error)]
enum InvalidFile {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Content(&'static str),
    /// A part of the file is not valid: `line` or `entry`, its number, and the reason.
    #[error("{0} {1}: {2}")]
    At(&'static str, usize, Box<InvalidFile>),
}

/// Source of prompts.
#[derive(Debug, Clone)]
pub enum PromptSource {
    /// Prompts of a file in their order, repeated.
    Listed(Vec<BenchPrompt>),
    /// Synthetic prompts.
    Synthetic {
        /// Approximate number of tokens, including the shared prefix.
        tokens: usize,
        /// Approximate number of tokens that all prompts begin with.
        shared_prefix: usize,
        /// Seed of the words.
        seed: u64,
    },
}

impl PromptSource {
    /// Reads the prompts of a file.
    ///
    /// # Errors
    /// The file cannot be read, has no prompt, or has an invalid line or entry.
    pub fn from_file(path: &Path) -> Result<Self, SetupError> {
        let wrong = |why: String| SetupError::Prompts { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let prompts = match path.extension().and_then(|end| end.to_str()) {
            Some("jsonl") => lines(&text, |line| from_json(serde_json::from_str(line)?)),
            Some("json") => conversations(&text),
            _ => lines(&text, |line| Ok(text_prompt(line.to_owned()))),
        };
        let prompts = prompts.map_err(|error| wrong(error.to_string()))?;
        if prompts.is_empty() {
            return Err(SetupError::Prompts {
                path: PathBuf::from(path),
                why: "no prompt in the file".to_owned(),
            });
        }
        Ok(Self::Listed(prompts))
    }

    /// Prompt of request number `index`.
    pub fn get(&self, index: u64) -> BenchPrompt {
        match self {
            Self::Listed(prompts) => prompts[(index % prompts.len() as u64) as usize].clone(),
            Self::Synthetic { tokens, shared_prefix, seed } => {
                let shared = (*shared_prefix).min(*tokens);
                let mut text = String::with_capacity(tokens * 6);
                push_words(&mut text, shared, Random::stream(*seed, u64::MAX));
                push_words(&mut text, tokens - shared, Random::stream(*seed, index));
                text_prompt(text)
            }
        }
    }

    /// Number of prompts before they repeat; `None` for synthetic prompts, which never repeat.
    pub fn distinct(&self) -> Option<usize> {
        match self {
            Self::Listed(prompts) => Some(prompts.len()),
            Self::Synthetic { .. } => None,
        }
    }

    /// Whether any prompt consists of messages. Only the chat endpoint accepts messages.
    pub fn need_chat(&self) -> bool {
        match self {
            Self::Listed(prompts) => {
                prompts.iter().any(|prompt| matches!(prompt.content, PromptContent::Messages(_)))
            }
            Self::Synthetic { .. } => false,
        }
    }
}

fn text_prompt(text: String) -> BenchPrompt {
    BenchPrompt { content: PromptContent::Text(text), max_tokens: None }
}

fn push_words(text: &mut String, count: usize, mut random: Random) {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    for _ in 0..count {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(words[(random.bits() % words.len() as u64) as usize]);
    }
}

fn lines(
    text: &str,
    parse: impl Fn(&str) -> Result<BenchPrompt, InvalidFile>,
) -> Result<Vec<BenchPrompt>, InvalidFile> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let at = |number, error| InvalidFile::At("line", number, Box::new(error));
    lines.map(|(number, line)| parse(line).map_err(|error| at(number + 1, error))).collect()
}

fn from_json(value: Value) -> Result<BenchPrompt, InvalidFile> {
    if let Value::String(text) = value {
        return Ok(text_prompt(text));
    }
    let max_tokens = match value.get("max_tokens") {
        None | Some(Value::Null) => None,
        Some(count) => {
            let error = InvalidFile::Content("expected max_tokens to be a positive integer");
            Some(count.as_u64().filter(|n| *n > 0).ok_or(error)?)
        }
    };
    let content = match (value.get("prompt"), value.get("messages")) {
        (Some(Value::String(text)), None) => PromptContent::Text(text.clone()),
        (None, Some(messages @ Value::Array(_))) => PromptContent::Messages(messages.clone()),
        _ => {
            let message = "expected a string, or an object with `prompt` or `messages`";
            return Err(InvalidFile::Content(message));
        }
    };
    Ok(BenchPrompt { content, max_tokens })
}

/// First human turn of each conversation; conversations without one are skipped.
fn conversations(text: &str) -> Result<Vec<BenchPrompt>, InvalidFile> {
    let value: Value = serde_json::from_str(text)?;
    let Value::Array(entries) = value else { return Err(InvalidFile::Content("expected a list")) };
    let at = |number, error| InvalidFile::At("entry", number, Box::new(error));
    let mut prompts = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        let Some(turns) = entry.get("conversations").or_else(|| entry.get("conversation")) else {
            prompts.push(from_json(entry).map_err(|error| at(number, error))?);
            continue;
        };
        let no_list = || at(number, InvalidFile::Content("expected the turns to be a list"));
        let turns = turns.as_array().ok_or_else(no_list)?;
        let human = turns
            .iter()
            .find(|turn| matches!(turn.get("from").and_then(Value::as_str), Some("human" | "user")));
        let said = human.and_then(|turn| turn.get("value")).and_then(Value::as_str);
        prompts.extend(said.filter(|text| !text.is_empty()).map(|text| text_prompt(text.to_owned())));
    }
    Ok(prompts)
}
