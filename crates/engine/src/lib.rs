//! The engines behind one interface, and the lanes that run them.
//!
//! A [`Model`] is a loaded set of weights; a [`Runner`] is what one lane needs to run it; a [`Lane`] is a
//! named thread that runs one step at a time. Nothing here knows of tenants, deadlines or HTTP: a lane
//! gathers the parts of a step into one batch, submits it, cuts the outputs apart again, and reports.

mod api;
mod batch;
mod emulated;
mod encoder_engine;
mod file_window;
mod held_cores;
mod isolated;
mod lane;
mod language;
mod language_engine;
mod load;
mod onnx;
mod ort_engine;
mod panics;
mod probe;
mod rten_engine;
mod sequence;
mod spawn;

pub use api::{
    Done, EngineError, Footprint, LaneReport, LaneSink, LaneSpec, LaneWork, Model, Part, PartOutputs, Runner,
    SchedulingClass, SequencePart, StepResult, StepWork, Task,
};
pub use isolated::{
    EndCause, EngineHost, HostCommand, HostEvent, HostSink, HostSpec, ServeError, serve_engines,
};
pub use lane::{Lane, Refusal, Refused};
pub use language::Language;
pub use load::{EngineKind, Engines, ModelSource, describe, describe_language, load};
pub use onnx::OnnxHeader;
pub use ort_engine::OnnxRuntime;
pub use probe::{
    Batching, Cost, Occupancy, PROBE_TEXT_BYTES, Peak, ProbeOptions, Profile, SequenceProfile, occupancy,
    probe, run_once,
};
pub use quadrant_llm::{ChatTemplate, Grammar, Likely, Message, Sampling, TemplateError, Tokenizer};
pub use sequence::{Finish, Generated, Generation, Sequence};
pub use spawn::background;
