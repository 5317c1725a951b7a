//! Writes JSON text: compact, members in the order they are given, floats with a point.
//!
//! JSON has no word for what is not a finite number. It is written as the strings `"NaN"`, `"Infinity"` and
//! `"-Infinity"`, as protobuf's JSON does: the text stays valid, and clients that build an array of floats
//! from the list (`tritonclient` with numpy) get the value back. A number that is not finite is better asked
//! for as binary data.

use quadrant_types::{DataType, Error, Tensor};

use crate::infer::too_large;

/// Appends `text` as a string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(position) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        out.extend_from_slice(&rest[..position]);
        match rest[position] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            plain @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', plain]),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = &rest[position + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a whole number.
pub(crate) fn push_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends `[a,b,...]`.
pub(crate) fn push_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut push: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (position, item) in items.into_iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        push(out, item);
    }
    out.push(b']');
}

/// How many elements are written between two looks at the limit.
const ELEMENTS_BETWEEN_CHECKS: usize = 4_096;

/// Appends the elements of a tensor as a flat list, as long as the text stays within `bytes_max`.
///
/// # Errors
/// The text becomes too long, or a string is not UTF-8, or the type has no JSON form.
pub(crate) fn push_elements(
    out: &mut Vec<u8>,
    tensor: &Tensor,
    output: &str,
    bytes_max: usize,
) -> Result<(), Error> {
    let data = &tensor.data[..];
    match tensor.datatype {
        DataType::Bool => chunked(out, data, bytes_max, |out, [byte]: [u8; 1]| {
            out.extend_from_slice(if byte == 0 { b"false" } else { b"true" });
        }),
        DataType::Uint8 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, u8::from_le_bytes(bytes)))
        }
        DataType::Uint16 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, u16::from_le_bytes(bytes)))
        }
        DataType::Uint32 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, u32::from_le_bytes(bytes)))
        }
        DataType::Uint64 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, u64::from_le_bytes(bytes)))
        }
        DataType::Int8 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, i8::from_le_bytes(bytes)))
        }
        DataType::Int16 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, i16::from_le_bytes(bytes)))
        }
        DataType::Int32 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, i32::from_le_bytes(bytes)))
        }
        DataType::Int64 => {
            chunked(out, data, bytes_max, |out, bytes| push_integer(out, i64::from_le_bytes(bytes)))
        }
        DataType::Fp32 => chunked(out, data, bytes_max, |out, bytes| {
            let value = f32::from_le_bytes(bytes);
            push_float(out, value, f64::from(value));
        }),
        DataType::Fp64 => chunked(out, data, bytes_max, |out, bytes| {
            let value = f64::from_le_bytes(bytes);
            push_float(out, value, value);
        }),
        DataType::Bytes => push_strings(out, tensor, output, bytes_max),
        DataType::Fp16 | DataType::Bf16 => {
            let datatype = tensor.datatype;
            Err(Error::invalid(format!(
                "sending {datatype} data via JSON is not supported. Please use the binary data format for output \
                 '{output}'"
            )))
        }
    }
}

fn push_float(out: &mut Vec<u8>, value: impl zmij::Float, as_f64: f64) {
    let text: &[u8] = match as_f64 {
        finite if finite.is_finite() => {
            return out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
        }
        nan if nan.is_nan() => b"\"NaN\"",
        positive if positive > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    };
    out.extend_from_slice(text);
}

fn chunked<const SIZE: usize>(
    out: &mut Vec<u8>,
    data: &[u8],
    bytes_max: usize,
    push: impl Fn(&mut Vec<u8>, [u8; SIZE]),
) -> Result<(), Error> {
    let (elements, _) = data.as_chunks::<SIZE>();
    out.push(b'[');
    for chunk in elements.chunks(ELEMENTS_BETWEEN_CHECKS) {
        for element in chunk {
            push(out, *element);
            out.push(b',');
        }
        if out.len() > bytes_max {
            return Err(too_large(out.len(), bytes_max));
        }
    }
    close(out);
    Ok(())
}

fn push_strings(out: &mut Vec<u8>, tensor: &Tensor, output: &str, bytes_max: usize) -> Result<(), Error> {
    out.push(b'[');
    for string in tensor.strings() {
        let Some(text) = string.and_then(|bytes| std::str::from_utf8(bytes).ok()) else {
            let what = format!("output '{output}' has strings that are not UTF-8; ask for it as binary data");
            return Err(Error::invalid(what));
        };
        push_string(out, text);
        out.push(b',');
        if out.len() > bytes_max {
            return Err(too_large(out.len(), bytes_max));
        }
    }
    close(out);
    Ok(())
}

/// Ends a list whose elements each wrote a comma behind them.
fn close(out: &mut Vec<u8>) {
    match out.last_mut() {
        Some(last) if *last == b',' => *last = b']',
        _ => out.push(b']'),
    }
}

#[cfg(test)]
mod tests {
    use quadrant_types::Shape;

    use super::*;

    fn text(datatype: DataType, data: Vec<u8>) -> String {
        let tensor = Tensor { datatype, shape: Shape::new(), data: data.into() };
        let mut out = Vec::new();
        push_elements(&mut out, &tensor, "y", 1 << 20).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_print_as_triton_prints_them() {
        let floats = [2.0_f32, -0.5, 0.1, 1e20, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let bytes = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        let expected = r#"[2.0,-0.5,0.1,1e+20,"NaN","Infinity","-Infinity"]"#;
        assert_eq!(text(DataType::Fp32, bytes), expected);
        assert_eq!(text(DataType::Fp64, 3.25_f64.to_le_bytes().to_vec()), "[3.25]");
        assert_eq!(text(DataType::Int8, vec![0xff, 1]), "[-1,1]");
        assert_eq!(text(DataType::Uint64, vec![0xff; 8]), "[18446744073709551615]");
        assert_eq!(text(DataType::Bool, vec![1, 0]), "[true,false]");
        assert_eq!(text(DataType::Fp32, Vec::new()), "[]");
        assert_eq!(text(DataType::Bytes, b"\x03\0\0\0a\"\n\0\0\0\0".to_vec()), r#"["a\"\n",""]"#);
    }

    #[test]
    fn every_string_is_valid_json() {
        let all: String = (0..0x300).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        push_string(&mut out, &all);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), all);
    }
}
