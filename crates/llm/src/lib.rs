//! The transformer engine: it runs language models and knows nothing of the scheduler, of tenants or of
//! deadlines. So far it reads their files: [`Gguf::parse`] and [`parse_safetensors`] find in the bytes of a
//! file what the model is and where its weights lie, and both end in the same [`Tensors`].
//!
//! The readers do no I/O and copy no weights. Files come from strangers, so every number in them is a claim
//! that is held against the length of the file before anybody counts on it: whatever the bytes are, the
//! answer is a table or an error that a person understands, for a small multiple of the header's size.

mod error;
mod gguf;
mod safetensors;
mod tensor;

pub use error::{FileError, optional};
pub use gguf::{Array, Gguf, Metadata, Value, ValueType};
pub use safetensors::parse_safetensors;
pub use tensor::{Encoding, TensorView, Tensors};
