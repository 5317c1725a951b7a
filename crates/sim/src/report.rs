//! What a run showed: per model how requests ended, how long they took, how they were batched.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use quadrant_types::{Ending, LaneId, Objective, Request, Time};

use crate::TenantReport;
use crate::generating::Tokens;

/// The result of a run in which everything held.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// In the order of the scenario.
    pub models: Vec<ModelReport>,
    /// By their numbers, in a scenario that names any.
    pub tenants: BTreeMap<u32, TenantReport>,
    /// What ran where, for the first steps of the run.
    pub spans: Vec<Span>,
    /// Core time in which a step ran.
    pub busy: Duration,
    /// Events the scheduler took in.
    pub events: u64,
    /// Over every action at its time; equal for equal runs.
    pub log_hash: LogHash,
    /// When the last thing happened.
    pub ended_at: Time,
}

/// A step on its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub lane: LaneId,
    /// The index of its model.
    pub model: usize,
    /// When it began.
    pub began: Time,
    /// When it ended.
    pub ended: Time,
}

/// One model's part of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelReport {
    /// Requests that came.
    pub arrivals: u64,
    /// Those of them with an objective,
    pub with_objective: u64,
    /// and those that were answered within it.
    pub in_time: u64,
    /// Requests with an objective that were refused on arrival, and those given up or expired later.
    pub refused: u64,
    /// Requests by how they ended: `completed`, or the name of an error code.
    pub endings: BTreeMap<&'static str, u64>,
    /// From arrival to ending of the completed requests, ascending.
    latencies: Vec<Duration>,
    /// From arrival to the first token of those that generated, ascending,
    first_tokens: Vec<Duration>,
    /// and the mean time of each further one.
    further_tokens: Vec<Duration>,
    /// Steps run.
    pub steps: u64,
    /// Rows of all steps together.
    pub rows: u64,
    /// Times it was loaded,
    pub loads: u64,
    /// and how long that took in all.
    pub loading: Duration,
}

impl ModelReport {
    /// How many requests ended so.
    pub fn ended(&self, how: &str) -> u64 {
        self.endings.get(how).copied().unwrap_or(0)
    }

    /// The latency that this share of the completed requests stayed within; zero if there was none.
    pub fn latency(&self, share: f64) -> Duration {
        share_of(&self.latencies, share)
    }

    /// The time to the first token that this share of the completed requests stayed within, and the time of
    /// each further one; zero if there was none.
    pub fn token_times(&self, share: f64) -> (Duration, Duration) {
        (share_of(&self.first_tokens, share), share_of(&self.further_tokens, share))
    }

    /// Rows of a step on average; zero if there was none.
    pub fn mean_step_rows(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.rows as f64 / self.steps as f64 }
    }

    /// The share of the requests with an objective that were answered within it; 1 if there was none.
    pub fn attainment(&self) -> f64 {
        if self.with_objective == 0 { 1.0 } else { self.in_time as f64 / self.with_objective as f64 }
    }

    /// The share of those with an objective that were let in and then answered in time; 1 if there was none.
    pub fn kept(&self) -> f64 {
        let admitted = self.with_objective - self.refused;
        if admitted == 0 { 1.0 } else { self.in_time as f64 / admitted as f64 }
    }

    pub(crate) fn arrive(&mut self, request: &Request) {
        self.arrivals += 1;
        self.with_objective += u64::from(request.objective != Objective::BestEffort);
    }

    pub(crate) fn end(&mut self, request: &Request, ending: &Ending, (now, tokens): (Time, Option<Tokens>)) {
        let name = match ending {
            Ending::Completed => {
                self.latencies.push(now.since(request.arrived));
                let further = tokens.map_or(Duration::ZERO, |tokens| {
                    tokens.last.since(tokens.first) / tokens.count.saturating_sub(1).max(1)
                });
                if let Some(tokens) = tokens {
                    self.first_tokens.push(tokens.first.since(request.arrived));
                    self.further_tokens.extend((tokens.count > 1).then_some(further));
                }
                let in_time = match request.objective {
                    Objective::BestEffort => false,
                    Objective::Tokens { first_by, each, .. } => {
                        tokens.is_some_and(|tokens| tokens.first <= first_by) && further <= each
                    }
                    Objective::EndBy(time) | Objective::Target { by: time, .. } => now <= time,
                };
                self.in_time += u64::from(in_time);
                "completed"
            }
            Ending::Failed(error) => {
                let refused = error.reason.is_some_and(|reason| {
                    !matches!(reason, quadrant_types::Reason::Shed | quadrant_types::Reason::Expired)
                });
                self.refused += u64::from(refused && request.objective != Objective::BestEffort);
                error.code.name()
            }
        };
        *self.endings.entry(name).or_default() += 1;
    }

    pub(crate) fn finish(&mut self) {
        self.latencies.sort_unstable();
        self.first_tokens.sort_unstable();
        self.further_tokens.sort_unstable();
    }
}

/// The value that this share of sorted ones stay within; zero if there is none.
pub(crate) fn share_of(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    // The product lies between zero and `last`, so the conversion cannot lose anything but a fraction.
    let index = (last as f64 * share.clamp(0.0, 1.0)).ceil() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, model) in self.models.iter().enumerate() {
            let (p50, p99) = (model.latency(0.5), model.latency(0.99));
            writeln!(
                f,
                "model {index}: {} arrivals, {:?}, p50 {p50:?}, p99 {p99:?}, {} steps of {:.2} rows",
                model.arrivals,
                model.endings,
                model.steps,
                model.mean_step_rows()
            )?;
        }
        write!(f, "{} events until {}, log {}", self.events, self.ended_at, self.log_hash)
    }
}

/// A running 64-bit FNV-1a hash of the action log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHash(u64);

impl Default for LogHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl fmt::Write for LogHash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl fmt::Display for LogHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        for (text, expect) in
            [("", "cbf29ce484222325"), ("a", "af63dc4c8601ec8c"), ("foobar", "85944171f73967e8")]
        {
            let mut hash = LogHash::default();
            hash.write_str(text).unwrap();
            assert_eq!(hash.to_string(), expect);
        }
    }

    #[test]
    fn percentiles_are_of_completed_requests() {
        let mut model = ModelReport::default();
        assert_eq!(model.latency(0.5), Duration::ZERO);
        for ms in (1..=101).rev() {
            model.latencies.push(Duration::from_millis(ms));
        }
        model.finish();
        assert_eq!(model.latency(0.5), Duration::from_millis(51));
        assert_eq!(model.latency(1.0), Duration::from_millis(101));
    }
}
