//! The one closed set of error codes, and the error that reaches a client.
//!
//! Each code says whose fault it is and whether to try again. The mapping to HTTP and gRPC is in
//! `server`, once; the mapping to metric labels is here, once.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request itself; sending it again unchanged fails again.
    Client,
    /// Load, limits or time; the same request may succeed later.
    Capacity,
    /// Us, or the engine.
    Server,
}

/// Why a request had no answer. Closed: every producer and every protocol covers all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// Malformed, or does not fit the model.
    InvalidArgument,
    /// It is not said who asks, or nobody knows him.
    Unauthenticated,
    /// Whoever asks may not ask for this.
    PermissionDenied,
    /// No such model, version or path.
    NotFound,
    /// The request or its answer is above a size limit.
    TooLarge,
    /// Well-formed, but asks for something this server does not do.
    Unsupported,
    /// A queue or a budget is full.
    ResourceExhausted,
    /// The model or the server is not ready, or is draining.
    Unavailable,
    /// The request's time ran out before its answer was ready.
    DeadlineExceeded,
    /// The client left.
    Cancelled,
    /// The engine failed, or a bug.
    Internal,
}

impl ErrorCode {
    /// Every code, for tables and metrics.
    pub const ALL: [Self; 11] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::TooLarge,
        Self::Unsupported,
        Self::ResourceExhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The machine-readable name, as in logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Unsupported => "unsupported",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// Whose fault it is.
    pub const fn fault(self) -> Fault {
        match self {
            Self::InvalidArgument
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::NotFound
            | Self::TooLarge
            | Self::Unsupported
            | Self::Cancelled => Fault::Client,
            Self::ResourceExhausted | Self::Unavailable | Self::DeadlineExceeded => Fault::Capacity,
            Self::Internal => Fault::Server,
        }
    }
}

/// Why the scheduler did not serve a request that a quieter server would have: finer than the code, for
/// programs and for metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Predicted to end after its deadline, so it was refused on arrival.
    DeadlineUnmeetable,
    /// Accepted, and then given up for requests that are more important, or because it became late.
    Shed,
    /// Its deadline passed.
    Expired,
    /// The model's queue is full.
    QueueFull,
    /// The server's queue is full.
    ServerFull,
    /// The inputs in flight are at their limit.
    BytesFull,
    /// The memory of the device is spoken for.
    MemoryFull,
    /// Its tenant asks more often than it may.
    TenantRequests,
    /// Its tenant has as many requests under way as it may.
    TenantConcurrency,
    /// Its tenant has as many bytes of inputs in flight as it may.
    TenantBytes,
    /// Its tenant has used up its share of the device.
    TenantDeviceTime,
    /// The process of the model's engine is away, for longer than the request can wait.
    EngineAway,
    /// The request ended the process of the model's engine twice, the second time alone.
    Lethal,
}

impl Reason {
    /// Every reason, for tables and metrics.
    pub const ALL: [Self; 13] = [
        Self::DeadlineUnmeetable,
        Self::Shed,
        Self::Expired,
        Self::QueueFull,
        Self::ServerFull,
        Self::BytesFull,
        Self::MemoryFull,
        Self::TenantRequests,
        Self::TenantConcurrency,
        Self::TenantBytes,
        Self::TenantDeviceTime,
        Self::EngineAway,
        Self::Lethal,
    ];

    /// The machine-readable name, as in headers and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeadlineUnmeetable => "deadline_unmeetable",
            Self::Shed => "shed",
            Self::Expired => "expired",
            Self::QueueFull => "queue_full",
            Self::ServerFull => "server_full",
            Self::BytesFull => "bytes_full",
            Self::MemoryFull => "memory_full",
            Self::TenantRequests => "tenant_requests",
            Self::TenantConcurrency => "tenant_concurrency",
            Self::TenantBytes => "tenant_bytes",
            Self::TenantDeviceTime => "tenant_device_time",
            Self::EngineAway => "engine_away",
            Self::Lethal => "lethal",
        }
    }
}

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// What went wrong, with values, and what to do next.
    pub message: Cow<'static, str>,
    /// How long to wait before trying again, where that is known.
    pub retry_after: Option<Duration>,
    /// Why, where the scheduler decided it.
    pub reason: Option<Reason>,
}

impl Error {
    /// An error with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, reason: None }
    }

    /// Shorthand for the most common case: the client's mistake.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// The same error with a hint when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same error with the scheduler's reason.
    #[must_use]
    pub fn because(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }
}
