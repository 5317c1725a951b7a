//! The JSON of an inference request, and the tensors behind it.
//!
//! Members may come in any order and unknown ones are passed over. The tensors that travel as bytes are
//! ranges of the body, in the order of their inputs.

use std::borrow::Cow;

use bytes::Bytes;
use quadrant_node::ModelEntry;
use quadrant_types::{DataType, Dim, Error, IoBudget, Shape};

use crate::budgeted::copy_aligned;
use crate::http::elements;
use crate::json::Cursor;
use crate::wire::{DIMS_MAX, TENSORS_MAX, WireInput, WireOutput, WireRequest, datatype, too_many};

/// A body and how to read it.
#[derive(Debug)]
pub(crate) struct RequestBody<'a> {
    /// The whole body.
    pub(crate) bytes: &'a Bytes,
    /// Bytes of JSON before the tensors, if the client said so.
    pub(crate) json_length: Option<usize>,
    pub(crate) json_depth_max: usize,
    pub(crate) budget: &'a IoBudget,
}

/// Reads a request.
///
/// # Errors
/// JSON that is broken or is no inference request, and tensors that do not fit the body.
pub(crate) fn parse<'a>(body: &RequestBody<'a>, model: &str) -> Result<WireRequest<'a>, Error> {
    let length = body.bytes.len();
    let json_length = body.json_length.unwrap_or(length);
    let Some(json) = body.bytes.get(..json_length) else {
        return Err(Error::invalid(format!(
            "Inference-Header-Content-Length is {json_length}, but the body has only {length} bytes"
        )));
    };
    let mut request = WireRequest::default();
    let mut tensors = Tensors { body, model, at: json_length };
    let mut inputs = None;
    let mut cursor = Cursor::new(json, body.json_depth_max);
    if cursor.peek().is_some_and(|first| first != b'{') {
        cursor.skip()?;
        return Err(Error::invalid("Unable to parse request: attempt to access JSON non-object as object"));
    }
    cursor.object(|cursor, name| match &*name {
        "id" => text(cursor, "id").map(|id| request.id = id),
        "parameters" => request_parameters(cursor, &mut request),
        "inputs" => {
            inputs = Some(());
            request.inputs.clear();
            tensors.at = json_length;
            list(cursor, "inputs", |cursor| {
                if request.inputs.len() == TENSORS_MAX {
                    return Err(too_many("inputs"));
                }
                let input = tensors.input(cursor)?;
                request.inputs.push(input);
                Ok(())
            })
        }
        "outputs" => {
            request.outputs.clear();
            list(cursor, "outputs", |cursor| {
                if request.outputs.len() == TENSORS_MAX {
                    return Err(too_many("outputs"));
                }
                request.outputs.push(output(cursor)?);
                Ok(())
            })
        }
        _ => cursor.skip().map(drop),
    })?;
    cursor.end()?;
    if inputs.is_none() {
        return Err(Error::invalid(
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
        ));
    }
    if tensors.at != length {
        return Err(Error::invalid(format!("unexpected additional input data for model '{model}'")));
    }
    Ok(request)
}

/// The tensors behind the JSON.
#[derive(Debug)]
struct Tensors<'a, 'b> {
    body: &'b RequestBody<'a>,
    model: &'b str,
    /// Where the next one begins.
    at: usize,
}

/// What the members of one input say.
#[derive(Debug, Default)]
struct Members<'a> {
    name: Option<Cow<'a, str>>,
    datatype: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    /// Parsed at once if type and shape came first, otherwise its text and depth.
    data: Option<Data<'a>>,
    binary_data_size: Option<usize>,
}

#[derive(Debug)]
enum Data<'a> {
    Parsed(DataType, Bytes),
    Text(&'a [u8], usize),
}

