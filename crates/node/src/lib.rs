//! The shell of one domain.
//!
//! It owns what the pure parts may not: the clock, the threads, the model files, the metrics. It turns what
//! happens into events for the scheduler and the scheduler's actions into deeds, and decides nothing.

mod handle;

pub use handle::{Answer, Handle, IndexEntry, ModelEntry, ModelState, Response, Submission};
