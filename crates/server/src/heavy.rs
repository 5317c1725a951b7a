//! Work that would hold up the reactor: parsing and printing large JSON, inflating, ranking large outputs.
//!
//! A thread that serves sockets may compute for half a millisecond between two waits. Whatever is larger by
//! the estimate of its caller goes to tokio's blocking threads, at most as many at once as there are cores.
//! A caller that leaves while waiting for its turn costs nothing, and one whose answer is not asked for for a
//! while (a stream that nobody reads) keeps nobody's turn.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use quadrant_types::{Error, ErrorCode};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Text or compressed bytes that take about half a millisecond to parse, print or inflate.
pub(crate) const HEAVY_BYTES: usize = 64 << 10;

/// Numbers that take about half a millisecond to rank.
pub(crate) const HEAVY_ELEMENTS: usize = 256 << 10;

/// Turns at the blocking threads.
#[derive(Debug)]
pub(crate) struct HeavyWork {
    turns: Arc<Semaphore>,
}

impl HeavyWork {
    pub(crate) fn new() -> Self {
        Self { turns: Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, NonZero::get))) }
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
        let turns = Arc::clone(&self.turns);
        // A task of its own, which goes on whether or not the caller is polled.
        let mut task = Abandoned(tokio::spawn(async move {
            let turn = turns.acquire_owned().await;
            let with_turn = move || {
                let result = work();
                drop(turn);
                result
            };
            tokio::task::spawn_blocking(with_turn).await
        }));
        let abandoned = || Err(Error::new(ErrorCode::Internal, "the request's work was abandoned"));
        (&mut task.0).await.and_then(|result| result).unwrap_or_else(|_| abandoned())
    }
}

/// A task that ends with its caller, unless its work has begun.
struct Abandoned<T>(JoinHandle<T>);

impl<T> Drop for Abandoned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_is_not_polled_keeps_nobodys_turn() {
        let heavy = HeavyWork::new();
        // Each asks for a turn and is then left alone.
        let mut unread: Vec<_> =
            (0..64).map(|number| Box::pin(heavy.run(true, move || Ok(number)))).collect();
        for one in &mut unread {
            assert!(one.now_or_never().is_none());
        }
        assert_eq!(heavy.run(true, || Ok(7)).await.unwrap(), 7);
        for (number, one) in unread.into_iter().enumerate() {
            assert_eq!(one.await.unwrap(), number);
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let heavy = HeavyWork::new();
        let error = heavy.run::<()>(true, || panic!("as wanted")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(heavy.run(true, || Ok(1)).await.unwrap(), 1, "its turn came back");
    }
}
