//! Between the protocol's types and the four that `rten` computes with.
//!
//! `rten` holds INT64 and BOOL as 32-bit integers, FP64 and FP16 as FP32. What does not fit is refused
//! rather than changed; results leave in the type that the model declares. Where the types agree, inputs
//! are read in place and the buffers of outputs are moved.

use bytemuck::{NoUninit, Pod};
use bytes::Bytes;
use half::f16;
use quadrant_types::{DataType, Shape, Tensor, TensorSpec};
use rten::{Value, ValueOrView, ValueView};
use rten_tensor::{Layout, TensorView};

use crate::EngineError;

/// Whether a model with an input or output of this type can be run.
pub(super) const fn is_supported(datatype: DataType) -> bool {
    use DataType::{Bf16, Bool, Bytes, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64};
    use DataType::{Uint8, Uint16, Uint32, Uint64};
    match datatype {
        Bool | Uint8 | Int8 | Int32 | Int64 | Fp16 | Fp32 | Fp64 => true,
        Uint16 | Uint32 | Uint64 | Int16 | Bf16 | Bytes => false,
    }
}

/// An input as `rten` takes it.
///
/// # Errors
/// [`EngineError::Input`] if a number does not fit the narrower type, or the bytes the shape.
pub(super) fn narrow<'a>(tensor: &'a Tensor, spec: &TensorSpec) -> Result<ValueOrView<'a>, EngineError> {
    let data: &'a [u8] = &tensor.data;
    let shape = &*tensor.shape;
    if tensor.datatype != spec.datatype {
        let (given, wanted) = (tensor.datatype, spec.datatype);
        return Err(EngineError::Input(format!(
            "input `{}` is {given}, the model takes {wanted}",
            spec.name
        )));
    }
    let unfit = |what: &str| EngineError::Input(format!("input `{}`: {what}", spec.name));
    let value = match tensor.datatype {
        DataType::Fp32 => return in_place::<f32>(shape, data).map_err(unfit),
        DataType::Int32 => return in_place::<i32>(shape, data).map_err(unfit),
        DataType::Int8 => return in_place::<i8>(shape, data).map_err(unfit),
        DataType::Uint8 => return in_place::<u8>(shape, data).map_err(unfit),
        DataType::Int64 => converted(shape, data, |number: i64| i32::try_from(number).ok()),
        DataType::Bool => converted(shape, data, |byte: u8| (byte <= 1).then_some(i32::from(byte))),
        DataType::Fp16 => converted(shape, data, |number: f16| Some(number.to_f32())),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the precision is the engine's; the range is checked"
        )]
        DataType::Fp64 => converted(shape, data, |number: f64| {
            let narrow = number as f32;
            (narrow.is_finite() || !number.is_finite()).then_some(narrow)
        }),
        other @ (DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int16
        | DataType::Bf16
        | DataType::Bytes) => {
            return Err(unfit(&format!("the embedded engine does not compute with {other}")));
        }
    };
    value.map_err(unfit).map(ValueOrView::Value)
}

/// An output in the type that the model declares.
///
/// # Errors
/// [`EngineError::Panicked`] if the engine's type is not the one that the declared type is held in.
pub(super) fn widen(value: Value, declared: DataType) -> Result<Tensor, EngineError> {
    let shape = Shape::from_slice(&value.shape());
    let data = match (declared, value) {
        (DataType::Fp32, Value::FloatTensor(tensor)) => moved(tensor.into_data()),
        (DataType::Int32, Value::Int32Tensor(tensor)) => moved(tensor.into_data()),
        (DataType::Int8, Value::Int8Tensor(tensor)) => moved(tensor.into_data()),
        (DataType::Uint8, Value::UInt8Tensor(tensor)) => tensor.into_data().into(),
        (DataType::Int64, Value::Int32Tensor(tensor)) => {
            each(&tensor.into_data(), |number| i64::from(*number))
        }
        (DataType::Bool, Value::Int32Tensor(tensor)) => {
            each(&tensor.into_data(), |number| u8::from(*number != 0))
        }
        (DataType::Fp64, Value::FloatTensor(tensor)) => {
            each(&tensor.into_data(), |number| f64::from(*number))
        }
        (DataType::Fp16, Value::FloatTensor(tensor)) => {
            each(&tensor.into_data(), |number| f16::from_f32(*number))
        }
        (declared, value) => {
            let held = value.dtype();
            return Err(EngineError::Panicked(format!(
                "an output declared {declared} was computed as {held}"
            )));
        }
    };
    Ok(Tensor { datatype: declared, shape, data })
}

/// The bytes as a view if they are aligned for their type, otherwise as a copy.
fn in_place<'a, T>(shape: &[usize], data: &'a [u8]) -> Result<ValueOrView<'a>, &'static str>
where
    T: Pod,
    ValueView<'a>: From<TensorView<'a, T>>,
    Value: From<rten_tensor::Tensor<T>>,
{
    match bytemuck::try_cast_slice::<u8, T>(data) {
        Ok(numbers) => ValueView::from_shape(shape, numbers).map(ValueOrView::View).map_err(|_| SHAPE),
        Err(_) => converted(shape, data, |number: T| Some(number)).map(ValueOrView::Value),
    }
}

