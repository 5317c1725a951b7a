//! safetensors, the file format of Hugging Face: a length, a header in JSON, and the bytes of the tensors.
//!
//! We read it ourselves: of two tensors of one name the `safetensors` crate (0.8) silently keeps the last, a
//! sum of hostile offsets overflows in it, it does not say which tensor's size is wrong, and it takes twenty
//! times the memory of a hostile header. What a tensor may be is checked where GGUF's are, in `tensor.rs`;
//! here is only what differs.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use quadrant_kernels::Encoding;
use quadrant_types::Shape;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{FileError, Quoted};
use crate::tensor::{Described, Format, TENSORS_MAX, Tensors, convert_it};

/// The limit of the format's own reader.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Where the header begins, behind its length.
const HEADER_AT: usize = 8;
/// No weights have more dimensions.
const RANK_MAX: usize = 8;
/// Characters of an error of the JSON reader, which may quote a text of the file from end to end.
const SAID_MAX: usize = 200;
/// The name that is not a tensor's.
const METADATA: &str = "__metadata__";

/// Finds the tensors in the bytes of a safetensors file. Weights are not touched; what else the file says
/// about its model is ignored, as this format has no rules for it.
///
/// # Errors
/// What is wrong with the file.
pub fn parse_safetensors(file: &[u8]) -> Result<Tensors<'_>, FileError> {
    let header = header(file)?;
    let Header(descriptions) = serde_json::from_slice(header).map_err(|error| {
        let said: String = error.to_string().chars().take(SAID_MAX).collect();
        let what = format!("the header is not what the format asks for: {said}");
        FileError::Malformed { what, offset: HEADER_AT + byte_of(header, &error) }
    })?;
    let weights_at = HEADER_AT + header.len();
    let mut tensors = Tensors::new(file);
    for (name, description) in descriptions {
        tensors.insert(described(name, description, weights_at as u64)?)?;
    }
    tensors.check_apart()?;
    check_covered(&tensors, weights_at..file.len())?;
    Ok(tensors)
}

/// The bytes of the header.
fn header(file: &[u8]) -> Result<&[u8], FileError> {
    let truncated = |what: &str, offset: usize, needed: u64| {
        let left = file.len() - offset;
        Err(FileError::Truncated { what: what.to_owned(), offset, needed, left })
    };
    let Some((length, rest)) = file.split_first_chunk() else {
        return truncated("the length of the header", 0, HEADER_AT as u64);
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        let what = format!("a header of `{length}` bytes is announced, which no safetensors file has");
        return Err(FileError::Malformed { what, offset: 0 });
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return truncated("the header", HEADER_AT, length);
    };
    if !header.starts_with(b"{") {
        let what = "the header does not begin with `{`".to_owned();
        return Err(FileError::Malformed { what, offset: HEADER_AT });
    }
    Ok(header)
}

/// Where in the header an error is.
fn byte_of(header: &[u8], error: &serde_json::Error) -> usize {
    let lines = header.split(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    lines.map(|line| line.len() + 1).sum::<usize>() + error.column().saturating_sub(1)
}

fn described<'a>(
    name: Cow<'a, str>,
    description: Description<'_>,
    weights_at: u64,
) -> Result<Described<'a>, FileError> {
    let Description { dtype, shape, data_offsets: (begin, end) } = description;
    let at = HEADER_AT;
    if shape.count > RANK_MAX {
        let what =
            format!("tensor {} has `{}` dimensions, more than `{RANK_MAX}`", Quoted(&name), shape.count);
        return Err(FileError::Malformed { what, offset: at });
    }
    let Some(format) = format_of(&dtype) else {
        let what = format!("tensor {} has the type {}, which is not known", Quoted(&name), Quoted(&dtype));
        return Err(FileError::Unsupported { what, offset: at, instead: convert_it() });
    };
    // An offset at the end of all numbers lies outside of every file, which is found when it is inserted.
    let absolute = begin.saturating_add(weights_at);
    let described = Described { name, shape: shape.first, format, begin: absolute, at };
    let bytes = described.bytes()?;
    if end.checked_sub(begin) != Some(bytes as u64) {
        let has = format!("the offsets `{begin}` to `{end}`, and takes `{bytes}` bytes of {}", format.name);
        return Err(described.malformed(&has));
    }
    Ok(described)
}

