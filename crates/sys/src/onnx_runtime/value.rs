//! Tensors going into and coming out of ONNX Runtime without a copy.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::sys::{
    ONNXTensorElementDataType, ONNXTensorElementDataType as Element, OrtStatusPtr, OrtTensorTypeAndShapeInfo,
    OrtValue,
};
use quadrant_types::{AlignedBuffer, DataType, Shape, Tensor, element_count};
use smallvec::SmallVec;

use super::{RuntimeError, Session};

/// A value of the library's, released on drop.
#[derive(Debug)]
pub(super) struct Value(NonNull<OrtValue>);

// SAFETY: a value is plain memory with a reference count that the library keeps atomically; it is not
// bound to the thread that made it.
unsafe impl Send for Value {}
// SAFETY: after it was made, a value is only read, by this module and by the library.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library, is owned by `self`, and is released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) };
    }
}

impl Value {
    /// Takes over what `Run` left in the list of results, which is null where it did not get so far.
    pub(super) fn from_output(result: *mut OrtValue) -> Option<Self> {
        NonNull::new(result).map(Self)
    }

    fn from_created(value: *mut OrtValue) -> Result<Self, RuntimeError> {
        NonNull::new(value).map(Self).ok_or_else(|| RuntimeError::new("the library made no value"))
    }
}

/// A value that borrows the bytes of a tensor, and keeps them alive.
#[derive(Debug)]
pub(super) struct InputValue {
    value: Value,
    data: Bytes,
}

impl InputValue {
    pub(super) fn new(tensor: &Tensor, memory: &MemoryInfo<'static>) -> Result<Self, RuntimeError> {
        let Some(size) = tensor.datatype.size() else { return Self::strings(tensor) };
        let expected = element_count(&tensor.shape).and_then(|elements| elements.checked_mul(size));
        if expected != Some(tensor.data.len()) {
            let (bytes, shape) = (tensor.data.len(), &tensor.shape);
            return Err(RuntimeError::new(format!("`{bytes}` bytes do not fill the shape `{shape:?}`")));
        }
        // The library reads them as C++ `bool`, for which no other byte is a value.
        if tensor.datatype == DataType::Bool && tensor.data.iter().any(|byte| *byte > 1) {
            return Err(RuntimeError::new("a `BOOL` element is neither 0 nor 1"));
        }
        let aligned = tensor.data.as_ptr().align_offset(size) == 0;
        let data = if aligned { tensor.data.clone() } else { aligned_copy(&tensor.data) };
        let shape = dimensions(&tensor.shape)?;
        let mut value = ptr::null_mut();
        // SAFETY: the shape's and the data's pointers come with their lengths, and the length of the
        // data fits shape and type. The library only reads an input's memory; `Self` keeps it alive
        // for as long as the value.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.as_ptr().cast_mut().cast(),
                data.len(),
                shape.as_ptr(),
                shape.len(),
                element_type(tensor.datatype),
                &raw mut value,
            )
        };
        check(status)?;
        Ok(Self { value: Value::from_created(value)?, data })
    }

    /// Strings are objects of the library's, so they are the one type that is always copied.
    fn strings(tensor: &Tensor) -> Result<Self, RuntimeError> {
        let strings: Option<Vec<&[u8]>> = tensor.strings().collect();
        let strings = strings.filter(|strings| element_count(&tensor.shape) == Some(strings.len()));
        let strings = strings.ok_or_else(|| RuntimeError::new("the strings do not fill the shape"))?;
        let shape = dimensions(&tensor.shape)?;
        let mut allocator = ptr::null_mut();
        // SAFETY: writes a pointer to the library's own allocator, which lives as long as the library.
        check(unsafe { (ort::api().GetAllocatorWithDefaultOptions)(&raw mut allocator) })?;
        let mut value = ptr::null_mut();
        // SAFETY: the allocator is the library's, the shape's pointer comes with its length.
        let status = unsafe {
            (ort::api().CreateTensorAsOrtValue)(
                allocator,
                shape.as_ptr(),
                shape.len(),
                Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
                &raw mut value,
            )
        };
        check(status)?;
        let value = Value::from_created(value)?;
        for (index, string) in strings.into_iter().enumerate() {
            let mut place = ptr::null_mut();
            // SAFETY: the value is a tensor of strings with more than `index` elements, not yet shared.
            check(unsafe {
                (ort::api().GetResizedStringTensorElementBuffer)(
                    value.0.as_ptr(),
                    index,
                    string.len(),
                    &raw mut place,
                )
            })?;
            // SAFETY: the library just made room for this many bytes there; ours do not overlap them.
            unsafe { ptr::copy_nonoverlapping(string.as_ptr(), place.cast(), string.len()) };
        }
        Ok(Self { value, data: Bytes::new() })
    }

    pub(super) fn as_ptr(&self) -> *const OrtValue {
        self.value.0.as_ptr()
    }

    fn range(&self) -> Range<*const u8> {
        self.data.as_ptr_range()
    }
}

/// A tensor of the engine's, as the owner of [`Bytes`].
struct OutputValue {
    data: NonNull<u8>,
    length: usize,
    /// Holds the memory that `data` points to.
    _value: Value,
    /// The memory belongs to the session's arena, so the arena must outlive it.
    _session: Arc<Session>,
}

// SAFETY: `data` points into memory that `_value` owns, which may be read from any thread.
unsafe impl Send for OutputValue {}

impl AsRef<[u8]> for OutputValue {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the library gave `data` as the start of `length` initialised bytes, which nobody
        // writes to any more and which live as long as `_value`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.length) }
    }
}

