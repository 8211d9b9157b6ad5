//! The response header that names the request's fields that were ignored.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The response header `x-ignored-fields`, with field names which a client sent: at most 32 names, each of at
/// most 64 characters, with `?` for commas and for characters that are not visible ASCII. Empty if there are
/// no names.
pub(super) fn ignored_header(names: &[String]) -> HeaderMap {
    const MAX_NAMES: usize = 32;
    const MAX_CHARS: usize = 64;
    let clean = |name: &String| -> String {
        let replace = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
        name.chars().take(MAX_CHARS).map(replace).collect()
    };
    let list: Vec<String> = names.iter().take(MAX_NAMES).map(clean).collect();
    let value = HeaderValue::from_str(&list.join(",")).ok().filter(|_| !list.is_empty());
    value.into_iter().map(|value| (HeaderName::from_static("x-ignored-fields"), value)).collect()
}
