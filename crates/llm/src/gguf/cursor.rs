//! A place in the file that moves forward, and never past the end.
//!
//! It knows what is being read, so that an error can say it. A count out of the file becomes a number to
//! count with only through [`Cursor::room_for`].

use std::fmt;

use crate::error::{FileError, Quoted};

/// What is being read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Header,
    Metadata,
    /// The key of the metadata entry with this number.
    Key(u64),
    /// The value at this key.
    Value(&'a str),
    Tensors,
    /// The name of the tensor with this number.
    TensorName(u64),
    /// What follows a tensor's name.
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Header => f.write_str("the header"),
            Self::Metadata => f.write_str("the metadata"),
            Self::Key(index) => write!(f, "the key of metadata entry `{index}`"),
            Self::Value(key) => write!(f, "the value of {}", Quoted(key)),
            Self::Tensors => f.write_str("the list of tensors"),
            Self::TensorName(index) => write!(f, "the name of tensor `{index}`"),
            Self::Tensor(name) => write!(f, "tensor {}", Quoted(name)),
        }
    }
}

/// Reads numbers and texts one after the other.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    place: Place<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0, place: Place::Header }
    }

    pub(super) fn file(&self) -> &'a [u8] {
        self.file
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What is read from here on is a part of `place`.
    pub(super) fn enter(&mut self, place: Place<'a>) {
        self.place = place;
    }

    /// `count` as a number to count with, if so many things of at least `each` bytes, which must be one or
    /// more, can follow.
    pub(super) fn room_for(&self, count: u64, each: u64) -> Result<usize, FileError> {
        let needed = count.saturating_mul(each);
        match usize::try_from(count) {
            Ok(count) if needed <= self.left() as u64 => Ok(count),
            _ => Err(self.truncated(needed)),
        }
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], FileError> {
        let count = self.room_for(count, 1)?;
        let bytes = &self.file[self.at..][..count];
        self.at += count;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FileError> {
        let bytes = self.file[self.at..].first_chunk().ok_or_else(|| self.truncated(N as u64))?;
        self.at += N;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FileError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FileError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, FileError> {
        let length = self.u64()?;
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|error| {
            let what = format!("{} is not valid UTF-8", self.place);
            FileError::Malformed { what, offset: at + error.valid_up_to() }
        })
    }

    /// What is being read is against the rules.
    pub(super) fn malformed(&self, why: &str) -> FileError {
        FileError::Malformed { what: format!("{} {why}", self.place), offset: self.at }
    }

    /// What is being read is beyond this engine.
    pub(super) fn unsupported(&self, why: &str, instead: String) -> FileError {
        FileError::Unsupported { what: format!("{} {why}", self.place), offset: self.at, instead }
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn truncated(&self, needed: u64) -> FileError {
        FileError::Truncated { what: self.place.to_string(), offset: self.at, needed, left: self.left() }
    }
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.place, self.at)
    }
}
