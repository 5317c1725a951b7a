//! Reads from an ONNX file what the model takes and gives, without its weights.
//!
//! The engines cannot be asked: one narrows INT64 to INT32, the other must first build a session. The
//! file is read once from front to back through a small window; what the subset in `onnx_header.proto`
//! does not name, weights above all, is skipped by seeking. Files come from strangers, so every length in
//! them is a claim: memory is bounded by what a sane graph needs, and errors are written for a person.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use quadrant_types::{DataType, Dim, TensorSpec};

use crate::EngineError;
use crate::file_window::FileWindow;

#[expect(unreachable_pub, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use proto::type_proto::Value as Type;

/// More dimensions than any engine computes with.
const RANK_MAX: usize = 64;
/// What may be decoded of a file: names, types and field numbers of about a hundred thousand nodes.
/// The largest published models have a fraction of that.
const DECODED_BYTES_MAX: usize = 8 << 20;

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxHeader {
    /// The inputs that a request must bring, in the file's order.
    pub inputs: Vec<TensorSpec>,
    /// The outputs, in the file's order.
    pub outputs: Vec<TensorSpec>,
    /// For each output whether the file gives its dimensions. Some exporters leave them out, or declare a
    /// scalar where they do not know better.
    pub outputs_shaped: Vec<bool>,
    /// Version of the standard operator set, 0 if the file does not say.
    pub opset: i64,
    /// The operators of the graph and of those within it, those of other domains as `domain::name`.
    pub operators: BTreeSet<String>,
    /// Bytes of the file and of the weights it keeps in other files.
    pub weights_bytes: u64,
}

impl OnnxHeader {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`EngineError::Load`] with what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let load = |error: String| EngineError::Load(format!("`{}`: {error}", path.display()));
        let file = File::open(path).map_err(|error| load(format!("cannot be opened: {error}")))?;
        let metadata = file.metadata().map_err(|error| load(format!("cannot be read: {error}")))?;
        if !metadata.is_file() {
            return Err(load("is not a file".into()));
        }
        if metadata.len() == 0 {
            return Err(load("is empty".into()));
        }
        let mut window = FileWindow::new(file, metadata.len(), DECODED_BYTES_MAX);
        let model = proto::ModelProto::decode(&mut window);
        if let Some(failure) = window.failure() {
            return Err(load(failure.to_string()));
        }
        let model = model.map_err(|error| load(format!("is not a complete ONNX model: {error}")))?;
        Self::from_model(&model, metadata.len()).map_err(load)
    }

    fn from_model(model: &proto::ModelProto, file_bytes: u64) -> Result<Self, String> {
        let graph = model.graph.as_ref().filter(|_| model.ir_version > 0 || !model.opset_import.is_empty());
        let graph = graph.ok_or("is not an ONNX model: it has no graph or no version")?;
        let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
        let initializers = graph.initializer.iter().chain(sparse);
        let constants: BTreeSet<&[u8]> = initializers.clone().map(|tensor| &*tensor.name).collect();
        let inputs = graph.input.iter().filter(|input| !constants.contains(&*input.name));
        let inputs = inputs.map(input_spec).collect::<Result<Vec<_>, _>>()?;
        let (outputs, outputs_shaped): (Vec<_>, Vec<_>) =
            graph.output.iter().map(output_spec).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        if outputs.is_empty() {
            return Err("the model has no outputs".into());
        }
        unique("input", &inputs)?;
        unique("output", &outputs)?;
        let external = initializers.flat_map(|tensor| &tensor.external_data);
        let external = external.filter(|entry| entry.key == b"length");
        let external = external.filter_map(|entry| text(&entry.value).ok()?.parse::<u64>().ok());
        let opset = model.opset_import.iter().find(|opset| is_standard(&opset.domain));
        let mut operators = BTreeSet::new();
        collect_operators(&graph.node, &mut operators)?;
        Ok(Self {
            inputs,
            outputs,
            outputs_shaped,
            opset: opset.map_or(0, |opset| opset.version),
            operators,
            weights_bytes: external.fold(file_bytes, u64::saturating_add),
        })
    }
}

fn is_standard(domain: &[u8]) -> bool {
    domain.is_empty() || domain == b"ai.onnx"
}

/// Recurses only as deep as the decoder let the file nest, about thirty graphs.
fn collect_operators(nodes: &[proto::NodeProto], operators: &mut BTreeSet<String>) -> Result<(), String> {
    for node in nodes {
        operators.insert(operator(node)?);
        for attribute in &node.attribute {
            for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                collect_operators(&graph.node, operators)?;
            }
        }
    }
    Ok(())
}

