//! What decoding an inference request will cost, told from its bytes before anything is allocated.
//!
//! Two bytes on the wire can become a structure of three hundred, so a body within its limit could still fill
//! the heap. This counts what will be made and refuses what no model needs.

use quadrant_types::Error;

use crate::wire::{TENSORS_MAX, too_many};

/// An upper bound of the heap that decoding `message` takes, tensors that stay in the message excluded.
///
/// # Errors
/// The message is broken, or names more tensors or parameters than any model has.
pub(crate) fn decoding_bytes(message: &[u8]) -> Result<usize, Error> {
    let mut counts = [0_usize; 8];
    let mut bytes = 0_usize;
    for field in Fields(message) {
        let Field { number, payload } = field?;
        let Some(count) = counts.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) else { continue };
        *count += 1;
        bytes += match number {
            4 => payload.len() + ENTRY_BYTES,
            5 => STRUCT_BYTES + tensor(payload)?,
            6 => STRUCT_BYTES + payload.len() * 8,
            7 => ENTRY_BYTES,
            _ => payload.len(),
        };
    }
    let bounded = [(4, "parameters"), (5, "inputs"), (6, "outputs"), (7, "raw inputs")];
    match bounded.iter().find(|(number, _)| counts[*number] > TENSORS_MAX) {
        Some((_, what)) => Err(too_many(what)),
        // Vectors that grow by doubling hold up to twice what is in them.
        None => Ok(bytes * 2),
    }
}

/// More than any generated structure or map entry takes.
const STRUCT_BYTES: usize = 512;
const ENTRY_BYTES: usize = 160;

/// An input without its structure: its contents are field 5; the rest is names, shape and parameters.
fn tensor(input: &[u8]) -> Result<usize, Error> {
    let mut bytes = 0_usize;
    for field in Fields(input) {
        let Field { number, payload } = field?;
        bytes += match number {
            3 => payload.len().max(1) * 8,
            4 => payload.len() + ENTRY_BYTES,
            5 => contents(payload)?,
            _ => payload.len(),
        };
    }
    Ok(bytes)
}

/// Numbers that travel in a byte or more and are stored in up to eight; strings that are each a handle.
fn contents(contents: &[u8]) -> Result<usize, Error> {
    let mut bytes = 0_usize;
    for field in Fields(contents) {
        let Field { number, payload } = field?;
        bytes += match number {
            1 => payload.len().max(1),
            2 | 4 => payload.len().max(1) * 4,
            3 | 5 => payload.len().max(1) * 8,
            6 | 7 => payload.len().max(8),
            8 => 32,
            _ => 0,
        };
    }
    Ok(bytes)
}

/// One field; the payload of a number is empty.
struct Field<'a> {
    number: u64,
    payload: &'a [u8],
}

/// The fields of a message one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Error::invalid("the message cannot be decoded: it is not protobuf")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let payload: &'a [u8] = match key & 7 {
            0 => self.varint().map(|_| &[][..])?,
            1 => self.take(8).map(|_| &[][..])?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)?
            }
            5 => self.take(4).map(|_| &[][..])?,
            // Groups were never used by this protocol.
            _ => return None,
        };
        Some(Field { number: key >> 3, payload })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_messages_that_grow_are_seen_beforehand() {
        let bombs: [(&[u8], usize); 2] = [(b"\x2a\x00", 1_000), (b"\x2a\x04\x2a\x02\x42\x00", 1_000)];
        for (bomb, count) in bombs {
            let message = bomb.repeat(count);
            assert!(decoding_bytes(&message).unwrap() > count * STRUCT_BYTES);
            assert!(decoding_bytes(&bomb.repeat(2_000)).unwrap_err().message.contains("at most 1024 inputs"));
        }
        let strings = [&b"\x2a\x86\x80\x02\x2a\x82\x80\x02"[..], &b"\x42\x00".repeat(0x4001)].concat();
        assert!(decoding_bytes(&strings).unwrap() > 0x4000 * 32);
        let raw = [&b"\x3a\x80\x80\x40"[..], &vec![0; 1 << 20]].concat();
        assert!(decoding_bytes(&raw).unwrap() < 1_000);
    }

    #[test]
    fn broken_messages_are_refused() {
        for broken in [&b"\x2a"[..], b"\x2a\x05", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b"] {
            assert!(decoding_bytes(broken).is_err(), "{broken:?}");
        }
    }
}
