//! The waiting requests of one model, in the order in which they are to run.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_types::{LaneId, Priority, RequestId, ShapeId, Time};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::cost::{Costs, Kind, Setting};
use crate::doubt::Doubt;
use crate::fairness::Account;
use crate::pages::{Content, Pages};
use crate::span::scaled;
use crate::{Discipline, ModelTerms, Requests};

/// How many waiting requests are looked at to fill one batch: a bound on the cost of a decision when
/// many shapes are mixed.
pub(crate) const BATCH_SCAN_MAX: usize = 256;

/// Requests with a deadline share a step only if it takes at most this share of their steps one after the
/// other. Otherwise the first would end later and nobody sooner, and another core could not take the second.
const JOINED_MAX: f64 = 0.95;

/// The one order of requests within a model, and of those with a deadline across models: by the latest
/// start that is still in time, then by arrival. Best effort comes after all of them, by priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    /// Without a deadline.
    pub(crate) easy: bool,
    /// The latest start in nanoseconds, or the priority of best effort.
    pub(crate) rank: u64,
    pub(crate) id: RequestId,
}

impl OrderKey {
    /// The latest start; [`Time::MAX`] for best effort.
    pub(crate) fn start_by(&self) -> Time {
        if self.easy { Time::MAX } else { Time::from_nanos(self.rank) }
    }
}

/// What batching needs to know of a waiting request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) arrived: Time,
    /// When it is to be done; [`Time::MAX`] for best effort.
    pub(crate) deadline: Time,
    pub(crate) rows: u32,
    pub(crate) shape: ShapeId,
    pub(crate) bytes_in: u64,
    /// It was in a batch that failed, and is to be tried by itself.
    pub(crate) alone: bool,
    /// How important it is, if it is a sequence that has begun.
    pub(crate) begun: Option<Priority>,
}

/// Rows of each request of a step, in their order.
pub(crate) type Parts = SmallVec<[u32; 8]>;

/// One model as the scheduler holds it.
#[derive(Clone, Debug)]
pub(crate) struct ModelQueue {
    pub(crate) terms: ModelTerms,
    pub(crate) costs: Costs,
    pub(crate) waiting: BTreeMap<OrderKey, Waiting>,
    discipline: Discipline,
    /// Rows that wait with a deadline.
    pub(crate) urgent_rows: u32,
    /// Lanes on which it has run: the first step on a lane warms caches and threads up.
    pub(crate) warm: SmallVec<[LaneId; 8]>,
    /// Its admitted and offered work with a deadline.
    pub(crate) account: Account,
    /// Whether what is known of its steps is still true.
    pub(crate) doubt: Doubt,
    /// Where the keys and values of its sequences are, if it generates.
    pub(crate) pages: Option<Pages>,
    /// Waiting sequences that have begun: the more important first, then who came first.
    pub(crate) begun: BTreeMap<(Priority, RequestId), OrderKey>,
    /// What is being computed of prompts that begin like others, and for whom.
    pub(crate) coming: FxHashMap<Content, RequestId>,
}

/// A batch that could run now.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The place of its first request in the order.
    pub(crate) first: OrderKey,
    pub(crate) requests: Requests,
    /// Rows of each of them.
    pub(crate) parts: Parts,
    /// Where in its sequence each of these begins, if they are tokens; otherwise empty.
    pub(crate) places: Parts,
    /// Sequences that make room for it.
    pub(crate) victims: Requests,
    pub(crate) kind: Kind,
    /// Of the inputs; of an iteration, the keys that its tokens attend to.
    pub(crate) bytes: u64,
    pub(crate) predicted: Duration,
    /// How many times longer than usually that is.
    pub(crate) slowdown: f64,
    /// The earliest deadline in it.
    pub(crate) deadline: Time,
    /// Until when it pays to wait for more rows.
    pub(crate) ripe_at: Time,
}

