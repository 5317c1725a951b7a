//! One set of weights under several sessions of a model.
//!
//! ONNX Runtime gives every session weights of its own, however many sessions a file has. It takes them
//! from the caller instead where they are named before the session is made, and keeps what kernels repack
//! of them in a container for all sessions. Names must survive the optimiser, which merges and reorders
//! weights; so a model is first written as optimised, and sessions that share take that graph as it is.

use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use quadrant_types::Tensor;

use super::value::{InputValue, check};
use super::{Runtime, RuntimeError, Session};

/// Weights smaller than this stay in the graph; each session has its own.
const SHARED_BYTES_MIN: &str = "1024";

/// Names within the folder that [`SharedWeights::write`] writes to.
const GRAPH_FILE: &str = "graph.onnx";
const WEIGHTS_FILE: &str = "weights";

/// The weights of a model, for all its sessions.
pub struct SharedWeights {
    values: Vec<(CString, InputValue)>,
    repacked: PrepackedWeights,
}

impl SharedWeights {
    /// Writes the model at `path` as this machine computes it: an optimised graph, and its weights in a
    /// file beside it. Both lie in `folder`, the graph first.
    ///
    /// # Errors
    /// What ONNX Runtime says of the model or the folder.
    pub fn write(
        runtime: &Runtime,
        path: &Path,
        folder: &Path,
    ) -> Result<[std::path::PathBuf; 2], RuntimeError> {
        let files = [GRAPH_FILE, WEIGHTS_FILE].map(|name| folder.join(name));
        let key = |name: &str| format!("session.optimized_model_external_initializers_{name}");
        let session = Session::configure(runtime, 1, false)
            .and_then(|builder| Ok(builder.with_optimized_model_path(&files[0])?))
            .and_then(|builder| Ok(builder.with_config_entry(key("file_name"), WEIGHTS_FILE)?))
            .and_then(|builder| Ok(builder.with_config_entry(key("min_size_in_bytes"), SHARED_BYTES_MIN)?))
            .and_then(|builder| Ok(builder.with_prepacking(false)?));
        session?.commit_from_file(path)?;
        Ok(files)
    }

    /// Weights by the names that the optimised graph gives them.
    ///
    /// # Errors
    /// If a tensor's bytes do not fill its shape, or a name is impossible.
    pub fn new(weights: impl IntoIterator<Item = (String, Tensor)>) -> Result<Arc<Self>, RuntimeError> {
        let memory = MemoryInfo::default();
        let value = |(name, tensor): (String, Tensor)| {
            let name = CString::new(name).map_err(|_| RuntimeError::new("a name has a zero byte"))?;
            Ok((name, InputValue::new(&tensor, &memory)?))
        };
        let values = weights.into_iter().map(value).collect::<Result<_, RuntimeError>>()?;
        Ok(Arc::new(Self { values, repacked: PrepackedWeights::new() }))
    }

    /// Lets a session take these weights. It must not outlive `self`.
    pub(super) fn inject(&self, builder: SessionBuilder) -> Result<SessionBuilder, RuntimeError> {
        for (name, value) in &self.values {
            let options = builder.ptr().cast_mut();
            // SAFETY: the options are those of `builder`, which is owned here and so used by nobody else;
            // the name is a terminated string that the library copies; the value is alive, and whoever
            // makes the session keeps `self` for as long as it.
            check(unsafe { (ort::api().AddInitializer)(options, name.as_ptr(), value.as_ptr()) })?;
        }
        Ok(builder.with_prepacked_weights(&self.repacked)?)
    }
}

impl fmt::Debug for SharedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedWeights").field("values", &self.values.len()).finish_non_exhaustive()
    }
}
