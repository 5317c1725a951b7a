//! Who gives way when not everybody can be served: whoever fared better than those who are refused, and had
//! about as much.
//!
//! Admission in the order of arrival favours requests with much time, because they find room where others
//! do not; under overload one model then takes what all should share. So each model's admitted and offered
//! work is counted over the last seconds, and so is what those had that were refused. A model of whose work a
//! larger share was admitted than of theirs must leave some room when it comes. One that had much less than
//! they had need not, so a model that asks for little gets all of it, however many requests another sends.

use std::time::Duration;

use quadrant_types::Time;

/// Over how long work is counted.
const COUNTED_OVER: Duration = Duration::from_secs(10);
/// How long a refusal is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);
/// How fast the level follows the models that are refused.
const LEVEL_RATE: f64 = 0.1;
/// The share of a request's time that must be left free for each share by which its model fared better,
const RESERVE_RATE: f64 = 4.0;
/// and at most.
const RESERVE_MAX: f64 = 0.5;
/// A model that had less than this share of what the refused had gives way to nobody.
const MODEST: f64 = 0.7;

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

/// One model's account.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    admitted: Lately,
    offered: Lately,
}

/// What a model had lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Had {
    /// Admitted work, in seconds of the whole device.
    work: f64,
    /// The share of the offered work that was admitted.
    share: f64,
}

impl Account {
    pub(crate) fn note(&mut self, now: Time, work: Duration, admitted: bool) {
        self.offered.add(now, work.as_secs_f64());
        if admitted {
            self.admitted.add(now, work.as_secs_f64());
        }
    }

    pub(crate) fn had(&self, now: Time) -> Had {
        let (work, offered) = (self.admitted.get(now), self.offered.get(now));
        Had { work, share: if offered > 0.0 { (work / offered).min(1.0) } else { 1.0 } }
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fairness {
    /// What those had who were refused, on average.
    refused: Had,
    refused_at: Option<Time>,
}

impl Fairness {
    /// A request was refused whose model had this.
    pub(crate) fn note_refusal(&mut self, now: Time, had: Had) {
        match self.refused_at.replace(now).filter(|at| now.since(*at) < REMEMBERED_FOR) {
            Some(_) => {
                self.refused.work += LEVEL_RATE * (had.work - self.refused.work);
                self.refused.share += LEVEL_RATE * (had.share - self.refused.share);
            }
            None => self.refused = had,
        }
    }

    /// The room that a request must leave free whose model had this and which has `span` time.
    pub(crate) fn reserve(&self, now: Time, had: Had, span: Duration) -> Duration {
        let lately = self.refused_at.is_some_and(|at| now.since(at) < REMEMBERED_FOR);
        let better = had.share - self.refused.share;
        if !lately || better <= 0.0 || had.work < MODEST * self.refused.work {
            return Duration::ZERO;
        }
        span.mul_f64((RESERVE_RATE * better).min(RESERVE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fared_better_than_the_refused_leaves_room() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let had = |work, share| Had { work, share };
        let span = Duration::from_millis(100);
        let mut fairness = Fairness::default();
        assert_eq!(fairness.reserve(at(0), had(9.0, 1.0), span), Duration::ZERO, "nobody was refused");
        fairness.note_refusal(at(1), had(2.0, 0.75));
        assert_eq!(fairness.reserve(at(1), had(2.0, 0.7), span), Duration::ZERO, "fared worse");
        assert_eq!(fairness.reserve(at(1), had(2.0, 0.8125), span), Duration::from_millis(25));
        assert_eq!(fairness.reserve(at(1), had(2.0, 1.0), span), Duration::from_millis(50));
        assert_eq!(fairness.reserve(at(1), had(1.0, 1.0), span), Duration::ZERO, "asked for little");
        assert_eq!(fairness.reserve(at(4), had(2.0, 1.0), span), Duration::ZERO, "long ago");
    }

    #[test]
    fn an_account_counts_what_was_offered() {
        let mut account = Account::default();
        assert_eq!(account.had(Time::ZERO), Had { work: 0.0, share: 1.0 });
        for number in 0..4 {
            account.note(Time::ZERO, Duration::from_millis(10), number < 3);
        }
        let had = account.had(Time::ZERO);
        assert!((had.work - 0.03).abs() < 1e-9 && (had.share - 0.75).abs() < 1e-9, "{had:?}");
    }

    #[test]
    fn sums_forget() {
        let mut lately = Lately::default();
        lately.add(Time::ZERO, 4.0);
        let later = Time::ZERO + COUNTED_OVER;
        assert!((lately.get(later) - 4.0 / std::f64::consts::E).abs() < 1e-9);
    }
}
