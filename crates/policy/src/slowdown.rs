//! How much slower each core is at present than it usually is.
//!
//! The same step takes a third longer on one core than on another, for some tenths of a second: another
//! thread shares the core's execution units or caches (on a virtual machine one that nobody here can see),
//! or its clock has changed. Every step of a known kind tells of it when it ends: a long one more than a
//! short one, and less if the times of its model scatter. A core of which nothing was heard is taken to be as
//! it usually is.

use std::time::Duration;

use quadrant_types::{CoreSet, Time};

use crate::cost::Usual;

/// A step as long as this counts half.
const COUNTS_HALF_NANOS: f64 = 20e6;
/// A step of a model whose times are rarely this much longer than predicted counts in full.
const SCATTER: f64 = 0.5;
/// Deviations beyond this share count as this much: a single step may be an outlier.
const DEVIATION_MAX: f64 = 0.5;
/// How slow, and how fast, a core may seem.
const BOUNDS: (f64, f64) = (0.5, 4.0);
/// After this long without a step nothing is known.
const KNOWN_FOR_NANOS: f64 = 4e9;

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Slowdown {
    /// Each core by itself.
    cores: Vec<(CoreSet, Seen)>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    factor: f64,
    at: Time,
}

impl Slowdown {
    pub(crate) fn new(cores: CoreSet) -> Self {
        let usual = Seen { factor: 1.0, at: Time::ZERO };
        Self { cores: cores.cores().map(|core| (CoreSet::from_cores([core]), usual)).collect() }
    }

    /// How many times longer than usually a step takes on these cores: it waits for the slowest.
    pub(crate) fn of(&self, now: Time, cores: CoreSet) -> f64 {
        let these = self.cores.iter().filter(|(core, _)| core.is_subset(cores));
        these.map(|(_, seen)| seen.factor(now)).reduce(f64::max).unwrap_or(1.0)
    }

    /// The same on the fastest core,
    pub(crate) fn least(&self, now: Time) -> f64 {
        self.cores.iter().map(|(_, seen)| seen.factor(now)).reduce(f64::min).unwrap_or(1.0)
    }

    /// and on all of them together.
    pub(crate) fn mean(&self, now: Time) -> f64 {
        self.cores.iter().map(|(_, seen)| seen.factor(now)).sum::<f64>() / self.cores.len() as f64
    }

    /// A step took `actual`.
    pub(crate) fn note(&mut self, now: Time, cores: CoreSet, usual: Usual, actual: Duration) {
        let Usual { nanos, scatter } = usual;
        let weight = nanos / (nanos + COUNTS_HALF_NANOS) * (SCATTER / scatter.max(SCATTER));
        let ratio = actual.as_nanos() as f64 / nanos.max(1.0);
        for (_, seen) in self.cores.iter_mut().filter(|(core, _)| core.is_subset(cores)) {
            let factor = seen.factor(now);
            let deviation = (ratio / factor - 1.0).clamp(-DEVIATION_MAX, DEVIATION_MAX);
            let factor = (factor * (1.0 + weight * deviation)).clamp(BOUNDS.0, BOUNDS.1);
            *seen = Seen { factor, at: now };
        }
    }
}

impl Seen {
    fn factor(&self, now: Time) -> f64 {
        let passed = now.as_nanos().saturating_sub(self.at.as_nanos()) as f64;
        let left = 1.0 - passed * (1.0 / KNOWN_FOR_NANOS);
        1.0 + (self.factor - 1.0) * left.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn usual(ms: f64, scatter: f64) -> Usual {
        Usual { nanos: 1e6 * ms, scatter }
    }

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_core_is_as_slow_as_its_last_steps_and_the_others_are_not() {
        let (both, slow, other) =
            (CoreSet::from_cores([2, 5]), CoreSet::from_cores([5]), CoreSet::from_cores([2]));
        let mut slowdown = Slowdown::new(both);
        assert!((slowdown.of(at(0), both) - 1.0).abs() < 1e-9);
        (0..10).for_each(|number| slowdown.note(at(number), slow, usual(20.0, 0.2), 30 * MS));
        assert!((1.45..1.5).contains(&slowdown.of(at(9), slow)), "{slowdown:?}");
        assert!((slowdown.of(at(9), other) - 1.0).abs() < 1e-9);
        assert!((slowdown.of(at(9), both) - slowdown.of(at(9), slow)).abs() < 1e-9);
        assert!((slowdown.least(at(9)) - 1.0).abs() < 1e-9);
        assert!((1.2..1.25).contains(&slowdown.mean(at(9))));
    }

    #[test]
    fn a_short_step_says_little_and_an_outlier_no_more_than_others() {
        let core = CoreSet::from_cores([0]);
        let mut slowdown = Slowdown::new(core);
        slowdown.note(at(0), core, usual(0.2, 0.2), 2 * MS);
        assert!(slowdown.of(at(0), core) < 1.01);
        slowdown.note(at(0), core, usual(20.0, 0.2), 2_000 * MS);
        assert!(slowdown.of(at(0), core) < 1.3);
        let mut slowdown = Slowdown::new(core);
        slowdown.note(at(0), core, usual(20.0, 10.0), 30 * MS);
        assert!(slowdown.of(at(0), core) < 1.02, "its model's times are all over the place");
    }

    #[test]
    fn what_was_seen_is_forgotten() {
        let core = CoreSet::from_cores([0]);
        let mut slowdown = Slowdown::new(core);
        (0..10).for_each(|_| slowdown.note(at(0), core, usual(20.0, 0.2), 40 * MS));
        let (then, later) = (slowdown.of(at(0), core), slowdown.of(at(2_000), core));
        assert!(then > 1.9 && (1.4..1.6).contains(&later), "{then} {later}");
        assert!((slowdown.of(at(4_000), core) - 1.0).abs() < 1e-9);
    }
}
