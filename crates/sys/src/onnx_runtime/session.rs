//! One set of weights that several threads run at once.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::thread::JoinHandle;

use ort::AsPointer;
use ort::environment::ThreadManager;
use ort::memory::MemoryInfo;
use ort::session::RunOptions;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::sys::OrtRunOptions;
use ort::value::{Outlet, ValueType};
use quadrant_types::{Dim, Tensor};
use smallvec::SmallVec;

use super::value::{InputValue, Value, output_tensor};
use super::{Runtime, RuntimeError, SharedWeights};

/// Most models have at most this many inputs and outputs; the lists of pointers stay on the stack.
const USUAL: usize = 4;

/// Starts a thread with the cores and the class that a session's threads are to have.
pub type Spawn = Arc<dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> + Send + Sync>;

/// How a session computes.
#[derive(Clone)]
pub struct SessionOptions {
    /// Threads that compute one step, the calling thread included.
    pub threads: usize,
    /// Whether to plan memory once per set of input shapes. The plans are kept for ever, so only for
    /// models whose shapes are fixed.
    pub memory_pattern: bool,
    /// Starts the threads beyond the calling one.
    pub spawn: Spawn,
    /// Weights to take in the place of the file's. The file is then a graph that
    /// [`SharedWeights::write`] wrote, and is not optimised again.
    pub weights: Option<Arc<SharedWeights>>,
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// A loaded model. With one thread it computes on the caller's; callers may run side by side.
pub struct Session {
    session: ort::session::Session,
    memory: MemoryInfo<'static>,
    /// Run options with which the arena gives back what it does not need at the end of the run.
    shrinking: RunOptions,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
    /// The session computes with this memory, so it goes after it: fields are dropped in their order.
    _weights: Option<Arc<SharedWeights>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the model file at `path`.
    ///
    /// # Errors
    /// What ONNX Runtime says of the file.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Arc<Self>, RuntimeError> {
        let threads = Threads { spawn: Arc::clone(&options.spawn) };
        let mut builder = Self::configure(runtime, options.threads, options.memory_pattern)?
            .with_thread_manager(threads)?;
        if let Some(weights) = &options.weights {
            builder = builder.with_optimization_level(GraphOptimizationLevel::Disable)?;
            builder = weights.inject(builder)?;
        }
        let session = builder.commit_from_file(path)?;
        let memory = MemoryInfo::default();
        let inputs = names(session.inputs())?;
        let outputs = names(session.outputs())?;
        let mut shrinking = RunOptions::new()?;
        shrinking.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
        let weights = options.weights.clone();
        Ok(Arc::new(Self { session, memory, shrinking, inputs, outputs, _weights: weights }))
    }

