//! ONNX Runtime: its library opened at run time, sessions that several threads share, tensors that stay
//! where they are.
//!
//! The `ort` crate finds the library and builds sessions. Running goes straight to the C interface, for
//! two reasons: `ort` wants `&mut Session`, and we want the results as bytes that own the engine's value.
//! ONNX Runtime documents `Run` as callable from several threads at once; `ort` withholds it because some
//! execution providers (CUDA among them) break that promise. Sessions here only ever have the processor's
//! provider, which keeps it, and the constructor offers no way to add another.

mod session;
mod shared;
mod value;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;

pub use session::{Session, SessionOptions, Spawn};
pub use shared::SharedWeights;

/// The oldest minor version whose interface we use.
const MINOR_VERSION_MIN: u32 = ort::MINOR_VERSION;

/// The library of this process, with its path. ONNX Runtime allows one environment per process.
static OPENED: Mutex<Option<(PathBuf, Runtime)>> = Mutex::new(None);

/// An opened ONNX Runtime. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    version: Arc<str>,
}

/// ONNX Runtime, or its library, refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// Whether it lacked memory.
    pub out_of_memory: bool,
    /// What it said, for a person.
    pub message: String,
}

impl RuntimeError {
    fn new(message: impl Into<String>) -> Self {
        Self { out_of_memory: false, message: message.into() }
    }
}

impl<R> From<ort::Error<R>> for RuntimeError {
    fn from(error: ort::Error<R>) -> Self {
        let message = one_line(error.message());
        let out_of_memory = ["Failed to allocate memory", "bad_alloc", "bad allocation"];
        Self { out_of_memory: out_of_memory.iter().any(|sign| message.contains(sign)), message }
    }
}

impl Runtime {
    /// Opens the library at `path`; telemetry stays off, and failures are returned, not logged. Opening
    /// the same path again gives the same runtime.
    ///
    /// # Errors
    /// If the file is no library, no ONNX Runtime, too old, or if another path was opened before.
    pub fn open(path: &Path) -> Result<Self, RuntimeError> {
        let path = path
            .canonicalize()
            .map_err(|error| RuntimeError::new(format!("cannot open `{}`: {error}", path.display())))?;
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((first, runtime)) = &*opened {
            return if *first == path {
                Ok(runtime.clone())
            } else {
                let first = first.display();
                Err(RuntimeError::new(format!(
                    "a process can open one ONNX Runtime, and this one has `{first}`"
                )))
            };
        }
        // The `ort` crate asserts where a library exports the right name and then misbehaves.
        let runtime = catch_unwind(AssertUnwindSafe(|| Self::open_first(&path))).unwrap_or_else(|_| {
            Err(RuntimeError::new(format!("`{}` does not behave as an ONNX Runtime", path.display())))
        })?;
        *opened = Some((path, runtime.clone()));
        Ok(runtime)
    }

    fn open_first(path: &Path) -> Result<Self, RuntimeError> {
        let builder = ort::init_from(path).map_err(|error| load_error(path, error))?;
        let environment = builder.with_name("quadrant").with_telemetry(false).build()?;
        // A client's mistake makes `Run` fail, and failures would fill the server's standard error.
        environment.set_log_level(LogLevel::Fatal);
        let version = ort::util::probe(path).map_or_else(String::new, |minor| format!("1.{minor}"));
        Ok(Self { environment, version: version.into() })
    }

    /// Its version, such as `1.23`.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn load_error(path: &Path, error: LoadDynamicError) -> RuntimeError {
    let path = path.display();
    RuntimeError::new(match error {
        LoadDynamicError::Dlopen { error, .. } => format!("`{path}` cannot be loaded as a library: {error}"),
        LoadDynamicError::MissingApi { .. } => {
            format!("`{path}` is a library, but not ONNX Runtime: it has no `OrtGetApiBase`")
        }
        LoadDynamicError::InvalidVersionString => format!("`{path}` does not say its version"),
        LoadDynamicError::BadVersion { version_str, .. } => {
            format!("`{path}` is ONNX Runtime {version_str}; at least 1.{MINOR_VERSION_MIN} is needed")
        }
    })
}

/// ONNX Runtime's messages can span lines and carry much of the graph; this is what fits an answer.
fn one_line(message: &str) -> String {
    const CHARACTERS_MAX: usize = 600;
    let words = message.split_whitespace().flat_map(|word| [" ", word]).skip(1);
    words.collect::<String>().chars().take(CHARACTERS_MAX).collect()
}
