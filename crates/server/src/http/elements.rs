//! The numbers and strings of a JSON tensor, parsed straight into the bytes that the engine reads.
//!
//! `data` is a flat list, or nested as the shape says; dimensions of one may be left out or added. Numbers
//! must fit their type: nothing is cut, rounded to an integer, or turned into infinity.

use bytes::Bytes;
use quadrant_types::{AlignedBuffer, DataType, Error, IoBudget, Lease, Shape};
use smallvec::SmallVec;

use crate::budgeted::{aligned_buffer, copy_aligned};
use crate::json::Cursor;
use crate::wire::sizes;

/// The tensor whose elements begin at the cursor.
///
/// # Errors
/// Anything but an array of as many fitting elements as the shape says.
pub(crate) fn parse(
    cursor: &mut Cursor<'_>,
    input: &str,
    datatype: DataType,
    shape: &Shape,
    budget: &IoBudget,
) -> Result<Bytes, Error> {
    if cursor.peek() != Some(b'[') {
        cursor.skip()?;
        return Err(unparsable("attempt to access JSON non-array as array"));
    }
    let (expected, bytes) = sizes(input, datatype, shape)?;
    // The shortest text of an element is a digit, or two quotation marks, and a comma.
    let possible = cursor.remaining() / if bytes.is_some() { 2 } else { 3 } + 1;
    if expected > possible {
        cursor.skip()?;
        return Err(wrong_shape());
    }
    let mut nesting = Nesting { expected, ..Nesting::default() };
    let parsed = match bytes {
        Some(bytes) => {
            let (buffer, lease) = aligned_buffer(budget, bytes, 0)?;
            numbers(cursor, datatype, &mut nesting, (buffer, lease))?
        }
        None => strings(cursor, &mut nesting, budget)?,
    };
    if nesting.count != expected || !nesting.fits(shape) {
        return Err(wrong_shape());
    }
    Ok(parsed)
}

fn wrong_shape() -> Error {
    unparsable("Shape does not match true shape of 'data' field")
}

fn unparsable(what: &str) -> Error {
    Error::invalid(format!("Unable to parse 'data': {what}"))
}

/// The lengths of the arrays met at each depth, which must all be equal, and the elements seen.
#[derive(Debug, Default)]
struct Nesting {
    lengths: SmallVec<[usize; 6]>,
    /// Where the elements are; all at one depth.
    leaf_depth: Option<usize>,
    expected: usize,
    count: usize,
}

impl Nesting {
    /// Whether the nesting is flat, or the shape but for dimensions of one.
    fn fits(&self, shape: &Shape) -> bool {
        let squeezed = |dims: &[usize]| -> Shape { dims.iter().copied().filter(|dim| *dim != 1).collect() };
        self.expected == 0 || self.lengths.len() == 1 || squeezed(&self.lengths) == squeezed(shape)
    }

    /// Goes through the arrays; `element` consumes what is not one.
    fn walk<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        depth: usize,
        element: &mut impl FnMut(&mut Cursor<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut length = 0_usize;
        let mut has_arrays = false;
        cursor.array(|cursor| {
            let is_array = cursor.peek() == Some(b'[');
            if length > 0 && is_array != has_arrays {
                return Err(wrong_shape());
            }
            (length, has_arrays) = (length + 1, is_array);
            if is_array {
                return self.walk(cursor, depth + 1, element);
            }
            if self.count >= self.expected || *self.leaf_depth.get_or_insert(depth) != depth {
                return Err(wrong_shape());
            }
            self.count += 1;
            element(cursor)
        })?;
        self.close(depth, length)
    }

    /// Arrays close from the inside out, so the first to close at a depth sets its length.
    fn close(&mut self, depth: usize, length: usize) -> Result<(), Error> {
        const UNKNOWN: usize = usize::MAX;
        if self.lengths.len() <= depth {
            self.lengths.resize(depth + 1, UNKNOWN);
        }
        let known = &mut self.lengths[depth];
        if *known == UNKNOWN {
            *known = length;
        }
        if *known == length { Ok(()) } else { Err(wrong_shape()) }
    }
}

