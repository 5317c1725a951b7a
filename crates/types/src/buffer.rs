//! A host buffer whose chosen byte lies on a 64-byte boundary, filled once and then shared.
//!
//! An HTTP body carries a JSON header of arbitrary length before its tensors. The buffer is told where
//! the tensors will begin and places that byte on the boundary, so an engine can read them in place.
//! No `unsafe`: the vector is over-allocated by one line and the slack in front is skipped.

use bytes::Bytes;

use crate::Lease;

/// The alignment of the chosen byte: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// A buffer of a fixed capacity that is appended to and then frozen.
#[derive(Debug)]
pub struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    capacity: usize,
}

impl AlignedBuffer {
    /// An empty buffer of `capacity` bytes whose byte number `aligned_at` will be 64-byte aligned.
    pub fn new(capacity: usize, aligned_at: usize) -> Self {
        let mut storage: Vec<u8> = Vec::with_capacity(capacity + ALIGNMENT);
        let to_boundary = storage.as_ptr().align_offset(ALIGNMENT) % ALIGNMENT;
        let start = (to_boundary + ALIGNMENT - aligned_at % ALIGNMENT) % ALIGNMENT;
        storage.resize(start, 0);
        Self { storage, start, capacity }
    }

    /// The bytes written so far.
    pub fn len(&self) -> usize {
        self.storage.len() - self.start
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `bytes`; false, and nothing written, if they do not fit.
    #[must_use]
    pub fn extend(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.capacity - self.len() {
            return false;
        }
        self.storage.extend_from_slice(bytes);
        true
    }

    /// The written bytes, shared from now on. The lease, if any, is released with the last reader.
    pub fn freeze(self, lease: Option<Lease>) -> Bytes {
        let start = self.start;
        Bytes::from_owner(Leased { storage: self.storage, _lease: lease }).slice(start..)
    }
}

/// Storage that gives its share of the budget back when the last reader lets go.
struct Leased {
    storage: Vec<u8>,
    _lease: Option<Lease>,
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_byte_is_aligned_and_the_capacity_is_kept() {
        for aligned_at in [0, 1, 63, 64, 65, 219] {
            let mut buffer = AlignedBuffer::new(aligned_at + 4, aligned_at);
            assert!(buffer.is_empty());
            assert!(buffer.extend(&vec![b'j'; aligned_at]));
            assert!(buffer.extend(b"data"));
            assert!(!buffer.extend(b"x"));
            let bytes = buffer.freeze(None);
            assert_eq!(bytes.len(), aligned_at + 4);
            assert_eq!(bytes[aligned_at..].as_ptr().align_offset(ALIGNMENT), 0);
            assert_eq!(&bytes[aligned_at..], b"data");
        }
    }
}