fn operator(node: &proto::NodeProto) -> Result<String, String> {
    let operator = text(&node.op_type)?;
    Ok(if is_standard(&node.domain) {
        operator.into()
    } else {
        format!("{}::{operator}", text(&node.domain)?)
    })
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    let lossy = || String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    std::str::from_utf8(bytes).map_err(|_| format!("the name `{}` is not valid UTF-8", lossy()))
}

fn input_spec(value: &proto::ValueInfoProto) -> Result<TensorSpec, String> {
    match spec("input", value)? {
        (spec, true) => Ok(spec),
        (spec, false) => Err(format!(
            "input `{}` has no shape; export the model with shapes, dimensions may be symbolic",
            spec.name
        )),
    }
}

fn output_spec(value: &proto::ValueInfoProto) -> Result<(TensorSpec, bool), String> {
    let (mut spec, shaped) = spec("output", value)?;
    let given = !spec.dims.is_empty();
    if !shaped {
        // The rank is unknown, which a spec cannot say; nobody checks an answer against it.
        spec.dims = vec![Dim::Any];
    }
    Ok((spec, given))
}

/// The spec of an input or output, and whether the file gives its shape.
fn spec(kind: &str, value: &proto::ValueInfoProto) -> Result<(TensorSpec, bool), String> {
    let name = text(&value.name)?;
    if name.is_empty() {
        return Err(format!("an {kind} has no name"));
    }
    let other = |what| Err(format!("{kind} `{name}` is a {what}; only tensors can be served"));
    let tensor = match value.r#type.as_ref().and_then(|proto| proto.value.as_ref()) {
        Some(Type::Tensor(tensor)) => tensor,
        Some(Type::Sequence(_)) => return other("sequence"),
        Some(Type::Map(_)) => return other("map"),
        Some(Type::SparseTensor(_)) => return other("sparse tensor"),
        Some(Type::Optional(_)) => return other("optional value"),
        None => return Err(format!("{kind} `{name}` has no type")),
    };
    let datatype = datatype(tensor.elem_type).ok_or_else(|| {
        let name_of = element_name(tensor.elem_type);
        format!("{kind} `{name}` has the element type `{name_of}`, which the protocol cannot carry")
    })?;
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    if dims.len() > RANK_MAX {
        return Err(format!("{kind} `{name}` has `{}` dimensions; `{RANK_MAX}` are the limit", dims.len()));
    }
    let dims = dims.iter().map(dimension).collect::<Result<_, _>>();
    let dims = dims.map_err(|error| format!("{kind} `{name}` {error}"))?;
    Ok((TensorSpec { name: Arc::from(name), datatype, dims }, tensor.shape.is_some()))
}

fn dimension(dim: &proto::tensor_shape_proto::Dimension) -> Result<Dim, String> {
    use proto::tensor_shape_proto::dimension::Value;
    match &dim.value {
        // Some exporters write -1 where they mean any.
        None | Some(Value::DimValue(-1)) => Ok(Dim::Any),
        Some(Value::DimParam(symbol)) if symbol.is_empty() => Ok(Dim::Any),
        Some(Value::DimParam(symbol)) => Ok(Dim::Symbol(Arc::from(text(symbol)?))),
        Some(Value::DimValue(size)) => usize::try_from(*size)
            .map(Dim::Fixed)
            .map_err(|_| format!("has the impossible dimension `{size}`")),
    }
}

fn unique(kind: &str, tensors: &[TensorSpec]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
        Some(twice) => Err(format!("two {kind}s are called `{}`", twice.name)),
        None => Ok(()),
    }
}

/// The data type of ONNX's number, if the protocol has it.
pub(crate) const fn datatype(element: i32) -> Option<DataType> {
    Some(match element {
        1 => DataType::Fp32,
        2 => DataType::Uint8,
        3 => DataType::Int8,
        4 => DataType::Uint16,
        5 => DataType::Int16,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        10 => DataType::Fp16,
        11 => DataType::Fp64,
        12 => DataType::Uint32,
        13 => DataType::Uint64,
        16 => DataType::Bf16,
        _ => return None,
    })
}

/// ONNX's name for an element type that the protocol lacks.
fn element_name(element: i32) -> String {
    let name = match element {
        0 => "UNDEFINED",
        14 => "COMPLEX64",
        15 => "COMPLEX128",
        17 => "FLOAT8E4M3FN",
        18 => "FLOAT8E4M3FNUZ",
        19 => "FLOAT8E5M2",
        20 => "FLOAT8E5M2FNUZ",
        21 => "UINT4",
        22 => "INT4",
        23 => "FLOAT4E2M1",
        other => return other.to_string(),
    };
    name.into()
}
