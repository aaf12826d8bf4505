//! How a client of REST says that its request is packed, and how it likes its answer.

use axum::http::{HeaderMap, StatusCode, header};

use crate::serve::answer::HttpError;
use crate::serve::compression::Coding;

/// As the client packed its request.
pub(super) fn of_request(headers: &HeaderMap) -> Result<Coding, HttpError> {
    let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
    let coding = named.next().map_or(Some(Coding::Identity), |name| {
        Coding::named(name.as_bytes())
    });
    coding.filter(|_| named.next().is_none()).ok_or_else(|| {
        HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this Content-Encoding is not taken here: send gzip, deflate or none",
        )
    })
}

/// As the client likes its answer best, of what we have.
pub(super) fn of_answer(headers: &HeaderMap) -> Coding {
    let mut best = (Coding::Identity, 0.0);
    for line in headers.get_all(header::ACCEPT_ENCODING) {
        for choice in line.as_bytes().split(|byte| *byte == b',') {
            let mut parts = choice.split(|byte| *byte == b';');
            let coding = parts.next().and_then(Coding::named);
            let weight = parts.next().map_or(Some(1.0), weight).unwrap_or(0.0);
            match coding {
                Some(coding @ (Coding::Gzip | Coding::Deflate)) if weight > best.1 => {
                    best = (coding, weight);
                }
                Some(Coding::Identity | Coding::Gzip | Coding::Deflate) | None => {}
            }
        }
    }
    best.0
}

/// Of `q=0.5`.
fn weight(parameter: &[u8]) -> Option<f32> {
    let text = std::str::from_utf8(parameter).ok()?.trim();
    text.strip_prefix("q=")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &str) -> Coding {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
        of_answer(&headers)
    }

    #[test]
    fn the_clients_favourite_of_what_we_have_is_taken() {
        for (value, coding) in [
            ("gzip", Coding::Gzip),
            ("deflate", Coding::Deflate),
            ("br, zstd", Coding::Identity),
            ("gzip;q=0.5, deflate;q=0.8", Coding::Deflate),
            ("gzip, deflate, br", Coding::Gzip),
            ("gzip;q=0", Coding::Identity),
            ("GZIP ; q=1.0", Coding::Gzip),
            ("identity", Coding::Identity),
            ("gzip;level=9", Coding::Identity),
            ("", Coding::Identity),
        ] {
            assert_eq!(accepts(value), coding, "{value}");
        }
    }
}
