//! Files of the page at `/`: text is only ever set as text, and nothing comes from elsewhere.

use super::{check, files};

/// Ways to turn text into markup or code, and places that outlast the tab.
const BANNED: [&str; 14] = [
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "setHTML",
    "createContextualFragment",
    "DOMParser",
    "document.write",
    "eval(",
    "new Function",
    "srcdoc",
    "javascript:",
    "localStorage",
    "document.cookie",
    "indexedDB",
];

/// Attributes of HTML that hold code or style; the page's policy blocks both.
const INLINE: [&str; 6] = [" style=", "<style", "<script>", " onclick=", " onerror=", " onload="];

/// Addresses of other servers; that of the SVG names is no request.
fn foreign_urls(text: &str) -> Vec<String> {
    let urls = ["http://", "https://"].into_iter().flat_map(|scheme| text.match_indices(scheme));
    let urls =
        urls.map(|(at, _)| text[at..].chars().take_while(|c| !c.is_whitespace() && *c != '"').collect());
    urls.filter(|url: &String| url != "http://www.w3.org/2000/svg").collect()
}

fn markup(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/server/page/") {
        return Vec::new();
    }
    let inline: &[&str] = if path.ends_with(".html") { &INLINE } else { &[] };
    let banned = BANNED.iter().chain(inline).filter(|word| text.contains(**word));
    let mut found: Vec<String> = banned.map(|word| format!("{path}: `{word}`")).collect();
    found.extend(foreign_urls(text).into_iter().map(|url| format!("{path}: `{url}`")));
    found
}

#[test]
fn the_page_sets_text_only_as_text() {
    check(&files(&[".js", ".html", ".css"]), markup);
    for bad in ["box.innerHTML = text", "eval(text)", "fetch(\"https://example.org/\")", "localStorage.key"] {
        assert!(!markup("src/server/page/a.js", bad).is_empty(), "{bad}");
    }
    assert!(!markup("src/server/page/a.html", "<p style=\"color: red\">").is_empty());
    assert!(markup("src/server/page/a.js", "box.textContent = text").is_empty());
}
