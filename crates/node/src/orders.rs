//! What the loader is to do: what the scheduler decided, and what people asked for.
//!
//! Queues behind one lock. The scheduler's never fills: it holds at most one load and one unload of each
//! model, and whoever puts something there must not wait. Neither does that of what has ended: as many
//! loads as there are loading lanes, and one measurement. What people ask for is bounded.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use quadrant_types::{Error, ErrorCode, ModelId};
use tokio::sync::oneshot;

use crate::loader::Brought;
use crate::measuring::ChildError;

/// Requests of people that may wait.
const ASKED_MAX: usize = 256;

/// Something for the loader to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// A load has ended.
    Brought(Brought),
    /// A model was measured, and what was found is in the store; or why there is nothing.
    Measured(ModelId, Result<(), ChildError>),
    /// Load this model; its memory is reserved.
    Load(ModelId),
    /// Unload this model, which has nothing to do.
    Unload(ModelId),
    /// The scheduler cannot make room for this model.
    Refused(ModelId, Error),
    /// Somebody wants something, and waits for the answer.
    Asked(Wish, String, Reply),
}

/// What can be asked for of a model, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Load it, or what the repository now has in its place.
    Load,
    /// Let it go.
    Unload,
}

/// Where the answer goes.
pub(crate) type Reply = oneshot::Sender<Result<(), Error>>;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queues {
    ended: VecDeque<Order>,
    decided: VecDeque<Order>,
    asked: VecDeque<Order>,
    stopped: bool,
}

impl Orders {
    /// Puts in that something has ended that was begun. Does not wait.
    pub(crate) fn ended(&self, order: Order) {
        let mut queues = self.lock();
        if !queues.stopped {
            queues.ended.push_back(order);
            drop(queues);
            self.changed.notify_one();
        }
    }

    /// Puts in what the scheduler decided. Does not wait.
    pub(crate) fn decided(&self, order: Order) {
        self.lock().decided.push_back(order);
        self.changed.notify_one();
    }

    /// Puts in what somebody asked for.
    ///
    /// # Errors
    /// If too much was asked for already, or the node ends.
    pub(crate) fn ask(&self, wish: Wish, name: &str, reply: Reply) -> Result<(), Error> {
        let mut queues = self.lock();
        if queues.stopped {
            return Err(Error::new(ErrorCode::Unavailable, "the server is shutting down"));
        }
        if queues.asked.len() >= ASKED_MAX {
            let text = format!("`{ASKED_MAX}` loads and unloads were asked for already");
            return Err(Error::new(ErrorCode::ResourceExhausted, text).retry_after(Duration::from_secs(1)));
        }
        queues.asked.push_back(Order::Asked(wish, name.to_owned(), reply));
        drop(queues);
        self.changed.notify_one();
        Ok(())
    }

    /// The next thing to do, what has ended first and then what was decided; `Ok(None)` if nothing came for
    /// so long.
    ///
    /// # Errors
    /// When there will be nothing more.
    pub(crate) fn next(&self, patience: Duration) -> Result<Option<Order>, Stopped> {
        let queues = self.lock();
        let nothing = |queues: &mut Queues| {
            let is_empty = queues.ended.is_empty() && queues.decided.is_empty() && queues.asked.is_empty();
            !queues.stopped && is_empty
        };
        let waited = self.changed.wait_timeout_while(queues, patience, nothing);
        let (mut queues, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queues.stopped {
            return Err(Stopped);
        }
        let ended = queues.ended.pop_front();
        let decided = ended.or_else(|| queues.decided.pop_front());
        Ok(decided.or_else(|| queues.asked.pop_front()))
    }

    /// From now on there is nothing to do; who waits for an answer is told that there will be none.
    pub(crate) fn stop(&self) {
        let mut queues = self.lock();
        *queues = Queues { stopped: true, ..Queues::default() };
        drop(queues);
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There are no more orders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_come_first_and_wishes_are_bounded() {
        let orders = Orders::default();
        let ask = || orders.ask(Wish::Load, "m", oneshot::channel().0);
        (0..ASKED_MAX).for_each(|_| ask().unwrap());
        assert_eq!(ask().unwrap_err().code, ErrorCode::ResourceExhausted);
        orders.decided(Order::Load(ModelId(7)));
        assert!(matches!(orders.next(Duration::ZERO), Ok(Some(Order::Load(ModelId(7))))));
        assert!(matches!(orders.next(Duration::ZERO), Ok(Some(Order::Asked(Wish::Load, ..)))));
        orders.stop();
        assert!(orders.next(Duration::from_secs(60)).is_err());
        assert_eq!(ask().unwrap_err().code, ErrorCode::Unavailable);
    }
}
