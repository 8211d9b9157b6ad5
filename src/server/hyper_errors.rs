//! Error objects for requests that hyper itself refuses because of their head. hyper answers those with a
//! bare status before any route or middleware; the socket writes our response in its place.

use bytes::Bytes;

use super::access_log;
use super::error::ApiError;
use super::settings::HttpLimits;

/// Returns the response to send instead of `written` if `written` is a refusal of hyper's own.
pub(crate) fn replacement(written: &[u8], limits: &HttpLimits) -> Option<Bytes> {
    let head = std::str::from_utf8(written).ok()?;
    let (status, fields) = head.strip_prefix("HTTP/1.1 ")?.split_at_checked(3)?;
    // Responses that passed the middleware have a request id, and errors among them have a body.
    if !fields.ends_with("\r\n\r\n")
        || !fields.contains("content-length: 0\r\n")
        || fields.contains("x-request-id")
    {
        return None;
    }
    let error = match status {
        "400" => ApiError::Malformed("The request is not HTTP/1.1, or has a malformed head.".to_owned()),
        // The URI counts as part of the head and has no limit of its own.
        "414" | "431" => ApiError::HeadersTooLarge(limits.max_head_bytes, limits.max_headers),
        _ => return None,
    };
    access_log::malformed(error.status().as_u16(), error.label());
    let (status, body) = (error.status(), error.to_json());
    let length = body.len();
    Some(Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )))
}
