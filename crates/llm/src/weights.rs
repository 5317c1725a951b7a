//! The weights of a decoder, packed for the products. All that is read is held against the architecture.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use quadrant_kernels::{Encoding, Matrix, MatrixError, Slab, TILE};

use crate::error::Quoted;
use crate::{Architecture, FileError, TensorView, Tensors};

/// A vector of weights, padded to whole tiles.
pub(crate) type Tiled = Vec<[f32; TILE]>;

/// A decoder.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) architecture: Architecture,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tiled,
    /// What makes tokens' scores of the last layer; `None` if that is the embedding.
    pub(crate) head: Option<Matrix>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Tiled,
    pub(crate) queries: Matrix,
    pub(crate) keys: Matrix,
    pub(crate) values: Matrix,
    pub(crate) attention_out: Matrix,
    pub(crate) feed_forward_norm: Tiled,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

impl Decoder {
    /// Packs the weights of a GGUF file.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the architecture says, or an encoding that is not
    /// computed with.
    pub fn of_gguf(architecture: Architecture, tensors: &Tensors<'_>) -> Result<Self, FileError> {
        let Architecture { width, vocabulary, layers, .. } = architecture;
        if let Some(name) = tensors.names().find(|name| name.starts_with("blk.") && !is_known(name)) {
            return Err(FileError::Unsupported {
                what: format!("it has a tensor {}, which is not computed with", Quoted(name)),
                offset: 0,
                instead: "take a model of the Llama family without biases or experts".into(),
            });
        }
        let slab = slab(tensors)?;
        let source = Source { tensors, slab };
        let load = |layer| source.layer(&architecture, layer);
        let layers = (0..layers).map(load).collect::<Result<_, _>>()?;
        let embedding = source.matrix("token_embd.weight", vocabulary, width)?;
        let head = crate::optional(source.matrix("output.weight", vocabulary, width))?;
        Ok(Self { embedding, layers, norm: source.vector("output_norm.weight", width)?, head, architecture })
    }

    /// The same model with its weights in plain floats, so that activations are not quantised either: what
    /// the quantised one is compared with. Takes four to eight times the memory.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn dequantised(&self) -> Result<Self, MatrixError> {
        Ok(Self {
            architecture: self.architecture.clone(),
            embedding: self.embedding.dequantised()?,
            layers: self.layers.iter().map(Layer::dequantised).collect::<Result<_, _>>()?,
            norm: self.norm.clone(),
            head: self.head.as_ref().map(Matrix::dequantised).transpose()?,
        })
    }

    /// What the model is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// What the packed weights take in memory.
    pub fn bytes(&self) -> usize {
        let matrices =
            self.layers.iter().flat_map(Layer::matrices).chain([&self.embedding]).chain(&self.head);
        matrices.map(Matrix::bytes).sum()
    }
}

impl Layer {
    fn dequantised(&self) -> Result<Self, MatrixError> {
        Ok(Self {
            attention_norm: self.attention_norm.clone(),
            queries: self.queries.dequantised()?,
            keys: self.keys.dequantised()?,
            values: self.values.dequantised()?,
            attention_out: self.attention_out.dequantised()?,
            feed_forward_norm: self.feed_forward_norm.clone(),
            gate: self.gate.dequantised()?,
            up: self.up.dequantised()?,
            down: self.down.dequantised()?,
        })
    }

    fn matrices(&self) -> [&Matrix; 7] {
        let Self { queries, keys, values, attention_out, gate, up, down, .. } = self;
        [queries, keys, values, attention_out, gate, up, down]
    }
}

/// Whether a layer's tensor is one of those that it is made of: leaving one out would be another model.
fn is_known(name: &str) -> bool {
    const PARTS: [&str; 9] = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ];
    let part = name.trim_start_matches("blk.").trim_start_matches(|digit: char| digit.is_ascii_digit());
    let part = part.strip_prefix('.').and_then(|part| part.strip_suffix(".weight"));
    // Some files have the angles of positions in every layer; they follow from the metadata.
    part.is_some_and(|part| PARTS.contains(&part)) || name.ends_with(".attn_rot_embd")
}

