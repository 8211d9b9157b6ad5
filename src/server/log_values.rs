//! Values in the access log: numbers with three decimals, and texts of clients with a limited length.

/// Maximum characters of a path or a field's name in the log. Clients choose both.
const MAX_CHARS: usize = 200;

/// Rounds to three decimals. The log prints the shortest number that reads back as the same.
pub(super) fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Cuts a text of the client after [`MAX_CHARS`] characters.
pub(super) fn bounded(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
