//! The transformer engine: it runs language models and knows nothing of the scheduler, of tenants or of
//! deadlines. So far it reads their files: [`Gguf::parse`] finds in the bytes of a file what the model is and
//! where its weights lie.
//!
//! The reader does no I/O and copies no weights. Files come from strangers, so every number in them is a claim
//! that is held against the length of the file before anybody counts on it: whatever the bytes are, the
//! answer is a table or an error that a person understands, for a small multiple of the header's size.

mod error;
mod gguf;
mod tensor;

pub use error::{FileError, optional};
pub use gguf::{Array, Gguf, Metadata, Value, ValueType};
pub use tensor::{Encoding, TensorView, Tensors};
