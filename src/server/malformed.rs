//! The error object for a head that hyper itself refuses. Such a request never reaches a route, and hyper answers it
//! with a bare status; the socket puts our response in that one's place.

use bytes::Bytes;

use super::HttpLimits;
use super::error::ApiError;

/// What to send instead of `written`, if that is a response of hyper's own.
pub fn instead(written: &[u8], limits: &HttpLimits) -> Option<Bytes> {
    let head = std::str::from_utf8(written).ok()?;
    let (status, fields) = head.strip_prefix("HTTP/1.1 ")?.split_at_checked(3)?;
    // Every response that went through the door has an id, and those of 4xx have a body.
    if !fields.ends_with("\r\n\r\n")
        || !fields.contains("content-length: 0\r\n")
        || fields.contains("x-request-id")
    {
        return None;
    }
    let error = match status {
        "400" => ApiError::Malformed("The request is not HTTP/1.1, or has a malformed head.".to_owned()),
        // The URI is a part of the head, and has no limit of its own.
        "414" | "431" => ApiError::HeadersTooLarge(limits.max_head_bytes, limits.max_headers),
        _ => return None,
    };
    let (status, body) = (error.status(), error.to_json());
    let length = body.len();
    Some(Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )))
}
