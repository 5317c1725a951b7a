//! What an encoder's files say beside its weights: how large it is, and how a text's tokens become one
//! vector.

use std::collections::BTreeMap;

use quadrant_kernels::TILE;
use serde::Deserialize;
use serde_json::Value;

use crate::FileError;

/// What a file of tensors does not say of its model, and the `config.json` beside it does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EncoderConfig {
    /// Always `bert`.
    pub model_type: String,
    /// Layers.
    #[serde(rename = "num_hidden_layers")]
    pub layers: usize,
    /// Numbers that a token is between layers.
    #[serde(rename = "hidden_size")]
    pub width: usize,
    /// Heads.
    #[serde(rename = "num_attention_heads")]
    pub heads: usize,
    /// Numbers between the two halves of the feed-forward layer.
    #[serde(rename = "intermediate_size")]
    pub feed_forward: usize,
    /// Tokens that there are.
    #[serde(rename = "vocab_size")]
    pub vocabulary: usize,
    /// Tokens of the longest text.
    #[serde(rename = "max_position_embeddings")]
    pub context: usize,
    /// What is added to a variance before its root is taken.
    #[serde(rename = "layer_norm_eps")]
    pub epsilon: f32,
    /// Always `gelu`.
    #[serde(rename = "hidden_act")]
    pub activation: String,
    /// Always `absolute`, if it is said.
    #[serde(rename = "position_embedding_type", default)]
    pub positions: Option<String>,
}

/// How a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first one, which stands for all.
    First,
}

impl Pooling {
    /// What `1_Pooling/config.json` of `sentence-transformers` says.
    ///
    /// # Errors
    /// Another way than these, or what is wrong with the file.
    pub fn of_json(json: &[u8]) -> Result<Self, String> {
        let modes: BTreeMap<String, Value> =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let is_mode = |(name, on): &(&String, &Value)| name.starts_with("pooling_mode_") && **on == true;
        let wanted: Vec<&str> = modes.iter().filter(is_mode).map(|(name, _)| name.as_str()).collect();
        match *wanted {
            ["pooling_mode_mean_tokens"] => Ok(Self::Mean),
            ["pooling_mode_cls_token"] => Ok(Self::First),
            _ => Err(format!("tokens are pooled by `{wanted:?}`, and only their mean or the first is known")),
        }
    }
}

/// Tokens of the longest text, as `sentence_bert_config.json` of `sentence-transformers` says.
///
/// # Errors
/// What is wrong with the file.
pub fn tokens_max_of_json(json: &[u8]) -> Result<Option<usize>, String> {
    #[derive(Deserialize)]
    struct Limit {
        max_seq_length: Option<usize>,
    }
    let limit: Limit = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok(limit.max_seq_length)
}

impl EncoderConfig {
    /// What a `config.json` says.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn of_json(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    pub(crate) fn check(&self) -> Result<(), FileError> {
        let head_size = self.width.checked_div(self.heads).unwrap_or(0);
        let is_absolute = self.positions.as_deref().is_none_or(|positions| positions == "absolute");
        let is_known = self.model_type == "bert" && self.activation == "gelu" && is_absolute;
        let is_whole =
            head_size > 0 && head_size.is_multiple_of(2 * TILE) && head_size * self.heads == self.width;
        let is_possible = self.layers > 0 && self.context > 0 && self.epsilon >= 0.0;
        if !is_known || !is_whole || !is_possible {
            return Err(FileError::Unsupported {
                what: format!(
                    "the model is a `{}` with `{}` and `{}` heads of `{head_size}`",
                    self.model_type.escape_debug(),
                    self.activation.escape_debug(),
                    self.heads
                ),
                offset: 0,
                instead: "take a BERT with GELU, absolute positions and heads of a multiple of 32".into(),
            });
        }
        Ok(())
    }
}
