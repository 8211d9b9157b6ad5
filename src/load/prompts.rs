//! What is asked: prompts out of a file, or made up to be about so long.
//!
//! A file is plain text (a prompt on every line that is not blank), JSON Lines (a string, or an object with `prompt` or
//! `messages`, and `max_tokens` where it shall have its own), or a JSON list of conversations as ShareGPT's are (the
//! first human turn of each). A file with fewer prompts than the run has requests is begun again, and a prefix cache
//! then helps; the report says how often.
//!
//! Made-up prompts are short common words, about a token each for the usual tokenizers; how many tokens there really
//! were is the server's to say, in the report. Each prompt's words are its own from the first on, so that a prefix cache
//! does not help, save for a prefix that all share if that is asked for.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SetupError;
use crate::random::Random;

/// Words that are one token each, with the space before them, in the vocabularies of the GPT and Llama families.
const WORDS: &str = "the of and to in is that for it as was with be by on not he this are or his from at which but have \
    an had they you were their one all we can her has there been if more when will would who so no what up out about \
    into than them only some could time these two may then do first any my now such like our over man me even most made \
    after also did many before must through back years where much your way well down should because each just those \
    people how too little state good very make world still own see men work long get here between both life being under \
    never day same another know while last might us great old year off come since against go came right used take three";

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// What it says.
    pub content: Content,
    /// Tokens that its answer may have, if not as many as others'.
    pub max_tokens: Option<u64>,
}

/// What a prompt says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A text; for a chat, the user's one message.
    Text(String),
    /// The messages of a chat.
    Messages(Value),
}

/// Where prompts come from.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// A file's, in its order, over and over.
    Listed(Vec<Prompt>),
    /// Made up.
    Synthetic {
        /// About so many tokens, those of the prefix included.
        tokens: usize,
        /// How many of them all prompts begin with.
        shared_prefix: usize,
        /// Other seeds have other words.
        seed: u64,
    },
}

impl Prompts {
    /// The prompts of a file. The error names the file and the line or the entry.
    pub fn from_file(path: &Path) -> Result<Self, SetupError> {
        let wrong = |why: String| SetupError::Prompts { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let prompts = match path.extension().and_then(|end| end.to_str()) {
            Some("jsonl") => {
                lines(&text, |line| from_json(serde_json::from_str(line).map_err(|error| error.to_string())?))
            }
            Some("json") => conversations(&text),
            _ => lines(&text, |line| Ok(text_prompt(line.to_owned()))),
        };
        let prompts = prompts.map_err(wrong)?;
        if prompts.is_empty() {
            return Err(SetupError::Prompts { path: PathBuf::from(path), why: "no prompt in it".to_owned() });
        }
        Ok(Self::Listed(prompts))
    }

    /// The prompt of a request, by the request's number.
    pub fn get(&self, index: u64) -> Prompt {
        match self {
            Self::Listed(prompts) => prompts[(index % prompts.len() as u64) as usize].clone(),
            Self::Synthetic { tokens, shared_prefix, seed } => {
                let shared = (*shared_prefix).min(*tokens);
                let mut text = String::with_capacity(tokens * 6);
                push_words(&mut text, shared, Random::of(*seed, u64::MAX));
                push_words(&mut text, tokens - shared, Random::of(*seed, index));
                text_prompt(text)
            }
        }
    }

    /// How many there are before they repeat; none for those that never do.
    pub fn distinct(&self) -> Option<usize> {
        match self {
            Self::Listed(prompts) => Some(prompts.len()),
            Self::Synthetic { .. } => None,
        }
    }

    /// Whether any consists of messages, which only a chat can take.
    pub fn need_chat(&self) -> bool {
        match self {
            Self::Listed(prompts) => {
                prompts.iter().any(|prompt| matches!(prompt.content, Content::Messages(_)))
            }
            Self::Synthetic { .. } => false,
        }
    }
}

fn text_prompt(text: String) -> Prompt {
    Prompt { content: Content::Text(text), max_tokens: None }
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

fn lines(text: &str, parse: impl Fn(&str) -> Result<Prompt, String>) -> Result<Vec<Prompt>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| parse(line).map_err(|why| format!("line {}: {why}", number + 1))).collect()
}

fn from_json(value: Value) -> Result<Prompt, String> {
    if let Value::String(text) = value {
        return Ok(text_prompt(text));
    }
    let max_tokens = match value.get("max_tokens") {
        None | Some(Value::Null) => None,
        Some(count) => {
            Some(count.as_u64().filter(|n| *n > 0).ok_or("max_tokens is no positive whole number")?)
        }
    };
    let content = match (value.get("prompt"), value.get("messages")) {
        (Some(Value::String(text)), None) => Content::Text(text.clone()),
        (None, Some(messages @ Value::Array(_))) => Content::Messages(messages.clone()),
        _ => return Err("neither a string nor an object with `prompt` or `messages`".to_owned()),
    };
    Ok(Prompt { content, max_tokens })
}

/// The first human turn of every conversation; those without one are left out, as they ask nothing.
fn conversations(text: &str) -> Result<Vec<Prompt>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Array(entries) = value else { return Err("not a list".to_owned()) };
    let mut prompts = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        let Some(turns) = entry.get("conversations").or_else(|| entry.get("conversation")) else {
            prompts.push(from_json(entry).map_err(|why| format!("entry {number}: {why}"))?);
            continue;
        };
        let turns = turns.as_array().ok_or_else(|| format!("entry {number}: its turns are no list"))?;
        let human = turns
            .iter()
            .find(|turn| matches!(turn.get("from").and_then(Value::as_str), Some("human" | "user")));
        let said = human.and_then(|turn| turn.get("value")).and_then(Value::as_str);
        prompts.extend(said.filter(|text| !text.is_empty()).map(|text| text_prompt(text.to_owned())));
    }
    Ok(prompts)
}
