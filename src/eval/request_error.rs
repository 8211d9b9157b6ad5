//! Failures of requests.

/// Characters of a server's message that an error shows.
const EXCERPT: usize = 400;

/// A request has failed, also after further attempts where they make sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server cannot be reached, or the connection was lost.
    #[error("{authority}: {why}")]
    Connection {
        /// Host and port.
        authority: String,
        /// Reason.
        why: String,
    },
    /// The server has refused the request.
    #[error("{message} (HTTP {status}){hint}", hint = hint(.status))]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The request took too long.
    #[error("no complete answer after {seconds} s; --timeout sets the limit")]
    Late {
        /// The limit in seconds.
        seconds: f64,
    },
    /// The server has answered with something else than what was asked for.
    #[error("{path}: expected {expected}, got {got}")]
    Malformed {
        /// Path of the request.
        path: &'static str,
        /// The expected part of the answer.
        expected: String,
        /// Text that was there instead.
        got: String,
    },
}

impl RequestError {
    /// An answer that lacks what was asked for.
    pub(super) fn malformed(path: &'static str, expected: impl Into<String>, got: &str) -> Self {
        Self::Malformed { path, expected: expected.into(), got: excerpt(got) }
    }

    /// Whether the server has refused this request by itself, while it may accept others: one that is too
    /// long, for example.
    pub(super) fn concerns_the_row(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 413 | 422, .. })
    }
}

fn hint(status: &u16) -> &'static str {
    match status {
        401 => "; --api-key or OCTANT_API_KEY gives the key",
        _ => "",
    }
}

/// The beginning of a text, in one line.
pub(super) fn excerpt(text: &str) -> String {
    let mut short: String = text.trim().chars().take(EXCERPT).collect();
    if short.len() < text.trim().len() {
        short.push_str(" …");
    }
    short.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
