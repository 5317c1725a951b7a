//! The counters of one tenant: what became of its requests, what it was refused, what its steps took. Only
//! tenants that were configured have their own; all others are counted as one.

use std::fmt;
use std::time::Duration;

use prometheus::{Counter, CounterVec, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use quadrant_policy::{TenantTerms, TenantUsage};
use quadrant_types::{Ending, Error, ErrorCode, Reason};

use super::keep;

/// The label of whoever was not configured.
pub(super) const OTHERS: &str = "other";

/// The bounds that can be set for a tenant, as labels.
const QUOTAS: [&str; 4] = ["requests_per_second", "concurrency", "bytes", "device_share"];

/// The families with a label for each tenant.
pub(super) struct TenantFamilies {
    requests: IntCounterVec,
    refusals: IntCounterVec,
    core_seconds: CounterVec,
    quotas: GaugeVec,
    in_flight: IntGaugeVec,
}

/// The counters of one tenant.
pub(crate) struct TenantMetrics {
    completed: IntCounter,
    failed: [IntCounter; ErrorCode::ALL.len()],
    refusals: [IntCounter; Reason::ALL.len()],
    core_seconds: Counter,
}

impl TenantFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            keep(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid"))
        };
        let core_seconds =
            Opts::new("quadrant_tenant_core_seconds_total", "Processor time of a tenant's steps");
        let quotas = Opts::new("quadrant_tenant_quota", "What a tenant may have, where that is bounded");
        let in_flight = Opts::new(
            "quadrant_tenant_in_flight",
            "What a tenant with quotas has under way: requests, and bytes of their inputs",
        );
        Self {
            requests: counters(
                "quadrant_tenant_requests_total",
                "Requests of tenants by outcome; those that were not configured are `other`",
                &["tenant", "outcome"],
            ),
            refusals: counters(
                "quadrant_tenant_refusals_total",
                "Requests of tenants that the scheduler did not serve, by reason",
                &["tenant", "reason"],
            ),
            core_seconds: keep(
                registry,
                CounterVec::new(core_seconds, &["tenant"]).expect("the name is valid"),
            ),
            quotas: keep(registry, GaugeVec::new(quotas, &["tenant", "quota"]).expect("the name is valid")),
            in_flight: keep(
                registry,
                IntGaugeVec::new(in_flight, &["tenant", "quota"]).expect("the name is valid"),
            ),
        }
    }

    pub(super) fn of(&self, name: &str) -> TenantMetrics {
        TenantMetrics {
            completed: self.requests.with_label_values(&[name, "completed"]),
            failed: ErrorCode::ALL.map(|code| self.requests.with_label_values(&[name, code.name()])),
            refusals: Reason::ALL.map(|reason| self.refusals.with_label_values(&[name, reason.name()])),
            core_seconds: self.core_seconds.with_label_values(&[name]),
        }
    }

    /// Shows what a tenant may have and what it uses.
    pub(super) fn show(&self, name: &str, terms: &TenantTerms, usage: TenantUsage) {
        let quotas = [
            terms.requests.map(|rate| 1.0 / rate.every.as_secs_f64().max(1e-9)),
            terms.concurrency_max.map(f64::from),
            terms.bytes_in_max.map(|bytes| bytes as f64),
            terms.device_ppm.map(|ppm| f64::from(ppm) / 1e6),
        ];
        for (quota, value) in QUOTAS.into_iter().zip(quotas) {
            match value {
                Some(value) => self.quotas.with_label_values(&[name, quota]).set(value),
                // It may never have had one.
                None => drop(self.quotas.remove_label_values(&[name, quota])),
            }
        }
        let bytes_in = i64::try_from(usage.bytes_in).unwrap_or(i64::MAX);
        self.in_flight.with_label_values(&[name, "concurrency"]).set(i64::from(usage.requests));
        self.in_flight.with_label_values(&[name, "bytes"]).set(bytes_in);
    }

    /// A tenant is no more: its series end, so that their number stays bounded.
    pub(super) fn forget(&self, name: &str) {
        let outcomes = ErrorCode::ALL.map(ErrorCode::name).into_iter().chain(["completed"]);
        // What it never had is not there to be removed.
        outcomes.for_each(|outcome| drop(self.requests.remove_label_values(&[name, outcome])));
        Reason::ALL.iter().for_each(|reason| drop(self.refusals.remove_label_values(&[name, reason.name()])));
        drop(self.core_seconds.remove_label_values(&[name]));
        QUOTAS.into_iter().for_each(|quota| {
            drop(self.quotas.remove_label_values(&[name, quota]));
            drop(self.in_flight.remove_label_values(&[name, quota]));
        });
    }
}

impl TenantMetrics {
    pub(crate) fn ended(&self, ending: &Ending) {
        match ending {
            Ending::Completed => self.completed.inc(),
            Ending::Failed(error) => self.failed(error),
        }
    }

    pub(crate) fn failed(&self, error: &Error) {
        let code = ErrorCode::ALL.iter().position(|known| *known == error.code);
        self.failed[code.unwrap_or_default()].inc();
        let known = |reason: Reason| Reason::ALL.iter().position(|known| *known == reason);
        if let Some(index) = error.reason.and_then(known) {
            self.refusals[index].inc();
        }
    }

    pub(crate) fn used(&self, core_time: Duration) {
        self.core_seconds.inc_by(core_time.as_secs_f64());
    }
}

impl fmt::Debug for TenantMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantMetrics").finish_non_exhaustive()
    }
}
