//! How much work is due by when, and how much room that leaves: the question that admission asks.
//!
//! Every waiting request with a deadline books its predicted share of the device's time at the time by
//! which it must be done. The booked work is feasible if at every such time no more is due than can be
//! done until then, which is the processor demand criterion for deadline scheduling (Baruah, Mok and
//! Rosier, RTSS 1990). A segment tree over buckets of time keeps, for each span, the sum of its work and
//! the least room within it, so booking and asking cost the logarithm of the number of buckets, however
//! many requests wait. Levels whose spans are wider than all that was ever booked at once are never asked,
//! and are not kept until they are.

use quadrant_types::Time;
use std::time::Duration;

/// Buckets are 2^20 nanoseconds wide, about a millisecond.
const BUCKET_SHIFT: u32 = 20;
/// The most buckets; what is due later than the last is booked there.
const BUCKETS_MAX: u64 = 1 << 16;
/// Levels of the tree above the buckets that are kept from the start: work due within 64 milliseconds.
const LEVELS_MIN: u32 = 6;
/// The room of a span in which nothing is due.
const ENDLESS: i64 = i64::MAX / 4;

/// Work that is booked; needed to give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Booking {
    bucket: u64,
    work: i64,
}

/// All booked work by the time it is due.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    /// The first bucket that is not past.
    base: u64,
    /// Nothing is booked in this bucket or after it.
    end: u64,
    /// Work in the buckets before `base`: due, and not yet given back.
    overdue: i64,
    booked: usize,
    buckets: u64,
    /// The root is the second; the children of each are at twice its index and next to that.
    nodes: Vec<Node>,
    /// So many levels above the buckets are up to date, which is enough for all from `base` to `end`.
    levels: u32,
    /// Bookings in each bucket.
    counts: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// Work of the span, in nanoseconds of the whole device.
    work: i64,
    /// The least, over its buckets, of the time at which the bucket's work is due less the span's work
    /// up to there.
    room: i64,
}

const EMPTY: Node = Node { work: 0, room: ENDLESS };

impl Node {
    /// A span followed by another.
    fn then(self, next: Self) -> Self {
        Self { work: self.work + next.work, room: self.room.min(next.room.saturating_sub(self.work)) }
    }
}

impl Demand {
    /// For work due within `horizon` of the present.
    pub(crate) fn new(horizon: Duration) -> Self {
        let wanted = (nanos(horizon) >> BUCKET_SHIFT).unsigned_abs() + 2;
        let buckets = wanted.next_power_of_two().min(BUCKETS_MAX);
        let size = usize::try_from(buckets).unwrap_or(0);
        let (nodes, counts) = (vec![EMPTY; 2 * size], vec![0; size]);
        let levels = LEVELS_MIN.min(buckets.ilog2());
        Self { base: 0, end: 0, overdue: 0, booked: 0, buckets, nodes, levels, counts }
    }

    /// Books work that is due at a time.
    pub(crate) fn book(&mut self, due: Time, work: Duration) -> Booking {
        let booking = Booking { bucket: self.bucket_of(due), work: nanos(work) };
        self.booked += 1;
        self.end = self.end.max(booking.bucket + 1);
        while self.end - self.base > 1 << self.levels && self.levels < self.buckets.ilog2() {
            self.add_level();
        }
        self.change(booking, 1);
        booking
    }

    /// Gives booked work back.
    pub(crate) fn release(&mut self, booking: Booking) {
        self.booked -= 1;
        let of_done = Booking { work: -booking.work, ..booking };
        if booking.bucket < self.base { self.overdue -= booking.work } else { self.change(of_done, -1) }
    }

    /// Lets time pass: what was due before `now` and is still booked comes before everything else.
    pub(crate) fn advance(&mut self, now: Time) {
        let until = now.as_nanos() >> BUCKET_SHIFT;
        let last = until.min(self.base + self.buckets);
        while self.base < last && self.booked > 0 {
            let slot = self.slot(self.base);
            if self.counts[slot] > 0 {
                self.overdue += self.nodes[slot + self.counts.len()].work;
                self.counts[slot] = 0;
                self.set(slot, EMPTY);
            }
            self.base += 1;
        }
        self.base = self.base.max(until);
        if self.booked == 0 {
            (self.overdue, self.end) = (0, self.base);
        }
    }

    /// The room left for new work due at a time: by how much it may exceed nothing without making it, or
    /// anything booked later, late. `ahead` is work that comes before all of it. Negative if there is none.
    pub(crate) fn room(&self, now: Time, due: Time, ahead: Duration) -> i64 {
        let bucket = self.bucket_of(due);
        let spent = self.overdue + nanos(ahead) + time(now);
        let before = self.fold(self.base, bucket.min(self.end)).work;
        let at_due = self.nodes[self.slot(bucket) + self.counts.len()].work;
        let later = self.fold(bucket, self.end);
        let own = time(due) - at_due;
        own.min(later.room).saturating_sub(before).saturating_sub(spent)
    }

    /// The least room over everything booked. Negative if not all of it can be in time.
    pub(crate) fn least_room(&self, now: Time, ahead: Duration) -> i64 {
        let all = self.fold(self.base, self.end);
        all.room.saturating_sub(self.overdue + nanos(ahead) + time(now))
    }

    /// How many bookings there are.
    pub(crate) fn booked(&self) -> usize {
        self.booked
    }

    fn bucket_of(&self, due: Time) -> u64 {
        (due.as_nanos() >> BUCKET_SHIFT).clamp(self.base, self.base + self.buckets - 1)
    }