impl Candidate {
    /// The latest start of its first request.
    pub(crate) fn start_by(&self) -> Time {
        self.first.start_by()
    }

    pub(crate) fn easy(&self) -> bool {
        self.first.easy
    }
}

impl ModelQueue {
    pub(crate) fn new(terms: ModelTerms, discipline: Discipline) -> Self {
        assert!(!terms.widths.is_empty(), "a model has at least one width");
        Self {
            costs: Costs::new(&terms),
            pages: terms.sequences.map(|sequences| Pages::new(sequences.pages)),
            terms,
            discipline,
            doubt: Doubt::default(),
            waiting: BTreeMap::new(),
            urgent_rows: 0,
            warm: SmallVec::new(),
            account: Account::default(),
            begun: BTreeMap::new(),
            coming: FxHashMap::default(),
        }
    }

    pub(crate) fn insert(&mut self, key: OrderKey, waiting: Waiting) {
        if !key.easy {
            self.urgent_rows = self.urgent_rows.saturating_add(waiting.rows);
        }
        if let Some(priority) = waiting.begun {
            self.begun.insert((priority, key.id), key);
        }
        self.waiting.insert(key, waiting);
    }

    pub(crate) fn remove(&mut self, key: &OrderKey) {
        let waiting = self.waiting.remove(key).expect("what is removed waits");
        if !key.easy {
            self.urgent_rows = self.urgent_rows.saturating_sub(waiting.rows);
        }
        if let Some(priority) = waiting.begun {
            self.begun.remove(&(priority, key.id));
        }
    }

    /// The first with a deadline.
    pub(crate) fn head(&self) -> Option<OrderKey> {
        self.waiting.keys().next().filter(|key| !key.easy).copied()
    }

    /// The largest batch from this waiting request on, in order, of its shape, that is predicted to end by
    /// the earliest of its deadlines. At least the request itself.
    pub(crate) fn batch_from(&self, head_key: OrderKey, now: Time, setting: Setting) -> Candidate {
        let head = self.waiting[&head_key];
        let Setting { width, beside, slowdown } = setting;
        let predict = |kind, bytes| self.costs.predict_at(kind, bytes, slowdown);
        let kind = |rows| Kind { shape: head.shape, rows, width, beside };
        let mut batch = Candidate {
            first: head_key,
            requests: Requests::new(),
            parts: Parts::new(),
            places: Parts::new(),
            victims: Requests::new(),
            kind: kind(head.rows),
            bytes: head.bytes_in,
            predicted: predict(kind(head.rows), head.bytes_in),
            slowdown,
            deadline: head.deadline,
            ripe_at: Time::ZERO,
        };
        batch.requests.push(head_key.id);
        batch.parts.push(head.rows);
        let (mut oldest, mut start_by) = (head.arrived, head_key.start_by());
        // Whether others of its shape wait that did not fit: there is nothing more to wait for.
        let mut more = head.alone || batch.kind.rows >= self.terms.rows_max;
        // So many rows do not join; neither do as many of those behind, with as much time or more.
        let mut rows_refused = u32::MAX;
        let behind = if more { 0 } else { BATCH_SCAN_MAX };
        // Best effort is begun in the order of its tenants' turns, and filled up from the first of all.
        let from = if head_key.easy { OrderKey { rank: 0, id: RequestId(0), ..head_key } } else { head_key };
        for (key, waiting) in self.waiting.range(from..).filter(|(key, _)| **key != head_key).take(behind) {
            if key.easy != head_key.easy || batch.kind.rows >= self.terms.rows_max {
                break;
            }
            if waiting.shape != head.shape || waiting.alone || waiting.rows >= rows_refused {
                continue;
            }
            let larger = kind(batch.kind.rows.saturating_add(waiting.rows));
            let bytes = batch.bytes + waiting.bytes_in;
            let predicted = predict(larger, bytes);
            let deadline = batch.deadline.min(waiting.deadline);
            let fits = larger.rows <= self.terms.rows_max;
            let alone = || predict(kind(waiting.rows), waiting.bytes_in);
            let may = || {
                now + self.surely(predicted) <= deadline && self.joins(batch.predicted + alone(), predicted)
            };
            if !fits || (!key.easy && !may()) {
                more = true;
                if waiting.deadline >= batch.deadline {
                    rows_refused = waiting.rows;
                }
                if rows_refused <= 1 {
                    break;
                }
                continue;
            }
            batch.requests.push(key.id);
            batch.parts.push(waiting.rows);
            (batch.kind, batch.bytes) = (larger, bytes);
            (batch.predicted, batch.deadline) = (predicted, deadline);
            oldest = oldest.min(waiting.arrived);
            start_by = start_by.min(key.start_by());
        }
        more |= batch.kind.rows >= self.terms.rows_max;
        if !more {
            batch.ripe_at = (oldest + self.terms.delay_max).min(start_by);
        }
        batch
    }

