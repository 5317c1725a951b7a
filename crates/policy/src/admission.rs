//! Who comes in: within the limits, and only if everything already accepted still ends in time.

use std::time::Duration;

use quadrant_types::{Error, ErrorCode, Objective, Reason, Request, RequestId, ShapeId, Time, Work};
use smallvec::SmallVec;

use crate::cost::{Beside, Kind};
use crate::queue::{ModelQueue, OrderKey};
use crate::span::scaled;
use crate::{Action, Discipline, Policy, Unmet};

/// Less important requests that are looked at to make room for one that arrives.
const VICTIMS_MAX: usize = 32;
/// Requests given up in one event because not all that was accepted can be in time any more.
const SHED_MAX: usize = 8;
/// Being late by less than this is noise.
const LATE_MIN_NANOS: i64 = 2_000_000;

/// Where a request belongs in the order, and what it asks of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) key: OrderKey,
    /// When it is to be done; [`Time::MAX`] for best effort.
    pub(crate) deadline: Time,
    /// When it ends whatever became of it.
    pub(crate) expires: Time,
    /// Its share of the whole device's time, and when that is to have been given.
    pub(crate) work: Duration,
    pub(crate) due: Time,
}

impl Policy {
    /// How the request is to be treated, or why it is refused.
    pub(crate) fn admit(
        &mut self,
        now: Time,
        request: &Request,
        actions: &mut Vec<Action>,
    ) -> Result<Plan, Error> {
        self.within_bounds(request)?;
        self.quotas.check(now, request)?;
        let plan = self.plan(now, request);
        if plan.expires <= now {
            return Err(expired());
        }
        if let Some(plan) = self.admit_aside(now, request, &plan)? {
            return Ok(plan);
        }
        if self.discipline != Discipline::Quadrant || plan.key.easy {
            return Ok(plan);
        }
        let queue = self.models.get_mut(&request.model).expect("within bounds, so it is known");
        queue.account.advance(now);
        let had = queue.account.had(now);
        let found = self.keeps_pace(now, request);
        let found = found.and_then(|pace| self.find_room(now, request, (&plan, pace), actions));
        let queue = self.models.get_mut(&request.model).expect("within bounds, so it is known");
        // What no room would help is nothing that others would have to leave room for.
        let has_a_chance = plan.key.start_by() >= now;
        if has_a_chance {
            queue.account.note(now, plan.work, found.is_ok());
        }
        let Err(refusal) = found else { return Ok(plan) };
        if has_a_chance {
            self.fairness.note_refusal(now, had);
        } else if queue.doubt.is_due(now) {
            return Ok(self.best_effort_plan(now, request));
        }
        match self.models[&request.model].terms.unmet {
            Unmet::Refuse => Err(refusal),
            Unmet::Demote => Ok(self.best_effort_plan(now, request)),
        }
    }

    pub(crate) fn within_bounds(&self, request: &Request) -> Result<(), Error> {
        let bytes_in = request.work.bytes_in();
        if self.draining {
            return Err(Error::new(ErrorCode::Unavailable, "the server is shutting down"));
        }
        let Some(queue) = self.models.get(&request.model) else {
            return Err(Error::new(ErrorCode::Unavailable, "the model is not loaded"));
        };
        self.can_be_run(queue, &request.work)?;
        let full = |reason, what: String| {
            let wait = self.time_to_drain(queue);
            Err(Error::new(ErrorCode::ResourceExhausted, what).retry_after(wait).because(reason))
        };
        let (waiting, queue_max) = (queue.waiting.len() + self.outside(request.model), queue.terms.queue_max);
        if waiting >= queue_max {
            let what = format!("the model's queue is full: `{waiting}` of `{queue_max}` requests wait");
            return full(Reason::QueueFull, what);
        }
        if self.queued + self.hosts.aside() >= self.limits.queued_requests_max {
            let queued_max = self.limits.queued_requests_max;
            return full(
                Reason::ServerFull,
                format!("the server's queue is full: `{queued_max}` requests wait"),
            );
        }
        if self.bytes_in.saturating_add(bytes_in) > self.limits.bytes_in_max {
            let (held, bytes_max) = (self.bytes_in, self.limits.bytes_in_max);
            let what = format!("inputs in flight are at their limit: `{held}` of `{bytes_max}` bytes");
            return full(Reason::BytesFull, what);
        }
        self.memory_allows()
    }

