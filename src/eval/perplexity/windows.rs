//! Rolling windows over a text's tokens, as lm-eval makes them.

/// Tokens that a request computes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// The tokens. The first `context` of them are not scored.
    pub(super) tokens: Vec<u32>,
    pub(super) context: usize,
}

/// Windows that score each token once. A window has at most `max_length` tokens, context included. The first
/// begins with the prefix token; each other one begins with the last token of the window before, and the last
/// window with as many earlier tokens as it has room for.
///
/// # Panics
/// If `max_length` is below 2.
pub(super) fn windows(tokens: &[u32], prefix: u32, max_length: usize) -> Vec<Window> {
    assert!(max_length >= 2, "a window has room for a token and its context");
    let most = max_length - 1;
    let mut windows = Vec::new();
    let mut scored = 0;
    while scored < tokens.len() {
        let end = tokens.len().min(scored + most);
        let window = if scored == 0 {
            let tokens = [prefix].into_iter().chain(tokens[..end].iter().copied()).collect();
            Window { tokens, context: 1 }
        } else {
            // Not below 0, since the window before has scored `most` tokens.
            let start = end - most - 1;
            Window { tokens: tokens[start..end].to_vec(), context: scored - start }
        };
        windows.push(window);
        scored = end;
    }
    windows
}
