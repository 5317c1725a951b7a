//! The ONNX engine of choice where its library is found: ONNX Runtime.
//!
//! All lanes of one core share one session, because a session with one thread computes on its caller's; a
//! lane of several cores has a session whose threads live on those cores. A session lives as long as a
//! runner uses it, and the last one asked for a little longer, so that trying out widths does not load a
//! model twice. The first session reads the file; from the first wide one on, sessions share one set of
//! weights (see [`optimized`]), so the widths of a model are best asked for widest first.

mod optimized;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use quadrant_sys::onnx_runtime::{Runtime, RuntimeError, Session, SessionOptions};
use quadrant_types::{CoreSet, Dim, ModelSpec};

use crate::panics::guarded;
use crate::spawn::{self, ThreadSpec};
use crate::{
    Done, EngineError, EngineKind, Footprint, LaneSpec, Model, ModelSource, OnnxHeader, Runner,
    SchedulingClass, StepWork,
};
use optimized::Optimized;

/// ONNX Runtime's library, opened. Clones are the same one.
#[derive(Clone, Debug)]
pub struct OnnxRuntime(Runtime);

impl OnnxRuntime {
    /// Opens the library at `path`, once per process; the same path again gives the same runtime.
    ///
    /// To be called from a thread of the shell, for the reason given at [`crate::Lane::start`].
    ///
    /// # Errors
    /// [`EngineError::Load`] if the file is no library, no ONNX Runtime or too old.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        spawn::prepare().map_err(|error| EngineError::Load(error.to_string()))?;
        Runtime::open(path).map(Self).map_err(|error| EngineError::Load(error.message))
    }

    /// Its version, such as `1.23`.
    pub fn version(&self) -> &str {
        self.0.version()
    }
}

/// A model that ONNX Runtime runs.
pub(crate) struct OrtModel {
    spec: ModelSpec,
    weights_bytes: u64,
    runtime: Runtime,
    path: PathBuf,
    /// Whether every dimension of every input is fixed.
    fixed_shapes: bool,
    sessions: Mutex<Sessions>,
}

/// Which lanes share a session: all of one core, or those with the same cores in the same class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SharedBy {
    OneCore,
    Cores(CoreSet, bool),
}

#[derive(Default)]
struct Sessions {
    latest: Option<Arc<Session>>,
    all: BTreeMap<SharedBy, Weak<Session>>,
    /// The session of one core from before weights were shared, as long as somebody uses it.
    unshared: Weak<Session>,
    weights: Weights,
    repacked_bytes: u64,
    further_width_bytes: u64,
}

/// Where new sessions take their weights from.
#[derive(Default)]
enum Weights {
    /// From the file; there was no wide session yet.
    #[default]
    Unshared,
    Shared(Arc<Optimized>),
    /// From the file for good: the library could not write this model, or not read what it wrote.
    Unshareable,
}

impl OrtModel {
    pub(crate) fn load(source: &ModelSource, runtime: &OnnxRuntime) -> Result<Self, EngineError> {
        let header = OnnxHeader::read(&source.path)?;
        let weights_bytes = header.weights_bytes;
        let outputs_shaped = header.outputs_shaped.clone();
        let spec = source.spec(EngineKind::Ort, header);
        let fixed = |dim: &Dim| matches!(dim, Dim::Fixed(_));
        let fixed_shapes = spec.inputs.iter().flat_map(|input| &input.dims).all(fixed);
        let sessions = Mutex::default();
        let mut model = Self {
            spec,
            weights_bytes,
            runtime: runtime.0.clone(),
            path: source.path.clone(),
            fixed_shapes,
            sessions,
        };
        // Loads the weights and finds out whether the operators are supported.
        let anywhere = CoreSet::from_cores([0]);
        let session = model.session(anywhere, SchedulingClass::Urgent)?;
        let agrees = session.inputs().eq(model.spec.inputs.iter().map(|input| &*input.name))
            && session.outputs().eq(model.spec.outputs.iter().map(|output| &*output.name));
        if !agrees {
            return Err(model.load_error("ONNX Runtime sees other inputs or outputs than the file declares"));
        }
        for (index, shaped) in outputs_shaped.into_iter().enumerate() {
            if let (false, Some(dims)) = (shaped, session.output_dims(index).filter(|dims| !dims.is_empty()))
            {
                model.spec.outputs[index].dims = dims;
            }
        }
        Ok(model)
    }

