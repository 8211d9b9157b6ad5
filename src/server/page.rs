//! The page at `/`, on which people chat with the model, and the page at `/docs`, which describes the API.
//! Their files are part of the binary.
//!
//! The files hold no secrets, so they need no API key; the page sends the key that its user types. The policy
//! lets the page load and call nothing but this server, and lets no other site frame it.

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use sha2::{Digest, Sha256};

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// A file of a page.
#[derive(Clone, Copy)]
pub(super) struct PageFile {
    /// Path of its route.
    pub(super) path: &'static str,
    media_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// All files of the pages.
pub(super) const FILES: [PageFile; 11] = [
    PageFile { path: "/", media_type: HTML, text: include_str!("page/index.html") },
    PageFile { path: "/page/page.css", media_type: CSS, text: include_str!("page/page.css") },
    PageFile { path: "/page/main.js", media_type: JAVASCRIPT, text: include_str!("page/main.js") },
    PageFile { path: "/page/api.js", media_type: JAVASCRIPT, text: include_str!("page/api.js") },
    PageFile { path: "/page/load.js", media_type: JAVASCRIPT, text: include_str!("page/load.js") },
    PageFile { path: "/page/settings.js", media_type: JAVASCRIPT, text: include_str!("page/settings.js") },
    PageFile { path: "/page/tokens.js", media_type: JAVASCRIPT, text: include_str!("page/tokens.js") },
    PageFile { path: "/page/turns.js", media_type: JAVASCRIPT, text: include_str!("page/turns.js") },
    PageFile { path: "/docs", media_type: HTML, text: include_str!("docs/docs.html") },
    PageFile { path: "/docs/docs.js", media_type: JAVASCRIPT, text: include_str!("docs/docs.js") },
    PageFile { path: "/docs/docs.css", media_type: CSS, text: include_str!("docs/docs.css") },
];

/// Returns true for the path of a file of a page.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

impl PageFile {
    /// The media type without its parameters.
    pub(super) fn content_type(&self) -> &'static str {
        self.media_type.split(';').next().unwrap_or_default()
    }

    /// Responds with the file, or with status 304 if the browser has this version of it.
    pub(super) fn respond(&self, asked: &HeaderMap) -> Response<Body> {
        let tag = self.tag();
        let known = asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let is_known = known.flat_map(|list| list.split(',')).any(|known| {
            let known = known.trim();
            known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
        });
        let mut response = Response::new(if is_known { Body::empty() } else { Body::from(self.text) });
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, self.media_type),
            // A browser asks each time, so that the page and its server are of the same version.
            (CACHE_CONTROL, "no-cache"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            // No other site may embed the files or keep a handle on the page's window.
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(CONTENT_SECURITY_POLICY, POLICY);
        headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (ETAG, tag)));
        response
    }

    /// The entity tag: a digest of the text.
    fn tag(&self) -> String {
        let digest = Sha256::digest(self.text);
        let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\"{hex}\"")
    }
}
