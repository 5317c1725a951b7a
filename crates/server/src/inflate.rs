//! Compressed bodies. Inflating stops at the limit of a body, so a small body cannot become a large heap.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use quadrant_types::{Error, ErrorCode, IoBudget};

use crate::budgeted::GrowingBuffer;

/// A coding of bodies and messages. "deflate" is the zlib format, as HTTP defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// The coding of a request; `None` if it is not coded.
    ///
    /// # Errors
    /// A coding that is not known.
    pub(crate) fn of_request(value: &[u8]) -> Result<Option<Self>, Error> {
        match value.trim_ascii() {
            b"gzip" | b"x-gzip" => Ok(Some(Self::Gzip)),
            b"deflate" => Ok(Some(Self::Deflate)),
            b"identity" | b"" => Ok(None),
            other => {
                let name = String::from_utf8_lossy(&other[..other.len().min(64)]).into_owned();
                let what = format!("content coding `{name}` is not supported; use gzip, deflate or identity");
                Err(Error::new(ErrorCode::Unsupported, what))
            }
        }
    }

    /// The coding that an `Accept-Encoding` asks for, gzip before deflate.
    pub(crate) fn of_accept(value: &[u8]) -> Option<Self> {
        let accepts = |name: &[u8]| {
            value.split(|byte| *byte == b',').any(|part| {
                let mut fields = part.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
                let is_named = fields.next().is_some_and(|field| field.eq_ignore_ascii_case(name));
                let is_refused = |field: &[u8]| matches!(field, b"q=0" | b"q=0.0" | b"q=0.00" | b"q=0.000");
                is_named && !fields.any(is_refused)
            })
        };
        [Self::Gzip, Self::Deflate].into_iter().find(|coding| accepts(coding.name().as_bytes()))
    }
}

/// The plain bytes of a coded body, in a buffer whose byte `aligned_at` is aligned.
///
/// # Errors
/// Broken data, or more than `bytes_max` bytes.
pub(crate) fn inflate(
    coding: Coding,
    coded: &[u8],
    budget: &IoBudget,
    bytes_max: usize,
    aligned_at: usize,
) -> Result<Bytes, Error> {
    let mut reader: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(GzDecoder::new(coded)),
        Coding::Deflate => Box::new(ZlibDecoder::new(coded)),
    };
    let mut plain = GrowingBuffer::new(budget, bytes_max)?;
    let mut chunk = vec![0_u8; 32 << 10];
    loop {
        let length = match reader.read(&mut chunk) {
            Ok(0) => return plain.into_aligned(aligned_at),
            Ok(length) => length,
            Err(error) => {
                let what = format!("cannot inflate the {} body: {error}", coding.name());
                return Err(Error::invalid(what));
            }
        };
        plain.extend(&chunk[..length])?;
    }
}

/// A coded body. Fast rather than small.
///
/// # Errors
/// Never for writing to memory.
pub(crate) fn deflate(coding: Coding, plain: &[u8]) -> io::Result<Vec<u8>> {
    let sink = Vec::with_capacity(plain.len() / 4);
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(sink, Compression::fast());
            encoder.write_all(plain)?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(sink, Compression::fast());
            encoder.write_all(plain)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_round_trip_and_bombs_stop_at_the_limit() {
        let budget = IoBudget::new(1 << 20);
        let plain = vec![b'a'; 100_000];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let coded = deflate(coding, &plain).unwrap();
            assert!(coded.len() < 1_000);
            assert_eq!(inflate(coding, &coded, &budget, 100_000, 0).unwrap(), plain);
            let error = inflate(coding, &coded, &budget, 99_999, 0).unwrap_err();
            assert_eq!(error.code, ErrorCode::TooLarge);
            let error = inflate(coding, &coded[..coded.len() / 2], &budget, 100_000, 0).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
        }
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn codings_are_named() {
        assert_eq!(Coding::of_request(b"gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(Coding::of_request(b" identity"), Ok(None));
        assert_eq!(Coding::of_request(b"br").unwrap_err().code, ErrorCode::Unsupported);
        assert_eq!(Coding::of_accept(b"deflate, gzip;q=0.5"), Some(Coding::Gzip));
        assert_eq!(Coding::of_accept(b"gzip;q=0, deflate"), Some(Coding::Deflate));
        assert_eq!(Coding::of_accept(b"br, *"), None);
    }
}
