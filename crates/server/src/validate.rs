//! Does a request fit its model? What does not is said in Triton's words, which clients have tests for.
//!
//! The order of the checks is Triton's, too: outputs, the number of inputs, their names, types, batch size,
//! shapes, and at last the bytes. Everything is checked before anything is queued.

use std::fmt::Write as _;

use quadrant_node::ModelEntry;
use quadrant_types::{DataType, Dim, Error, ModelSpec, Symbol, Tensor, TensorSpec};
use smallvec::SmallVec;

use crate::wire::{WireInput, WireOutput, WireRequest, sizes};

/// How one output is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutputPlan {
    /// Which of the model's outputs it is.
    pub(crate) index: usize,
    /// The number of best classes; 0 stands for the tensor itself.
    pub(crate) classes: usize,
    pub(crate) is_binary: bool,
}

pub(crate) type OutputPlans = SmallVec<[OutputPlan; 4]>;

/// What Triton says when a shape does not fit a model that batches.
const BATCH_NOTE: &str = " NOTE: Setting a non-zero max_batch_size in the model config requires a batch \
    dimension to be prepended to each input shape. If you want to specify the full shape including the batch \
    dim in your input dims config, try setting max_batch_size to zero. See the model configuration docs for \
    more info on max_batch_size.";

/// Names repeated in an error before the rest is left out.
const NAMES_SHOWN_MAX: usize = 16;

/// Which outputs are wanted, and how.
///
/// # Errors
/// An output that the model does not have, or that cannot be answered in the wanted way.
pub(crate) fn outputs(spec: &ModelSpec, request: &WireRequest<'_>) -> Result<OutputPlans, Error> {
    let mut plans = OutputPlans::new();
    if request.outputs.is_empty() {
        let plan = |index| OutputPlan { index, classes: 0, is_binary: request.is_binary };
        plans.extend((0..spec.outputs.len()).map(plan));
    }
    for WireOutput { name, classes, is_binary } in &request.outputs {
        let unknown =
            || Error::invalid(format!("unexpected inference output '{name}' for model '{}'", spec.name));
        let index = spec.output_index(name).ok_or_else(unknown)?;
        if plans.iter().any(|plan| plan.index == index) {
            continue;
        }
        plans.push(OutputPlan {
            index,
            classes: *classes,
            is_binary: is_binary.unwrap_or(request.is_binary),
        });
    }
    for plan in &plans {
        let TensorSpec { name, datatype, .. } = &spec.outputs[plan.index];
        let is_number = !matches!(datatype, DataType::Bytes | DataType::Bool);
        if plan.classes > 0 && !is_number {
            return Err(Error::invalid(format!(
                "classification of output '{name}' needs numbers, not {datatype}"
            )));
        }
        let is_half = matches!(datatype, DataType::Fp16 | DataType::Bf16);
        if is_half && plan.classes == 0 && !plan.is_binary {
            return Err(Error::invalid(format!(
                "sending {datatype} data via JSON is not supported. Please use the binary data format for output \
                 '{name}'"
            )));
        }
    }
    Ok(plans)
}

