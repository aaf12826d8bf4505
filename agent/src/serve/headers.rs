//! What a request says and an answer tells beside its tensors: the same words as headers
//! of REST and as metadata of gRPC, which are headers of HTTP too.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rollcall_agent_core::oip::request::{RequestError, check_segment};
use rollcall_shared::feedback::TAG;
use rollcall_shared::limits::TEXT_BYTES_MAX;

use super::infer::InferAnswer;

/// Requests with the same value meet the same version.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("x-rollcall-key");
/// Requests with the same value are counted together, beside all; the parameter `segment`
/// of the request goes before it.
pub const SEGMENT_HEADER: HeaderName = HeaderName::from_static("rollcall-segment");
/// Which version answered.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-rollcall-version");
/// As what: `stable`, `candidate` or `fallback`.
pub const ARM_HEADER: HeaderName = HeaderName::from_static("x-rollcall-arm");
/// The request's name: the client's, or ours.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// A text that names no segment.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum SegmentError {
    #[error("{SEGMENT_HEADER} is not UTF-8: a segment is a {TAG}")]
    NotText,
    #[error(transparent)]
    NotATag(#[from] RequestError),
}

/// The request's name in its headers.
#[must_use]
pub fn request_id(headers: &HeaderMap) -> Option<String> {
    text(headers, &REQUEST_ID_HEADER)
}

/// The request's sticky key.
#[must_use]
pub fn sticky_key(headers: &HeaderMap) -> Option<String> {
    text(headers, &KEY_HEADER)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    let text = String::from_utf8_lossy(value).into_owned();
    (!text.is_empty() && text.len() <= TEXT_BYTES_MAX).then_some(text)
}

/// The request's segment in its headers.
///
/// # Errors
/// When it can be none.
pub fn segment(headers: &HeaderMap) -> Result<Option<String>, SegmentError> {
    let Some(value) = headers.get(SEGMENT_HEADER) else {
        return Ok(None);
    };
    let segment = std::str::from_utf8(value.as_bytes()).map_err(|_| SegmentError::NotText)?;
    check_segment(segment)?;
    Ok(Some(segment.to_owned()))
}

/// Tells in an answer's headers who gave it, and to which request.
pub fn tell(headers: &mut HeaderMap, id: &str, answer: &InferAnswer) {
    headers.insert(ARM_HEADER, HeaderValue::from_static(answer.by.as_str()));
    // A version is digits and dots; an id with control characters is left out.
    if let Ok(value) = HeaderValue::from_str(&answer.version.version.to_string()) {
        headers.insert(VERSION_HEADER, value);
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
}