    /// A guess at how long this model's queue takes, for `Retry-After`.
    fn time_to_drain(&self, queue: &ModelQueue) -> Duration {
        let rows: u32 =
            queue.waiting.values().take(64).fold(0, |sum, waiting| sum.saturating_add(waiting.rows));
        let all = u32::try_from(queue.waiting.len().div_ceil(64)).unwrap_or(u32::MAX).saturating_mul(rows);
        let kind =
            Kind { shape: ShapeId::default(), rows: 1, width: queue.terms.widths[0], beside: Beside::Usual };
        let one_row = queue.costs.predict(kind, queue.terms.row_bytes);
        one_row.saturating_mul(all) / u32::try_from(self.cores.len()).unwrap_or(u32::MAX)
    }

    /// Puts a request in its place. The discipline decides what its objective means.
    pub(crate) fn plan(&self, now: Time, request: &Request) -> Plan {
        let Work::Once { rows, shape, bytes_in } = request.work else {
            return self.sequence_plan(now, request);
        };
        let latest = self.latest(now, request);
        let (deadline, expires) = match (request.objective, self.discipline) {
            (Objective::EndBy(time), Discipline::Fifo) => (Time::MAX, time.min(latest)),
            (Objective::Target { until, .. }, Discipline::Fifo) => (Time::MAX, until.min(latest)),
            (Objective::BestEffort | Objective::Tokens { .. }, Discipline::Fifo) => (Time::MAX, latest),
            (Objective::BestEffort | Objective::Tokens { .. }, Discipline::Clockwork) => (latest, latest),
            (Objective::BestEffort | Objective::Tokens { .. }, Discipline::Quadrant) => {
                return self.best_effort_plan(now, request);
            }
            (Objective::EndBy(time), Discipline::Quadrant | Discipline::Clockwork) => {
                (time.min(latest), time.min(latest))
            }
            (Objective::Target { by, until }, Discipline::Quadrant | Discipline::Clockwork) => {
                (by.min(until).min(latest), until.min(latest))
            }
        };
        if self.discipline == Discipline::Fifo {
            let key = OrderKey { easy: false, rank: request.arrived.as_nanos(), id: request.id };
            return Plan { key, deadline, expires, work: Duration::ZERO, due: deadline };
        }
        let queue = &self.models[&request.model];
        let widths = match self.discipline {
            Discipline::Clockwork => &queue.terms.widths[queue.terms.widths.len() - 1..],
            Discipline::Quadrant | Discipline::Fifo => &queue.terms.widths,
        };
        let kind = |width| Kind { shape, rows, width, beside: Beside::Usual };
        let slowdown = self.slowdown.mean(now);
        let step = |width: &usize| {
            let own = queue.costs.predict_at(kind(*width), bytes_in, slowdown);
            (*width, own, queue.costs.high(own))
        };
        // The narrowest that is fast enough, or the widest.
        let fast_enough = widths.iter().map(step).find(|(_, _, high)| now + *high <= deadline);
        let (width, own, high) = fast_enough.unwrap_or_else(|| step(&widths[widths.len() - 1]));
        let start_by = deadline - high;
        let row_bytes = bytes_in / u64::from(rows.max(1));
        let marginal = queue.marginal(rows, kind(width), row_bytes, slowdown) + self.handoff();
        let share = width as f64 * self.per_core;
        // A step that is begun in time ends in time; so the work of list scheduling is due when its start
        // is, plus its own share (Graham, 1969).
        let due = start_by + scaled(own, share.min(1.0));
        let key = OrderKey { easy: false, rank: start_by.as_nanos(), id: request.id };
        Plan { key, deadline, expires, work: scaled(marginal, share), due }
    }

    /// The place of a request that nobody promised anything.
    pub(crate) fn best_effort_plan(&self, now: Time, request: &Request) -> Plan {
        let key = OrderKey { easy: true, rank: u64::from(request.priority.0), id: request.id };
        let expires = request.objective.until().min(self.latest(now, request));
        Plan { key, deadline: Time::MAX, expires, work: Duration::ZERO, due: Time::MAX }
    }

    /// Until when a request waits at most: a sequence waits anew for each token.
    pub(crate) fn latest(&self, now: Time, request: &Request) -> Time {
        let from = match request.work {
            Work::Once { .. } => request.arrived,
            Work::Generate { .. } => now,
        };
        from + self.limits.wait_max
    }

