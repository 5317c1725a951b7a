//! What a decoder of the Llama family is, as data: Llama 2 and 3, Mistral, SmolLM and what else calls itself
//! `llama` differ in these numbers only.

use crate::{FileError, Metadata, Tensors, optional};

/// The architecture's name in a GGUF file, and what its keys begin with.
const NAME: &str = "llama";
/// The cosines' base where the file has none (Su et al. 2021).
const FREQUENCY_BASE: f32 = 10_000.0;
/// What a head of keys may be shared by at most: what attention has room for.
const SHARED_BY_MAX: usize = 16;
/// Longer heads than any known model's.
const HEAD_SIZE_MAX: usize = 512;

/// The numbers that describe a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Layers.
    pub layers: usize,
    /// Numbers that a token is between layers.
    pub width: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each shared by as many heads of queries.
    pub key_heads: usize,
    /// Dimensions of a head.
    pub head_size: usize,
    /// Numbers between the two halves of the feed-forward layer.
    pub feed_forward: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Tokens of the longest sequence that the model was made for.
    pub context: usize,
    /// What is added to a mean square before its root is taken.
    pub epsilon: f32,
    /// Radians per position by which each pair of a head's dimensions is turned.
    pub frequencies: Vec<f32>,
}

impl Architecture {
    /// What a GGUF file says of its model.
    ///
    /// # Errors
    /// If it is of another architecture, something is missing, or the numbers do not go together.
    pub fn of_gguf(metadata: &Metadata<'_>, tensors: &Tensors<'_>) -> Result<Self, FileError> {
        let name = metadata.str("general.architecture")?;
        if name != NAME {
            return Err(unsupported(format!("the model is a `{}`", name.escape_debug())));
        }
        let size = |key: &str| metadata.u32(&format!("{NAME}.{key}")).map(|number| number as usize);
        let (width, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let per_head = width.checked_div(heads).unwrap_or(0);
        let embedding = tensors.get("token_embd.weight")?;
        let architecture = Self {
            layers: size("block_count")?,
            width,
            heads,
            key_heads: optional(size("attention.head_count_kv"))?.unwrap_or(heads),
            head_size: optional(size("attention.key_length"))?.unwrap_or(per_head),
            feed_forward: size("feed_forward_length")?,
            vocabulary: embedding.shape.first().copied().unwrap_or(0),
            context: size("context_length")?,
            epsilon: metadata.f32(&format!("{NAME}.attention.layer_norm_rms_epsilon"))?,
            frequencies: Vec::new(),
        };
        architecture.check()?;
        let frequencies = architecture.gguf_frequencies(metadata, tensors)?;
        Ok(Self { frequencies, ..architecture })
    }

    /// Query heads per head of keys.
    pub fn shared_by(&self) -> usize {
        self.heads / self.key_heads
    }

    fn check(&self) -> Result<(), FileError> {
        let Self { layers, heads, key_heads, head_size, .. } = *self;
        let zero = [layers, self.width, heads, key_heads, self.feed_forward, self.context].contains(&0);
        if self.epsilon.is_nan() || self.epsilon < 0.0 {
            return Err(unsupported(format!("its norms add `{}` to a mean square", self.epsilon)));
        }
        if zero || !heads.is_multiple_of(key_heads.max(1)) || heads / key_heads.max(1) > SHARED_BY_MAX {
            return Err(unsupported(format!(
                "it has `{layers}` layers, and `{heads}` heads over `{key_heads}` of keys, of which each may \
                 be shared by `1` to `{SHARED_BY_MAX}`"
            )));
        }
        if head_size == 0 || !head_size.is_multiple_of(32) || head_size > HEAD_SIZE_MAX {
            return Err(unsupported(format!(
                "its heads have `{head_size}` dimensions, and multiples of `32` up to `{HEAD_SIZE_MAX}` are \
                 computed with"
            )));
        }
        Ok(())
    }

    /// By the base, and for Llama 3 each divided by a factor that the file has.
    fn gguf_frequencies(
        &self,
        metadata: &Metadata<'_>,
        tensors: &Tensors<'_>,
    ) -> Result<Vec<f32>, FileError> {
        let key = |name: &str| format!("{NAME}.rope.{name}");
        let turned =
            optional(metadata.u32(&key("dimension_count")))?.map_or(self.head_size, |count| count as usize);
        if turned != self.head_size {
            return Err(unsupported(format!(
                "`{turned}` of the `{}` dimensions of a head are turned, and all of them are computed with",
                self.head_size
            )));
        }
        let has_factor = metadata.get(&key("scaling.factor")).is_some();
        let default = if has_factor { "linear" } else { "none" };
        let scaling = optional(metadata.str(&key("scaling.type")))?.unwrap_or(default);
        let factor = match scaling {
            "none" => 1.0,
            "linear" => metadata.f32(&key("scaling.factor"))?,
            other => {
                let other = other.escape_debug();
                return Err(unsupported(format!(
                    "its positions are scaled by `{other}`, and only `linear` is known"
                )));
            }
        };
        let base = optional(metadata.f32(&key("freq_base")))?.unwrap_or(FREQUENCY_BASE);
        let pairs = self.head_size / 2;
        let divisors = match optional(tensors.get("rope_freqs.weight"))? {
            Some(tensor) if tensor.shape == [pairs] => crate::weights::floats(&tensor)?,
            Some(tensor) => {
                return Err(unsupported(format!("{tensor:?} does not have `{pairs}` numbers")));
            }
            None => vec![1.0; pairs],
        };
        let frequency = |(pair, divisor): (usize, &f32)| {
            let exponent = -2.0 * pair as f64 / self.head_size as f64;
            (f64::from(base).powf(exponent) / f64::from(*divisor) / f64::from(factor)) as f32
        };
        let frequencies: Vec<f32> = divisors.iter().enumerate().map(frequency).collect();
        if !frequencies.iter().all(|frequency| frequency.is_finite()) {
            return Err(unsupported("its positions turn by angles that are no numbers".into()));
        }
        Ok(frequencies)
    }
}

fn unsupported(what: String) -> FileError {
    let instead = "take a model of the Llama family (Llama 2 and 3, Mistral, SmolLM)".into();
    FileError::Unsupported { what, offset: 0, instead }
}
