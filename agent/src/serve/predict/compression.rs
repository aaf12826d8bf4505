//! Compressed requests and answers: gzip, and deflate, which in HTTP is zlib's form.
//!
//! A kilobyte may inflate to a megabyte, so a request's size is counted while it is
//! inflated. Small answers go as they are: packing them costs more than it saves.

use std::io::{self, Read, Write};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use flate2::bufread::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};

use super::body::too_large;
use crate::serve::answer::HttpError;

/// Answers below this many bytes go as they are.
pub(super) const ANSWER_BYTES_MIN: usize = 1 << 10;
/// Inflated at a time: so far a body may grow before its size is looked at.
const STEP_BYTES: usize = 64 << 10;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950.
    Deflate,
}

impl Coding {
    fn named(name: &[u8]) -> Option<Self> {
        let name = name.trim_ascii();
        let is = |one: &str| name.eq_ignore_ascii_case(one.as_bytes());
        if name.is_empty() || is("identity") {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("deflate") {
            Some(Self::Deflate)
        } else {
            None
        }
    }

    /// As the client packed its request.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Self, HttpError> {
        let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = named
            .next()
            .map_or(Some(Self::Identity), |name| Self::named(name.as_bytes()));
        coding.filter(|_| named.next().is_none()).ok_or_else(|| {
            HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "this Content-Encoding is not taken here: send gzip, deflate or none",
            )
        })
    }

    /// As the client likes its answer best, of what we have.
    pub(super) fn of_answer(headers: &HeaderMap) -> Self {
        let mut best = (Self::Identity, 0.0);
        for line in headers.get_all(header::ACCEPT_ENCODING) {
            for choice in line.as_bytes().split(|byte| *byte == b',') {
                let mut parts = choice.split(|byte| *byte == b';');
                let coding = parts.next().and_then(Self::named);
                let weight = parts.next().map_or(Some(1.0), weight).unwrap_or(0.0);
                match coding {
                    Some(coding @ (Self::Gzip | Self::Deflate)) if weight > best.1 => {
                        best = (coding, weight);
                    }
                    Some(Self::Identity | Self::Gzip | Self::Deflate) | None => {}
                }
            }
        }
        best.0
    }

    /// As `Content-Encoding` says it.
    pub(super) const fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Deflate => Some(HeaderValue::from_static("deflate")),
        }
    }
}

/// Of `q=0.5`.
fn weight(parameter: &[u8]) -> Option<f32> {
    let text = std::str::from_utf8(parameter).ok()?.trim();
    text.strip_prefix("q=")?.parse().ok()
}

/// Unpacks a body. `grow` is told how large it has become.
pub(super) fn inflate(
    coding: Coding,
    bytes: &[u8],
    bytes_max: usize,
    grow: impl FnMut(usize) -> Result<(), HttpError>,
) -> Result<Vec<u8>, HttpError> {
    match coding {
        Coding::Identity => Ok(bytes.to_vec()),
        Coding::Gzip => read_all(MultiGzDecoder::new(bytes), "gzip", bytes_max, grow),
        Coding::Deflate => read_all(Zlib::new(bytes), "deflate", bytes_max, grow),
    }
}

fn read_all(
    mut reader: impl Read,
    name: &str,
    bytes_max: usize,
    mut grow: impl FnMut(usize) -> Result<(), HttpError>,
) -> Result<Vec<u8>, HttpError> {
    let mut all = Vec::new();
    loop {
        let step = STEP_BYTES.min(bytes_max + 1 - all.len());
        let read = reader
            .by_ref()
            .take(step as u64)
            .read_to_end(&mut all)
            .map_err(|error| {
                HttpError::new(
                    StatusCode::BAD_REQUEST,
                    format!(
                        "the body is not what its Content-Encoding says ({error}): send it whole \
                         and as {name}, which for deflate is zlib's form, or send it uncompressed"
                    ),
                )
            })?;
        if all.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        grow(all.len())?;
        if read < step {
            return Ok(all);
        }
    }
}

