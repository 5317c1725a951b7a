//! GGUF, the file format of llama.cpp: versions 2 and 3, little endian.
//!
//! A header says how many metadata entries and tensors follow; both lists come before the weights, and the
//! weights are found by offset. The file is parsed where it lies: texts are borrowed from it, arrays are
//! checked and left there. Every count is first held against the bytes that so many entries take at least.

mod cursor;
mod metadata;
mod types;
mod value;

#[cfg(test)]
pub(crate) mod builder;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use quadrant_types::Shape;

pub use metadata::Metadata;
pub use value::{Array, Value, ValueType};

use crate::error::{FileError, optional};
use crate::tensor::{Described, Format, TENSORS_MAX, Tensors};
use cursor::{Cursor, Place};

/// The length of the name, the number of dimensions, the type and the offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;
/// GGML's own limit.
const RANK_MAX: u32 = 4;
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u32 = 32;
/// What the format asks for, and enough for the largest number in any block.
const ALIGNMENT_MIN: u32 = 8;
/// GGML's own limit.
const ALIGNMENT_MAX: u32 = 1 << 20;

/// A GGUF file: what it says about its model, and the model's weights.
#[derive(Debug)]
pub struct Gguf<'a> {
    /// What the file says about the model, its tokens included.
    pub metadata: Metadata<'a>,
    /// The weights.
    pub tensors: Tensors<'a>,
}

impl<'a> Gguf<'a> {
    /// Finds everything in the bytes of a file. Weights are not touched.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(file: &'a [u8]) -> Result<Self, FileError> {
        let mut cursor = Cursor::new(file);
        check_version(&mut cursor)?;
        let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
        let metadata = Metadata::read(&mut cursor, entry_count)?;
        let alignment = alignment(&metadata)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), FileError> {
    let magic = cursor.array::<4>()?;
    let version_at = cursor.at();
    let unsupported = |what: String, instead: &str| {
        Err(FileError::Unsupported { what, offset: version_at, instead: instead.to_owned() })
    };
    let big_endian = || unsupported("the file is big-endian".into(), "convert the model to little-endian");
    match &magic {
        b"GGUF" => {}
        b"FUGG" => return big_endian(),
        other => {
            let other = other.escape_ascii();
            let what = format!("the file begins with `{other}`, and GGUF files begin with `GGUF`");
            return Err(FileError::Malformed { what, offset: 0 });
        }
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => big_endian(),
        version => unsupported(
            format!("the file has GGUF version `{version}`, and versions `2` and `3` are read"),
            "convert the model again",
        ),
    }
}

/// What the offsets of tensors are multiples of.
fn alignment(metadata: &Metadata<'_>) -> Result<u32, FileError> {
    let alignment = optional(metadata.u32(ALIGNMENT_KEY))?.unwrap_or(ALIGNMENT_DEFAULT);
    if alignment.is_power_of_two() && (ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&alignment) {
        return Ok(alignment);
    }
    let what = format!(
        "`{ALIGNMENT_KEY}` is `{alignment}`, and must be a power of two from `{ALIGNMENT_MIN}` to \
         `{ALIGNMENT_MAX}`"
    );
    Err(FileError::Malformed { what, offset: metadata.place_of(ALIGNMENT_KEY) })
}

fn read_tensors<'a>(cursor: &mut Cursor<'a>, count: u64, alignment: u32) -> Result<Tensors<'a>, FileError> {
    cursor.enter(Place::Tensors);
    if cursor.room_for(count, TENSOR_BYTES_MIN)? > TENSORS_MAX {
        return Err(cursor.malformed(&format!("has `{count}` entries, more than `{TENSORS_MAX}`")));
    }
    // Grows as descriptions are read, so that a wrong count costs nothing.
    let mut described = Vec::new();
    for index in 0..count {
        described.push(describe(cursor, index)?);
    }
    let weights_at = (cursor.at() as u64).next_multiple_of(u64::from(alignment));
    let mut tensors = Tensors::new(cursor.file());
    for mut tensor in described {
        if !tensor.begin.is_multiple_of(u64::from(alignment)) {
            let has = format!("the offset `{}`, and the file aligns to `{alignment}`", tensor.begin);
            return Err(tensor.malformed(&has));
        }
        // At the end of all numbers it lies outside of every file, which is found when it is inserted.
        tensor.begin = tensor.begin.saturating_add(weights_at);
        tensors.insert(tensor)?;
    }
    tensors.check_apart()?;
    Ok(tensors)
}

/// Reads the description of one tensor; its bytes begin relative to the first weight.
fn describe<'a>(cursor: &mut Cursor<'a>, index: u64) -> Result<Described<'a>, FileError> {
    let at = cursor.at();
    cursor.enter(Place::TensorName(index));
    let name = cursor.string()?;
    cursor.enter(Place::Tensor(name));
    let rank = cursor.u32()?;
    if rank > RANK_MAX {
        return Err(cursor.malformed(&format!("has `{rank}` dimensions, more than `{RANK_MAX}`")));
    }
    let mut shape = Shape::new();
    for _ in 0..rank {
        let size = cursor.u64()?;
        let size = usize::try_from(size);
        shape.push(size.map_err(|_| cursor.malformed("has a dimension beyond the address space"))?);
    }
    // The file lists the innermost dimension first.
    shape.reverse();
    let format = types::format(cursor)?;
    let begin = cursor.u64()?;
    let described = Described { name: Cow::Borrowed(name), shape, format, begin, at };
    let innermost = described.shape.last().copied().unwrap_or(1);
    if !innermost.is_multiple_of(format.block_elements) {
        let Format { name, block_elements, .. } = format;
        let has = format!("rows of `{innermost}` elements, and {name} stores `{block_elements}` together");
        return Err(described.malformed(&has));
    }
    Ok(described)
}
