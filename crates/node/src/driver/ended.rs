//! A request ends: it is recorded and counted, and what its client is to be told is kept until the scheduler
//! was let go of.
//!
//! Telling wakes a thread of the shell, which may preempt the teller at once, and what the request brought
//! may be megabytes to give back. So both are done afterwards.

use std::sync::Arc;

use quadrant_types::{Ending, Error, Reason, RequestId, Tensor};
use tokio::sync::oneshot;

use super::{Core, Driver};
use crate::Answer;
use crate::recorder::RequestRecord;

/// A request that has ended, until its client is told.
pub(super) struct Ended {
    answer: oneshot::Sender<Result<Answer, Error>>,
    result: Result<Answer, Error>,
    /// What it brought.
    inputs: Arc<[Tensor]>,
}

impl Ended {
    pub(super) fn tell(self) {
        // Nobody listens any more if the client left; that it ended is what counts.
        drop(self.answer.send(self.result));
        drop(self.inputs);
    }
}

impl Driver {
    pub(super) fn end(&self, core: &mut Core, id: RequestId, ending: Ending) {
        let pending = core.pending.remove(&id).expect("every request ends exactly once");
        let now = self.clock.now();
        let record = RequestRecord::new(&pending, &ending, now);
        pending.model.metrics.ended(&pending.request, record.wanted_by, &ending, now);
        core.recorder.request(record);
        self.telemetry.generation.ended(&pending, &ending, now);
        self.telemetry.tenant_ended(pending.request.tenant, &ending, now);
        let result = match ending {
            Ending::Completed => {
                pending.model.metrics.completed(&pending.timing, now);
                let outputs = pending.computed.expect("a completed request was given its outputs");
                Ok(Answer { id, outputs, timing: pending.timing })
            }
            Ending::Failed(error) => {
                pending.model.metrics.failed(error.code);
                if let Some(hosted) = pending.model.hosted.as_ref().filter(|_| is_lethal(&error)) {
                    self.telemetry.input_refused(&pending.model.spec.name, id);
                    hosted.refused.add(&pending.inputs);
                }
                Err(error)
            }
        };
        self.telemetry.ended.inc();
        core.ended.push(Ended { answer: pending.answer, result, inputs: pending.inputs });
    }
}

fn is_lethal(error: &Error) -> bool {
    error.reason == Some(Reason::Lethal)
}
