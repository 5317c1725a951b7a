//! The transformer engine: it runs language models and knows nothing of the scheduler, of tenants or of
//! deadlines.
//!
//! A model's way: [`Gguf::parse`] or [`parse_safetensors`] finds in the bytes of a file what the model is and
//! where its weights lie ([`Tensors`]); [`Architecture`] describes it and [`Decoder`] packs its weights for
//! the kernels; [`Forward`] computes some tokens of some sequences; a [`Sampler`] per sequence chooses the
//! next one, among those that a [`Constraint`] allows. [`ChatTemplate`] makes a text of a conversation,
//! [`Tokenizer`] tokens of text. [`Encoder`] and [`Embedder`] are the same for models that make a vector of a
//! text.
//!
//! The readers do no I/O and copy no weights. Files come from strangers, so every number in them is a claim
//! that is held against the length of the file before anybody counts on it: whatever the bytes are, the
//! answer is a table or an error that a person understands, for a small multiple of the header's size.

mod architecture;
mod constraint;
mod crew;
mod encoder;
mod encoder_config;
mod error;
mod forward;
mod gguf;
mod safetensors;
mod sampling;
mod template;
mod tensor;
mod text;
mod tokenizer;
mod weights;

pub use architecture::Architecture;
pub use constraint::{Constraint, ConstraintVocabulary, Grammar};
pub use encoder::{Embedder, Encoder};
pub use encoder_config::{EncoderConfig, Pooling, tokens_max_of_json};
pub use error::{FileError, optional};
pub use forward::{Forward, Token};
pub use gguf::{Array, Gguf, Metadata, Value, ValueType};
pub use safetensors::parse_safetensors;
pub use sampling::{Chosen, Likely, Sampler, Sampling, log_total};
pub use template::{ChatTemplate, Message, TemplateError};
pub use tensor::{TensorView, Tensors};
pub use text::{Piece, TextStream};
pub use tokenizer::{TextTokenizer, Tokenizer};
pub use weights::Decoder;
