//! Answers as protobuf, encoded by hand: the generated structure would need every name as a string of its own
//! and every tensor inside one buffer.

use bytes::{BufMut, Bytes};
use prost::encoding::encode_varint;
use quadrant_types::Error;

use crate::grpc::frame::{HEAD_BYTES, Ranges, head};
use crate::wire::WireAnswer;
use crate::{errors, infer};

/// Tensors below this are copied into the range before them.
const COPIED_BYTES_MAX: usize = 32 << 10;

/// The framed answer.
pub(crate) fn encoded(answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut out = Vec::with_capacity(256);
    out.resize(HEAD_BYTES, 0);
    push_answer(&mut out, answer);
    with_tensors(out, answer)
}

/// The framed answer as field 2 of a stream's message.
///
/// # Errors
/// It is larger than a message can be.
pub(crate) fn encoded_in_stream(answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut inner = Vec::with_capacity(256);
    push_answer(&mut inner, answer);
    let tensor = |data: &Bytes| 1 + prost::length_delimiter_len(data.len()) + data.len();
    let length: usize =
        inner.len() + answer.outputs.iter().map(|output| tensor(&output.tensor.data)).sum::<usize>();
    let mut out = Vec::with_capacity(HEAD_BYTES + 16 + inner.len());
    out.resize(HEAD_BYTES, 0);
    push_key(&mut out, 2, length);
    out.extend_from_slice(&inner);
    with_tensors(out, answer)
}

/// Everything but the tensors.
fn push_answer(out: &mut Vec<u8>, answer: &WireAnswer) {
    let spec = &answer.model.spec;
    push_text(out, 1, &spec.name);
    push_text(out, 2, itoa::Buffer::new().format(spec.version));
    push_text(out, 3, &answer.id);
    let mut inner = Vec::with_capacity(64);
    let mut dims = Vec::with_capacity(16);
    for output in &answer.outputs {
        inner.clear();
        dims.clear();
        push_text(&mut inner, 1, answer.name(output));
        push_text(&mut inner, 2, output.tensor.datatype.name());
        output.tensor.shape.iter().for_each(|dim| encode_varint(*dim as u64, &mut dims));
        if !dims.is_empty() {
            push_key(&mut inner, 3, dims.len());
            inner.extend_from_slice(&dims);
        }
        push_key(out, 5, inner.len());
        out.extend_from_slice(&inner);
    }
}

/// Appends the tensors as field 6: small ones into the range before them, large ones as they are.
fn with_tensors(mut out: Vec<u8>, answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut ranges = Ranges::new();
    let mut length = 0_usize;
    let mut first: Option<Vec<u8>> = None;
    for data in answer.outputs.iter().map(|output| &output.tensor.data) {
        push_key(&mut out, 6, data.len());
        if data.len() <= COPIED_BYTES_MAX {
            out.extend_from_slice(data);
            continue;
        }
        length += out.len() + data.len();
        let range = std::mem::take(&mut out);
        match first {
            None => first = Some(range),
            Some(_) => ranges.push_back(range.into()),
        }
        ranges.push_back(data.clone());
    }
    let (mut first, rest) = match first {
        Some(first) => (first, out),
        None => (out, Vec::new()),
    };
    length += if ranges.is_empty() { first.len() } else { rest.len() };
    if length - HEAD_BYTES > i32::MAX as usize {
        return Err(infer::too_large(length, i32::MAX as usize));
    }
    let behind = length - first.len();
    finish(&mut first, behind);
    ranges.push_front(first.into());
    if !rest.is_empty() {
        ranges.push_back(rest.into());
    }
    Ok(ranges)
}

/// Writes the head in front of a message of which `behind` bytes are elsewhere.
fn finish(out: &mut [u8], behind: usize) {
    let length = out.len() - HEAD_BYTES + behind;
    out[..HEAD_BYTES].copy_from_slice(&head(length));
}

/// A text field; an empty one is left out, as protobuf does.
fn push_text(out: &mut Vec<u8>, field: u8, text: &str) {
    if !text.is_empty() {
        push_key(out, field, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

/// The key of a field that has a length, and the length.
fn push_key(out: &mut Vec<u8>, field: u8, length: usize) {
    out.put_u8(field << 3 | 2);
    encode_varint(length as u64, out);
}

/// A stream's message that says what was wrong with the request that has this id.
pub(crate) fn failure(id: &str, error: &Error) -> Ranges {
    let mut out = vec![0; HEAD_BYTES];
    push_text(&mut out, 1, &errors::bounded_message(&error.message));
    let mut response = Vec::new();
    push_text(&mut response, 3, id);
    if !response.is_empty() {
        push_key(&mut out, 2, response.len());
        out.extend_from_slice(&response);
    }
    finish(&mut out, 0);
    [out.into()].into()
}
