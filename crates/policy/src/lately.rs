//! What happened lately: a sum in which what is long past counts for little.

use std::time::Duration;

use quadrant_types::Time;

/// A sum that forgets exponentially: after `over` a share of 1/e is left of what was added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lately {
    value: f64,
    at: Time,
    over: Duration,
}

impl Lately {
    pub(crate) const fn new(over: Duration) -> Self {
        Self { value: 0.0, at: Time::ZERO, over }
    }

    pub(crate) fn add(&mut self, now: Time, amount: f64) {
        self.value = self.get(now) + amount;
        self.at = now;
    }

    pub(crate) fn get(&self, now: Time) -> f64 {
        if self.at == now {
            return self.value;
        }
        let passed = now.since(self.at).as_secs_f64() / self.over.as_secs_f64();
        self.value * (-passed).exp()
    }

    /// What was added a second, of late: of work in seconds that is a share of the time.
    pub(crate) fn per_second(&self, now: Time) -> f64 {
        self.get(now) / self.over.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_forget() {
        let over = Duration::from_secs(10);
        let mut lately = Lately::new(over);
        lately.add(Time::ZERO, 4.0);
        let later = Time::ZERO + over;
        assert!((lately.get(later) - 4.0 / std::f64::consts::E).abs() < 1e-9);
        assert!((lately.per_second(later) - 0.4 / std::f64::consts::E).abs() < 1e-9);
    }
}
