//! The wire, spoken as raw bytes on port 0 against a real node with emulated models.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod codec;
mod grpc;
mod harness;
mod hostile;
mod http;
mod life;
mod tenants;
