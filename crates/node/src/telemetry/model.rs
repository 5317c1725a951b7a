//! The counters of one model: what became of its requests, and what its steps took.

use std::fmt;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};
use quadrant_types::{Ending, ErrorCode, Objective, Reason, Request, SchedulingClass, Time, Timing};

use super::memory::Residence;
use super::{Families, REASONS};

/// What can become of a request with an objective.
const OUTCOMES: [&str; 5] = ["in_time", "late", "refused", "given_up", "failed"];

/// The scheduling classes of steps.
const CLASSES: [SchedulingClass; 2] = [SchedulingClass::Urgent, SchedulingClass::Idle];

/// The counters of one model.
pub(crate) struct ModelMetrics {
    success: IntCounter,
    failures: [IntCounter; REASONS.len()],
    codes: [IntCounter; ErrorCode::ALL.len()],
    rows: IntCounter,
    steps: IntCounter,
    totals_us: Vec<IntCounter>,
    histograms_us: Vec<Histogram>,
    pub(super) pending: IntGauge,
    pub(super) residence: Residence,
    ratio: Histogram,
    objectives: [IntCounter; OUTCOMES.len()],
    refusals: [IntCounter; Reason::ALL.len()],
    core_seconds: [prometheus::Counter; CLASSES.len()],
}

impl ModelMetrics {
    pub(super) fn new(families: &Families, name: &str, version: u64) -> Self {
        let version = version.to_string();
        let model = [name, version.as_str()];
        Self {
            success: families.success.with_label_values(&model),
            failures: REASONS
                .map(|reason| families.failure.with_label_values(&[name, reason, version.as_str()])),
            codes: ErrorCode::ALL
                .map(|code| families.codes.with_label_values(&[name, version.as_str(), code.name()])),
            rows: families.rows.with_label_values(&model),
            steps: families.steps.with_label_values(&model),
            totals_us: families.totals_us.iter().map(|family| family.with_label_values(&model)).collect(),
            histograms_us: families
                .histograms_us
                .iter()
                .map(|family| family.with_label_values(&model))
                .collect(),
            residence: families.residence.of(&model),
            pending: families.pending.with_label_values(&model),
            ratio: families.ratio.with_label_values(&model),
            objectives: OUTCOMES
                .map(|outcome| families.objectives.with_label_values(&[name, version.as_str(), outcome])),
            refusals: Reason::ALL
                .map(|reason| families.refusals.with_label_values(&[name, version.as_str(), reason.name()])),
            core_seconds: CLASSES.map(|class| {
                families.core_seconds.with_label_values(&[name, version.as_str(), class.name()])
            }),
        }
    }

    /// A request has its answer.
    pub(crate) fn completed(&self, timing: &Timing, now: Time) {
        self.success.inc();
        let stages = [
            now.since(timing.arrived),
            timing.began.since(timing.submitted),
            timing.gathered.since(timing.began),
            timing.computed.since(timing.gathered),
            timing.scattered.since(timing.computed),
        ];
        for (stage, took) in stages.into_iter().enumerate() {
            self.totals_us[stage].inc_by(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            self.histograms_us[stage].observe(took.as_secs_f64() * 1e6);
        }
    }

    /// A request ended without an answer.
    pub(crate) fn failed(&self, code: ErrorCode) {
        let reason = match code {
            ErrorCode::ResourceExhausted | ErrorCode::Unavailable | ErrorCode::DeadlineExceeded => 0,
            ErrorCode::Cancelled => 1,
            ErrorCode::Internal => 2,
            ErrorCode::InvalidArgument
            | ErrorCode::Unauthenticated
            | ErrorCode::PermissionDenied
            | ErrorCode::NotFound
            | ErrorCode::TooLarge
            | ErrorCode::Unsupported => 3,
        };
        self.failures[reason].inc();
        self.codes[ErrorCode::ALL.iter().position(|known| *known == code).unwrap_or_default()].inc();
    }

    /// A request ended, in whatever way: what became of its objective. One that generates should have had its
    /// last token at `tokens_by`.
    pub(crate) fn ended(&self, request: &Request, tokens_by: Option<Time>, ending: &Ending, now: Time) {
        let wanted_by = match request.objective {
            Objective::BestEffort => None,
            Objective::EndBy(by) | Objective::Target { by, .. } => Some(by),
            Objective::Tokens { .. } => tokens_by,
        };
        let reason = match ending {
            Ending::Completed => None,
            Ending::Failed(error) => error.reason,
        };
        if let Some(index) = reason.and_then(|reason| Reason::ALL.iter().position(|known| *known == reason)) {
            self.refusals[index].inc();
        }
        if let Some(by) = wanted_by {
            let outcome = match (ending, reason) {
                (Ending::Completed, _) if now <= by => 0,
                (Ending::Completed, _) => 1,
                (Ending::Failed(_), Some(Reason::Shed | Reason::Expired)) => 3,
                (Ending::Failed(_), None | Some(Reason::Lethal)) => 4,
                (Ending::Failed(_), Some(_)) => 2,
            };
            self.objectives[outcome].inc();
        }
    }

    /// A step ran in this class for so much processor time.
    pub(crate) fn used(&self, class: SchedulingClass, core_time: Duration) {
        if let Some(index) = CLASSES.iter().position(|known| *known == class) {
            self.core_seconds[index].inc_by(core_time.as_secs_f64());
        }
    }

    /// A step ran.
    pub(crate) fn executed(&self, rows: u32, real: Duration, predicted: Duration) {
        self.steps.inc();
        self.rows.inc_by(u64::from(rows));
        if !predicted.is_zero() {
            self.ratio.observe(real.as_secs_f64() / predicted.as_secs_f64());
        }
    }
}

impl fmt::Debug for ModelMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelMetrics").finish_non_exhaustive()
    }
}
