//! What the wire side says about itself: one function per event, so that no text is written at a call site.
//!
//! Requests are logged at debug level only. Answers that are our fault are errors; clients' mistakes are not.

use std::net::SocketAddr;
use std::time::Duration;

use quadrant_types::{Error, Fault, RequestId};

/// Which front end an event concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Http,
    Grpc,
    Metrics,
}

impl Port {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Metrics => "metrics",
        }
    }
}

/// Whether anybody reads what [`answered`] and [`timed`] would say; it is on the way of every request.
pub(crate) fn logs_requests() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// A request was answered.
pub(crate) fn answered(port: Port, model: &str, request: &str, status: u16, duration: Duration) {
    let (port, duration_us) = (port.name(), duration.as_micros());
    tracing::debug!(port, model, request, status, duration_us, "request answered");
}

/// Where the time of an answer went, by the scheduler's number of its request.
pub(crate) fn timed(port: Port, request: RequestId, timing: &str) {
    tracing::debug!(port = port.name(), request = request.0, timing, "request timed");
}

/// A request failed; said only if the fault is ours.
pub(crate) fn failed(port: Port, model: &str, request: &str, error: &Error) {
    if error.code.fault() == Fault::Server {
        let (port, code) = (port.name(), error.code.name());
        tracing::error!(port, model, request, code, %error, "request failed");
    }
}

/// A connection could not be accepted.
pub(crate) fn accept_failed(port: Port, error: &std::io::Error) {
    tracing::warn!(port = port.name(), %error, "cannot accept a connection; trying again");
}

/// A connection ended because of its peer.
pub(crate) fn connection_ended(port: Port, peer: SocketAddr, error: &dyn std::fmt::Display) {
    tracing::debug!(port = port.name(), %peer, %error, "connection ended early");
}

/// A port stopped accepting.
pub(crate) fn draining(port: Port, connections: usize) {
    tracing::info!(port = port.name(), connections, "port closed, waiting for accepted requests");
}

/// A port ended.
pub(crate) fn drained(port: Port, connections_cut: usize) {
    tracing::info!(port = port.name(), connections_cut, "port ended");
}
