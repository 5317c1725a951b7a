//! The result of a run: as JSON for programs, as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::record::milliseconds;

/// How a run went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// `http` or `grpc`.
    pub protocol: String,
    /// Requests per second that were intended; `None` in a closed loop.
    pub offered_per_second: Option<f64>,
    /// Connections of a closed loop.
    pub concurrency: Option<usize>,
    /// How long was counted, without the warm-up.
    pub seconds: f64,
    /// All models together.
    pub total: ModelReport,
    /// Each model.
    pub models: Vec<ModelReport>,
    /// How late the generator itself sent, in an open loop.
    pub send_lag_ms: LatencyMs,
    /// Requests not sent because too many were on their way.
    pub withheld: u64,
    /// Processor time of this machine that went to others, in percent.
    pub steal_percent: f64,
    /// Why the run should be repeated, if it should: steal above 2 % or p99 send lag above 1 ms.
    pub void: Option<String>,
    /// The seed.
    pub seed: u64,
}

/// One model's requests.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Requests with a full answer.
    pub answered: u64,
    /// Requests without.
    pub failed: u64,
    /// Why, with how many: an HTTP status, a gRPC code, or what broke.
    pub failures: BTreeMap<String, u64>,
    /// By when an answer counts as in time, in milliseconds.
    pub objective_ms: Option<f64>,
    /// Requests that were answered in time; all answered ones if there is no objective.
    pub in_time: u64,
    /// The share of all requests that were answered in time.
    pub attainment: f64,
    /// Requests not sent because too many were on their way.
    pub withheld: u64,
    /// From the last byte of a request to the status of its refusal, for those with a status of their own.
    pub refusal_ms: LatencyMs,
    /// Answers per second.
    pub answered_per_second: f64,
    /// From the intended sending to the last byte of the answer.
    pub latency_ms: LatencyMs,
    /// Bytes of bodies sent.
    pub bytes_sent: u64,
    /// Bytes of bodies received.
    pub bytes_received: u64,
}

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "percentiles, named as such")]
pub struct LatencyMs {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// How the last second went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// Since the counting began.
    pub elapsed_s: f64,
    /// Answers per second in the last second.
    pub answered_per_second: f64,
    /// Median latency in the last second.
    pub p50_ms: f64,
    /// 99th percentile in the last second.
    pub p99_ms: f64,
    /// Failed requests since the beginning.
    pub failed: u64,
}

impl LatencyMs {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
        Self {
            mean: histogram.mean() / 1e6,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: milliseconds(histogram.max()),
        }
    }
}

/// Steal above this share makes a run void.
const STEAL_PERCENT_MAX: f64 = 2.0;

/// Why a run should be repeated, if it should; `lag_max` bounds the 99th percentile of the send lag, in
/// milliseconds.
pub(crate) fn void(steal_percent: f64, send_lag: LatencyMs, lag_max: f64) -> Option<String> {
    if steal_percent > STEAL_PERCENT_MAX {
        return Some(format!("`{steal_percent:.1}` % of the machine's time went to others"));
    }
    (send_lag.p99 > lag_max).then(|| format!("the generator sent late: p99 `{:.2}` ms", send_lag.p99))
}

impl fmt::Display for Report {
    /// A table.
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = match (self.offered_per_second, self.concurrency) {
            (Some(rate), _) => format!("{rate:.1}/s offered"),
            (None, Some(concurrency)) => format!("{concurrency} at a time"),
            (None, None) => String::new(),
        };
        let head = ["model", "answered/s", "failed", "p50 ms", "p90", "p99", "p99.9", "max"];
        writeln!(text, "{} over {}, {:.1} s counted", offered, self.protocol, self.seconds)?;
        let [model, rate, failed, rest @ ..] = head;
        write!(text, "{model:<24}{rate:>12}{failed:>9}")?;
        for name in rest {
            write!(text, "{name:>10}")?;
        }
        writeln!(text)?;
        let several = self.models.len() > 1;
        for row in self.models.iter().chain(several.then_some(&self.total)) {
            write!(text, "{:<24}{:>12.1}{:>9}", row.name, row.answered_per_second, row.failed)?;
            let LatencyMs { p50, p90, p99, p999, max, .. } = row.latency_ms;
            for value in [p50, p90, p99, p999, max] {
                write!(text, "{value:>10.3}")?;
            }
            writeln!(text)?;
        }
        for (reason, count) in &self.total.failures {
            writeln!(text, "failed with {reason}: {count}")?;
        }
        if self.withheld > 0 {
            writeln!(text, "withheld, because too many were on their way: {}", self.withheld)?;
        }
        if self.offered_per_second.is_some() {
            let LatencyMs { p50, p99, max, .. } = self.send_lag_ms;
            writeln!(text, "send lag ms: p50 {p50:.3}, p99 {p99:.3}, max {max:.3}")?;
        }
        writeln!(text, "steal: {:.2} %", self.steal_percent)?;
        if let Some(reason) = &self.void {
            writeln!(text, "VOID, repeat: {reason}")?;
        }
        Ok(())
    }
}
