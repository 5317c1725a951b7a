//! Tensors that travel as typed protobuf lists instead of raw bytes.

use bytes::Bytes;
use quadrant_proto::inference::InferTensorContents;
use quadrant_types::{DataType, Error, IoBudget};

use crate::budgeted::{aligned_buffer, copy_aligned};

/// What is known of the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) name: &'a str,
    pub(crate) model: &'a str,
    pub(crate) datatype: DataType,
}

/// The elements of `contents` as bytes.
///
/// # Errors
/// A list of another type is filled, a number does not fit, or the budget has no room.
pub(crate) fn to_bytes(
    input: Input<'_>,
    contents: &InferTensorContents,
    budget: &IoBudget,
) -> Result<Bytes, Error> {
    check_lists(input, contents)?;
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let narrow = Narrow { input, budget };
    match input.datatype {
        DataType::Bool => narrow.all(bool_contents, |value| Ok([u8::from(*value)])),
        DataType::Int8 => narrow.all(int_contents, |value| Ok(narrow.fit::<_, i8>(*value)?.to_le_bytes())),
        DataType::Int16 => narrow.all(int_contents, |value| Ok(narrow.fit::<_, i16>(*value)?.to_le_bytes())),
        DataType::Int32 => narrow.all(int_contents, |value| Ok(value.to_le_bytes())),
        DataType::Int64 => narrow.all(int64_contents, |value| Ok(value.to_le_bytes())),
        DataType::Uint8 => narrow.all(uint_contents, |value| Ok(narrow.fit::<_, u8>(*value)?.to_le_bytes())),
        DataType::Uint16 => {
            narrow.all(uint_contents, |value| Ok(narrow.fit::<_, u16>(*value)?.to_le_bytes()))
        }
        DataType::Uint32 => narrow.all(uint_contents, |value| Ok(value.to_le_bytes())),
        DataType::Uint64 => narrow.all(uint64_contents, |value| Ok(value.to_le_bytes())),
        DataType::Fp32 => narrow.all(fp32_contents, |value| Ok(value.to_le_bytes())),
        DataType::Fp64 => narrow.all(fp64_contents, |value| Ok(value.to_le_bytes())),
        DataType::Bytes => strings(bytes_contents, budget),
        DataType::Fp16 | DataType::Bf16 => Err(Error::invalid(format!(
            "{} of input tensor '{}' for model '{}' can only be sent as raw_input_contents",
            input.datatype, input.name, input.model
        ))),
    }
}

/// Only the list of the input's type may be filled.
fn check_lists(input: Input<'_>, contents: &InferTensorContents) -> Result<(), Error> {
    use DataType as Type;
    let lists: [(usize, &[DataType]); 8] = [
        (contents.bool_contents.len(), &[Type::Bool]),
        (contents.int_contents.len(), &[Type::Int32, Type::Int16, Type::Int8]),
        (contents.int64_contents.len(), &[Type::Int64]),
        (contents.uint_contents.len(), &[Type::Uint32, Type::Uint16, Type::Uint8]),
        (contents.uint64_contents.len(), &[Type::Uint64]),
        (contents.fp32_contents.len(), &[Type::Fp32]),
        (contents.fp64_contents.len(), &[Type::Fp64]),
        (contents.bytes_contents.len(), &[Type::Bytes]),
    ];
    let is_wrong = |(length, types): &&(usize, &[DataType])| *length > 0 && !types.contains(&input.datatype);
    let Some((_, types)) = lists.iter().find(is_wrong) else { return Ok(()) };
    let Input { name, model, datatype } = input;
    Err(Error::invalid(format!(
        "unexpected explicit tensor data for input tensor '{name}' for model '{model}' of type '{}', expected \
         datatype '{datatype}'",
        types[0]
    )))
}

/// Turns a list into bytes.
#[derive(Clone, Copy, Debug)]
struct Narrow<'a> {
    input: Input<'a>,
    budget: &'a IoBudget,
}

impl Narrow<'_> {
    fn all<T, const SIZE: usize>(
        self,
        values: &[T],
        element: impl Fn(&T) -> Result<[u8; SIZE], Error>,
    ) -> Result<Bytes, Error> {
        let (mut buffer, lease) = aligned_buffer(self.budget, values.len() * SIZE, 0)?;
        for value in values {
            let fits = buffer.extend(&element(value)?);
            assert!(fits, "the buffer was made for these elements");
        }
        Ok(buffer.freeze(Some(lease)))
    }

    fn fit<T: Copy + std::fmt::Display, U: TryFrom<T>>(self, value: T) -> Result<U, Error> {
        let Input { name, datatype, .. } = self.input;
        U::try_from(value)
            .map_err(|_| Error::invalid(format!("{value} in input '{name}' is out of range for {datatype}")))
    }
}

fn strings(strings: &[Bytes], budget: &IoBudget) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(strings.iter().map(|string| 4 + string.len()).sum());
    for string in strings {
        let length = u32::try_from(string.len()).map_err(|_| Error::invalid("a string is too long"))?;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(string);
    }
    copy_aligned(budget, &out, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(datatype: DataType, contents: &InferTensorContents) -> Result<Vec<u8>, String> {
        let input = Input { name: "x", model: "m", datatype };
        let bytes = to_bytes(input, contents, &IoBudget::new(1 << 20));
        bytes.map(|bytes| bytes.to_vec()).map_err(|error| error.message.into_owned())
    }

    #[test]
    fn lists_become_elements_of_the_inputs_type() {
        let ints = InferTensorContents { int_contents: vec![-1, 127], ..InferTensorContents::default() };
        assert_eq!(bytes(DataType::Int8, &ints).unwrap(), [0xff, 0x7f]);
        assert_eq!(bytes(DataType::Int16, &ints).unwrap(), [0xff, 0xff, 0x7f, 0]);
        let error = bytes(DataType::Fp32, &ints).unwrap_err();
        assert!(error.ends_with("for model 'm' of type 'INT32', expected datatype 'FP32'"), "{error}");
        let large = InferTensorContents { int_contents: vec![300], ..InferTensorContents::default() };
        assert_eq!(bytes(DataType::Int8, &large).unwrap_err(), "300 in input 'x' is out of range for INT8");
        let text = InferTensorContents {
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
            ..InferTensorContents::default()
        };
        assert_eq!(bytes(DataType::Bytes, &text).unwrap(), b"\x02\0\0\0ab\0\0\0\0");
        assert!(bytes(DataType::Fp16, &InferTensorContents::default()).is_err());
    }
}
