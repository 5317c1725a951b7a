//! The shell of one domain.
//!
//! It owns what the pure parts may not: the clock, the threads, the model files, the metrics. It turns what
//! happens into events for the scheduler and the scheduler's actions into deeds, and decides nothing.

mod clock;
mod config;
mod driver;
mod generation;
mod handle;
mod isolation;
mod loader;
mod measuring;
mod memory;
mod message;
mod node;
mod opening;
mod orders;
mod pbtxt;
mod profiles;
mod profiling;
mod recorder;
mod registry;
mod repository;
mod telemetry;
mod tenants;
mod ticker;

pub use clock::MonotonicClock;
pub use config::{Batching, Config, Isolation, ModelSettings};
pub use generation::{GenerationRequest, Pace, TokenStream};
pub use handle::{Answer, Handle, Response, Submission};
pub use measuring::measure;
pub use node::{Node, StartError};
pub use profiling::{ModelProfile, profile_models};
pub use quadrant_engine::{
    ChatTemplate, Finish, Generated, Generation, Grammar, HostCommand, Language, Likely, Message, Sampling,
    TemplateError, Tokenizer,
};
pub use quadrant_policy::{TenantTerms, TenantUsage};
pub use recorder::{Explanation, GenerationRecord, Overlap, RequestRecord, StepRecord};
pub use registry::{IndexEntry, ModelEntry, ModelState};
pub use tenants::TenantEntry;
