//! What the rest of Quadrant must not do itself because it takes `unsafe`: system calls for cores and
//! scheduling classes, the process's resident set, and the C interface of ONNX Runtime.
//!
//! Every function here is safe to call; the reasons are written at each `unsafe` block. Linux is the
//! target. Elsewhere the scheduling calls do nothing, so that the workspace still builds and runs.

mod memory;
pub mod onnx_runtime;
mod threads;

pub use memory::{
    memory_limit_bytes, peak_resident_bytes, reset_peak_resident_bytes, resident_bytes, return_freed_memory,
};
pub use threads::{allowed_cores, confine_thread, idle_thread, lower_thread_priority, thread_time};
