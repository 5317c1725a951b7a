//! Makes one batch of several requests' tensors, and cuts the results apart again.
//!
//! A batch of one passes through untouched. A larger one costs exactly one copy, into a 64-byte-aligned
//! buffer; its results are cut without a copy. Everything is checked on the way: a mistake here would
//! hand one client another's rows.

use bytes::Bytes;
use quadrant_types::{AlignedBuffer, RequestId, Shape, Tensor, element_count};

use crate::{EngineError, Part, PartOutputs};

/// One tensor for each input of the model: those of the parts, one after the other along the first
/// dimension.
///
/// # Errors
/// [`EngineError::Input`] if the parts do not fit together.
pub(crate) fn gather(parts: &[Part]) -> Result<Vec<Tensor>, EngineError> {
    let [first, others @ ..] = parts else {
        return Err(EngineError::Input("a step without parts".into()));
    };
    if others.is_empty() {
        return Ok(first.inputs.to_vec());
    }
    let inputs = first.inputs.len();
    if others.iter().any(|part| part.inputs.len() != inputs) {
        return Err(EngineError::Input("requests of one batch have different numbers of inputs".into()));
    }
    (0..inputs).map(|input| concatenate(parts, input)).collect()
}

fn concatenate(parts: &[Part], input: usize) -> Result<Tensor, EngineError> {
    let model = &parts[0].inputs[input];
    let mut rows = 0_usize;
    let mut bytes = 0_usize;
    for part in parts {
        let tensor = &part.inputs[input];
        let fits = tensor.datatype == model.datatype
            && tensor.shape.first() == Some(&part.rows)
            && tensor.shape.get(1..) == model.shape.get(1..)
            && is_full(tensor);
        if !fits {
            return Err(EngineError::Input(format!(
                "input `{input}` of {} is {} {:?}, which does not join {} {:?} in a batch",
                part.request, tensor.datatype, tensor.shape, model.datatype, model.shape
            )));
        }
        rows += part.rows;
        bytes += tensor.data.len();
    }
    let mut buffer = AlignedBuffer::new(bytes, 0);
    for part in parts {
        let copied = buffer.extend(&part.inputs[input].data);
        assert!(copied, "the buffer has room for all parts");
    }
    let mut shape = model.shape.clone();
    shape[0] = rows;
    Ok(Tensor { datatype: model.datatype, shape, data: buffer.freeze(None) })
}

/// Whether the bytes are as many as type and shape say. Strings are counted when they are cut or read.
fn is_full(tensor: &Tensor) -> bool {
    tensor.datatype.size().is_none_or(|size| {
        element_count(&tensor.shape).and_then(|elements| elements.checked_mul(size))
            == Some(tensor.data.len())
    })
}

/// Gives each part its rows of the outputs.
///
/// # Errors
/// [`EngineError::Panicked`] if an output has not as many rows as the batch: such a model must not batch.
pub(crate) fn scatter(
    parts: &[(RequestId, usize)],
    outputs: Vec<Tensor>,
) -> Result<Vec<PartOutputs>, EngineError> {
    if let [(request, _)] = parts {
        return Ok(vec![PartOutputs { request: *request, outputs, generated: None }]);
    }
    let part = |(request, _): &(RequestId, usize)| PartOutputs {
        request: *request,
        outputs: Vec::with_capacity(outputs.len()),
        generated: None,
    };
    let mut results: Vec<PartOutputs> = parts.iter().map(part).collect();
    for (index, output) in outputs.iter().enumerate() {
        cut(index, output, parts, &mut results)?;
    }
    Ok(results)
}

fn cut(
    index: usize,
    output: &Tensor,
    parts: &[(RequestId, usize)],
    results: &mut [PartOutputs],
) -> Result<(), EngineError> {
    let total: usize = parts.iter().map(|(_, rows)| rows).sum();
    if output.shape.first() != Some(&total) || !is_full(output) {
        return Err(EngineError::Panicked(format!(
            "output `{index}` of a batch of `{total}` rows is {} {:?}; the model must not be batched",
            output.datatype, output.shape
        )));
    }
    let row_elements: usize = output.shape[1..].iter().product();
    let mut start = 0;
    for ((_, rows), result) in parts.iter().zip(results) {
        let end = match output.datatype.size() {
            Some(size) => start + rows * row_elements * size,
            None => string_end(&output.data, start, rows * row_elements)?,
        };
        let mut shape = Shape::from_slice(&output.shape);
        shape[0] = *rows;
        result.outputs.push(Tensor { datatype: output.datatype, shape, data: output.data.slice(start..end) });
        start = end;
    }
    if start == output.data.len() { Ok(()) } else { Err(broken_strings()) }
}