/// Checks that the tensors, which do not overlap, leave no byte over: there nothing can be hidden.
fn check_covered(tensors: &Tensors<'_>, weights: Range<usize>) -> Result<(), FileError> {
    let mut covered = weights.start;
    for (bytes, name) in tensors.in_file_order() {
        if bytes.start != covered {
            let what = format!("the bytes before tensor {} belong to none", Quoted(name));
            return Err(FileError::Malformed { what, offset: covered });
        }
        covered = bytes.end;
    }
    if covered != weights.end {
        let what = "the bytes behind the last tensor belong to none".to_owned();
        return Err(FileError::Malformed { what, offset: covered });
    }
    Ok(())
}

fn format_of(dtype: &str) -> Option<Format> {
    Some(match dtype {
        "F32" => Format::computable(Encoding::F32),
        "F16" => Format::computable(Encoding::F16),
        "BF16" => Format::computable(Encoding::Bf16),
        "BOOL" => Format::opaque("BOOL", 1, 1),
        "U8" => Format::opaque("U8", 1, 1),
        "I8" => Format::opaque("I8", 1, 1),
        "U16" => Format::opaque("U16", 1, 2),
        "I16" => Format::opaque("I16", 1, 2),
        "U32" => Format::opaque("U32", 1, 4),
        "I32" => Format::opaque("I32", 1, 4),
        "U64" => Format::opaque("U64", 1, 8),
        "I64" => Format::opaque("I64", 1, 8),
        "F64" => Format::opaque("F64", 1, 8),
        "C64" => Format::opaque("C64", 1, 8),
        "F4" => Format::opaque("F4", 2, 1),
        "F6_E2M3" => Format::opaque("F6_E2M3", 4, 3),
        "F6_E3M2" => Format::opaque("F6_E3M2", 4, 3),
        "F8_E4M3" => Format::opaque("F8_E4M3", 1, 1),
        "F8_E5M2" => Format::opaque("F8_E5M2", 1, 1),
        "F8_E8M0" => Format::opaque("F8_E8M0", 1, 1),
        "F8_E4M3FNUZ" => Format::opaque("F8_E4M3FNUZ", 1, 1),
        "F8_E5M2FNUZ" => Format::opaque("F8_E5M2FNUZ", 1, 1),
        _ => return None,
    })
}

/// The header as it is written: a list, so that two tensors of one name are still two.
#[derive(Debug)]
struct Header<'a>(Vec<(Cow<'a, str>, Description<'a>)>);

#[derive(Debug, Deserialize)]
struct Description<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Dimensions,
    data_offsets: (u64, u64),
}

/// The dimensions of a tensor. More than it may have are counted and not kept, so that a list as long as the
/// header takes no memory.
#[derive(Debug)]
struct Dimensions {
    first: Shape,
    count: usize,
}

/// A text that stays in the file unless JSON has escaped a part of it.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else if tensors.len() == TENSORS_MAX {
                return Err(A::Error::custom(format!("more than `{TENSORS_MAX}` tensors")));
            } else {
                tensors.push((name, map.next_value()?));
            }
        }
        Ok(Header(tensors))
    }
}

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DimensionsVisitor)
    }
}

struct DimensionsVisitor;

impl<'de> Visitor<'de> for DimensionsVisitor {
    type Value = Dimensions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut first = Shape::new();
        while first.len() < RANK_MAX
            && let Some(size) = array.next_element()?
        {
            first.push(size);
        }
        let mut count = first.len();
        // An array that has ended must not be asked again.
        while count >= RANK_MAX && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Dimensions { first, count })
    }
}

#[cfg(test)]
mod tests;
