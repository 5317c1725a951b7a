//! An inference request and its answer as both protocols have them in common.
//!
//! Names are borrowed from the request's buffer; tensors are ranges of it, or buffers of their own if they
//! came as text. Nothing here was checked against a model yet.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use quadrant_node::ModelEntry;
use quadrant_types::{DataType, Error, RequestId, Shape, Tensor, Timing};
use smallvec::SmallVec;

/// Inputs or outputs that a request may name; every model has fewer.
pub(crate) const TENSORS_MAX: usize = 1_024;

/// Dimensions that a tensor may have.
pub(crate) const DIMS_MAX: usize = 64;

/// What a client asks of a model.
#[derive(Debug, Default)]
pub(crate) struct WireRequest<'a> {
    /// The client's name for the request; empty if it gave none.
    pub(crate) id: Cow<'a, str>,
    /// The inputs, in the client's order.
    pub(crate) inputs: SmallVec<[WireInput<'a>; 4]>,
    /// The wanted outputs; empty means all.
    pub(crate) outputs: SmallVec<[WireOutput<'a>; 4]>,
    /// How outputs travel that do not say it themselves.
    pub(crate) is_binary: bool,
    /// Triton's priority: 1 is the highest, 0 stands for the default.
    pub(crate) priority: u64,
    /// Triton's timeout in microseconds; 0 stands for none.
    pub(crate) timeout_us: u64,
}

/// One input.
#[derive(Debug)]
pub(crate) struct WireInput<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) datatype: DataType,
    pub(crate) shape: Shape,
    pub(crate) data: Bytes,
}

/// One wanted output.
#[derive(Debug, Default)]
pub(crate) struct WireOutput<'a> {
    pub(crate) name: Cow<'a, str>,
    /// The number of best classes to answer with instead of the tensor; 0 stands for the tensor.
    pub(crate) classes: usize,
    /// Whether it travels as bytes; `None` leaves it to the request.
    pub(crate) is_binary: Option<bool>,
}

/// An answer before it is written down.
#[derive(Debug)]
pub(crate) struct WireAnswer {
    pub(crate) model: Arc<ModelEntry>,
    /// The client's name for the request.
    pub(crate) id: String,
    /// Ours.
    pub(crate) request: RequestId,
    pub(crate) outputs: Vec<AnsweredOutput>,
    pub(crate) timing: Timing,
}

/// One output of an answer.
#[derive(Debug)]
pub(crate) struct AnsweredOutput {
    /// Which of the model's outputs it is.
    pub(crate) index: usize,
    pub(crate) tensor: Tensor,
    pub(crate) is_binary: bool,
}

impl WireAnswer {
    /// The name of an output.
    pub(crate) fn name(&self, output: &AnsweredOutput) -> &str {
        &self.model.spec.outputs[output.index].name
    }
}

/// The type of this name.
///
/// # Errors
/// No type has this name.
pub(crate) fn datatype(input: &str, name: &str) -> Result<DataType, Error> {
    name.parse().map_err(|()| {
        Error::invalid(format!("inference input '{input}' data-type is '{name}', which is not a data type"))
    })
}

/// The number of elements of a client's shape and their bytes, checked against overflow. The bytes of
/// strings are not known beforehand.
///
/// # Errors
/// The product does not fit a machine word.
pub(crate) fn sizes(
    input: &str,
    datatype: DataType,
    shape: &[usize],
) -> Result<(usize, Option<usize>), Error> {
    let too_large = || {
        let dims: Vec<String> = shape.iter().take(32).map(ToString::to_string).collect();
        Error::invalid(format!("shape [{}] of input '{input}' has too many elements", dims.join(",")))
    };
    let elements = quadrant_types::element_count(shape).ok_or_else(too_large)?;
    let bytes = match datatype.size() {
        Some(size) => Some(elements.checked_mul(size).ok_or_else(too_large)?),
        None => None,
    };
    Ok((elements, bytes))
}

/// The error for a request that names more than [`TENSORS_MAX`] tensors.
pub(crate) fn too_many(what: &str) -> Error {
    Error::invalid(format!("a request has at most {TENSORS_MAX} {what}"))
}
