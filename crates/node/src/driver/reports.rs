//! A step has ended on its lane: its outputs go to its requests, what it took to the metrics and the flight
//! recorder, and how it went to the scheduler.

use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{EngineError, LaneReport, PartOutputs};
use quadrant_policy::{Lost, Step, StepOutcome, StepReport};
use quadrant_types::{ErrorCode, Time};

use super::{Begun, Core, Driver};
use crate::message::to_client;
use crate::recorder::StepRecord;

impl Driver {
    /// Gives the outputs of a step to its requests and tells the scheduler how it went.
    pub(super) fn take_report(&self, core: &mut Core, report: LaneReport) -> StepReport {
        let LaneReport { step, began, gathered, computed, scattered, result, core_time, .. } = report;
        let begun = core.steps.remove(&step).expect("only running steps are reported");
        let Begun { model, step: step_plan, beside, accounts } = begun;
        for (tenant, rows) in accounts {
            let part = f64::from(rows) / f64::from(step_plan.rows.max(1));
            self.telemetry.tenant_used(tenant, core_time.mul_f64(part));
        }
        let mut real = computed.since(began);
        if let Some(lane) = core.lanes.get(&step_plan.lane) {
            let (cores, class) = (lane.spec().cores, lane.spec().class);
            model.metrics.used(class, core_time);
            let preempted = core.recorder.step(StepRecord {
                id: step,
                model: Arc::clone(&model.spec.name),
                lane: step_plan.lane,
                cores,
                class,
                rows: step_plan.rows,
                requests: step_plan.requests.len(),
                predicted: step_plan.predicted,
                began,
                ended: scattered,
                preempted: Duration::ZERO,
                beside,
            });
            real = real.saturating_sub(preempted);
        }
        let outcome = match result {
            Ok(parts) => {
                let executed = Executed { began, gathered, computed, scattered };
                let tokens = self.hand_out(core, &step_plan, executed, parts);
                model.metrics.executed(step_plan.rows, real, step_plan.predicted);
                tokens.map_or(StepOutcome::Completed, |parts| {
                    StepOutcome::Iterated(self.hand_out_tokens(core, parts))
                })
            }
            // Said once for all its steps, when the process ended.
            Err(lost @ EngineError::Lost { began, generation, .. }) => {
                StepOutcome::Lost(Lost { error: to_client(&lost), began, generation })
            }
            Err(error) => {
                let error = to_client(&error);
                if error.code == ErrorCode::Internal {
                    self.telemetry.step_failed(&model.spec.name, &error);
                }
                StepOutcome::Failed(error)
            }
        };
        StepReport { step, began, ended: scattered, core_time, outcome }
    }

    /// Gives the outputs of a batch to its requests; gives back what was computed of sequences, whose tokens
    /// are handed out elsewhere.
    fn hand_out(
        &self,
        core: &mut Core,
        step: &Step,
        executed: Executed,
        mut parts: Vec<PartOutputs>,
    ) -> Option<Vec<PartOutputs>> {
        for part in &mut parts {
            // Those who left or expired meanwhile are no longer pending.
            let Some(pending) = core.pending.get_mut(&part.request) else { continue };
            let timing = &mut pending.timing;
            if pending.step.is_none() {
                timing.began = executed.began;
            }
            timing.gathered = executed.gathered;
            timing.computed = executed.computed;
            timing.scattered = executed.scattered;
            timing.batch_rows = step.rows;
            timing.predicted = step.predicted;
            if let Some(lane) = core.lanes.get(&step.lane) {
                (timing.width, timing.class) = (lane.spec().cores.len(), lane.spec().class);
            }
            pending.step = Some(step.id);
            if let Some(generating) = &mut pending.generating {
                generating.record.ran(executed.scattered.since(executed.began));
            }
            if step.slices.is_empty() {
                pending.computed = Some(std::mem::take(&mut part.outputs));
            }
        }
        (!step.slices.is_empty()).then_some(parts)
    }
}

/// The times of a step's stages.
#[derive(Clone, Copy)]
struct Executed {
    began: Time,
    gathered: Time,
    computed: Time,
    scattered: Time,
}