impl<'a> Tensors<'a, '_> {
    fn input(&mut self, cursor: &mut Cursor<'a>) -> Result<WireInput<'a>, Error> {
        let mut members = Members::default();
        object(cursor, "inputs", |cursor, name| match &*name {
            "name" => text(cursor, "name").map(|value| members.name = Some(value)),
            "datatype" => text(cursor, "datatype").map(|value| members.datatype = Some(value)),
            "shape" => shape(cursor).map(|value| members.shape = Some(value)),
            "parameters" => object(cursor, "parameters", |cursor, name| match &*name {
                "binary_data_size" => {
                    let size = unsigned(cursor, "binary_data_size")?;
                    members.binary_data_size = Some(usize::try_from(size).unwrap_or(usize::MAX));
                    Ok(())
                }
                "shared_memory_region" => Err(no_shared_memory(&text(cursor, "shared_memory_region")?)),
                _ => cursor.skip().map(drop),
            }),
            "data" => self.data(cursor, &mut members),
            _ => cursor.skip().map(drop),
        })?;
        self.complete(members)
    }

    fn data(&self, cursor: &mut Cursor<'a>, members: &mut Members<'a>) -> Result<(), Error> {
        members.data = Some(match (&members.name, &members.datatype, &members.shape) {
            (Some(name), Some(type_name), Some(shape)) => {
                let datatype = datatype(name, type_name)?;
                let parsed = elements::parse(cursor, name, datatype, shape, self.body.budget)?;
                Data::Parsed(datatype, parsed)
            }
            _ => Data::Text(cursor.skip()?, cursor.depth()),
        });
        Ok(())
    }

    fn complete(&mut self, members: Members<'a>) -> Result<WireInput<'a>, Error> {
        let missing = |member: &str| {
            Error::invalid(format!(
                "Unable to parse '{member}': attempt to access non-existing object member '{member}'"
            ))
        };
        let Members { name, datatype: type_name, shape, data, binary_data_size } = members;
        let name = name.ok_or_else(|| missing("name"))?;
        let type_name = type_name.ok_or_else(|| missing("datatype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let datatype = datatype(&name, &type_name)?;
        let data = match (data, binary_data_size) {
            (Some(_), Some(_)) => {
                let what = format!(
                    "must not specify 'data' field in request input '{name}' with 'binary_data_size'"
                );
                return Err(Error::invalid(what));
            }
            (None, Some(size)) => self.next(&name, size)?,
            (Some(Data::Parsed(parsed_as, data)), None) if parsed_as == datatype => data,
            (Some(Data::Parsed(..)), None) => {
                return Err(Error::invalid(format!("input '{name}' has two data types")));
            }
            (Some(Data::Text(text, depth)), None) => {
                let mut cursor = Cursor::inside(text, depth, self.body.json_depth_max);
                elements::parse(&mut cursor, &name, datatype, &shape, self.body.budget)?
            }
            (None, None) => {
                let what = format!(
                    "must specify 'data' field or 'binary_data_size' parameter in request input '{name}'"
                );
                return Err(Error::invalid(what));
            }
        };
        Ok(WireInput { name, datatype, shape, data })
    }

    /// The next `size` bytes behind the JSON.
    fn next(&mut self, name: &str, size: usize) -> Result<Bytes, Error> {
        if self.body.json_length.is_none() {
            return Err(Error::invalid(
                "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when \
                 passing inputs in binary data format",
            ));
        }
        let rest = self.body.bytes.len() - self.at;
        if size > rest {
            let (missing, model) = (size - rest, self.model);
            return Err(Error::invalid(format!(
                "unexpected size for input '{name}', expecting {missing} additional bytes for model '{model}'"
            )));
        }
        let tensor = self.body.bytes.slice(self.at..self.at + size);
        self.at += size;
        Ok(tensor)
    }
}

fn request_parameters<'a>(cursor: &mut Cursor<'a>, request: &mut WireRequest<'a>) -> Result<(), Error> {
    object(cursor, "parameters", |cursor, name| {
        match &*name {
            "priority" => request.priority = unsigned(cursor, "priority")?,
            "timeout" => request.timeout_us = unsigned(cursor, "timeout")?,
            "binary_data_output" => request.is_binary = boolean(cursor, "binary_data_output")?,
            reserved if reserved.starts_with("triton_") => {
                return Err(Error::invalid(
                    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
                ));
            }
            _ => drop(cursor.skip()?),
        }
        Ok(())
    })
}

fn output<'a>(cursor: &mut Cursor<'a>) -> Result<WireOutput<'a>, Error> {
    let mut output = WireOutput::default();
    let mut named = false;
    object(cursor, "outputs", |cursor, name| match &*name {
        "name" => {
            named = true;
            text(cursor, "name").map(|value| output.name = value)
        }
        "parameters" => object(cursor, "parameters", |cursor, name| {
            match &*name {
                "classification" => {
                    let classes = unsigned(cursor, "classification")?;
                    output.classes = usize::try_from(classes).unwrap_or(usize::MAX);
                }
                "binary_data" => output.is_binary = Some(boolean(cursor, "binary_data")?),
                "shared_memory_region" => {
                    return Err(no_shared_memory(&text(cursor, "shared_memory_region")?));
                }
                _ => drop(cursor.skip()?),
            }
            Ok(())
        }),
        _ => cursor.skip().map(drop),
    })?;
    if named {
        return Ok(output);
    }
    Err(Error::invalid("Unable to parse 'name': attempt to access non-existing object member 'name'"))
}

