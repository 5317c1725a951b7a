//! A file as a [`Buf`]: read through a small window, with long skips done by seeking.
//!
//! Protobuf decoding skips the fields it does not know with one `advance`, so a gigabyte of weights costs
//! one seek. `Buf` cannot report errors: this one remembers the first and delivers a few zeros, which no
//! protobuf decoder accepts, and the caller throws the result away.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::{Buf, Bytes};

const WINDOW_BYTES: usize = 16 << 10;
/// The longest advance that decodes something (a number of ten bytes); longer ones skip.
const NUMBER_BYTES_MAX: usize = 10;
/// No name in a model is longer.
const STRING_BYTES_MAX: usize = 1 << 20;

/// A file that is read once, from front to back.
#[derive(Debug)]
pub(crate) struct FileWindow {
    file: File,
    window: Vec<u8>,
    /// Where in the window the next byte is.
    at: usize,
    /// Bytes of the file that lie behind the window.
    behind: u64,
    /// Bytes that may still be decoded, as opposed to skipped. It bounds the memory of the result.
    allowance: usize,
    failure: Option<String>,
}

impl FileWindow {
    /// A window on `file`, which has `length` bytes, of which at most `decoded_max` may be decoded.
    pub(crate) fn new(file: File, length: u64, decoded_max: usize) -> Self {
        let mut window =
            Self { file, window: Vec::new(), at: 0, behind: length, allowance: decoded_max, failure: None };
        window.fill();
        window
    }

    /// Why what was decoded is worthless, if it is.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn inside(&self) -> usize {
        self.window.len() - self.at
    }

    /// Makes the window hold the next bytes of the file.
    fn fill(&mut self) {
        let length = usize::try_from(self.behind).map_or(WINDOW_BYTES, |behind| behind.min(WINDOW_BYTES));
        self.window.resize(length, 0);
        self.at = 0;
        self.behind -= length as u64;
        if let Err(error) = self.file.read_exact(&mut self.window) {
            self.fail(format!("cannot be read: {error}"));
        }
    }

    /// Remembers why, and leaves a window of zeros as all that remains.
    fn fail(&mut self, failure: String) {
        self.failure.get_or_insert(failure);
        self.window.clear();
        self.window.resize(WINDOW_BYTES, 0);
        self.at = 0;
        self.behind = 0;
    }

    fn spend(&mut self, bytes: usize) {
        match self.allowance.checked_sub(bytes) {
            Some(rest) => self.allowance = rest,
            None => self.fail("its graph is too large to be a model's".into()),
        }
    }
}

impl Buf for FileWindow {
    fn remaining(&self) -> usize {
        usize::try_from(self.behind).map_or(usize::MAX, |behind| behind.saturating_add(self.inside()))
    }

    fn chunk(&self) -> &[u8] {
        &self.window[self.at..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "advanced past the end of the file");
        if let Some(beyond) = count.checked_sub(self.inside()) {
            let moved = i64::try_from(beyond).map_err(io::Error::other);
            match moved.and_then(|beyond| self.file.seek(SeekFrom::Current(beyond))) {
                Ok(_) => {
                    self.behind -= beyond as u64;
                    self.fill();
                }
                Err(error) => self.fail(format!("cannot be read: {error}")),
            }
        } else {
            self.at += count;
        }
        if count <= NUMBER_BYTES_MAX {
            self.spend(count);
        }
    }

    /// Where strings are read. Their length is a claim of the file's, so it is checked before any
    /// memory is taken for it.
    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        if length > STRING_BYTES_MAX {
            self.fail(format!("a name in it is `{length}` bytes long"));
            return Bytes::new();
        }
        self.spend(length);
        let mut string = Vec::with_capacity(length);
        while string.len() < length && self.has_remaining() {
            let count = self.inside().min(length - string.len());
            string.extend_from_slice(&self.chunk()[..count]);
            self.advance(count);
        }
        string.into()
    }
}
