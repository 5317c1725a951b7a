//! What a model takes and gives, as read from its graph or its configuration.
//!
//! A [`ModelSpec`] answers one question for everybody: do these inputs fit? It knows symbols: two
//! dimensions with one symbol must be equal within a request, which turns a failure deep inside an
//! engine into a clear error before anything is queued.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{DataType, Shape};

/// The name of a dimension that is not fixed, such as `batch` or `sequence`.
pub type Symbol = Arc<str>;

/// One dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Exactly this many.
    Fixed(usize),
    /// Any number, the same everywhere the symbol stands.
    Symbol(Symbol),
    /// Any number.
    Any,
}

impl fmt::Display for Dim {
    /// As the protocols print it: a number, or -1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Symbol(_) | Self::Any => f.write_str("-1"),
        }
    }
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Its element type.
    pub datatype: DataType,
    /// Its dimensions, the batch dimension included.
    pub dims: Vec<Dim>,
}

impl TensorSpec {
    /// The dimensions as `[-1,3,48,-1]`.
    pub fn shape_text(&self) -> String {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        format!("[{}]", dims.join(","))
    }

    /// Whether `shape` fits, given what the symbols met so far stand for. New symbols are bound.
    pub fn accepts(&self, shape: &[usize], bound: &mut BTreeMap<Symbol, usize>) -> bool {
        self.dims.len() == shape.len()
            && self.dims.iter().zip(shape).all(|(dim, size)| match dim {
                Dim::Fixed(fixed) => fixed == size,
                Dim::Symbol(symbol) => {
                    bound.get(symbol).copied().is_none_or(|known| known == *size) && {
                        bound.insert(Arc::clone(symbol), *size);
                        true
                    }
                }
                Dim::Any => true,
            })
    }
}

/// What a model is called, takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name it is served under.
    pub name: Arc<str>,
    /// Its version, a positive number.
    pub version: u64,
    /// The platform string that clients see, such as `onnxruntime_onnx`.
    pub platform: Arc<str>,
    /// Its inputs, in the engine's order.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs, in the engine's order.
    pub outputs: Vec<TensorSpec>,
    /// Names of the classes along the last dimension of an output, for the classification extension.
    pub labels: BTreeMap<Arc<str>, Arc<[String]>>,
}

impl ModelSpec {
    /// Where the input of this name is.
    pub fn input_index(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|input| &*input.name == name)
    }

    /// Where the output of this name is.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|output| &*output.name == name)
    }

    /// Whether the graph permits batching at all: every input and every output begins with one and the
    /// same symbol. Whether the rows are really independent is for a probe to show.
    pub fn shares_first_symbol(&self) -> bool {
        let first = |tensor: &TensorSpec| match tensor.dims.first() {
            Some(Dim::Symbol(symbol)) => Some(Arc::clone(symbol)),
            Some(Dim::Fixed(_) | Dim::Any) | None => None,
        };
        let Some(symbol) = self.inputs.first().and_then(first) else { return false };
        self.inputs.iter().chain(&self.outputs).all(|tensor| first(tensor).as_ref() == Some(&symbol))
    }

    /// The first input whose shape does not fit, or that contradicts an earlier one about a symbol.
    /// `shapes` are in the order of [`ModelSpec::inputs`].
    pub fn first_misfit<'a>(&self, shapes: impl IntoIterator<Item = &'a Shape>) -> Option<usize> {
        let mut bound = BTreeMap::new();
        self.inputs.iter().zip(shapes).position(|(input, shape)| !input.accepts(shape, &mut bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dims: &[Dim]) -> TensorSpec {
        TensorSpec { name: name.into(), datatype: DataType::Fp32, dims: dims.to_vec() }
    }

    fn model(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> ModelSpec {
        ModelSpec {
            name: "m".into(),
            version: 1,
            platform: "emulated".into(),
            inputs,
            outputs,
            labels: BTreeMap::new(),
        }
    }

    fn symbol(name: &str) -> Dim {
        Dim::Symbol(name.into())
    }

    #[test]
    fn a_symbol_means_the_same_number_everywhere() {
        let both = [symbol("b"), symbol("s")];
        let spec = model(vec![tensor("ids", &both), tensor("mask", &both)], vec![]);
        let shape = |dims: &[usize]| Shape::from_slice(dims);
        assert_eq!(spec.first_misfit(&[shape(&[2, 7]), shape(&[2, 7])]), None);
        assert_eq!(spec.first_misfit(&[shape(&[2, 7]), shape(&[2, 8])]), Some(1));
        assert_eq!(spec.first_misfit(&[shape(&[2]), shape(&[2, 8])]), Some(0));
    }

    #[test]
    fn batching_needs_one_first_symbol_everywhere() {
        let batch = || tensor("t", &[symbol("b"), Dim::Fixed(3)]);
        let time = || tensor("h", &[Dim::Fixed(1), Dim::Fixed(128)]);
        assert!(model(vec![batch()], vec![batch()]).shares_first_symbol());
        assert!(!model(vec![batch(), time()], vec![batch()]).shares_first_symbol());
        assert!(!model(vec![batch()], vec![tensor("o", &[symbol("c")])]).shares_first_symbol());
        assert!(!model(vec![tensor("o", &[Dim::Any])], vec![]).shares_first_symbol());
        assert!(!model(vec![], vec![]).shares_first_symbol());
    }
}