/// Where weights come from.
pub(crate) struct Source<'a> {
    pub(crate) tensors: &'a Tensors<'a>,
    pub(crate) slab: Arc<Slab>,
}

impl Source<'_> {
    fn layer(&self, architecture: &Architecture, layer: usize) -> Result<Layer, FileError> {
        let Architecture { width, heads, key_heads, head_size, feed_forward, .. } = *architecture;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (queries, keys) = (heads * head_size, key_heads * head_size);
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), width)?,
            queries: self.turned(&name("attn_q"), [queries, width], head_size)?,
            keys: self.turned(&name("attn_k"), [keys, width], head_size)?,
            values: self.matrix(&name("attn_v"), keys, width)?,
            attention_out: self.matrix(&name("attn_output"), width, queries)?,
            feed_forward_norm: self.vector(&name("ffn_norm"), width)?,
            gate: self.matrix(&name("ffn_gate"), feed_forward, width)?,
            up: self.matrix(&name("ffn_up"), feed_forward, width)?,
            down: self.matrix(&name("ffn_down"), width, feed_forward)?,
        })
    }

    pub(crate) fn matrix(&self, name: &str, outputs: usize, inner: usize) -> Result<Matrix, FileError> {
        self.ordered(name, [outputs, inner], |output| output)
    }

    /// A matrix whose results are turned by their position. The file pairs neighbours, the kernels the two
    /// halves of a head.
    fn turned(&self, name: &str, shape: [usize; 2], head_size: usize) -> Result<Matrix, FileError> {
        let half = head_size / 2;
        self.ordered(name, shape, |output| {
            let (head, at) = (output / head_size, output % head_size);
            head * head_size + if at < half { 2 * at } else { 2 * (at - half) + 1 }
        })
    }

    fn ordered(
        &self,
        name: &str,
        shape: [usize; 2],
        row_of: impl Fn(usize) -> usize,
    ) -> Result<Matrix, FileError> {
        let tensor = self.tensor(name, &shape)?;
        Matrix::pack_ordered(&self.slab, tensor.encoding, shape, tensor.bytes, row_of)
            .map_err(|error| malformed(&tensor, &error))
    }

    pub(crate) fn vector(&self, name: &str, size: usize) -> Result<Tiled, FileError> {
        let numbers = floats(&self.tensor(name, &[size])?)?;
        let tile = |numbers: &[f32]| std::array::from_fn(|at| numbers.get(at).copied().unwrap_or(0.0));
        Ok(numbers.chunks(TILE).map(tile).collect())
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, FileError> {
        let tensor = self.tensors.get(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        let what = format!("{tensor:?}: the architecture wants the shape `{shape:?}`");
        Err(FileError::Malformed { what, offset: tensor.offset })
    }
}

/// Room for every matrix of a file.
pub(crate) fn slab(tensors: &Tensors<'_>) -> Result<Arc<Slab>, FileError> {
    let mut bytes = 0;
    for name in tensors.names() {
        // One that cannot be computed with is only an error once it is asked for.
        let Ok(tensor) = tensors.get(name) else { continue };
        if let [outputs, inner] = *tensor.shape {
            bytes = Matrix::packed_bytes(tensor.encoding, outputs, inner).saturating_add(bytes);
        }
    }
    Slab::new(bytes).map_err(|error| FileError::Unsupported {
        what: format!("its weights take `{bytes}` bytes of memory: {error}"),
        offset: 0,
        instead: "take a smaller model, or one with fewer bits per weight".into(),
    })
}

/// The numbers of a tensor of floats.
pub(crate) fn floats(tensor: &TensorView<'_>) -> Result<Vec<f32>, FileError> {
    let halves = || tensor.bytes.as_chunks::<2>().0.iter();
    let singles = || tensor.bytes.as_chunks::<4>().0.iter();
    Ok(match tensor.encoding {
        Encoding::F32 => singles().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Encoding::F16 => halves().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Encoding::Bf16 => halves().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q8_0 => {
            return Err(malformed(tensor, &"a vector is not quantised"));
        }
    })
}

fn malformed(tensor: &TensorView<'_>, error: &dyn fmt::Display) -> FileError {
    FileError::Malformed { what: format!("{tensor:?}: {error}"), offset: tensor.offset }
}
