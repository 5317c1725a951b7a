//! Buffers for bodies whose length was not announced. They grow only as far as the host's budget and the
//! limit of one request allow, and end in one aligned buffer like every other body.

use bytes::Bytes;
use quadrant_types::{AlignedBuffer, BudgetExhausted, Error, ErrorCode, IoBudget, Lease, Reason};

use crate::heavy::HEAVY_BYTES;

/// The first step of growth.
const GROWTH_MIN: usize = 8 << 10;

/// Bytes that are appended to, never more than `bytes_max`.
#[derive(Debug)]
pub(crate) struct GrowingBuffer<'a> {
    bytes: Vec<u8>,
    lease: Lease,
    budget: &'a IoBudget,
    bytes_max: usize,
}

impl<'a> GrowingBuffer<'a> {
    pub(crate) fn new(budget: &'a IoBudget, bytes_max: usize) -> Result<Self, Error> {
        let lease = budget.lease(0).map_err(|error| exhausted(&error))?;
        Ok(Self { bytes: Vec::new(), lease, budget, bytes_max })
    }

    /// Appends `more`.
    ///
    /// # Errors
    /// It is above the limit, or the budget has no room.
    pub(crate) fn extend(&mut self, more: &[u8]) -> Result<(), Error> {
        let needed = self.bytes.len() + more.len();
        if needed > self.bytes_max {
            return Err(too_large(needed, self.bytes_max));
        }
        let held = self.bytes.capacity();
        if needed > held {
            let grown = needed.max(held * 2).max(GROWTH_MIN).min(self.bytes_max.max(GROWTH_MIN));
            self.lease.extend(grown - held).map_err(|error| exhausted(&error))?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// The bytes in a buffer whose byte `aligned_at` is aligned.
    ///
    /// # Errors
    /// The budget has no room.
    pub(crate) fn into_aligned(self, aligned_at: usize) -> Result<Bytes, Error> {
        copy_aligned(self.budget, &self.bytes, aligned_at)
    }
}

/// An empty buffer of a known length with its share of the budget.
///
/// # Errors
/// The budget has no room.
pub(crate) fn aligned_buffer(
    budget: &IoBudget,
    length: usize,
    aligned_at: usize,
) -> Result<(AlignedBuffer, Lease), Error> {
    let lease = budget.lease(length).map_err(|error| exhausted(&error))?;
    Ok((AlignedBuffer::new(length, aligned_at), lease))
}

/// A copy of `bytes` whose byte `aligned_at` is aligned.
///
/// # Errors
/// The budget has no room.
pub(crate) fn copy_aligned(budget: &IoBudget, bytes: &[u8], aligned_at: usize) -> Result<Bytes, Error> {
    let (mut buffer, lease) = aligned_buffer(budget, bytes.len(), aligned_at)?;
    let fits = buffer.extend(bytes);
    assert!(fits, "the buffer was made for these bytes");
    Ok(buffer.freeze(Some(lease)))
}

/// Bytes that a value, a list or an object takes at most when JSON is kept as it comes.
const VALUE_BYTES: usize = 256;

/// Room for what a long body is while it is read as JSON of any form: each value but the first comes after
/// one of these characters.
///
/// # Errors
/// The budget has none.
pub(crate) fn room_to_parse(budget: &IoBudget, body: &[u8]) -> Result<Option<Lease>, Error> {
    if body.len() <= HEAVY_BYTES {
        return Ok(None);
    }
    let values = body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    let lease = budget.lease(body.len().saturating_add(values.saturating_mul(VALUE_BYTES)));
    lease.map(Some).map_err(|error| exhausted(&error))
}

/// What the client is told when the budget has no room.
pub(crate) fn exhausted(error: &BudgetExhausted) -> Error {
    Error::new(ErrorCode::ResourceExhausted, error.to_string())
        .retry_after(std::time::Duration::from_secs(1))
        .because(Reason::BytesFull)
}

/// What the client is told of a body above the limit.
pub(crate) fn too_large(bytes: usize, bytes_max: usize) -> Error {
    let what = format!("the body has at least `{bytes}` bytes, above the limit of `{bytes_max}`");
    Error::new(ErrorCode::TooLarge, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_stays_within_limit_and_budget() {
        let budget = IoBudget::new(64 << 10);
        let mut buffer = GrowingBuffer::new(&budget, 20 << 10).unwrap();
        for _ in 0..20 {
            buffer.extend(&[7; 1 << 10]).unwrap();
        }
        assert!(budget.held() <= 20 << 10);
        assert_eq!(buffer.extend(&[7]).unwrap_err().code, ErrorCode::TooLarge);
        let bytes = buffer.into_aligned(3).unwrap();
        assert_eq!((bytes.len(), bytes[3..].as_ptr().align_offset(64)), (20 << 10, 0));
        assert_eq!(budget.held(), 20 << 10);
        let mut second = GrowingBuffer::new(&budget, 1 << 20).unwrap();
        let error = (0..64).find_map(|_| second.extend(&[7; 1 << 10]).err()).unwrap();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        drop((bytes, second));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn json_is_read_where_there_is_room_for_its_values() {
        let budget = IoBudget::new(32 << 20);
        let held = |body: &[u8]| room_to_parse(&budget, body).map(|_lease| budget.held());
        assert_eq!(held(b"[0,0,0]").unwrap(), 0, "what is short needs no room");
        let text = format!("\"{}\"", "a".repeat(8 << 20));
        assert_eq!(held(text.as_bytes()).unwrap(), text.len());
        let objects = "{\"\":0},".repeat(1 << 20);
        assert_eq!(held(objects.as_bytes()).unwrap_err().code, ErrorCode::ResourceExhausted);
        assert_eq!(budget.held(), 0);
    }
}
