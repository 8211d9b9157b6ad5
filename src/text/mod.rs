//! Text to tokens and back: chat template, tokenizer, incremental detokenizer and stop strings.
//!
//! For a prompt, [`ChatTemplate::render`] turns messages into the text format that the model was trained on,
//! and [`Tokenizer::encode_prompt`] turns that text into token ids. For an answer, [`Detokenizer`] turns ids
//! into text as they are generated, and [`StopMatcher`] ends the text at a stop string.
//!
//! # Invariant: message text is never encoded as a turn marker
//! Turns are separated by a few added tokens (`<extra_id_1>`, `<|im_end|>`). A message that spells such a
//! marker must not be encoded to its id; otherwise a client could write messages of the system.
//! `turn_marker_guard.rs` prevents it: the template gets the text as it is, and a marker in its
//! output is encoded as a marker only if the template wrote it. Which added tokens are markers follows from
//! what the template writes between the messages of a small conversation (`provenance.rs`). All other added
//! tokens in message text (`<think>`, tags of tool calls) are encoded as `transformers` does.
//!
//! Three noncharacters of Unicode are reserved for this: U+FFFFF, U+10FFFE and U+10FFFF. A template that
//! contains one of them is refused. Message text may contain them.

mod added_tokens;
mod chat_message;
mod content_format;
mod decoding;
mod detokenizer;
mod files;
mod jinja;
mod marked_template;
mod provenance;
mod python;
mod stop;
mod strftime;
mod template;
mod tokenizer;
mod turn_marker_guard;
mod vocabulary;

pub use chat_message::{ChatMessage, Content, RenderOptions, Role};
pub use detokenizer::Detokenizer;
pub use stop::{StopMatcher, StopStep};
pub use strftime::strftime;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub(crate) use tokenizer::shown;
pub use turn_marker_guard::Rendered;

use std::path::PathBuf;

/// Error of a conversion between text and tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file in the model directory is missing, unreadable or invalid. The operator has to act.
    #[error("{}: {message}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The fault.
        message: String,
    },
    /// A chat template given as text cannot be used. The operator has to act.
    #[error("{0}")]
    Source(String),
    /// The chat template refuses the messages, or exceeds a limit with them. The client has to act.
    #[error("the chat template cannot render these messages: {0}")]
    Template(String),
    /// The tokenizer cannot encode the text. The client has to act.
    #[error("the text cannot be tokenized: {0}")]
    Tokenize(String),
}

impl TextError {
    /// Whether the client can avoid the error with another request. If not, the operator has to change the
    /// model's files.
    pub fn is_client(&self) -> bool {
        matches!(self, Self::Template(_) | Self::Tokenize(_))
    }
}