const SHAPE: &str = "the bytes do not fill the shape";

fn converted<T, U>(
    shape: &[usize],
    data: &[u8],
    convert: impl Fn(T) -> Option<U>,
) -> Result<Value, &'static str>
where
    T: Pod,
    Value: From<rten_tensor::Tensor<U>>,
{
    let numbers = data.chunks_exact(size_of::<T>());
    if !numbers.remainder().is_empty() {
        return Err(SHAPE);
    }
    let numbers = numbers.map(|bytes| convert(bytemuck::pod_read_unaligned(bytes)));
    let numbers: Option<Vec<U>> = numbers.collect();
    let numbers =
        numbers.ok_or("a number is outside the 32-bit range that the embedded engine computes with")?;
    Value::from_shape(shape, numbers).map_err(|_| SHAPE)
}

/// Numbers as the owner of their bytes.
struct Numbers<T>(Vec<T>);

impl<T: NoUninit> AsRef<[u8]> for Numbers<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn moved<T: NoUninit + Send>(numbers: Vec<T>) -> Bytes {
    Bytes::from_owner(Numbers(numbers))
}

fn each<T, U: NoUninit + Send>(numbers: &[T], widen: impl Fn(&T) -> U) -> Bytes {
    moved(numbers.iter().map(widen).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn spec(datatype: DataType) -> TensorSpec {
        TensorSpec { name: Arc::from("x"), datatype, dims: Vec::new() }
    }

    fn tensor<T: NoUninit>(datatype: DataType, numbers: &[T]) -> Tensor {
        // Behind one byte, so that nothing wider is aligned.
        let bytes = [&[0], bytemuck::cast_slice::<T, u8>(numbers)].concat();
        let shape = Shape::from_slice(&[numbers.len()]);
        Tensor { datatype, shape, data: Bytes::from(bytes).slice(1..) }
    }

    fn round_trip<T: NoUninit>(datatype: DataType, numbers: &[T]) {
        let tensor = tensor(datatype, numbers);
        let value = match narrow(&tensor, &spec(datatype)).unwrap() {
            ValueOrView::Value(value) => value,
            ValueOrView::View(view) => view.to_owned(),
        };
        assert_eq!(widen(value, datatype).unwrap(), tensor);
    }

    #[test]
    fn every_supported_type_comes_back_as_it_went_in() {
        round_trip(DataType::Bool, &[0_u8, 1, 1]);
        round_trip(DataType::Uint8, &[0_u8, 255]);
        round_trip(DataType::Int8, &[-128_i8, 127]);
        round_trip(DataType::Int32, &[i32::MIN, i32::MAX]);
        round_trip(DataType::Int64, &[i64::from(i32::MIN), 0, i64::from(i32::MAX)]);
        round_trip(DataType::Fp16, &[f16::MAX, f16::MIN_POSITIVE_SUBNORMAL, f16::NEG_INFINITY]);
        round_trip(DataType::Fp32, &[f32::MAX, f32::MIN_POSITIVE, f32::NEG_INFINITY]);
        round_trip(DataType::Fp64, &[1.5_f64, f64::from(f32::MAX), f64::NEG_INFINITY]);
        round_trip::<f32>(DataType::Fp32, &[]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |tensor: Tensor| match narrow(&tensor, &spec(tensor.datatype)) {
            Err(EngineError::Input(text)) => text,
            other => panic!("{other:?}"),
        };
        let range = "input `x`: a number is outside the 32-bit range that the embedded engine computes with";
        assert_eq!(refused(tensor(DataType::Int64, &[0, i64::from(i32::MAX) + 1])), range);
        assert_eq!(refused(tensor(DataType::Int64, &[i64::MIN])), range);
        assert_eq!(refused(tensor(DataType::Fp64, &[1e39])), range);
        assert_eq!(refused(tensor(DataType::Bool, &[2_u8])), range);
        let shape = "input `x`: the bytes do not fill the shape";
        for datatype in [DataType::Fp32, DataType::Int64, DataType::Fp64] {
            assert_eq!(refused(tensor(datatype, &[1_u8, 2, 3])), shape);
        }
        let short = Tensor { shape: Shape::from_slice(&[2, 2]), ..tensor(DataType::Int8, &[1_i8]) };
        assert_eq!(refused(short), shape);
        let other = narrow(&tensor(DataType::Fp32, &[1.0_f32]), &spec(DataType::Int32)).unwrap_err();
        assert_eq!(other, EngineError::Input("input `x` is FP32, the model takes INT32".into()));
    }

    #[test]
    fn aligned_inputs_are_read_in_place_and_outputs_are_moved() {
        let numbers = vec![1.0_f32, 2.0];
        let place = numbers.as_ptr().cast::<u8>();
        let tensor =
            Tensor { datatype: DataType::Fp32, shape: Shape::from_slice(&[2]), data: moved(numbers) };
        assert_eq!(tensor.data.as_ptr(), place);
        let ValueOrView::View(ValueView::FloatTensor(view)) = narrow(&tensor, &spec(DataType::Fp32)).unwrap()
        else {
            panic!("copied");
        };
        assert_eq!(view.data().unwrap().as_ptr().cast::<u8>(), place);
    }
}
