//! What happened, counted while it happens.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::connection::Outcome;
use crate::report::{LatencyMs, ModelReport, Snapshot};

/// The longest time that is told apart: ten minutes, in nanoseconds.
const LONGEST_NS: u64 = 600_000_000_000;

/// Quadrant's reasons for ending a request that it had accepted.
const GIVEN_UP: [&str; 2] = ["shed", "expired"];

/// One model's requests.
#[derive(Debug)]
pub(crate) struct ModelRecord {
    latency: Histogram<u64>,
    objective: Option<Duration>,
    in_time: u64,
    withheld: u64,
    /// From the last byte of a request to the status of its refusal.
    refusal: Histogram<u64>,
    failures: BTreeMap<String, u64>,
    bytes_sent: u64,
    bytes_received: u64,
}

/// The whole run's.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) models: Vec<ModelRecord>,
    pub(crate) lag: Histogram<u64>,
    recent: Histogram<u64>,
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are valid")
}

pub(crate) fn add(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(LONGEST_NS));
}

impl Record {
    pub(crate) fn new(objectives: &[Option<Duration>]) -> Self {
        let model = |objective: &Option<Duration>| ModelRecord {
            latency: histogram(),
            objective: *objective,
            in_time: 0,
            withheld: 0,
            refusal: histogram(),
            failures: BTreeMap::new(),
            bytes_sent: 0,
            bytes_received: 0,
        };
        Self { models: objectives.iter().map(model).collect(), lag: histogram(), recent: histogram() }
    }

    /// A request of the counted part of the run has ended.
    pub(crate) fn ended(&mut self, model: usize, sent_bytes: u64, latency: Duration, outcome: Outcome) {
        let model = &mut self.models[model];
        model.bytes_sent += sent_bytes;
        match outcome {
            Outcome::Answered(bytes) => {
                model.bytes_received += bytes;
                add(&mut model.latency, latency);
                model.in_time += u64::from(model.objective.is_none_or(|objective| latency <= objective));
                add(&mut self.recent, latency);
            }
            Outcome::Refused(status, after) => {
                // What was accepted and given up later was no refusal.
                if !GIVEN_UP.iter().any(|reason| status.ends_with(reason)) {
                    add(&mut model.refusal, after);
                }
                *model.failures.entry(status).or_default() += 1;
            }
            Outcome::Failed(reason) => *model.failures.entry(reason).or_default() += 1,
        }
    }

    /// A request was not sent, because too many were on their way.
    pub(crate) fn withheld(&mut self, model: usize) {
        self.models[model].withheld += 1;
    }

    pub(crate) fn lagged(&mut self, lag: Duration) {
        add(&mut self.lag, lag);
    }

    /// The last second, and forgets it.
    pub(crate) fn snapshot(&mut self, elapsed: Duration, interval: Duration) -> Snapshot {
        let snapshot = Snapshot {
            elapsed_s: elapsed.as_secs_f64(),
            answered_per_second: self.recent.len() as f64 / interval.as_secs_f64(),
            p50_ms: milliseconds(self.recent.value_at_quantile(0.5)),
            p99_ms: milliseconds(self.recent.value_at_quantile(0.99)),
            failed: self.models.iter().flat_map(|model| model.failures.values()).sum(),
        };
        self.recent.reset();
        snapshot
    }
}

impl ModelRecord {
    pub(crate) fn report(&self, name: &str, seconds: f64) -> ModelReport {
        let failed: u64 = self.failures.values().sum();
        let all = self.latency.len() + failed + self.withheld;
        ModelReport {
            objective_ms: self.objective.map(|objective| objective.as_secs_f64() * 1e3),
            in_time: self.in_time,
            attainment: if all == 0 { 1.0 } else { self.in_time as f64 / all as f64 },
            withheld: self.withheld,
            refusal_ms: LatencyMs::of(&self.refusal),
            name: name.to_owned(),
            answered: self.latency.len(),
            failed,
            failures: self.failures.clone(),
            answered_per_second: self.latency.len() as f64 / seconds,
            latency_ms: LatencyMs::of(&self.latency),
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
        }
    }

    pub(crate) fn withheld(&self) -> u64 {
        self.withheld
    }

    /// Both together.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
        for (reason, count) in &other.failures {
            *self.failures.entry(reason.clone()).or_default() += count;
        }
        self.refusal.add(&other.refusal).expect("all histograms have the same bounds");
        self.in_time += other.in_time;
        self.withheld += other.withheld;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
    }
}

pub(crate) fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