    /// The same options as Python's defaults wherever they influence a number; no spinning, since the
    /// cores belong to whoever has work.
    pub(super) fn configure(
        runtime: &Runtime,
        threads: usize,
        memory_pattern: bool,
    ) -> Result<SessionBuilder, RuntimeError> {
        let configured = ort::session::Session::builder(&runtime.environment)
            .and_then(|builder| Ok(builder.with_intra_threads(threads)?))
            .and_then(|builder| Ok(builder.with_inter_threads(1)?))
            .and_then(|builder| Ok(builder.with_parallel_execution(false)?))
            .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?))
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            .and_then(|builder| Ok(builder.with_inter_op_spinning(false)?))
            .and_then(|builder| Ok(builder.with_memory_pattern(memory_pattern)?));
        Ok(configured?)
    }

    /// The names of its inputs, in the order in which [`Session::run`] takes them.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.session.inputs().iter().map(Outlet::name)
    }

    /// The names of its outputs, in the order in which [`Session::run`] counts them.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.session.outputs().iter().map(Outlet::name)
    }

    /// The dimensions of an output as ONNX Runtime inferred them, where it could.
    pub fn output_dims(&self, output: usize) -> Option<Vec<Dim>> {
        let ValueType::Tensor { shape, dimension_symbols, .. } = self.session.outputs().get(output)?.dtype()
        else {
            return None;
        };
        let dims = shape.iter().zip(dimension_symbols.iter());
        Some(
            dims.map(|(size, symbol)| match usize::try_from(*size) {
                Ok(size) => Dim::Fixed(size),
                Err(_) if symbol.is_empty() => Dim::Any,
                Err(_) => Dim::Symbol(symbol.as_str().into()),
            })
            .collect(),
        )
    }

    /// Computes the outputs with these indices. Several threads may do so at once.
    ///
    /// `inputs` are one tensor for each input, in order. Those that are aligned for their type are read
    /// in place; the others are copied. Results own ONNX Runtime's memory and keep the session alive.
    ///
    /// # Errors
    /// What ONNX Runtime says of these inputs.
    pub fn run(self: &Arc<Self>, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_with(ptr::null(), inputs, outputs)
    }

    /// The same, and afterwards the session gives back the memory that earlier, larger steps needed. Costs
    /// about as much as allocating it again.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn run_then_shrink(
        self: &Arc<Self>,
        inputs: &[Tensor],
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_with(self.shrinking.ptr(), inputs, outputs)
    }

    fn run_with(
        self: &Arc<Self>,
        options: *const OrtRunOptions,
        inputs: &[Tensor],
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        if inputs.len() != self.inputs.len() {
            let (given, wanted) = (inputs.len(), self.inputs.len());
            return Err(RuntimeError::new(format!("`{given}` inputs were given, the model has `{wanted}`")));
        }
        let inputs = inputs.iter().map(|tensor| InputValue::new(tensor, &self.memory));
        let inputs: SmallVec<[InputValue; USUAL]> = inputs.collect::<Result<_, _>>()?;
        let output_names: SmallVec<[_; USUAL]> = outputs
            .iter()
            .map(|index| self.outputs.get(*index).map(|name| name.as_ptr()))
            .collect::<Option<_>>()
            .ok_or_else(|| RuntimeError::new("an output was asked for that the model does not have"))?;
        let input_names: SmallVec<[_; USUAL]> = self.inputs.iter().map(|name| name.as_ptr()).collect();
        let input_values: SmallVec<[_; USUAL]> = inputs.iter().map(InputValue::as_ptr).collect();
        let mut results: SmallVec<[_; USUAL]> = outputs.iter().map(|_| ptr::null_mut()).collect();
        // SAFETY: the pointers to names and values lead to arrays of the lengths given here; names are
        // terminated strings and values are alive, both borrowed from `self` and `inputs` until after the
        // call. The options are null or those of `self`, which are only read. The session has no other than
        // the processor's execution provider, for which `Run` is documented to be callable from several
        // threads at once; it does not write through the `*mut` session.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options,
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                results.as_mut_ptr(),
            )
        };
        // Wrapped before the status is looked at, so that nothing leaks if only some were made.
        let results: SmallVec<[_; USUAL]> = results.into_iter().map(Value::from_output).collect();
        // SAFETY: the status was just returned by the library and is handed over once.
        unsafe { ort::Error::result_from_status(status) }?;
        results.into_iter().map(|value| output_tensor(value, &inputs, self)).collect()
    }
}

fn names(outlets: &[Outlet]) -> Result<Vec<CString>, RuntimeError> {
    let name = |outlet: &Outlet| {
        CString::new(outlet.name()).map_err(|_| RuntimeError::new("a name has a zero byte"))
    };
    outlets.iter().map(name).collect()
}

/// Starts the session's threads where they belong, whoever loads it.
struct Threads {
    spawn: Spawn,
}

impl ThreadManager for Threads {
    type Thread = JoinHandle<()>;

    fn create(&self, work: impl FnOnce() + Send + 'static) -> ort::Result<Self::Thread> {
        (self.spawn)(Box::new(work)).map_err(ort::Error::wrap)
    }

    fn join(thread: Self::Thread) -> ort::Result<()> {
        // A panic in a thread of the library's own was already printed; there is nothing to add.
        thread.join().map_err(|_| ort::Error::new("a thread of the session panicked"))
    }
}