/// Makes a tensor of a result of `Run`.
pub(super) fn output_tensor(
    value: Option<Value>,
    inputs: &[InputValue],
    session: &Arc<Session>,
) -> Result<Tensor, RuntimeError> {
    let value = value.ok_or_else(|| RuntimeError::new("an output of the model is empty"))?;
    let mut is_tensor: c_int = 0;
    // SAFETY: the value is alive; one integer is written.
    check(unsafe { (ort::api().IsTensor)(value.0.as_ptr(), &raw mut is_tensor) })?;
    if is_tensor == 0 {
        return Err(RuntimeError::new("an output of the model is not a tensor"));
    }
    let (datatype, shape) = type_and_shape(&value)?;
    let elements = element_count(&shape).ok_or_else(|| RuntimeError::new("an output is too large"))?;
    let Some(size) = datatype.size() else {
        return Ok(Tensor { datatype, data: string_bytes(&value, elements)?, shape });
    };
    let length = elements * size;
    let mut data = ptr::null_mut();
    // SAFETY: the value is a tensor of numbers; one pointer is written.
    check(unsafe { (ort::api().GetTensorMutableData)(value.0.as_ptr(), &raw mut data) })?;
    let Some(data) = NonNull::new(data.cast::<u8>()).filter(|_| length > 0) else {
        return Ok(Tensor { datatype, shape, data: Bytes::new() });
    };
    let output = OutputValue { data, length, _value: value, _session: Arc::clone(session) };
    // An output that *is* an input (the graph hands it through) is not owned by the value but by the
    // caller's buffer, which may be gone before the answer is sent.
    let borrowed = inputs.iter().any(|input| input.range().contains(&data.as_ptr().cast_const()));
    let data = if borrowed { Bytes::copy_from_slice(output.as_ref()) } else { Bytes::from_owner(output) };
    Ok(Tensor { datatype, shape, data })
}

/// Releases the description of a tensor on drop.
struct Description(*mut OrtTensorTypeAndShapeInfo);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library, is owned by `self`, and is released once.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(self.0) };
    }
}

fn type_and_shape(value: &Value) -> Result<(DataType, Shape), RuntimeError> {
    let api = ort::api();
    let mut description = Description(ptr::null_mut());
    // SAFETY: the value is a tensor; one pointer is written, which `Description` owns from then on.
    check(unsafe { (api.GetTensorTypeAndShape)(value.0.as_ptr(), &raw mut description.0) })?;
    // A newer library may know types that the enumeration lacks, so the number is taken as a number.
    let mut element = MaybeUninit::<i32>::zeroed();
    // SAFETY: the description is alive; the enumeration is represented as the integer that is written.
    check(unsafe {
        (api.GetTensorElementType)(description.0, element.as_mut_ptr().cast::<ONNXTensorElementDataType>())
    })?;
    // SAFETY: it was zero at first, so it is initialised whatever the library did.
    let element = unsafe { element.assume_init() };
    let datatype = DataType::ALL.into_iter().find(|datatype| element_type(*datatype) as i32 == element);
    let datatype = datatype.ok_or_else(|| {
        RuntimeError::new(format!("an output has the unsupported element type `{element}`"))
    })?;
    let mut rank = 0;
    // SAFETY: the description is alive; one integer is written.
    check(unsafe { (api.GetDimensionsCount)(description.0, &raw mut rank) })?;
    let mut dims: SmallVec<[i64; 6]> = SmallVec::from_elem(0, rank);
    // SAFETY: the description is alive, and there is room for `rank` integers.
    check(unsafe { (api.GetDimensions)(description.0, dims.as_mut_ptr(), rank) })?;
    let shape = dims.into_iter().map(usize::try_from).collect::<Result<_, _>>();
    Ok((datatype, shape.map_err(|_| RuntimeError::new("an output has a negative dimension"))?))
}

/// The strings of a tensor as they travel: each behind its length.
fn string_bytes(value: &Value, elements: usize) -> Result<Bytes, RuntimeError> {
    let mut length = 0;
    // SAFETY: the value is a tensor of strings; one integer is written.
    check(unsafe { (ort::api().GetStringTensorDataLength)(value.0.as_ptr(), &raw mut length) })?;
    let mut text = vec![0_u8; length];
    let mut starts = vec![0_usize; elements];
    // SAFETY: `text` has room for all strings, as asked just before, `starts` for one number each.
    check(unsafe {
        (ort::api().GetStringTensorContent)(
            value.0.as_ptr(),
            text.as_mut_ptr().cast(),
            length,
            starts.as_mut_ptr(),
            elements,
        )
    })?;
    let mut bytes = Vec::with_capacity(length + 4 * elements);
    let ends = starts.iter().skip(1).chain([&length]);
    for (start, end) in starts.iter().zip(ends) {
        let string = text.get(*start..*end).unwrap_or_default();
        let length = u32::try_from(string.len()).map_err(|_| RuntimeError::new("a string is over 4 GiB"))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(string);
    }
    Ok(bytes.into())
}

fn dimensions(shape: &[usize]) -> Result<SmallVec<[i64; 6]>, RuntimeError> {
    let dims = shape.iter().map(|dim| i64::try_from(*dim)).collect::<Result<_, _>>();
    dims.map_err(|_| RuntimeError::new(format!("a dimension of `{shape:?}` is too large")))
}

fn aligned_copy(data: &[u8]) -> Bytes {
    let mut buffer = AlignedBuffer::new(data.len(), 0);
    let fits = buffer.extend(data);
    debug_assert!(fits, "the buffer was made for these bytes");
    buffer.freeze(None)
}

pub(super) fn check(status: OrtStatusPtr) -> Result<(), RuntimeError> {
    // SAFETY: every caller hands over, once, a status that the library just returned.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}

const fn element_type(datatype: DataType) -> ONNXTensorElementDataType {
    match datatype {
        DataType::Bool => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}
