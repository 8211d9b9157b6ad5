//! Strings to tokens and back: chat template, tokenizer, incremental detokenizer, stop strings.
//!
//! Down: [`ChatTemplate::render`] lays messages out as the model was trained to read them, [`Tokenizer::encode_prompt`]
//! turns that into ids. Up: [`Detokenizer`] turns ids into text as they come, [`StopMatcher`] ends it at a stop string.
//!
//! # Invariant: message text is never read as a turn marker
//! A model sees turns through a few special ids (`<extra_id_1>`, `<|im_end|>`). A message that spells one of them out
//! must not become that id, or any client could speak as the system. So message text is broken up with an invisible
//! character wherever it spells a marker before the template sees it, markers are looked for only after rendering,
//! and the tokenizer's own spelling of the markers is one that no text can have. `guard.rs` is all of that.
//!
//! Three of Unicode's noncharacters are reserved for it (U+FFFFF, U+10FFFE, U+10FFFF). Text is not supposed to contain
//! them; where a client's does, they are read as U+FFFD.

mod detokenizer;
mod guard;
mod python;
mod source;
mod stop;
mod template;
mod tokenizer;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use python::strftime;
pub use stop::{StopMatcher, StopStep};
pub use template::{ChatMessage, ChatTemplate, RenderOptions, Rendered, Role};
pub use tokenizer::{Special, Tokenizer};

use std::path::PathBuf;

/// What can go wrong between text and tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model's directory is missing, unreadable or not what it should be: for the operator.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A chat template given as text does not compile: for the operator.
    #[error("the chat template does not compile: {0}")]
    Source(String),
    /// The chat template refused these messages, or could not render them within its limits: for the client.
    #[error("the chat template cannot render these messages: {0}")]
    Template(String),
    /// The text has no encoding in this tokenizer: for the client.
    #[error("the text cannot be tokenized: {0}")]
    Tokenize(String),
}

impl TextError {
    /// Whether another request could do better. False: no request can, the model's files have to change.
    pub fn is_client(&self) -> bool {
        matches!(self, Self::Template(_) | Self::Tokenize(_))
    }
}
