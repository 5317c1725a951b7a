//! A step begins: what the scheduler decided becomes work for a lane.

use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{EngineError, LaneReport, LaneWork, Part, Refusal, Task};
use quadrant_policy::Step;
use quadrant_types::TenantId;
use smallvec::SmallVec;

use super::{Begun, Core, Driver, lock};
use crate::message::Message;

impl Driver {
    pub(super) fn run(&self, core: &mut Core, step: Step) {
        let mut parts = Vec::with_capacity(step.requests.len());
        let (mut common, mut accounts) = (None, SmallVec::<[(TenantId, u32); 2]>::new());
        for (index, id) in step.requests.iter().enumerate() {
            let pending = &core.pending[id];
            let rows = step.slices.get(index).map_or(pending.request.work.rows(), |slice| slice.tokens);
            let tenant = pending.request.tenant;
            match accounts.iter_mut().find(|(known, _)| *known == tenant) {
                Some((_, sum)) => *sum += rows,
                None => accounts.push((tenant, rows)),
            }
            if step.slices.is_empty() {
                parts.push(Part { request: *id, rows: rows as usize, inputs: Arc::clone(&pending.inputs) });
            }
            common.get_or_insert((Arc::clone(&pending.model), Arc::clone(&pending.outputs)));
        }
        let (model, outputs) = common.expect("a step has at least one request");
        let task = match step.slices.is_empty() {
            true => Task::Batch { parts, outputs },
            false => Task::Iteration(Self::sequence_parts(core, &step)),
        };
        let work = LaneWork { step: step.id, model: step.model, task };
        let refusal = match core.lanes.get(&step.lane) {
            Some(lane) => lane.run(work).err().map(|refused| refused.reason),
            None => Some(Refusal::Stopped),
        };
        if let Some(refusal) = refusal {
            // Seen only while the node ends: a lane is given one step at a time and installs leave room. The
            // step fails like any other.
            let now = self.clock.now();
            let error = EngineError::Panicked(refusal.to_string());
            let (gathered, computed, scattered) = (now, now, now);
            let report = LaneReport {
                step: step.id,
                lane: step.lane,
                began: now,
                gathered,
                computed,
                scattered,
                core_time: Duration::ZERO,
                result: Err(error),
            };
            lock(&self.inbox).push_back(Message::Report(report));
        }
        let mut running = core.steps.values();
        let beside = step.beside.and_then(|id| running.find(|begun| begun.model.id == id));
        let beside = beside.map(|begun| Arc::clone(&begun.model.spec.name));
        core.steps.insert(step.id, Begun { model, step, beside, accounts });
    }
}