/// The inputs as tensors in the model's order.
///
/// # Errors
/// The first thing that does not fit.
pub(crate) fn inputs(
    model: &ModelEntry,
    id: &str,
    inputs: SmallVec<[WireInput<'_>; 4]>,
) -> Result<SmallVec<[Tensor; 4]>, Error> {
    let spec = &model.spec;
    if inputs.len() != spec.inputs.len() {
        return Err(wrong_count(spec, id, &inputs));
    }
    for (position, input) in inputs.iter().enumerate() {
        let Some(index) = spec.input_index(&input.name) else {
            return Err(Error::invalid(format!(
                "unexpected inference input '{}' for model '{}'",
                input.name, spec.name
            )));
        };
        if inputs[..position].iter().any(|other| other.name == input.name) {
            return Err(Error::invalid(format!("input '{}' already exists in request", input.name)));
        }
        let expected = spec.inputs[index].datatype;
        if input.datatype != expected {
            return Err(prefixed(
                id,
                &format!(
                    "inference input '{}' data-type is '{}', but model '{}' expects '{expected}'",
                    input.name, input.datatype, spec.name
                ),
            ));
        }
    }
    if model.batches {
        batch_size(model, id, &inputs)?;
    }
    let mut tensors = order(spec, inputs);
    shapes(model, id, &tensors)?;
    for (tensor, expected) in tensors.iter_mut().zip(&spec.inputs) {
        byte_size(spec, id, expected, tensor)?;
    }
    Ok(tensors)
}

/// In the model's order. The names were checked, so every input has its place and every place its input.
fn order(spec: &ModelSpec, mut inputs: SmallVec<[WireInput<'_>; 4]>) -> SmallVec<[Tensor; 4]> {
    inputs.sort_by_key(|input| spec.input_index(&input.name));
    let tensor = |WireInput { datatype, shape, data, .. }| Tensor { datatype, shape, data };
    inputs.into_iter().map(tensor).collect()
}

fn wrong_count(spec: &ModelSpec, id: &str, inputs: &[WireInput<'_>]) -> Error {
    let got = list(inputs.iter().map(|input| &*input.name));
    let is_missing = |input: &&TensorSpec| inputs.iter().take(1_000).all(|given| given.name != *input.name);
    let missing = list(spec.inputs.iter().filter(is_missing).map(|input| &*input.name));
    let (expected, given, model) = (spec.inputs.len(), inputs.len(), &spec.name);
    prefixed(
        id,
        &format!(
            "expected {expected} inputs but got {given} inputs for model '{model}'. Got input(s) [{got}], but missing \
             required input(s) [{missing}]. Please provide all required input(s)."
        ),
    )
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (position, name) in names.enumerate() {
        if position == NAMES_SHOWN_MAX {
            text.push_str(",...");
            break;
        }
        let separator = if position == 0 { "" } else { "," };
        write!(text, "{separator}'{}'", &name[..name.floor_char_boundary(64)])
            .expect("a string takes any text");
    }
    text
}

/// Every input has the same number of rows, at least one and not too many.
fn batch_size(model: &ModelEntry, id: &str, inputs: &[WireInput<'_>]) -> Result<(), Error> {
    let name = &model.spec.name;
    let mut rows = None;
    for input in inputs {
        let Some(first) = input.shape.first().copied() else {
            let what = format!(
                "input '{}' has no shape but model requires batch dimension for '{name}'",
                input.name
            );
            return Err(prefixed(id, &what));
        };
        if *rows.get_or_insert(first) != first {
            let what = format!("input '{}' batch size does not match other inputs for '{name}'", input.name);
            return Err(prefixed(id, &what));
        }
    }
    match rows {
        Some(0) => Err(prefixed(id, &format!("inference request batch-size must be >= 1 for '{name}'"))),
        Some(rows) if rows > model.rows_max as usize => {
            let rows_max = model.rows_max;
            Err(prefixed(id, &format!("inference request batch-size must be <= {rows_max} for '{name}'")))
        }
        _ => Ok(()),
    }
}

/// Every shape fits, and what one symbol stands for is the same everywhere.
fn shapes(model: &ModelEntry, id: &str, tensors: &[Tensor]) -> Result<(), Error> {
    let mut bound: SmallVec<[(&Symbol, usize); 4]> = SmallVec::new();
    for (expected, tensor) in model.spec.inputs.iter().zip(tensors) {
        let misfit = |contradiction: Option<(&Symbol, usize)>| {
            let dims: Vec<String> = tensor.shape.iter().take(32).map(ToString::to_string).collect();
            let mut what = format!(
                "unexpected shape for input '{}' for model '{}'. Expected {}, got [{}].",
                expected.name,
                model.spec.name,
                expected.shape_text(),
                dims.join(",")
            );
            if let Some((symbol, known)) = contradiction {
                write!(what, " Dimension '{symbol}' is {known} in another place.")
                    .expect("a string takes any text");
            }
            if model.batches {
                what.push_str(BATCH_NOTE);
            }
            prefixed(id, &what)
        };
        if expected.dims.len() != tensor.shape.len() {
            return Err(misfit(None));
        }
        for (dim, size) in expected.dims.iter().zip(&tensor.shape) {
            match dim {
                Dim::Any => (),
                Dim::Fixed(fixed) if fixed == size => (),
                Dim::Fixed(_) => return Err(misfit(None)),
                Dim::Symbol(symbol) => match bound.iter().find(|(known, _)| *known == symbol) {
                    Some((_, known)) if known == size => (),
                    Some(known) => return Err(misfit(Some(*known))),
                    None => bound.push((symbol, *size)),
                },
            }
        }
    }
    Ok(())
}

/// The bytes are as many as the shape says; for strings, each has its length in front.
fn byte_size(spec: &ModelSpec, id: &str, expected: &TensorSpec, tensor: &Tensor) -> Result<(), Error> {
    let (name, model) = (&expected.name, &spec.name);
    let (elements, bytes) = sizes(name, tensor.datatype, &tensor.shape)?;
    let Some(bytes) = bytes else {
        let mut strings = 0_usize;
        for string in tensor.strings() {
            if string.is_none() {
                let what =
                    format!("incorrect number of bytes: a string of input '{name}' ends early for '{model}'");
                return Err(prefixed(id, &what));
            }
            strings += 1;
        }
        if strings != elements {
            let what = format!("expected {elements} strings for inference input '{name}', got {strings}");
            return Err(prefixed(id, &what));
        }
        return Ok(());
    };
    if bytes != tensor.data.len() {
        let got = tensor.data.len();
        let what = format!(
            "input byte size mismatch for input '{name}' for model '{model}'. Expected {bytes}, got {got}"
        );
        return Err(prefixed(id, &what));
    }
    Ok(())
}

/// Triton names the request before most of what it says about it.
fn prefixed(id: &str, what: &str) -> Error {
    let id = if id.is_empty() { "<id_unknown>" } else { &id[..id.floor_char_boundary(128)] };
    Error::invalid(format!("[request id: {id}] {what}"))
}
