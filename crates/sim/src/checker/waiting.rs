//! What must hold once an event has been dealt with: nobody is forgotten, nobody waits for nothing.

use quadrant_policy::Discipline;
use quadrant_types::{CoreSet, SchedulingClass, Time};

use super::{Broken, Checker, Known, Place, first, hold, hold_or, ripe_at};

impl Checker {
    pub(super) fn settled(&mut self, now: Time, next_deadline: Option<Time>) -> Result<(), Broken> {
        let owed = self.owed.iter().filter(|id| self.live.contains_key(id));
        hold_or("what is over is said to be over at once", self.owed.is_empty(), || first(owed))?;
        self.limits_hold()?;
        self.deadline_is_early_enough(now, next_deadline)?;
        let healthy = |step| !self.stalled.contains(step);
        let idle = self.live.is_empty() && !self.steps.keys().any(healthy);
        hold("`Drained` comes when nothing is left", !self.drained || idle, &"something is left")?;
        let due = self.draining && idle;
        hold("`Drained` comes when nothing is left", self.drained || !due, &"nothing is left")?;
        self.nobody_waits_in_vain(now, next_deadline)
    }

    /// A batch that failed goes back into its queue, so the count may pass the limit by what was running.
    fn limits_hold(&self) -> Result<(), Broken> {
        let slack = self.rows_max * self.lanes.len();
        let waiting = self.live.values().filter(|known| known.place == Place::Waits).count();
        let bytes: u64 = self.live.values().map(|known| known.work().2).sum();
        let queued_max = self.limits.queued_requests_max.saturating_add(slack);
        hold("queue and byte limits hold", waiting <= queued_max, &waiting)?;
        hold("queue and byte limits hold", bytes <= self.limits.bytes_in_max, &bytes)
    }

    fn deadline_is_early_enough(&self, now: Time, next_deadline: Option<Time>) -> Result<(), Broken> {
        let next = next_deadline.unwrap_or(Time::MAX);
        hold("nothing that is due in the past remains", next > now, &next)?;
        let expiry = self.live.values().map(|known| known.expires).min().unwrap_or(Time::MAX);
        hold("nothing that is due in the past remains", expiry > now, &expiry)?;
        hold("the next deadline is not after an expiry", next <= expiry, &expiry)?;
        let urgent = self.busy_cores(Some(SchedulingClass::Urgent));
        let running = self.steps.iter().filter(|(id, step)| {
            let preempted = step.lane.class == SchedulingClass::Idle && step.lane.cores.overlaps(urgent);
            !self.stalled.contains(id) && !preempted
        });
        let stall = running.map(|(_, step)| now + step.patience.saturating_sub(step.progress));
        let stall = stall.min().unwrap_or(Time::MAX);
        hold("the next deadline is not after a stall", next <= stall, &stall)
    }

    /// No request waits past its delay while a healthy lane for it idles, and of two alike the first is
    /// begun first.
    fn nobody_waits_in_vain(&self, now: Time, next_deadline: Option<Time>) -> Result<(), Broken> {
        let busy = self.busy_cores(None);
        let waiting = || self.live.values().filter(|known| known.place == Place::Waits);
        let wide_only = waiting().any(|known| self.is_wide_only(known));
        // Then a busy model may take no more requests until it is idle.
        let absent = waiting().any(|known| self.memory.is_absent(known.request.model));
        // A core may be kept for a load, which has its floor like other best effort; so may the others of
        // the narrowest lane that has it.
        let all = self.lanes.iter().fold(CoreSet::EMPTY, |all, lane| all.union(lane.cores));
        let load_has_it = self.memory.is_loading() && Some(all.without(busy).len()) <= self.narrowest();
        let is_cramped = absent || self.memory.is_told();
        for known in waiting() {
            let Some(terms) = self.models.get(&known.request.model) else { continue };
            // It waits for its model.
            if load_has_it && self.discipline == Discipline::Quadrant {
                continue;
            }
            // Its model has a step, and one at a time.
            let model = known.request.model;
            let is_sequence = terms.sequences.is_some();
            if is_sequence && self.steps.values().any(|step| step.model == model) {
                continue;
            }
            let makes_room = is_cramped && self.memory.may_yield(known.request.model);
            if self.memory.is_absent(known.request.model) || makes_room {
                continue;
            }
            let overtaken = self.began_now.iter().filter_map(|id| self.live.get(id)).any(|other| {
                self.discipline != Discipline::Clockwork
                    && !known.alone
                    && !is_sequence
                    && other.request.id > known.request.id
                    && are_alike(known, other)
            });
            hold("of two alike the first begins first", !overtaken, &known.request.id)?;
            let ripe_at = ripe_at(known, terms.delay_max);
            let free = |lane: &&quadrant_policy::LaneShape| {
                let idle = match self.discipline {
                    Discipline::Fifo => !self.steps.values().any(|step| step.lane.id == lane.id),
                    Discipline::Clockwork => self.steps.is_empty(),
                    // Cores may be kept for a step that needs several.
                    Discipline::Quadrant => !lane.cores.overlaps(busy) && !wide_only,
                };
                idle && lane.class == SchedulingClass::Urgent && self.may_run_on(terms, **lane)
            };
            let idle = self.lanes.iter().any(|lane| free(&lane));
            let waits_until = if idle { ripe_at.max(now) } else { Time::MAX };
            let woken = next_deadline.is_some_and(|next| next <= waits_until && waits_until > now);
            hold_or("no request waits while a lane for it idles", !idle || woken, || {
                format!("{} of {}, next deadline {next_deadline:?}", known.request.id, known.request.model)
            })?;
        }
        Ok(())
    }

    /// Cores of the narrowest lane.
    fn narrowest(&self) -> Option<usize> {
        self.lanes.iter().map(|lane| lane.cores.len()).min()
    }

    fn is_wide_only(&self, known: &Known) -> bool {
        let terms = self.models.get(&known.request.model);
        terms.is_some_and(|terms| self.width_for(terms.widths[0]) > self.narrowest())
    }
}

/// Whether nothing but their arrival tells two best-effort requests apart.
fn are_alike(one: &Known, other: &Known) -> bool {
    let (first, second) = (&one.request, &other.request);
    !one.has_deadline()
        && !other.has_deadline()
        && (first.model, first.tenant, first.priority) == (second.model, second.tenant, second.priority)
        && first.arrived <= second.arrived
        && one.work() == other.work()
}
