//! The host's I/O budget: how many bytes of request bodies may be held at once.
//!
//! A body leases its bytes before it is read and gives them back when its last reader is gone, so the
//! heap cannot grow with the number of clients. A lease that cannot be had is an answer ("try later").

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of bytes that may be held at once, shared by all connections.
#[derive(Clone, Debug)]
pub struct IoBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    held: AtomicUsize,
}

/// The budget has no room for this many bytes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{wanted}` bytes do not fit: `{held}` of `{limit}` bytes are in flight")]
pub struct BudgetExhausted {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes already held.
    pub held: usize,
    /// Bytes that may be held.
    pub limit: usize,
}

impl IoBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { limit, held: AtomicUsize::new(0) }) }
    }

    /// Takes `bytes` until the lease is dropped.
    ///
    /// # Errors
    /// [`BudgetExhausted`] if they do not fit now.
    pub fn lease(&self, bytes: usize) -> Result<Lease, BudgetExhausted> {
        let mut lease = Lease { shared: Arc::clone(&self.shared), bytes: 0 };
        lease.extend(bytes)?;
        Ok(lease)
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Bytes that may be held at once.
    pub fn limit(&self) -> usize {
        self.shared.limit
    }
}

/// Some bytes of the budget, given back on drop.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Lease {
    /// Takes `more` bytes, for a body whose length was not announced.
    ///
    /// # Errors
    /// [`BudgetExhausted`] if they do not fit now; what was already leased is kept.
    pub fn extend(&mut self, more: usize) -> Result<(), BudgetExhausted> {
        let limit = self.shared.limit;
        let fits = |held: usize| held.checked_add(more).filter(|sum| *sum <= limit);
        match self.shared.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.bytes += more;
                Ok(())
            }
            Err(held) => Err(BudgetExhausted { wanted: more, held, limit }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_never_exceed_the_limit_and_come_back() {
        let budget = IoBudget::new(10);
        let mut first = budget.lease(6).unwrap();
        assert_eq!(budget.lease(5).unwrap_err(), BudgetExhausted { wanted: 5, held: 6, limit: 10 });
        first.extend(4).unwrap();
        assert!(first.extend(1).is_err());
        assert!(budget.lease(usize::MAX).is_err());
        assert_eq!(budget.held(), 10);
        drop(first);
        assert_eq!(budget.held(), 0);
    }
}
