//! Compressed requests and answers: gzip, and deflate, which in HTTP and gRPC is zlib's form.
//!
//! A kilobyte may inflate to a megabyte, so a request's size is counted while it is
//! inflated. Small answers go as they are: packing them costs more than it saves.

use std::io::{self, Read, Write};

use axum::http::HeaderValue;
use flate2::bufread::MultiGzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};

use super::room::{INLINE_BYTES_MAX, NoRoom};

/// Answers below this many bytes go as they are.
const ANSWER_BYTES_MIN: usize = 1 << 10;
/// Larger packed requests are read by a blocking thread: a byte may become a thousand.
const INLINE_PACKED_REQUEST_BYTES_MAX: usize = 2 << 10;
/// Answers that are to be packed are packed by a blocking thread from here on.
const INLINE_PACKED_ANSWER_BYTES_MAX: usize = 16 << 10;
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
    /// What HTTP and gRPC call it, in any case; none is [`Self::Identity`].
    pub(super) fn named(name: &[u8]) -> Option<Self> {
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

    /// As a header says it, where one is needed.
    pub(super) const fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Deflate => Some(HeaderValue::from_static("deflate")),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// Up to how many bytes a request is read by the thread that has its connection: few
    /// threads have all of them.
    pub(super) const fn inline_request_bytes_max(self) -> usize {
        match self {
            Self::Identity => INLINE_BYTES_MAX,
            Self::Gzip | Self::Deflate => INLINE_PACKED_REQUEST_BYTES_MAX,
        }
    }

    /// The same for an answer, before it is packed.
    pub(super) const fn inline_answer_bytes_max(self) -> usize {
        match self {
            Self::Identity => INLINE_BYTES_MAX,
            Self::Gzip | Self::Deflate => INLINE_PACKED_ANSWER_BYTES_MAX,
        }
    }

    /// What is done to an answer of so many bytes.
    pub(super) const fn for_answer_of(self, bytes: usize) -> Self {
        match bytes {
            ..ANSWER_BYTES_MIN => Self::Identity,
            _ => self,
        }
    }
}

/// Why a request could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflateError {
    /// It grew over its bound.
    #[error("a request has at most {bytes_max} bytes, inflated; split it")]
    TooLarge { bytes_max: usize },
    /// It is cut off, damaged, or packed in another way.
    #[error(
        "the request is not packed as it says ({error}): send it whole and as {}, which for \
         deflate is zlib's form, or send it uncompressed",
        coding.name()
    )]
    Damaged { coding: Coding, error: io::Error },
    /// Others have the room that it takes.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Unpacks a request. `grow` is told how large it has become.
pub(super) fn inflate(
    coding: Coding,
    bytes: &[u8],
    bytes_max: usize,
    mut grow: impl FnMut(usize) -> Result<(), NoRoom>,
) -> Result<Vec<u8>, InflateError> {
    let mut reader: Box<dyn Read> = match coding {
        Coding::Identity => Box::new(bytes),
        Coding::Gzip => Box::new(MultiGzDecoder::new(bytes)),
        Coding::Deflate => Box::new(Zlib::new(bytes)),
    };
    let mut all = Vec::new();
    loop {
        let step = STEP_BYTES.min(bytes_max + 1 - all.len());
        let mut next = reader.by_ref().take(step as u64);
        let read = next
            .read_to_end(&mut all)
            .map_err(|error| InflateError::Damaged { coding, error })?;
        if all.len() > bytes_max {
            return Err(InflateError::TooLarge { bytes_max });
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

    fn unpack(coding: Coding, bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
        inflate(coding, bytes, bytes_max, |_| Ok(()))
    }

    #[test]
    fn what_was_packed_is_unpacked_up_to_the_bound() {
        for coding in CODINGS {
            for length in [0, 1, 100, STEP_BYTES, 3 * STEP_BYTES + 7] {
                let bytes: Vec<u8> = (0..length).map(|i| (i * i % 251) as u8).collect();
                let packed = pack(coding, bytes.clone()).unwrap();
                assert_eq!(unpack(coding, &packed, length).unwrap(), bytes);
                if length > 0 {
                    let unpacked = unpack(coding, &packed, length - 1);
                    assert!(matches!(unpacked, Err(InflateError::TooLarge { .. })));
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
            assert!(matches!(unpacked, Err(InflateError::TooLarge { .. })));
            assert!(largest <= 1 << 20);
        }
    }

    #[test]
    fn the_room_that_is_taken_follows_what_was_inflated() {
        let packed = pack(Coding::Gzip, vec![0; 1 << 20]).unwrap();
        let unpacked = inflate(Coding::Gzip, &packed, 64 << 20, |so_far| {
            if so_far > 256 << 10 {
                Err(NoRoom)
            } else {
                Ok(())
            }
        });
        assert!(matches!(unpacked, Err(InflateError::NoRoom(_))));
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
}