    fn session(&self, cores: CoreSet, class: SchedulingClass) -> Result<Arc<Session>, EngineError> {
        let shared_by = match cores.len() {
            0 | 1 => SharedBy::OneCore,
            _ => SharedBy::Cores(cores, class == SchedulingClass::Urgent),
        };
        // Held while a session is created: two lanes that want the same one must not load it twice.
        let mut sessions = self.sessions();
        if shared_by != SharedBy::OneCore {
            self.share(&mut sessions);
        }
        let known = sessions.all.get(&shared_by).and_then(Weak::upgrade);
        let session = known.map_or_else(|| self.open(&mut sessions, cores, class), Ok)?;
        sessions.all.retain(|_, session| session.strong_count() > 0);
        sessions.all.insert(shared_by, Arc::downgrade(&session));
        sessions.latest = Some(Arc::clone(&session));
        Ok(session)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares the weights to be shared, if that was not tried yet.
    fn share(&self, sessions: &mut Sessions) {
        if matches!(sessions.weights, Weights::Unshared) {
            sessions.weights = match Optimized::new(&self.runtime, &self.path) {
                Ok(optimized) => Weights::Shared(Arc::new(optimized)),
                // Every session then has weights of its own, which the footprint tells.
                Err(_) => Weights::Unshareable,
            };
            // Who uses the session that has the file's weights keeps it; others share from now on.
            sessions.unshared = sessions.all.remove(&SharedBy::OneCore).unwrap_or_default();
            sessions.latest = None;
        }
    }

    fn open(
        &self,
        sessions: &mut Sessions,
        cores: CoreSet,
        class: SchedulingClass,
    ) -> Result<Arc<Session>, EngineError> {
        // What an earlier session left would hide what this one takes.
        quadrant_sys::return_freed_memory();
        let before = quadrant_sys::resident_bytes().unwrap_or_default();
        let is_further = !sessions.all.is_empty();
        let session = match &sessions.weights {
            Weights::Shared(optimized) => {
                let optimized = Arc::clone(optimized);
                self.open_with(Some(&optimized), cores, class).or_else(|_| {
                    sessions.weights = Weights::Unshareable;
                    self.open_with(None, cores, class)
                })
            }
            Weights::Unshared | Weights::Unshareable => self.open_with(None, cores, class),
        };
        quadrant_sys::return_freed_memory();
        let after = quadrant_sys::resident_bytes().unwrap_or_default();
        let grown = after.saturating_sub(before);
        if is_further {
            sessions.further_width_bytes = sessions.further_width_bytes.max(grown);
        } else if matches!(sessions.weights, Weights::Shared(_)) {
            sessions.repacked_bytes = sessions.repacked_bytes.max(grown);
        }
        session
    }

    fn open_with(
        &self,
        optimized: Option<&Optimized>,
        cores: CoreSet,
        class: SchedulingClass,
    ) -> Result<Arc<Session>, EngineError> {
        let name = format!("ort-{cores}");
        let spawn = move |work| spawn::spawn(ThreadSpec { name: name.clone(), cores, class }, work);
        let options = SessionOptions {
            threads: cores.len().max(1),
            memory_pattern: self.fixed_shapes,
            spawn: Arc::new(spawn),
            weights: optimized.map(|optimized| Arc::clone(&optimized.weights)),
        };
        let path = optimized.map_or(&self.path, |optimized| &optimized.graph);
        Session::open(&self.runtime, path, &options).map_err(|error| match error.out_of_memory {
            true => EngineError::OutOfMemory(error.message),
            false => self.load_error(&error.message),
        })
    }

    fn load_error(&self, error: &str) -> EngineError {
        EngineError::Load(format!("`{}`: {error}", self.path.display()))
    }
}

impl Model for OrtModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn footprint(&self) -> Footprint {
        let sessions = self.sessions();
        let (repacked_bytes, further_width_bytes) = (sessions.repacked_bytes, sessions.further_width_bytes);
        Footprint { weights_bytes: self.weights_bytes, repacked_bytes, further_width_bytes }
    }

    /// One width alone is better off without sharing, which keeps the weights beside their repacked form.
    fn keep_widths(&self, widths: &[usize]) {
        let mut sessions = self.sessions();
        if matches!(sessions.weights, Weights::Shared(_)) && widths.iter().all(|width| *width <= 1) {
            sessions.weights = Weights::Unshared;
            sessions.repacked_bytes = 0;
            sessions.all.clear();
            sessions.latest = sessions.unshared.upgrade();
            let again = sessions.latest.as_ref().map(Arc::downgrade);
            sessions.all.extend(again.map(|session| (SharedBy::OneCore, session)));
        }
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        guarded(|| {
            let session = self.session(lane.cores, lane.class)?;
            Ok(Box::new(OrtRunner { session, is_new: true }) as Box<dyn Runner>)
        })
    }
}

impl fmt::Debug for OrtModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrtModel").field("path", &self.path).finish_non_exhaustive()
    }
}

struct OrtRunner {
    session: Arc<Session>,
    /// Its first step also gives back what the session grew to while widths and batches were tried out
    /// on it; a session never does that by itself.
    is_new: bool,
}

impl Runner for OrtRunner {
    fn submit(&mut self, work: StepWork, done: Done) {
        let is_new = std::mem::take(&mut self.is_new);
        let run = if is_new { Session::run_then_shrink } else { Session::run };
        let result = guarded(|| run(&self.session, &work.inputs, &work.outputs).map_err(run_error));
        // After the report this thread may not run for a while, and a body's lease would go on.
        drop(work);
        done.fire(result);
    }
}

fn run_error(error: RuntimeError) -> EngineError {
    match error.out_of_memory {
        true => EngineError::OutOfMemory(error.message),
        false => EngineError::Input(error.message),
    }
}
