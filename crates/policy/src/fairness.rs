//! Who gives way when not everybody can be served: whoever had more than those who were refused.
//!
//! Admission in the order of arrival favours requests with much time, because they find room where others
//! do not; under overload one model then takes what all should share. So each model's admitted work is
//! counted over the last seconds, and so is how much those models had that were refused. A model that had
//! more than that must leave some room when it comes; one that had less need not. This tends to max-min
//! fair shares: a model that asks for little gets all of it, however many requests another one sends.

use std::time::Duration;

use quadrant_types::Time;

/// Over how long work is counted.
const COUNTED_OVER: Duration = Duration::from_secs(10);
/// How long a refusal is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);
/// How fast the level follows the models that are refused.
const LEVEL_RATE: f64 = 0.1;
/// The share of a request's time that a model must leave free at most.
const RESERVE_MAX: f64 = 0.5;

/// A sum that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lately {
    value: f64,
    at: Time,
}

impl Lately {
    pub(crate) fn add(&mut self, now: Time, amount: f64) {
        self.value = self.get(now) + amount;
        self.at = now;
    }

    pub(crate) fn get(&self, now: Time) -> f64 {
        let passed = now.since(self.at).as_secs_f64() / COUNTED_OVER.as_secs_f64();
        self.value * (-passed).exp()
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fairness {
    /// The work that those who are refused had.
    level: f64,
    refused_at: Option<Time>,
}

impl Fairness {
    /// A request was refused whose model had so much work admitted.
    pub(crate) fn note_refusal(&mut self, now: Time, had: f64) {
        match self.refused_at.replace(now).filter(|at| now.since(*at) < REMEMBERED_FOR) {
            Some(_) => self.level += LEVEL_RATE * (had - self.level),
            None => self.level = had,
        }
    }

    /// The room that a request must leave free whose model had so much and which has `span` time.
    pub(crate) fn reserve(&self, now: Time, had: f64, span: Duration) -> Duration {
        let lately = self.refused_at.is_some_and(|at| now.since(at) < REMEMBERED_FOR);
        if !lately || had <= self.level {
            return Duration::ZERO;
        }
        let excess = (had / self.level.max(1e-9) - 1.0).clamp(0.0, 1.0);
        span.mul_f64(RESERVE_MAX * excess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_more_than_the_refused_leaves_room() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let span = Duration::from_millis(100);
        let mut fairness = Fairness::default();
        assert_eq!(fairness.reserve(at(0), 9.0, span), Duration::ZERO, "nobody was refused");
        fairness.note_refusal(at(1), 2.0);
        assert_eq!(fairness.reserve(at(1), 1.0, span), Duration::ZERO);
        assert_eq!(fairness.reserve(at(1), 3.0, span), Duration::from_millis(25));
        assert_eq!(fairness.reserve(at(1), 9.0, span), Duration::from_millis(50));
        assert_eq!(fairness.reserve(at(4), 9.0, span), Duration::ZERO, "long ago");
    }

    #[test]
    fn sums_forget() {
        let mut lately = Lately::default();
        lately.add(Time::ZERO, 4.0);
        let later = Time::ZERO + COUNTED_OVER;
        assert!((lately.get(later) - 4.0 / std::f64::consts::E).abs() < 1e-9);
    }
}