fn numbers(
    cursor: &mut Cursor<'_>,
    datatype: DataType,
    nesting: &mut Nesting,
    (mut buffer, lease): (AlignedBuffer, Lease),
) -> Result<Bytes, Error> {
    let mut put = |bytes: &[u8]| {
        let fits = buffer.extend(bytes);
        assert!(fits, "no more elements are parsed than the buffer was made for");
        Ok(())
    };
    macro_rules! walk {
        ($parse:expr) => {
            nesting.walk(cursor, 0, &mut |cursor| put(&$parse(cursor)?.to_le_bytes()))
        };
    }
    match datatype {
        DataType::Bool => nesting.walk(cursor, 0, &mut |cursor| put(&[u8::from(boolean(cursor)?)]))?,
        DataType::Uint8 => walk!(integer::<u8>)?,
        DataType::Uint16 => walk!(integer::<u16>)?,
        DataType::Uint32 => walk!(integer::<u32>)?,
        DataType::Uint64 => walk!(integer::<u64>)?,
        DataType::Int8 => walk!(integer::<i8>)?,
        DataType::Int16 => walk!(integer::<i16>)?,
        DataType::Int32 => walk!(integer::<i32>)?,
        DataType::Int64 => walk!(integer::<i64>)?,
        DataType::Fp32 => walk!(float32)?,
        DataType::Fp64 => walk!(float64)?,
        DataType::Fp16 | DataType::Bf16 | DataType::Bytes => {
            return Err(unparsable(&format!("{datatype} cannot be sent as JSON; send it as binary data")));
        }
    }
    Ok(buffer.freeze(Some(lease)))
}

fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, Error> {
    if let Some(value) = cursor.boolean() {
        return Ok(value);
    }
    cursor.skip()?;
    Err(unparsable("attempt to access JSON non-boolean as boolean"))
}

fn integer<T: TryFrom<i128>>(cursor: &mut Cursor<'_>) -> Result<T, Error> {
    let text = number(cursor)?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(unparsable(&format!("'{}' is not an integer", shown(text))));
    }
    // Twenty digits hold every integer type; more are out of range anyway.
    let magnitude = (digits.len() <= 20)
        .then(|| digits.bytes().fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0')));
    let value = magnitude.map(|magnitude| if digits.len() < text.len() { -magnitude } else { magnitude });
    value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
        let datatype = std::any::type_name::<T>();
        unparsable(&format!("{} is out of range for {datatype}", shown(text)))
    })
}

fn float32(cursor: &mut Cursor<'_>) -> Result<f32, Error> {
    let text = number(cursor)?;
    let value: f32 = text.parse().map_err(|_| unparsable("not a number"))?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(unparsable(&format!("{} is out of range for FP32", shown(text))))
    }
}

fn float64(cursor: &mut Cursor<'_>) -> Result<f64, Error> {
    let text = number(cursor)?;
    let value: f64 = text.parse().map_err(|_| unparsable("not a number"))?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(unparsable(&format!("{} is out of range for FP64", shown(text))))
    }
}

fn number<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Error> {
    if let Some(b'-' | b'0'..=b'9') = cursor.peek() {
        return cursor.number();
    }
    cursor.skip()?;
    Err(unparsable("attempt to access JSON non-number as number"))
}

/// A number as an error repeats it.
fn shown(text: &str) -> &str {
    &text[..text.len().min(32)]
}

