//! When requests arrive: random processes and recorded traces, from a seed.
//!
//! Everything here is a function from a description and a seed to ascending times, so that a load can be
//! simulated and sent to a real server, and both are the same load.

mod chats;
mod functions;
mod process;

use std::time::Duration;

pub use chats::{Chat, ChatTrace};
pub use functions::{FunctionTrace, Replay};
pub use process::{Process, arrivals};

/// Why a load cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrafficError {
    /// A trace that is not of the form it should be.
    #[error("trace, line `{line}`: {reason}")]
    Trace {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A number that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// Arrivals of several streams as one ascending list with the index of the stream.
pub fn merged(streams: &[Vec<Duration>]) -> Vec<(Duration, usize)> {
    let of = |(index, times): (usize, &Vec<Duration>)| {
        times.iter().map(move |time| (*time, index)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = streams.iter().enumerate().flat_map(of).collect();
    all.sort_unstable();
    all
}
