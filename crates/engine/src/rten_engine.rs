//! The embedded ONNX engine: `rten`, pure Rust, always there.
//!
//! One loaded model serves all runners; each runner has its own thread pool, as wide as its lane and on
//! its cores. `rten` computes in four types and narrows the others when it loads a graph, so a request's
//! tensors are narrowed on the way in and widened on the way out (see [`convert`]).
//!
//! The file is loaded into memory, not mapped: weights inside an `.onnx` file are not aligned, so they
//! would be copied anyway, and a file that changes under a map would be undefined behaviour.

mod convert;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use quadrant_types::{ModelSpec, TensorSpec};
use rten::{ModelOptions, NodeId, RunErrorKind, RunOptions, ThreadPool};

use crate::panics::guarded;
use crate::spawn::{self, ThreadSpec};
use crate::{
    Done, EngineError, EngineKind, Footprint, LaneSpec, Model, ModelSource, OnnxHeader, Runner, StepResult,
    StepWork,
};

/// A model that `rten` runs.
pub(crate) struct RtenModel {
    loaded: Arc<Loaded>,
    footprint: Footprint,
}

struct Loaded {
    model: rten::Model,
    spec: ModelSpec,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
}

impl RtenModel {
    pub(crate) fn load(source: &ModelSource) -> Result<Self, EngineError> {
        let load = |error: String| EngineError::Load(format!("`{}`: {error}", source.path.display()));
        let header = OnnxHeader::read(&source.path)?;
        let footprint = Footprint { weights_bytes: header.weights_bytes, ..Footprint::default() };
        let spec = source.spec(EngineKind::Rten, header);
        for tensor in spec.inputs.iter().chain(&spec.outputs) {
            if !convert::is_supported(tensor.datatype) {
                return Err(load(format!(
                    "`{}` is {}, which the embedded engine does not compute with; serve the model with ONNX Runtime",
                    tensor.name, tensor.datatype
                )));
            }
        }
        let model = ModelOptions::with_all_ops()
            .load_file(&source.path)
            .map_err(|error| load(format!("the embedded engine cannot load it: {error}")))?;
        let node = |tensor: &TensorSpec| {
            model
                .find_node(&tensor.name)
                .ok_or_else(|| load(format!("`{}` is not in the graph", tensor.name)))
        };
        let inputs = spec.inputs.iter().map(node).collect::<Result<_, _>>()?;
        let outputs = spec.outputs.iter().map(node).collect::<Result<_, _>>()?;
        Ok(Self { loaded: Arc::new(Loaded { model, spec, inputs, outputs }), footprint })
    }
}

impl Model for RtenModel {
    fn spec(&self) -> &ModelSpec {
        &self.loaded.spec
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        let pool = thread_pool(lane)
            .map_err(|error| EngineError::OutOfMemory(format!("threads cannot be started: {error}")))?;
        Ok(Box::new(RtenRunner { loaded: Arc::clone(&self.loaded), pool: Arc::new(pool) }))
    }
}

impl fmt::Debug for RtenModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtenModel").field("name", &self.loaded.spec.name).finish_non_exhaustive()
    }
}

/// A pool whose threads have the lane's cores and class: they inherit them from the thread that makes
/// the pool, so one is started for that.
fn thread_pool(lane: &LaneSpec) -> io::Result<ThreadPool> {
    let threads = lane.cores.len().max(1);
    let (send, receive) = sync_channel(1);
    let make = move || {
        // The receiver waits below.
        let _taken = send.send(ThreadPool::with_num_threads(threads));
    };
    let maker = ThreadSpec { name: "rten".into(), cores: lane.cores, class: lane.class };
    let _detached = spawn::spawn(maker, Box::new(make))?;
    receive.recv().map_err(|_| io::Error::other("the thread that makes a pool ended"))
}

struct RtenRunner {
    loaded: Arc<Loaded>,
    pool: Arc<ThreadPool>,
}

impl Runner for RtenRunner {
    fn submit(&mut self, work: StepWork, mut done: Done) {
        // A pool computes on threads of its own, also if it has one; what that took is counted there.
        let (result, took) = self.pool.run(|| {
            let before = quadrant_sys::thread_time();
            let result = guarded(|| self.compute(&work));
            (result, quadrant_sys::thread_time().saturating_sub(before))
        });
        done.add_core_time(took);
        // After the report this thread may not run for a while, and a body's lease would go on.
        drop(work);
        done.fire(result);
    }
}

impl RtenRunner {
    fn compute(&self, work: &StepWork) -> StepResult {
        let Loaded { model, spec, inputs, outputs } = &*self.loaded;
        if work.inputs.len() != inputs.len() {
            let (given, wanted) = (work.inputs.len(), inputs.len());
            return Err(EngineError::Input(format!("`{given}` inputs were given, the model has `{wanted}`")));
        }
        let narrowed = inputs.iter().zip(&work.inputs).zip(&spec.inputs);
        let narrowed = narrowed
            .map(|((node, tensor), spec)| Ok((*node, convert::narrow(tensor, spec)?)))
            .collect::<Result<_, EngineError>>()?;
        let wanted: Option<Vec<NodeId>> =
            work.outputs.iter().map(|index| outputs.get(*index).copied()).collect();
        let wanted = wanted.ok_or_else(|| EngineError::Input("an output does not exist".into()))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let values = model.run(narrowed, &wanted, Some(options)).map_err(|error| match error.kind() {
            RunErrorKind::NodeNotFound | RunErrorKind::PlanningError => {
                EngineError::Panicked(error.to_string())
            }
            RunErrorKind::InvalidInput | RunErrorKind::OperatorError | _ => {
                EngineError::Input(error.to_string())
            }
        })?;
        let widened = values.into_iter().zip(&*work.outputs);
        widened.map(|(value, index)| convert::widen(value, spec.outputs[*index].datatype)).collect()
    }
}