/// Where the `count` strings that begin at `start` end.
fn string_end(data: &Bytes, start: usize, count: usize) -> Result<usize, EngineError> {
    let mut end = start;
    for _ in 0..count {
        let length = data.get(end..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(broken_strings)?;
        end += 4 + u32::from_le_bytes(*length) as usize;
    }
    if end <= data.len() { Ok(end) } else { Err(broken_strings()) }
}

fn broken_strings() -> EngineError {
    EngineError::Panicked("an output's strings do not fill its shape".into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quadrant_types::{ALIGNMENT, DataType};

    use super::*;

    fn tensor(datatype: DataType, shape: &[usize], data: &[u8]) -> Tensor {
        Tensor { datatype, shape: Shape::from_slice(shape), data: Bytes::copy_from_slice(data) }
    }

    fn part(request: u64, rows: usize, inputs: Vec<Tensor>) -> Part {
        Part { request: RequestId(request), rows, inputs: Arc::from(inputs) }
    }

    fn request_of(parts: &[Part]) -> Vec<(RequestId, usize)> {
        parts.iter().map(|part| (part.request, part.rows)).collect()
    }

    #[test]
    fn a_batch_of_one_is_not_copied() {
        let parts = [part(1, 2, vec![tensor(DataType::Uint8, &[2, 2], b"abcd")])];
        let gathered = gather(&parts).unwrap();
        assert_eq!(gathered[0].data.as_ptr(), parts[0].inputs[0].data.as_ptr());
        let scattered = scatter(&request_of(&parts), gathered).unwrap();
        assert_eq!(scattered[0].outputs[0].data.as_ptr(), parts[0].inputs[0].data.as_ptr());
    }

    #[test]
    fn what_is_gathered_is_cut_into_the_same_parts() {
        let text = |strings: &[&str]| -> Vec<u8> {
            let bytes =
                |text: &&str| [&u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat();
            strings.iter().flat_map(bytes).collect()
        };
        let inputs = |numbers: &[u8], strings: &[&str]| {
            let rows = strings.len();
            vec![
                tensor(DataType::Uint16, &[rows, 2], numbers),
                tensor(DataType::Bytes, &[rows], &text(strings)),
            ]
        };
        let parts = [
            part(7, 1, inputs(b"aabb", &["one"])),
            part(8, 2, inputs(b"ccddeeff", &["", "three"])),
            part(9, 0, inputs(b"", &[])),
        ];
        let gathered = gather(&parts).unwrap();
        assert_eq!(gathered[0], tensor(DataType::Uint16, &[3, 2], b"aabbccddeeff"));
        assert_eq!(gathered[0].data.as_ptr().align_offset(ALIGNMENT), 0);
        let batch = gathered[0].data.as_ptr_range();
        let scattered = scatter(&request_of(&parts), gathered).unwrap();
        for (part, result) in parts.iter().zip(&scattered) {
            assert_eq!((part.request, &*part.inputs), (result.request, &*result.outputs));
        }
        assert!(batch.contains(&scattered[1].outputs[0].data.as_ptr()), "results are cut without a copy");
    }

    #[test]
    fn parts_that_differ_do_not_join() {
        let first = || part(1, 1, vec![tensor(DataType::Uint8, &[1, 2], b"ab")]);
        let others = [
            part(2, 1, vec![tensor(DataType::Int8, &[1, 2], b"ab")]),
            part(2, 1, vec![tensor(DataType::Uint8, &[1, 3], b"abc")]),
            part(2, 2, vec![tensor(DataType::Uint8, &[1, 2], b"ab")]),
            part(2, 1, vec![tensor(DataType::Uint8, &[1, 2], b"abc")]),
            part(2, 1, vec![tensor(DataType::Uint8, &[], b"a")]),
            part(2, 1, vec![]),
        ];
        for other in others {
            let error = gather(&[first(), other]).unwrap_err();
            assert!(matches!(error, EngineError::Input(_)), "{error}");
        }
        assert!(matches!(gather(&[]), Err(EngineError::Input(_))));
    }

    #[test]
    fn outputs_that_are_not_one_row_for_each_are_refused() {
        let parts = [(RequestId(1), 1), (RequestId(2), 1)];
        let wrong = [
            tensor(DataType::Uint8, &[1, 4], b"abcd"),
            tensor(DataType::Uint8, &[], b"a"),
            tensor(DataType::Uint8, &[2, 2], b"abc"),
            tensor(DataType::Bytes, &[2], b"\x01\0\0\0a"),
            tensor(DataType::Bytes, &[2], b"\x00\0\0\0\x09\0\0\0a"),
            tensor(DataType::Bytes, &[2], b"\0\0\0\0\0\0\0\0\0\0\0\0"),
        ];
        for output in wrong {
            let error = scatter(&parts, vec![output]).unwrap_err();
            assert!(matches!(error, EngineError::Panicked(_)), "{error}");
        }
    }
}