    /// Sees to it that the request and everything accepted before end in time, at the expense of less
    /// important requests if need be. A share of the device goes to what nobody has asked for yet: the
    /// further tokens of sequences.
    pub(crate) fn find_room(
        &mut self,
        now: Time,
        request: &Request,
        (plan, pace): (&Plan, f64),
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        if plan.key.start_by() < now {
            let within = plan.deadline.since(request.arrived);
            let high = plan.deadline.since(plan.key.start_by());
            return Err(unmeetable(&format!(
                "its {within:.1?} are over before its step would be, which may take {high:.1?}"
            )));
        }
        self.rebook_running();
        let ahead = self.ahead(plan.due.since(now));
        if self.level.is_old(now) {
            self.level.refresh(now, self.models.values().map(|queue| queue.account.asks(now)));
        }
        let (account, span) = (&self.models[&request.model].account, plan.deadline.since(now));
        let reserve = self.fairness.reserve(now, account.had(now), span);
        let reserve = reserve.max(self.level.reserve(account.asks(now), span));
        let tokens = scaled(span, pace);
        let (until_due, margin) = (nanos(plan.due.since(now)), self.caution.margin(now));
        let missing = |policy: &Self| {
            let room = policy.demand.room(now, plan.due, ahead);
            let booked = Duration::from_nanos(u64::try_from(until_due - room).unwrap_or(0));
            nanos(plan.work + tokens + reserve.max(scaled(booked, margin))) - room
        };
        let first_missing = missing(self);
        if first_missing <= 0 {
            return Ok(());
        }
        let mut victims: SmallVec<[RequestId; 8]> = SmallVec::new();
        let less_important = self.ranked.iter().rev().take(VICTIMS_MAX);
        let less_important = less_important.take_while(|(priority, _)| *priority > request.priority);
        let candidates: SmallVec<[RequestId; 8]> = less_important.map(|(_, key)| key.id).collect();
        let mut still_missing = first_missing;
        for id in candidates {
            self.unbook(id);
            let now_missing = missing(self);
            if now_missing >= still_missing {
                // What is due so late is in nobody's way.
                self.rebook(id);
                continue;
            }
            still_missing = now_missing;
            victims.push(id);
            if still_missing <= 0 {
                for victim in victims {
                    self.rebook(victim);
                    self.give_up(victim, shed("it made room for a more important one"), actions);
                }
                return Ok(());
            }
        }
        victims.into_iter().for_each(|victim| self.rebook(victim));
        let wait = Duration::from_nanos(first_missing.unsigned_abs());
        let text = format!("at the present load it would end about {wait:.1?} too late");
        Err(unmeetable(&text).retry_after(wait))
    }

    fn unbook(&mut self, id: RequestId) {
        let booking = self.live.get_mut(&id).and_then(|live| live.booking.take());
        self.demand.release(booking.expect("what is ranked is booked"));
    }

    fn rebook(&mut self, id: RequestId) {
        let live = self.live.get_mut(&id).expect("only live requests are booked");
        live.booking = Some(self.demand.book(live.plan.due, live.plan.work));
    }

    /// Gives up the least important requests while not all that was accepted can be in time. Among equals
    /// nobody is chosen beforehand: those end whose turn comes too late.
    pub(crate) fn shed(&mut self, now: Time, actions: &mut Vec<Action>) {
        for _ in 0..SHED_MAX {
            let (Some((most, _)), Some((least, _))) = (self.ranked.first(), self.ranked.last()) else {
                return;
            };
            let most = *most;
            if most == *least {
                return;
            }
            let first = self.heads.first().map_or(now, |(key, _)| key.start_by());
            let ahead = self.ahead(first.since(now));
            let room = self.demand.least_room(now, ahead);
            if room >= -LATE_MIN_NANOS {
                return;
            }
            let candidates = self.ranked.iter().rev().take(VICTIMS_MAX);
            let candidates = candidates.take_while(|(priority, _)| *priority > most);
            let candidates: SmallVec<[RequestId; 8]> = candidates.map(|(_, key)| key.id).collect();
            let helps = |id: &RequestId| {
                self.unbook(*id);
                let helps = self.demand.least_room(now, ahead) > room;
                self.rebook(*id);
                helps
            };
            let Some(id) = candidates.into_iter().find(helps) else { return };
            self.give_up(id, shed("not all that was accepted could still be in time"), actions);
        }
    }
}

pub(crate) fn unmeetable(why: &str) -> Error {
    let text = format!("the request cannot be answered in time: {why}");
    Error::new(ErrorCode::ResourceExhausted, text).because(Reason::DeadlineUnmeetable)
}

pub(crate) fn shed(why: &'static str) -> Error {
    let text = format!("the request was given up: {why}");
    Error::new(ErrorCode::ResourceExhausted, text).because(Reason::Shed).retry_after(Duration::from_secs(1))
}

/// It was accepted, and cannot be in time any more.
pub(crate) fn too_late() -> Error {
    let text = "the request was given up: it came to its turn too late to be answered in time";
    Error::new(ErrorCode::DeadlineExceeded, text).because(Reason::Shed)
}

pub(crate) fn unloaded() -> Error {
    Error::new(ErrorCode::Unavailable, "the model was unloaded")
}

pub(crate) fn expired() -> Error {
    let text = "the request's time ran out before its answer was ready";
    Error::new(ErrorCode::DeadlineExceeded, text).because(Reason::Expired)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
