//! What must hold once an event has been dealt with: nobody is forgotten, nobody waits for nothing.

use quadrant_types::{CoreSet, Time};

use super::{Broken, Checker, Known, Order, Place, first, hold, hold_or, ripe_at};

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
        let expiry = self.live.values().map(|known| known.deadline).min().unwrap_or(Time::MAX);
        hold("nothing that is due in the past remains", expiry > now, &expiry)?;
        hold("the next deadline is not after an expiry", next <= expiry, &expiry)?;
        let running = self.steps.iter().filter(|(id, _)| !self.stalled.contains(id));
        let stall = running.map(|(_, step)| step.patience_until).min().unwrap_or(Time::MAX);
        hold("the next deadline is not after a stall", next <= stall, &stall)
    }

    /// No request waits past its delay while a healthy lane for it idles, unless one before it in order
    /// waits for those cores; and no step was begun on the only cores that one before it waits for.
    fn nobody_waits_in_vain(&self, now: Time, next_deadline: Option<Time>) -> Result<(), Broken> {
        let busy = self.busy_cores();
        let all = self.lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores));
        if all.is_subset(busy) && self.began_now.is_empty() {
            return Ok(());
        }
        let stuck = self.stalled.iter().filter_map(|id| self.steps.get(id));
        let stuck = stuck.fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores));
        let mut waiting: Vec<(Order, &Known)> = self
            .live
            .values()
            .filter(|known| known.place == Place::Waits)
            .map(|known| (known.order(), known))
            .collect();
        waiting.sort_unstable_by_key(|(order, _)| *order);
        let mut held = CoreSet::EMPTY;
        for (order, known) in waiting {
            let Some(terms) = self.models.get(&known.request.model) else { continue };
            let ripe_at = ripe_at(known, terms.delay_max);
            let healthy: Vec<CoreSet> = self
                .fitting(terms.width)
                .map(|lane| lane.cores)
                .filter(|cores| !overlap(*cores, stuck))
                .collect();
            let idle = healthy.iter().any(|cores| !overlap(*cores, busy) && !overlap(*cores, held));
            let waits_until = if idle { ripe_at.max(now) } else { Time::MAX };
            let woken = next_deadline.is_some_and(|next| next <= waits_until && waits_until > now);
            hold_or("no request waits while a lane for it idles", !idle || woken, || {
                format!("{} of {}, next deadline {next_deadline:?}", known.request.id, known.request.model)
            })?;
            let passed_over = |cores: &CoreSet| {
                self.began_now.iter().any(|(later, taken)| *later > order && overlap(*cores, *taken))
            };
            let robbed = !healthy.is_empty() && ripe_at <= now && healthy.iter().all(passed_over);
            hold("no step takes the cores that one before it waits for", !robbed, &known.request.id)?;
            held = healthy
                .iter()
                .filter(|cores| overlap(**cores, busy))
                .fold(held, |held, cores| held.union(*cores));
        }
        Ok(())
    }
}

fn overlap(one: CoreSet, other: CoreSet) -> bool {
    one.without(other) != one
}
