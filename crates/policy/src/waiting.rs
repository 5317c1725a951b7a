//! How a live request comes to wait in its queue, and how it waits no more: the one place that keeps queues,
//! heads, bookings and shares in step with each other.

use quadrant_types::{ModelId, RequestId, ShapeId, StepId, Work};

use crate::live::Live;
use crate::queue::{ModelQueue, Waiting};
use crate::{Discipline, Policy};

impl Policy {
    /// Makes a live request wait.
    pub(crate) fn enqueue(&mut self, id: RequestId, alone: bool) {
        let Live { request, plan, .. } = self.live[&id];
        let (deadline, rank) = (plan.deadline, self.rank_of(&request));
        let live = self.live.get_mut(&id).expect("only live requests wait");
        let (rows, shape, begun) = match (request.work, self.sequences.get(&id)) {
            (Work::Once { rows, shape, .. }, _) => (rows, shape, None),
            (Work::Generate { .. }, Some(sequence)) => {
                let begun = sequence.has_begun().then_some(request.priority);
                (sequence.remaining(), ShapeId(0), begun)
            }
            (Work::Generate { prompt, .. }, None) => (prompt, ShapeId(0), None),
        };
        let (arrived, bytes_in) = (request.arrived, request.work.bytes_in());
        let waiting = Waiting { arrived, deadline, rows, shape, bytes_in, alone, begun };
        if plan.key.easy {
            self.shares.add(request.tenant, request.priority, id);
        } else if self.discipline == Discipline::Quadrant {
            live.booking = Some(self.demand.book(plan.due, plan.work));
            self.ranked.insert((rank, plan.key));
        }
        self.change_queue(request.model, |queue| queue.insert(plan.key, waiting));
        self.queued += 1;
    }

    /// Makes a waiting request wait no more. It is in this step now, or in none.
    pub(crate) fn dequeue(&mut self, id: RequestId, step: Option<StepId>) {
        let live = self.live.get_mut(&id).expect("waiting requests are live");
        let waited = *live;
        (live.booking, live.step) = (None, step);
        self.take_from_queue(&waited);
    }

    pub(crate) fn take_from_queue(&mut self, waited: &Live) {
        let Live { request, plan, booking, .. } = *waited;
        if plan.key.easy {
            self.shares.remove(request.tenant, request.priority, request.id);
        } else if let Some(booking) = booking {
            self.demand.release(booking);
            self.ranked.remove(&(self.rank_of(&request), plan.key));
        }
        self.change_queue(request.model, |queue| queue.remove(&plan.key));
        self.queued -= 1;
    }

    /// Changes a queue and keeps the order of the heads in step with it.
    fn change_queue(&mut self, model: ModelId, change: impl FnOnce(&mut ModelQueue)) {
        let queue = self.models.get_mut(&model).expect("a live request's model is known");
        let before = queue.head();
        change(queue);
        let after = queue.head();
        if before != after {
            if let Some(key) = before {
                self.heads.remove(&(key, model));
            }
            if let Some(key) = after {
                self.heads.insert((key, model));
            }
        }
    }
}
