//! The engines and lanes as their users see them.
//!
//! Tests that need real models or ONNX Runtime's library find them in the folder named by
//! `QUADRANT_TEST_ASSETS`, laid out as `models/NAME.onnx` and `onnxruntime/libonnxruntime.so`
//! (`cargo xtask test` prepares it), and say "skipped: no assets" without it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this crate is tests")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not expect is a failure")]

mod classes;
mod emulated;
mod header;
mod isolated;
mod lane;
mod onnx_file;
mod ort;
mod probe;
mod real_models;
mod rten;
mod shared_weights;
mod support;