    fn slot(&self, bucket: u64) -> usize {
        usize::try_from(bucket & (self.buckets - 1)).unwrap_or(0)
    }

    fn change(&mut self, by: Booking, count: i32) {
        let slot = self.slot(by.bucket);
        self.counts[slot] = self.counts[slot].saturating_add_signed(count);
        let work = self.nodes[slot + self.counts.len()].work + by.work;
        let due = i64::try_from(by.bucket << BUCKET_SHIFT).unwrap_or(ENDLESS);
        self.set(slot, if self.counts[slot] == 0 { EMPTY } else { Node { work, room: due - work } });
    }

    fn set(&mut self, slot: usize, leaf: Node) {
        let mut at = slot + self.counts.len();
        self.nodes[at] = leaf;
        for _ in 0..self.levels {
            at /= 2;
            self.join(at);
        }
    }

    fn join(&mut self, at: usize) {
        self.nodes[at] = self.nodes[2 * at].then(self.nodes[2 * at + 1]);
    }

    fn add_level(&mut self) {
        self.levels += 1;
        let first = self.counts.len() >> self.levels;
        (first..2 * first).for_each(|at| self.join(at));
    }

    /// The span of these buckets, in the order of time. The buckets lie in a ring.
    fn fold(&self, from: u64, to: u64) -> Node {
        if from >= to {
            return EMPTY;
        }
        let (first, last) = (self.slot(from), self.slot(to - 1));
        if first <= last && to - from <= self.buckets && to - from == (last - first) as u64 + 1 {
            self.fold_slots(first, last + 1)
        } else {
            self.fold_slots(first, self.counts.len()).then(self.fold_slots(0, last + 1))
        }
    }

    /// The usual walk up a bottom-up segment tree, keeping left and right parts in order.
    fn fold_slots(&self, from: usize, to: usize) -> Node {
        let size = self.counts.len();
        let (mut left, mut right) = (EMPTY, EMPTY);
        let (mut low, mut high) = (from + size, to + size);
        while low < high {
            if low % 2 == 1 {
                left = left.then(self.nodes[low]);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                right = self.nodes[high].then(right);
            }
            low /= 2;
            high /= 2;
        }
        left.then(right)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(ENDLESS).min(ENDLESS)
}

fn time(time: Time) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(ENDLESS).min(ENDLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Time {
        // Whole buckets, so that rounding plays no part.
        Time::from_nanos(ms << BUCKET_SHIFT)
    }

    fn work(ms: u64) -> Duration {
        Duration::from_nanos(ms << BUCKET_SHIFT)
    }

    fn room(demand: &Demand, now: u64, due: u64) -> i64 {
        demand.room(at(now), at(due), Duration::ZERO) >> BUCKET_SHIFT
    }

    #[test]
    fn room_is_what_the_tightest_later_time_leaves() {
        let mut demand = Demand::new(100 * MS);
        assert_eq!(room(&demand, 0, 50), 50);
        let first = demand.book(at(20), work(15));
        // Due later: 50 less 15. Due earlier: it may take what the one at 20 does not need.
        assert_eq!((room(&demand, 0, 50), room(&demand, 0, 10), room(&demand, 0, 3)), (35, 5, 3));
        demand.book(at(40), work(20));
        assert_eq!((room(&demand, 0, 50), room(&demand, 0, 30), room(&demand, 0, 20)), (15, 5, 5));
        assert_eq!(room(&demand, 4, 30), 1);
        demand.release(first);
        assert_eq!(room(&demand, 0, 20), 20);
    }

    #[test]
    fn what_is_overdue_comes_first() {
        let mut demand = Demand::new(100 * MS);
        let late = demand.book(at(10), work(5));
        demand.advance(at(12));
        assert_eq!(room(&demand, 12, 30), 13);
        demand.release(late);
        assert_eq!(room(&demand, 12, 30), 18);
        // Long after everything, around the ring many times.
        demand.book(at(15), work(1));
        demand.advance(at(100_000));
        assert_eq!(room(&demand, 100_000, 100_010), 9);
    }

    #[test]
    fn it_agrees_with_adding_everything_up() {
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut demand = Demand::new(1_000 * MS);
        let mut books: Vec<(u64, u64, Booking)> = Vec::new();
        for step in 0..30_000 {
            let now = step / 10;
            // For the first while all is due soon.
            let within = if now > 1_500 && step % 10 == 0 { 900 } else { 50 };
            demand.advance(at(now));
            if next(3) == 0 && !books.is_empty() {
                let index = usize::try_from(next(books.len() as u64)).unwrap();
                demand.release(books.swap_remove(index).2);
            } else if books.len() < 40 {
                let (due, amount) = (now + next(within), next(4));
                books.push((due, amount, demand.book(at(due), work(amount))));
            }
            let due = now + next(within);
            let up_to = |time: u64| {
                let done = books.iter().filter(|(due, ..)| *due <= time || *due < now);
                done.map(|(_, amount, _)| i64::try_from(*amount).unwrap()).sum::<i64>()
            };
            let spare = |time: u64| i64::try_from(time).unwrap() - i64::try_from(now).unwrap() - up_to(time);
            let later = books.iter().map(|(time, ..)| *time).filter(|time| *time >= due && *time >= now);
            let expect = later.chain([due]).map(spare).min().unwrap();
            assert_eq!(room(&demand, now, due), expect, "step {step}");
        }
    }
}
