//! Who gives way when not everybody can be served: whoever fared better than those who are refused, and had
//! about as much.
//!
//! Admission in the order of arrival favours requests with much time, because they find room where others
//! do not; under overload one model then takes what all should share. So each model's admitted and offered
//! work is counted over the last seconds, and so is what those had that were refused. A model of whose work a
//! larger share was admitted than of theirs must leave some room when it comes. One that had much less than
//! they had need not.
//!
//! And a model that asks for little gets all of it, however many requests another sends. Shares are max-min
//! fair by what models asked for lately: those that ask for more than the level (Bertsekas and Gallager, Data
//! Networks, 1992, section 6.5.2) leave room for what those far below it are about to ask for.

use std::time::Duration;

use quadrant_types::Time;

use crate::lately::Lately;
use crate::span::scaled;

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
/// Over how long what models ask for is counted, to find the level. Short, because a flood comes suddenly.
const ASKED_OVER: Duration = Duration::from_secs(1);
/// How long a level holds before it is worked out again.
const LEVEL_HOLDS: Duration = Duration::from_millis(100);
/// Those who ask for less than this share of the level are left room. The others take part in the overload.
const FAR_BELOW: f64 = 0.5;
/// What is left for those far below the level is what they asked for on average, and as much again because
/// they do not ask evenly; or this share of the time, because the speed of cores varies too.
const LEFT_BESIDES: f64 = 0.2;
/// The share of a request's time that is left for them at most.
const LEFT_MAX: f64 = 0.9;
/// A model that had less than this share of what the refused had gives way to nobody.
const MODEST: f64 = 0.7;

/// One model's account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    admitted: Lately,
    offered: Lately,
    asked: Lately,
}

impl Default for Account {
    fn default() -> Self {
        let counted = Lately::new(COUNTED_OVER);
        Self { admitted: counted, offered: counted, asked: Lately::new(ASKED_OVER) }
    }
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
    /// Brings the sums up to date: reading them at this time costs nothing then.
    pub(crate) fn advance(&mut self, now: Time) {
        for sum in [&mut self.admitted, &mut self.offered, &mut self.asked] {
            sum.add(now, 0.0);
        }
    }

    pub(crate) fn note(&mut self, now: Time, work: Duration, admitted: bool) {
        self.offered.add(now, work.as_secs_f64());
        self.asked.add(now, work.as_secs_f64());
        if admitted {
            self.admitted.add(now, work.as_secs_f64());
        }
    }

    /// What it asks for of late, as a share of the whole device.
    pub(crate) fn asks(&self, now: Time) -> f64 {
        self.asked.per_second(now)
    }

    /// What it takes of late, as a share of the whole device.
    pub(crate) fn takes(&self, now: Time) -> f64 {
        self.admitted.per_second(now)
    }

    pub(crate) fn had(&self, now: Time) -> Had {
        let (work, offered) = (self.admitted.get(now), self.offered.get(now));
        Had { work, share: if offered > 0.0 { (work / offered).min(1.0) } else { 1.0 } }
    }
}

/// The max-min fair level.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    /// Who asks for more gets this; `None` if everybody can have what they ask for.
    level: Option<f64>,
    /// What those ask for together who ask for far less.
    modest: f64,
    holds_until: Time,
}

impl Level {
    /// Whether it is to be worked out again.
    pub(crate) fn is_old(&self, now: Time) -> bool {
        now >= self.holds_until
    }

    /// Works the level out, from what each model asks for as a share of the whole device.
    pub(crate) fn refresh(&mut self, now: Time, asks: impl Iterator<Item = f64>) {
        let mut asks: Vec<f64> = asks.filter(|asked| *asked > 0.0).collect();
        asks.sort_by(f64::total_cmp);
        let (mut left, mut level) = (1.0, None);
        for (index, asked) in asks.iter().enumerate() {
            let fair = left / (asks.len() - index) as f64;
            if *asked > fair {
                level = Some(fair);
                break;
            }
            left -= asked;
        }
        let modest = asks.iter().filter(|asked| level.is_some_and(|level| **asked < FAR_BELOW * level));
        *self = Self { level, modest: modest.sum(), holds_until: now + LEVEL_HOLDS };
    }

    /// The room that a request leaves free whose model asks for so much and which has `span` time.
    pub(crate) fn reserve(&self, asks: f64, span: Duration) -> Duration {
        match self.level {
            Some(level) if asks > level && self.modest > 0.0 => {
                scaled(span, (self.modest + self.modest.max(LEFT_BESIDES)).min(LEFT_MAX))
            }
            Some(_) | None => Duration::ZERO,
        }
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
        scaled(span, (RESERVE_RATE * better).min(RESERVE_MAX))
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
    fn who_asks_for_more_than_the_level_leaves_room_for_the_others() {
        let span = Duration::from_millis(100);
        let mut level = Level::default();
        let mut check = |asks: &[f64], of: f64, expect_ms: u64| {
            level.refresh(Time::ZERO, asks.iter().copied());
            let reserve = level.reserve(of, span).as_secs_f64() * 1e3;
            assert!((reserve - expect_ms as f64).abs() < 1e-6, "{asks:?} {of}: {reserve}");
        };
        check(&[0.05, 2.0], 2.0, 25);
        check(&[0.05, 2.0], 0.05, 0);
        check(&[0.3, 0.3, 0.3], 0.3, 0);
        // All ask for more than they can have, so nobody is owed anything beforehand.
        check(&[0.5, 0.5, 0.6], 0.6, 0);
        check(&[0.2, 0.2, 9.0], 9.0, 80);
        // Somewhat below is not far below: they get what they find.
        check(&[0.3, 0.3, 9.0], 9.0, 0);
        assert!(!level.is_old(Time::ZERO + Duration::from_millis(99)));
        assert!(level.is_old(Time::ZERO + LEVEL_HOLDS));
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
}
