//! Work that would hold up the reactor: parsing and printing large JSON, inflating, ranking large outputs.
//!
//! A thread that serves sockets may compute for half a millisecond between two waits. Whatever is larger by
//! the estimate of its caller goes to tokio's blocking threads, at most as many at once as there are cores.
//! A caller that leaves while waiting for its turn costs nothing.

use std::num::NonZero;
use std::thread;

use quadrant_types::{Error, ErrorCode};
use tokio::sync::Semaphore;

/// Text or compressed bytes that take about half a millisecond to parse, print or inflate.
pub(crate) const HEAVY_BYTES: usize = 64 << 10;

/// Numbers that take about half a millisecond to rank.
pub(crate) const HEAVY_ELEMENTS: usize = 256 << 10;

/// Turns at the blocking threads.
#[derive(Debug)]
pub(crate) struct HeavyWork {
    turns: Semaphore,
}

impl HeavyWork {
    pub(crate) fn new() -> Self {
        Self { turns: Semaphore::new(thread::available_parallelism().map_or(1, NonZero::get)) }
    }

    /// Runs `work` here if it is small, and away from the reactor otherwise.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        is_heavy: bool,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if !is_heavy {
            return work();
        }
        let turn = self.turns.acquire().await;
        let result = tokio::task::spawn_blocking(work).await;
        drop(turn);
        result.unwrap_or_else(|_| Err(Error::new(ErrorCode::Internal, "the request's work was abandoned")))
    }
}
