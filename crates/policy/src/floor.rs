//! The floor of core time that best effort gets while it waits, however much urgent work there is.
//!
//! While best-effort work waits it earns core time at the floor's rate and pays for what it runs. Once it
//! has earned a slice, one core is its own until the slice is used up: urgent steps are not begun there.
//! Slices are short, so what a deadline loses to one is small, and is reserved by admission beforehand.

use std::time::Duration;

use quadrant_types::{CoreSet, Time};

/// Core time of one turn.
const SLICE_NANOS: i64 = 5_000_000;
/// What can be saved up or owed.
const CREDIT_MAX_NANOS: i64 = 100_000_000;

/// The account of best effort.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    permille: i64,
    cores: i64,
    credit: i64,
    updated: Time,
    /// The core that belongs to best effort now.
    turn: CoreSet,
    /// Whether it had work when last looked at, and on how many cores it ran.
    backlog: bool,
    running: i64,
}

impl Floor {
    pub(crate) fn new(permille: u32, cores: usize) -> Self {
        let cores = i64::try_from(cores).unwrap_or(1);
        let permille = i64::from(permille.min(1_000));
        let turn = CoreSet::EMPTY;
        Self { permille, cores, credit: 0, updated: Time::ZERO, turn, backlog: false, running: 0 }
    }

    /// The share of all core time that is left to work with deadlines.
    pub(crate) fn rest(&self) -> f64 {
        // At least a thousandth, so that it can be divided by.
        (1_000 - self.permille).max(1) as f64 / 1_000.0
    }

    /// Lets time pass; the account moves by what was said at [`Self::note`].
    pub(crate) fn advance(&mut self, now: Time) {
        let passed = nanos(now.since(self.updated));
        self.updated = now;
        let earned = if self.backlog { passed.saturating_mul(self.cores * self.permille) / 1_000 } else { 0 };
        let spent = passed.saturating_mul(self.running);
        self.credit = (self.credit + earned - spent).clamp(-CREDIT_MAX_NANOS, CREDIT_MAX_NANOS);
        if !self.backlog {
            self.credit = self.credit.min(0);
        }
        if self.credit <= 0 || !self.backlog {
            self.turn = CoreSet::EMPTY;
        }
    }

    /// A best-effort step ended for which this was charged and which really had this: whatever else ran on
    /// its core was not its doing.
    pub(crate) fn correct(&mut self, charged: Duration, had: Duration) {
        let back = nanos(charged.saturating_sub(had));
        self.credit = (self.credit + back).min(CREDIT_MAX_NANOS);
    }

    /// What holds from now on: whether best-effort work waits or is held up, and on how many cores it runs.
    pub(crate) fn note(&mut self, backlog: bool, running: usize) {
        self.backlog = backlog;
        self.running = i64::try_from(running).unwrap_or(0);
    }

    /// Whether a turn is due and no core was given yet.
    pub(crate) fn is_due(&self) -> bool {
        self.permille > 0 && self.backlog && self.credit >= SLICE_NANOS && self.turn.is_empty()
    }

    pub(crate) fn give(&mut self, core: CoreSet) {
        self.turn = core;
    }

    /// The core on which urgent steps are not to be begun now.
    pub(crate) fn turn(&self) -> CoreSet {
        self.turn
    }

    /// When a turn begins or ends, if nothing else happens.
    pub(crate) fn changes_at(&self) -> Option<Time> {
        let earning = self.cores * self.permille;
        if !self.backlog || earning == 0 {
            return None;
        }
        let rate = earning - self.running * 1_000;
        let (distance, rate) = match self.turn.is_empty() {
            true if rate > 0 && self.credit < SLICE_NANOS => (SLICE_NANOS - self.credit, rate),
            false if rate < 0 => (self.credit, -rate),
            true | false => return None,
        };
        let wait = distance.max(0).saturating_mul(1_000) / rate + 1;
        Some(self.updated + Duration::from_nanos(wait.unsigned_abs()))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX >> 16).min(i64::MAX >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_comes_when_it_is_earned_and_ends_when_it_is_used() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let mut floor = Floor::new(100, 2);
        floor.note(true, 0);
        assert_eq!(floor.changes_at(), Some(at(25) + Duration::from_nanos(1)));
        floor.advance(at(24));
        assert!(!floor.is_due());
        floor.advance(at(25));
        assert!(floor.is_due());
        floor.give(CoreSet::from_cores([1]));
        floor.note(true, 1);
        assert_eq!(floor.turn(), CoreSet::from_cores([1]));
        // It uses a core and earns a fifth of one: 5 ms last 6.25 ms.
        assert_eq!(floor.changes_at(), Some(at(25) + Duration::from_nanos(6_250_001)));
        floor.advance(at(32));
        assert!(floor.turn().is_empty());
    }

    #[test]
    fn without_work_nothing_is_earned() {
        let mut floor = Floor::new(100, 2);
        floor.advance(Time::from_nanos(1 << 40));
        assert!(!floor.is_due() && floor.changes_at().is_none());
        floor.note(true, 0);
        assert!(!floor.is_due());
        let mut none = Floor::new(0, 2);
        none.note(true, 0);
        none.advance(Time::from_nanos(1 << 40));
        assert!(!none.is_due() && none.changes_at().is_none());
    }
}