    /// The time within which a step is expected to end, for the sake of those who share it.
    fn surely(&self, predicted: Duration) -> Duration {
        match self.discipline {
            Discipline::Quadrant | Discipline::Clockwork => self.costs.high(predicted),
            Discipline::Fifo => predicted,
        }
    }

    /// Whether rows with deadlines share a step that takes `together`, where `apart` is what their steps take
    /// one after the other. The disciplines to compare with join whatever is in time.
    fn joins(&self, apart: Duration, together: Duration) -> bool {
        self.discipline != Discipline::Quadrant || together <= scaled(apart, JOINED_MAX)
    }

    /// The first request with a deadline behind `key` that no batch from `key` or from before it could
    /// hold: of a shape not seen up to there, or one that runs alone.
    pub(crate) fn next_group(&self, key: OrderKey) -> Option<OrderKey> {
        let mut shapes: SmallVec<[ShapeId; 8]> = SmallVec::new();
        for (other, waiting) in self.waiting.iter().take(BATCH_SCAN_MAX).take_while(|(other, _)| !other.easy)
        {
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

    /// What this many more rows add to the time of all that waits with a deadline, if it runs in the
    /// largest batches. What shares a batch costs less than what runs alone.
    pub(crate) fn marginal(&self, rows: u32, kind: Kind, row_bytes: u64, slowdown: f64) -> Duration {
        let largest = self.terms.rows_max.max(1);
        let one = |rows: u32| {
            let bytes = row_bytes.saturating_mul(u64::from(rows));
            self.costs.predict_at(Kind { rows, ..kind }, bytes, slowdown)
        };
        if rows >= largest {
            return one(rows);
        }
        let before = self.urgent_rows % largest;
        let after = before + rows;
        let full = if after >= largest { one(largest) } else { Duration::ZERO };
        let rest = if after.is_multiple_of(largest) { Duration::ZERO } else { one(after % largest) };
        let already = if before == 0 { Duration::ZERO } else { one(before) };
        if before > 0 && !self.joins(already + one(rows), full + rest) {
            return one(rows);
        }
        (full + rest).saturating_sub(already)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Beside;
    use crate::{Cost, Unmet};

    const MS: u64 = 1_000_000;

    fn queue(requests: &[(u64, u32, u32)], rows_max: u32, delay_ms: u64) -> ModelQueue {
        let terms = ModelTerms {
            rows_max,
            widths: vec![1],
            lane: None,
            queue_max: 100,
            delay_max: Duration::from_millis(delay_ms),
            costs: [1, 2, 3, 4]
                .map(|rows| Cost {
                    rows,
                    width: 1,
                    beside: true,
                    time: Duration::from_millis(1 + u64::from(rows)),
                })
                .to_vec(),
            row_bytes: 1,
            unmet: Unmet::Refuse,
            sequences: None,
        };
        let mut queue = ModelQueue::new(terms, Discipline::Quadrant);
        for (index, (deadline, rows, shape)) in requests.iter().enumerate() {
            let rank = (deadline * MS).saturating_sub(2 * MS);
            let key = OrderKey { easy: false, rank, id: RequestId(index as u64) };
            let (rows, shape, deadline) = (*rows, ShapeId(*shape), Time::from_nanos(deadline * MS));
            let alone = false;
            let waiting =
                Waiting { arrived: Time::ZERO, deadline, rows, shape, bytes_in: 1, alone, begun: None };
            queue.insert(key, waiting);
        }
        queue
    }

    fn first(queue: &ModelQueue) -> Candidate {
        let setting = Setting { width: 1, beside: Beside::Nothing, slowdown: 1.0 };
        queue.batch_from(queue.head().unwrap(), Time::ZERO, setting)
    }

    fn batch(requests: &[(u64, u32, u32)], rows_max: u32) -> Vec<u64> {
        let candidate = first(&queue(requests, rows_max, 0));
        candidate.requests.iter().map(|id| id.0).collect()
    }

    #[test]
    fn a_batch_takes_its_heads_shape_in_order() {
        assert_eq!(batch(&[(30, 1, 0), (10, 1, 0), (20, 1, 1)], 4), [1, 0]);
        assert_eq!(batch(&[(10, 1, 0), (20, 1, 0), (30, 1, 0)], 2), [0, 1]);
        // A request that is too large for what is left does not hold up a smaller one behind it.
        assert_eq!(batch(&[(10, 2, 0), (20, 3, 0), (30, 2, 0)], 4), [0, 2]);
        // More rows than a batch holds still run, by themselves.
        assert_eq!(batch(&[(10, 9, 0), (20, 1, 0)], 4), [0]);
    }

    #[test]
    fn rows_are_joined_where_it_saves_time() {
        let mut queue = queue(&[(90, 1, 0), (95, 1, 0)], 4, 0);
        let linear = |rows: u32| Cost {
            rows,
            width: 1,
            beside: true,
            time: Duration::from_millis(10 * u64::from(rows)),
        };
        queue.terms.costs = vec![linear(1), linear(2)];
        queue.costs = Costs::new(&queue.terms);
        assert_eq!(first(&queue).requests.len(), 1, "two rows take as long as two steps");
        let kind = Kind { shape: ShapeId(0), rows: 1, width: 1, beside: Beside::Usual };
        assert_eq!(queue.marginal(1, kind, 1, 1.0).as_millis(), 10);
        queue.discipline = Discipline::Fifo;
        assert_eq!(first(&queue).requests.len(), 2);
    }

    #[test]
    fn a_batch_is_no_larger_than_its_first_deadline_allows() {
        // A step of n rows takes n + 1 milliseconds, and surely not a quarter more.
        assert_eq!(batch(&[(4, 1, 0), (20, 1, 0), (30, 1, 0)], 4), [0, 1]);
        assert_eq!(batch(&[(2, 1, 0), (20, 1, 0)], 4), [0]);
        assert_eq!(batch(&[(1, 1, 0), (20, 1, 0)], 4), [0], "what is late runs as it is");
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

    #[test]
    fn rows_that_share_a_batch_cost_less() {
        let kind = Kind { shape: ShapeId(0), rows: 1, width: 1, beside: Beside::Usual };
        let adds = |waiting: usize, rows| {
            let requests = vec![(100, 1, 0); waiting];
            queue(&requests, 4, 0).marginal(rows, kind, 1, 1.0).as_millis()
        };
        // Steps of 1, 2, 3 and 4 rows take 2, 3, 4 and 5 milliseconds.
        assert_eq!([adds(0, 1), adds(1, 1), adds(2, 2), adds(3, 1), adds(4, 1)], [2, 1, 2, 1, 2]);
        assert_eq!((adds(3, 3), adds(0, 4)), (1 + 3, 5));
    }
}
