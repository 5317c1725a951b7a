//! What the rest of Quadrant must not do itself because it takes `unsafe`: system calls for cores and
//! scheduling classes, the process's resident set, memory and files shared between processes, files as
//! memory, and the C interface of ONNX Runtime.
//!
//! Every function here is safe to call; the reasons are written at each `unsafe` block. Linux is the
//! target. Elsewhere the scheduling calls do nothing, so that the workspace still builds and runs.

mod map;
mod memory;
pub mod onnx_runtime;
mod passing;
mod process;
mod shared;
mod threads;

pub use map::FileMap;
pub use memory::{
    memory_limit_bytes, peak_resident_bytes, reset_peak_resident_bytes, resident_bytes, resident_bytes_of,
    return_freed_memory,
};
pub use passing::{receive_with_file, send_with_file};
pub use process::{
    end_with_parent, go_first_when_memory_runs_out, leave_ending_to_parent, limit_data, write_no_core,
};
pub use shared::SharedRegion;
pub use threads::{allowed_cores, confine_thread, idle_thread, lower_thread_priority, thread_time};
