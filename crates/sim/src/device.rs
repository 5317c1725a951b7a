//! The emulated device: lanes that take steps and give reports, with noise and faults.
//!
//! It believes nothing: a step on a lane it does not have, or on cores where another step still runs, is
//! an error of whoever sent it.

use std::time::Duration;

use quadrant_policy::{LaneShape, Step, StepOutcome, StepReport};
use quadrant_types::{CoreSet, Error, ErrorCode, Time, Work};

use crate::workload::Sent;
use crate::{Faults, ModelPlan};

/// A stalled step runs this many times its time.
const STALL_FACTOR: u32 = 50;

#[derive(Debug)]
pub(crate) struct Device {
    lanes: Vec<LaneShape>,
    faults: Faults,
    /// Cores in use, and until when.
    busy: Vec<(CoreSet, Time)>,
    random: fastrand::Rng,
}

impl Device {
    pub(crate) fn new(lanes: Vec<LaneShape>, faults: Faults, random: fastrand::Rng) -> Self {
        Self { lanes, faults, busy: Vec::new(), random }
    }

    /// Takes up a step; says how it will go and when that will be known. An error names what the step broke.
    pub(crate) fn begin(
        &mut self,
        now: Time,
        step: &Step,
        plan: &ModelPlan,
        sent: &[Sent],
    ) -> Result<(Time, StepReport), &'static str> {
        let Some(lane) = self.lanes.iter().find(|lane| lane.id == step.lane).copied() else {
            return Err("a step runs on a lane that there is");
        };
        self.busy.retain(|(_, until)| *until > now);
        if self.busy.iter().any(|(cores, _)| lane.cores.without(*cores) != lane.cores) {
            return Err("running steps share no core");
        }
        let members = || step.requests.iter().filter_map(|id| sent.get(usize::try_from(id.0).ok()?));
        let stalls = self.random.f64() < self.faults.stalls || members().any(|member| member.stalling);
        let fails = self.random.f64() < self.faults.fails || members().any(|member| member.poisoned);
        let shape = members().map(shape_of).max().unwrap_or(0);
        let duration =
            self.duration(plan, step.rows, shape).saturating_mul(if stalls { STALL_FACTOR } else { 1 });
        let ended = now + duration;
        self.busy.push((lane.cores, ended));
        let late = self.random.f64() < self.faults.reports_late;
        let delay = self.faults.report_delay_max.mul_f64(if late { self.random.f64() } else { 0.0 });
        let outcome = if fails {
            StepOutcome::Failed(Error::new(ErrorCode::Internal, "the emulated engine failed"))
        } else {
            StepOutcome::Completed
        };
        Ok((ended + delay, StepReport { step: step.id, began: now, ended, outcome }))
    }

    fn duration(&mut self, plan: &ModelPlan, rows: u32, shape: u32) -> Duration {
        let plain = plan.step_cost + plan.row_cost.saturating_mul(rows);
        let factor = (plan.noise * self.normal()).exp() * (1.0 + f64::from(shape) / 2.0);
        plain.mul_f64(factor)
    }

    /// A standard normal draw, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (first, second) = (1.0 - self.random.f64(), self.random.f64());
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }
}

fn shape_of(sent: &Sent) -> u32 {
    let Work::Once { shape, .. } = sent.request.work;
    shape.0
}
