//! When a prediction that shuts a model out is to be doubted.
//!
//! A request whose own step is predicted to take longer than it has time for is refused. But a step that
//! never runs corrects no prediction: a model that was measured at a bad moment would be shut out for ever.
//! So while nothing was learnt of its steps lately, now and then one such request is let in as best effort,
//! where it can make nobody late.

use std::time::Duration;

use quadrant_types::Time;

/// What was learnt of a step is believed for this long.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// The least time between two trials.
const TRIED_EVERY: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubt {
    learnt_at: Option<Time>,
    tried_at: Option<Time>,
}

impl Doubt {
    /// A step of the model ran. One that took far less than predicted leaves the prediction in doubt.
    pub(crate) fn note_learnt(&mut self, now: Time, predicted: Duration, actual: Duration) {
        if actual * 2 > predicted {
            self.learnt_at = Some(now);
        }
    }

    /// Whether a request that is to be refused for the length of its own step is let in to see.
    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        let within = |at: Option<Time>, span| at.is_some_and(|at| now.since(at) < span);
        if within(self.learnt_at, BELIEVED_FOR) || within(self.tried_at, TRIED_EVERY) {
            return false;
        }
        self.tried_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_predictions_are_tried_now_and_then_and_fresh_ones_are_not() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let mut doubt = Doubt::default();
        assert!(doubt.is_due(at(0)), "nothing was ever learnt");
        assert!(!doubt.is_due(at(999)) && doubt.is_due(at(1_000)));
        let ms = Duration::from_millis;
        doubt.note_learnt(at(1_500), ms(50), ms(10));
        assert!(doubt.is_due(at(2_000)), "it was wrong by far");
        doubt.note_learnt(at(1_500), ms(50), ms(40));
        assert!(!doubt.is_due(at(11_499)) && doubt.is_due(at(11_500)));
    }
}
