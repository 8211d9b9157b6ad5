//! The names of the request's fields that were ignored, and the response header that has them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The response header with these names.
pub(crate) const IGNORED_FIELDS: &str = "x-ignored-fields";

/// Field names which a client sent, as a reply shows them: at most 32 names, each of at most 64 characters,
/// with `?` for commas and for characters that are not visible ASCII.
pub(super) fn shown_names(names: &[String]) -> Vec<String> {
    const MAX_NAMES: usize = 32;
    const MAX_CHARS: usize = 64;
    let clean = |name: &String| -> String {
        let replace = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
        name.chars().take(MAX_CHARS).map(replace).collect()
    };
    names.iter().take(MAX_NAMES).map(clean).collect()
}

/// The response header [`IGNORED_FIELDS`], with [`shown_names`]. Empty if there are no names.
pub(super) fn ignored_header(names: &[String]) -> HeaderMap {
    let list = shown_names(names);
    let value = HeaderValue::from_str(&list.join(",")).ok().filter(|_| !list.is_empty());
    value.into_iter().map(|value| (HeaderName::from_static(IGNORED_FIELDS), value)).collect()
}