fn no_shared_memory(region: &str) -> Error {
    Error::invalid(format!("Unable to find shared memory region: '{region}'"))
}

fn shape(cursor: &mut Cursor<'_>) -> Result<Shape, Error> {
    let mut shape = Shape::new();
    list(cursor, "shape", |cursor| {
        let dim = unsigned(cursor, "shape")?;
        if shape.len() == DIMS_MAX {
            return Err(Error::invalid(format!("Unable to parse 'shape': more than {DIMS_MAX} dimensions")));
        }
        shape.push(usize::try_from(dim).map_err(|_| mistyped("shape", "unsigned-integer"))?);
        Ok(())
    })?;
    Ok(shape)
}

fn list<'a>(
    cursor: &mut Cursor<'a>,
    member: &str,
    element: impl FnMut(&mut Cursor<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    if cursor.peek() == Some(b'[') {
        return cursor.array(element);
    }
    cursor.skip()?;
    Err(mistyped(member, "array"))
}

fn object<'a>(
    cursor: &mut Cursor<'a>,
    member: &str,
    each: impl FnMut(&mut Cursor<'a>, Cow<'a, str>) -> Result<(), Error>,
) -> Result<(), Error> {
    if cursor.peek() == Some(b'{') {
        return cursor.object(each);
    }
    cursor.skip()?;
    Err(mistyped(member, "object"))
}

fn text<'a>(cursor: &mut Cursor<'a>, member: &str) -> Result<Cow<'a, str>, Error> {
    if cursor.peek() == Some(b'"') {
        return cursor.string();
    }
    cursor.skip()?;
    Err(mistyped(member, "string"))
}

fn boolean(cursor: &mut Cursor<'_>, member: &str) -> Result<bool, Error> {
    if let Some(value) = cursor.boolean() {
        return Ok(value);
    }
    cursor.skip()?;
    Err(mistyped(member, "boolean"))
}

fn unsigned(cursor: &mut Cursor<'_>, member: &str) -> Result<u64, Error> {
    if let Some(b'-' | b'0'..=b'9') = cursor.peek() {
        return cursor.number()?.parse().map_err(|_| mistyped(member, "unsigned-integer"));
    }
    cursor.skip()?;
    Err(mistyped(member, "unsigned-integer"))
}

fn mistyped(member: &str, wanted: &str) -> Error {
    Error::invalid(format!("Unable to parse '{member}': attempt to access JSON non-{wanted} as {wanted}"))
}

/// A body that is the one input of a model and nothing else: batch one, and a shape that the length tells.
///
/// # Errors
/// A model or a length that leaves a choice.
pub(crate) fn raw(
    body: &Bytes,
    model: &ModelEntry,
    budget: &IoBudget,
) -> Result<WireRequest<'static>, Error> {
    let spec = &model.spec;
    let [input] = &*spec.inputs else {
        let (count, name) = (spec.inputs.len(), &spec.name);
        return Err(Error::invalid(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {count} inputs in '{name}' model \
             configuration"
        )));
    };
    let undecided = || {
        let (name, dims, length) = (&input.name, input.shape_text(), body.len());
        Error::invalid(format!("the shape of input '{name}', {dims}, cannot be deduced from {length} bytes"))
    };
    let data = match input.datatype.size() {
        Some(_) => body.clone(),
        None => {
            let length = u32::try_from(body.len()).map_err(|_| undecided())?;
            copy_aligned(budget, &[&length.to_le_bytes()[..], body].concat(), 0)?
        }
    };
    let elements = input.datatype.size().map_or(1, |size| body.len() / size);
    let is_open =
        |position: usize, dim: &Dim| !matches!(dim, Dim::Fixed(_)) && (position > 0 || !model.batches);
    let fixed = |dim: &Dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Symbol(_) | Dim::Any => 1,
    };
    let known = input.dims.iter().map(fixed).try_fold(1_usize, usize::checked_mul).ok_or_else(undecided)?;
    let open = input.dims.iter().enumerate().filter(|(position, dim)| is_open(*position, dim)).count();
    let deduced =
        elements.checked_div(known).filter(|size| size * known == elements).ok_or_else(undecided)?;
    if open > 1 || (open == 0 && deduced != 1) {
        return Err(undecided());
    }
    let dims = input.dims.iter().enumerate();
    let shape =
        dims.map(|(position, dim)| if is_open(position, dim) { deduced } else { fixed(dim) }).collect();
    let name = Cow::Owned(input.name.to_string());
    let inputs = [WireInput { name, datatype: input.datatype, shape, data }].into_iter().collect();
    Ok(WireRequest { inputs, is_binary: true, ..WireRequest::default() })
}
