//! What a run showed of each tenant: how its requests ended, what it was refused for, what its steps took.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_policy::{Step, TenantTerms};
use quadrant_types::{Ending, Request, RequestId, StepId, Time};

use crate::report::share_of;
use crate::workload::Sent;

/// A tenant has these terms from some time on, or none any more.
#[derive(Clone, Copy, Debug)]
pub struct TenantChange {
    /// From when on.
    pub at: Time,
    /// Which tenant.
    pub tenant: u32,
    /// What it may have.
    pub terms: Option<TenantTerms>,
}

/// One tenant's part of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantReport {
    /// Requests that came.
    pub arrivals: u64,
    /// Those of them that were answered.
    pub completed: u64,
    /// Those that were not, by the scheduler's reason, or else by the error's code.
    pub failures: BTreeMap<&'static str, u64>,
    /// Processor time of its steps, its part of those that it shared.
    pub core_time: Duration,
    /// From arrival to answer, ascending.
    latencies: Vec<Duration>,
}

impl TenantReport {
    /// The latency that this share of its answers stayed within; zero if there was none.
    pub fn latency(&self, share: f64) -> Duration {
        share_of(&self.latencies, share)
    }

    fn end(&mut self, request: &Request, ending: &Ending, now: Time) {
        match ending {
            Ending::Completed => {
                self.completed += 1;
                self.latencies.push(now.since(request.arrived));
            }
            Ending::Failed(error) => {
                let why = error.reason.map_or(error.code.name(), quadrant_types::Reason::name);
                *self.failures.entry(why).or_default() += 1;
            }
        }
    }
}

/// Keeps the reports. Does nothing in a scenario without tenants, whose speed counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    is_wanted: bool,
    tenants: BTreeMap<u32, TenantReport>,
    /// The tenants of running steps, with their parts.
    steps: BTreeMap<StepId, Vec<(u32, f64)>>,
}

impl Tally {
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, ..Self::default() }
    }

    pub(crate) fn arrive(&mut self, request: &Request) {
        if self.is_wanted {
            self.of(request).arrivals += 1;
        }
    }

    pub(crate) fn end(&mut self, request: &Request, ending: &Ending, now: Time) {
        if self.is_wanted {
            self.of(request).end(request, ending, now);
        }
    }

    pub(crate) fn begin(&mut self, step: &Step, sent: &[Sent]) {
        if !self.is_wanted {
            return;
        }
        let part = |(index, id): (usize, &RequestId)| {
            let sent = sent.get(usize::try_from(id.0).ok()?)?;
            let rows = step.slices.get(index).map_or(sent.request.work.rows(), |slice| slice.tokens);
            Some((sent.request.tenant.0, f64::from(rows) / f64::from(step.rows.max(1))))
        };
        let parts = step.requests.iter().enumerate().filter_map(part).collect();
        self.steps.insert(step.id, parts);
    }

    pub(crate) fn used(&mut self, step: StepId, core_time: Duration) {
        for (tenant, share) in self.steps.remove(&step).unwrap_or_default() {
            self.tenants.entry(tenant).or_default().core_time += core_time.mul_f64(share);
        }
    }

    pub(crate) fn finish(mut self) -> BTreeMap<u32, TenantReport> {
        self.tenants.values_mut().for_each(|tenant| tenant.latencies.sort_unstable());
        self.tenants
    }

    fn of(&mut self, request: &Request) -> &mut TenantReport {
        self.tenants.entry(request.tenant.0).or_default()
    }
}
