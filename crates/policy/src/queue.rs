//! The waiting requests of one model, in the order in which they are to run.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_types::{Priority, RequestId, ShapeId, Time};
use smallvec::SmallVec;

use crate::cost::Costs;
use crate::{ModelTerms, Requests};

/// How many waiting requests are looked at to fill one batch: a bound on the cost of a decision when
/// many shapes are mixed.
const BATCH_SCAN_MAX: usize = 256;

/// The one order of requests, within a model and across models: the more important first, then the
/// earlier deadline, then the earlier arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    pub(crate) priority: Priority,
    pub(crate) deadline: Time,
    pub(crate) id: RequestId,
}

/// What batching needs to know of a waiting request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) arrived: Time,
    pub(crate) rows: u32,
    pub(crate) shape: ShapeId,
    pub(crate) bytes_in: u64,
    /// It was in a batch that failed, and is to be tried by itself.
    pub(crate) alone: bool,
}

/// One model as the scheduler holds it.
#[derive(Clone, Debug)]
pub(crate) struct ModelQueue {
    pub(crate) terms: ModelTerms,
    pub(crate) costs: Costs,
    pub(crate) waiting: BTreeMap<OrderKey, Waiting>,
}

/// A batch that could run now.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) keys: Vec<OrderKey>,
    pub(crate) requests: Requests,
    pub(crate) rows: u32,
    pub(crate) shape: ShapeId,
    pub(crate) predicted: Duration,
    /// Until when it pays to wait for more rows.
    pub(crate) ripe_at: Time,
}

impl ModelQueue {
    pub(crate) fn new(terms: ModelTerms) -> Self {
        Self { costs: Costs::new(&terms), terms, waiting: BTreeMap::new() }
    }

    /// The first in order.
    pub(crate) fn head(&self) -> Option<OrderKey> {
        self.waiting.keys().next().copied()
    }

    /// The largest batch from this waiting request on, in order, of its shape.
    pub(crate) fn batch_from(&self, head_key: OrderKey) -> Candidate {
        let head = self.waiting[&head_key];
        let mut batch = Candidate {
            keys: Vec::new(),
            requests: Requests::new(),
            rows: 0,
            shape: head.shape,
            predicted: Duration::ZERO,
            ripe_at: Time::ZERO,
        };
        let mut bytes = 0;
        // Whether others of its shape wait that did not fit: there is nothing more to wait for.
        let mut more = false;
        let (mut oldest, mut first_deadline) = (head.arrived, head_key.deadline);
        for (key, waiting) in self.waiting.range(head_key..).take(BATCH_SCAN_MAX) {
            let alike = waiting.shape == head.shape && !waiting.alone && !head.alone;
            let fits = batch.rows.saturating_add(waiting.rows) <= self.terms.rows_max;
            if *key != head_key && !(alike && fits) {
                more |= alike;
                continue;
            }
            batch.keys.push(*key);
            batch.requests.push(key.id);
            batch.rows += waiting.rows;
            bytes += waiting.bytes_in;
            oldest = oldest.min(waiting.arrived);
            first_deadline = first_deadline.min(key.deadline);
            if batch.rows >= self.terms.rows_max || head.alone {
                break;
            }
        }
        batch.predicted = self.costs.predict(batch.shape, batch.rows, bytes);
        if batch.rows < self.terms.rows_max && !head.alone && !more {
            let latest_start = first_deadline - batch.predicted;
            batch.ripe_at = (oldest + self.terms.delay_max).min(latest_start);
        }
        batch
    }

    /// The first request behind `key` that no batch from `key` or from before it could hold: of a shape
    /// not seen up to there, or one that runs alone.
    pub(crate) fn next_group(&self, key: OrderKey) -> Option<OrderKey> {
        let mut shapes: SmallVec<[ShapeId; 8]> = SmallVec::new();
        for (other, waiting) in self.waiting.iter().take(BATCH_SCAN_MAX) {
            let new = waiting.alone || !shapes.contains(&waiting.shape);
            if new && *other > key {
                return Some(*other);
            }
            if new && !waiting.alone {
                shapes.push(waiting.shape);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(requests: &[(u64, u32, u32)], rows_max: u32, delay_ms: u64) -> ModelQueue {
        let mut queue = ModelQueue::new(ModelTerms {
            rows_max,
            width: 1,
            queue_max: 100,
            delay_max: Duration::from_millis(delay_ms),
            costs: vec![(1, Duration::from_millis(2))],
            row_bytes: 1,
        });
        for (index, (deadline, rows, shape)) in requests.iter().enumerate() {
            let key = OrderKey {
                priority: Priority::default(),
                deadline: Time::from_nanos(*deadline * 1_000_000),
                id: RequestId(index as u64),
            };
            let (rows, shape) = (*rows, ShapeId(*shape));
            let waiting = Waiting { arrived: Time::ZERO, rows, shape, bytes_in: 1, alone: false };
            queue.waiting.insert(key, waiting);
        }
        queue
    }

    fn first(queue: &ModelQueue) -> Candidate {
        queue.batch_from(queue.head().unwrap())
    }

    fn batch(requests: &[(u64, u32, u32)], rows_max: u32) -> Vec<u64> {
        let candidate = first(&queue(requests, rows_max, 0));
        candidate.requests.iter().map(|id| id.0).collect()
    }

    #[test]
    fn a_batch_takes_its_heads_shape_in_deadline_order() {
        assert_eq!(batch(&[(30, 1, 0), (10, 1, 0), (20, 1, 1)], 4), [1, 0]);
        assert_eq!(batch(&[(10, 1, 0), (20, 1, 0), (30, 1, 0)], 2), [0, 1]);
        // A request that is too large for what is left does not hold up a smaller one behind it.
        assert_eq!(batch(&[(10, 2, 0), (20, 3, 0), (30, 2, 0)], 4), [0, 2]);
        // More rows than a batch holds still run, by themselves.
        assert_eq!(batch(&[(10, 9, 0), (20, 1, 0)], 4), [0]);
    }

    #[test]
    fn a_request_that_is_to_run_alone_does() {
        let mut queue = queue(&[(10, 1, 0), (20, 1, 0)], 4, 0);
        for waiting in queue.waiting.values_mut() {
            waiting.alone = true;
        }
        assert_eq!(first(&queue).requests.as_slice(), [RequestId(0)]);
    }

    #[test]
    fn waiting_ends_with_the_delay_or_the_latest_start() {
        let ripe = |deadline, rows, delay| first(&queue(&[(deadline, rows, 0)], 4, delay)).ripe_at;
        assert_eq!(ripe(100, 1, 5), Time::from_nanos(5_000_000));
        assert_eq!(ripe(4, 1, 5), Time::from_nanos(2_000_000));
        assert_eq!(ripe(100, 4, 5), Time::ZERO, "a full batch waits for nobody");
    }
}