/// Each string with its length in front.
fn strings(cursor: &mut Cursor<'_>, nesting: &mut Nesting, budget: &IoBudget) -> Result<Bytes, Error> {
    // Unescaping never makes a string longer, so this holds whatever comes.
    let capacity = cursor.remaining() + 4 * nesting.expected;
    let scratch_lease = budget.lease(capacity).map_err(|error| crate::budgeted::exhausted(&error))?;
    let mut scratch: Vec<u8> = Vec::new();
    nesting.walk(cursor, 0, &mut |cursor| {
        if cursor.peek() != Some(b'"') {
            cursor.skip()?;
            return Err(unparsable("attempt to access JSON non-string as string"));
        }
        let string = cursor.string()?;
        let length = u32::try_from(string.len()).map_err(|_| unparsable("a string is too long"))?;
        scratch.extend_from_slice(&length.to_le_bytes());
        scratch.extend_from_slice(string.as_bytes());
        Ok(())
    })?;
    let bytes = copy_aligned(budget, &scratch, 0);
    drop((scratch, scratch_lease));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_as(datatype: DataType, shape: &[usize], text: &str) -> Result<Vec<u8>, String> {
        let budget = IoBudget::new(1 << 20);
        let mut cursor = Cursor::new(text.as_bytes(), 100);
        let parsed = parse(&mut cursor, "x", datatype, &Shape::from_slice(shape), &budget);
        parsed.map(|bytes| bytes.to_vec()).map_err(|error| error.message.into_owned())
    }

    fn check(datatype: DataType, shape: &[usize], text: &str, expected: Result<&[u8], &str>) {
        let expected = expected.map(<[u8]>::to_vec).map_err(|what| format!("Unable to parse 'data': {what}"));
        assert_eq!(parse_as(datatype, shape, text), expected, "{datatype} {shape:?} {text}");
    }

    const SHAPE: &str = "Shape does not match true shape of 'data' field";

    #[test]
    fn nesting_is_flat_or_the_shape() {
        let check = |shape: &[usize], text: &str, expected| check(DataType::Uint8, shape, text, expected);
        let six = Ok(&[1, 2, 3, 4, 5, 6][..]);
        check(&[2, 3], "[1,2,3,4,5,6]", six);
        check(&[2, 3], "[[1,2,3],[4,5,6]]", six);
        check(&[2, 3], "[[[1],[2],[3]],[[4],[5],[6]]]", six);
        check(&[1, 2, 3], "[ [ 1 , 2 , 3 ] , [ 4 , 5 , 6 ] ]", six);
        check(&[2, 3], "[[1,2],[3,4],[5,6]]", Err(SHAPE));
        check(&[2, 3], "[[1,2,3,4],[5,6]]", Err(SHAPE));
        check(&[2, 3], "[[1,2,3],4,5,6]", Err(SHAPE));
        check(&[2, 3], "[1,[2,3],4,5,6]", Err(SHAPE));
        check(&[2, 3], "[[1,2,3],[[4],[5],[6]]]", Err(SHAPE));
        check(&[2, 3], "[[[1,2,3]],[4,5,6]]", Err(SHAPE));
        check(&[2, 3], "[1,2,3,4,5]", Err(SHAPE));
        check(&[2, 3], "[1,2,3,4,5,6,7]", Err(SHAPE));
        check(&[16, 4], "[]", Err(SHAPE));
        check(&[0], "[]", Ok(&[]));
        check(&[2, 0], "[[],[]]", Ok(&[]));
        check(&[0], "[1]", Err(SHAPE));
        check(&[1], "1", Err("attempt to access JSON non-array as array"));
        check(&[1], "{}", Err("attempt to access JSON non-array as array"));
    }

    #[test]
    fn numbers_must_fit_their_type() {
        check(DataType::Int8, &[2], "[-128,127]", Ok(&[0x80, 0x7f]));
        check(DataType::Int8, &[1], "[128]", Err("128 is out of range for i8"));
        check(DataType::Uint8, &[1], "[-1]", Err("-1 is out of range for u8"));
        check(DataType::Uint64, &[1], "[18446744073709551615]", Ok(&[0xff; 8]));
        check(
            DataType::Uint64,
            &[1],
            "[18446744073709551616]",
            Err("18446744073709551616 is out of range for u64"),
        );
        check(DataType::Int64, &[1], "[-9223372036854775808]", Ok(&i64::MIN.to_le_bytes()));
        check(DataType::Int32, &[1], "[1.0]", Err("'1.0' is not an integer"));
        check(DataType::Int32, &[1], "[\"1\"]", Err("attempt to access JSON non-number as number"));
        check(DataType::Fp32, &[3], "[1,-0.5,1e3]", Ok(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf, 0, 0, 0x7a, 0x44]));
        check(DataType::Fp32, &[1], "[1e39]", Err("1e39 is out of range for FP32"));
        check(DataType::Fp64, &[1], "[1e309]", Err("1e309 is out of range for FP64"));
        check(DataType::Fp32, &[1], "[\"NaN\"]", Err("attempt to access JSON non-number as number"));
        check(DataType::Bool, &[2], "[true,false]", Ok(&[1, 0]));
        check(DataType::Bool, &[1], "[1]", Err("attempt to access JSON non-boolean as boolean"));
        check(DataType::Fp16, &[1], "[1]", Err("FP16 cannot be sent as JSON; send it as binary data"));
        assert!(parse_as(DataType::Fp32, &[1], "[NaN]").unwrap_err().contains("Invalid value. at 1"));
    }

    #[test]
    fn strings_carry_their_length() {
        check(DataType::Bytes, &[2], r#"["a\n",""]"#, Ok(b"\x02\0\0\0a\n\0\0\0\0"));
        check(DataType::Bytes, &[1], "[1]", Err("attempt to access JSON non-string as string"));
        check(DataType::Bytes, &[1_000_000], "[\"\"]", Err(SHAPE));
    }

    #[test]
    fn a_shape_that_overflows_is_refused_before_anything_is_made() {
        let error = parse_as(DataType::Fp32, &[usize::MAX, 2], "[1]").unwrap_err();
        assert!(error.contains("has too many elements"), "{error}");
    }
}
