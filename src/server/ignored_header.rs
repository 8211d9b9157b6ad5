//! The names of the request's fields that were ignored, and the response header that has them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The response header with these names.
pub(crate) const IGNORED_FIELDS: &str = "x-ignored-fields";

/// Most names that a reply shows.
const MAX_NAMES: usize = 32;
/// Most characters of a name that a reply shows.
const MAX_CHARS: usize = 128;
/// Characters that a longer name keeps at its end, where the path of a schema's keyword has the keyword.
const END_CHARS: usize = 64;
/// Replaces the middle of a longer name.
const CUT: &str = "...";

/// Field names which a client sent, as a reply shows them: at most 32 names, each of at most 128 characters,
/// with `?` for commas and for characters that are not visible ASCII.
pub(super) fn shown_names(names: &[String]) -> Vec<String> {
    names.iter().take(MAX_NAMES).map(|name| shown_name(name)).collect()
}

fn shown_name(name: &str) -> String {
    let replace = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
    let clean: Vec<char> = name.chars().map(replace).collect();
    if clean.len() <= MAX_CHARS {
        return clean.into_iter().collect();
    }
    let begin = clean[..MAX_CHARS - END_CHARS - CUT.len()].iter();
    let end = clean[clean.len() - END_CHARS..].iter();
    begin.copied().chain(CUT.chars()).chain(end.copied()).collect()
}

/// The response header [`IGNORED_FIELDS`], with [`shown_names`]. Empty if there are no names.
pub(super) fn ignored_header(names: &[String]) -> HeaderMap {
    let list = shown_names(names);
    let value = HeaderValue::from_str(&list.join(",")).ok().filter(|_| !list.is_empty());
    value.into_iter().map(|value| (HeaderName::from_static(IGNORED_FIELDS), value)).collect()
}