/// Reads one zlib stream to its end and notices where it is cut off or goes on, which
/// flate2's own reader lets pass.
struct Zlib<'a> {
    left: &'a [u8],
    state: Decompress,
    ended: bool,
}

impl<'a> Zlib<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            left: bytes,
            state: Decompress::new(true),
            ended: false,
        }
    }
}

impl Read for Zlib<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let (read, written) = (self.state.total_in(), self.state.total_out());
        let status = self
            .state
            .decompress(self.left, buffer, FlushDecompress::None)?;
        let difference =
            |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let read = difference(self.state.total_in(), read);
        let written = difference(self.state.total_out(), written);
        self.left = self.left.get(read..).unwrap_or_default();
        self.ended = status == Status::StreamEnd;
        if self.ended && !self.left.is_empty() {
            return Err(io::Error::other("bytes follow its end"));
        }
        if !self.ended && read == 0 && written == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if written == 0 && !self.ended {
            return self.read(buffer);
        }
        Ok(written)
    }
}

/// Packs an answer, quickly rather than small.
pub(super) fn pack(coding: Coding, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let room = Vec::with_capacity(bytes.len() / 2);
    match coding {
        Coding::Identity => Ok(bytes),
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(room, Compression::fast());
            encoder.write_all(&bytes)?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(room, Compression::fast());
            encoder.write_all(&bytes)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODINGS: [Coding; 2] = [Coding::Gzip, Coding::Deflate];

    fn unpack(coding: Coding, bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, HttpError> {
        inflate(coding, bytes, bytes_max, |_| Ok(()))
    }

    fn accepts(value: &str) -> Coding {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
        Coding::of_answer(&headers)
    }

    #[test]
    fn what_was_packed_is_unpacked_up_to_the_bound() {
        for coding in CODINGS {
            for length in [0, 1, 100, STEP_BYTES, 3 * STEP_BYTES + 7] {
                let bytes: Vec<u8> = (0..length).map(|i| (i * i % 251) as u8).collect();
                let packed = pack(coding, bytes.clone()).unwrap();
                assert_eq!(unpack(coding, &packed, length), Ok(bytes));
                if length > 0 {
                    assert_eq!(
                        unpack(coding, &packed, length - 1),
                        Err(too_large(length - 1))
                    );
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_left_when_it_passes_the_bound() {
        for coding in CODINGS {
            let bomb = pack(coding, vec![0; 32 << 20]).unwrap();
            assert!(bomb.len() < 1 << 20);
            let mut largest = 0;
            let unpacked = inflate(coding, &bomb, 1 << 20, |so_far| {
                largest = so_far;
                Ok(())
            });
            assert_eq!(unpacked, Err(too_large(1 << 20)));
            assert!(largest <= 1 << 20);
        }
    }

    #[test]
    fn the_room_that_is_taken_follows_what_was_inflated() {
        let packed = pack(Coding::Gzip, vec![0; 1 << 20]).unwrap();
        let full = HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "full");
        let unpacked = inflate(Coding::Gzip, &packed, 64 << 20, |so_far| {
            if so_far > 256 << 10 {
                Err(full.clone())
            } else {
                Ok(())
            }
        });
        assert_eq!(unpacked, Err(full));
    }

    #[test]
    fn what_is_cut_off_damaged_or_goes_on_is_refused() {
        for coding in CODINGS {
            let bytes: Vec<u8> = (0..2_000_u32).map(|i| (i * i % 251) as u8).collect();
            let packed = pack(coding, bytes).unwrap();
            let mut longer = packed.clone();
            longer.extend(b"more");
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x55;
            let cut = &packed[..packed.len() - 1];
            for bad in [
                cut,
                &packed[..20],
                &longer,
                &damaged,
                b"{\"inputs\":[]}",
                b"",
            ] {
                assert!(unpack(coding, bad, 1 << 20).is_err(), "{coding:?} {bad:?}");
            }
        }
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
