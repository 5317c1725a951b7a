//! What an event changes before the scheduler has said anything, and who may come in.

use quadrant_policy::{Event, StepOutcome};
use quadrant_types::{LaneId, ModelId, Request, RequestId, Time};

use super::{Broken, Checker, Known, Place, hold};

/// The step that ended with the event at hand, if one did.
#[derive(Debug, Default)]
pub(super) struct EndedStep {
    pub(super) requests: Vec<RequestId>,
    pub(super) outcome: Option<StepOutcome>,
    /// Its lane, if that was stalled.
    pub(super) stalled: Option<LaneId>,
}

impl Checker {
    pub(super) fn take_in(&mut self, now: Time, event: &Event) -> EndedStep {
        self.stuck_now.clear();
        self.began_now.clear();
        match event {
            Event::ModelUp(model, terms) => {
                self.rows_max = self.rows_max.max(terms.rows_max as usize);
                self.models.insert(*model, terms.clone());
            }
            Event::ModelDown(model) => {
                self.models.remove(model);
                self.owe_waiting(*model);
            }
            Event::Known(model, terms, holding) => {
                self.rows_max = self.rows_max.max(terms.rows_max as usize);
                self.models.insert(*model, terms.clone());
                self.memory.known(*model, *holding);
            }
            Event::LoadWanted(model) => self.memory.want(*model, !self.draining),
            Event::UnloadWanted(model) => {
                if self.memory.close(*model) {
                    self.owe_waiting(*model);
                }
            }
            Event::LoadEnded(model, result) => {
                self.memory.load_ended(*model, result);
                if result.is_err() {
                    self.owe_waiting(*model);
                }
            }
            Event::Unloaded(model) => self.memory.unloaded(*model),
            Event::Arrived(request) => self.knock(*request, request.arrived),
            Event::Sequence(request, _) => self.knock(*request, now),
            Event::Left(id) if self.live.contains_key(id) => {
                self.owed.insert(*id);
            }
            Event::Ended(report) => {
                let Some(step) = self.steps.remove(&report.step) else { return EndedStep::default() };
                let was_stalled = self.stalled.remove(&report.step);
                self.step_ended(now, &step.requests, &report.outcome);
                self.charge(&step.parts, report);
                return EndedStep {
                    requests: step.requests,
                    outcome: Some(report.outcome.clone()),
                    stalled: was_stalled.then_some(step.lane.id),
                };
            }
            Event::Drain => self.draining = true,
            Event::Tenant(tenant, terms) => self.set_book(now, *tenant, *terms),
            // Readers keep up here; `policy/tests/generation.rs` has some that do not.
            Event::ReaderStalled(_)
            | Event::ReaderReady(_)
            | Event::Left(_)
            | Event::Tick
            | Event::Resident(_)
            | Event::Hosted(..)
            | Event::HostDown(..)
            | Event::HostUp(..) => {}
        }
        EndedStep::default()
    }

    /// What waits for this model is to end in the event at hand.
    fn owe_waiting(&mut self, model: ModelId) {
        let waits = |known: &Known| known.request.model == model && known.place == Place::Waits;
        let waiting = self.live.iter().filter(|(_, known)| waits(known));
        self.owed.extend(waiting.map(|(id, _)| *id));
    }

    /// A request comes, whose wait counts from then.
    fn knock(&mut self, request: Request, from: Time) {
        let request = Request { priority: self.priority(&request), ..request };
        let expires = self.expires(&request, from);
        let known = Known { request, expires, place: Place::AtTheDoor, alone: false, counted: false };
        self.live.insert(request.id, known);
    }

    fn expires(&self, request: &Request, from: Time) -> Time {
        request.objective.until().min(from + self.limits.wait_max)
    }

    /// Those of an iteration that are not over wait for their next tokens.
    fn iterated(&mut self, now: Time, requests: &[RequestId], over: &[RequestId]) {
        for id in requests {
            let Some(known) = self.live.get(id) else { continue };
            if over.contains(id) || !self.models.contains_key(&known.request.model) {
                self.owed.insert(*id);
                continue;
            }
            // Its time may have run out before the step was reported.
            let is_over = known.expires <= now;
            let expires = if is_over { known.expires } else { self.expires(&known.request, now) };
            let known = Known { place: Place::Waits, alone: false, expires, ..known.clone() };
            self.live.insert(*id, known);
        }
    }

    fn step_ended(&mut self, now: Time, requests: &[RequestId], outcome: &StepOutcome) {
        if let StepOutcome::Iterated(over) = outcome {
            return self.iterated(now, requests, over);
        }
        let retried = requests.len() > 1 && *outcome != StepOutcome::Completed;
        for id in requests {
            let Some(known) = self.live.get_mut(id) else { continue };
            if retried && self.models.contains_key(&known.request.model) {
                known.place = Place::Waits;
                known.alone = true;
            } else {
                self.owed.insert(*id);
            }
        }
    }

    /// Whether a limit stands in the way of this request.
    pub(super) fn is_full(&self, known: &Known) -> bool {
        let waits = |other: &&Known| other.place == Place::Waits;
        let model = known.request.model;
        let of_model = self.live.values().filter(waits).filter(|other| other.request.model == model).count();
        let queue_max = self.models.get(&model).map_or(0, |terms| terms.queue_max);
        let bytes: u64 = self.live.values().map(|other| other.work().2).sum();
        of_model >= queue_max
            || self.live.values().filter(waits).count() >= self.limits.queued_requests_max
            || bytes + known.work().2 > self.limits.bytes_in_max
    }

    /// The request at the door was not refused, so it is in; whether it should be is checked here.
    pub(super) fn let_in(&mut self, now: Time) -> Result<(), Broken> {
        // Ids ascend, so one that has just arrived is the last.
        let Some((id, known)) = self.live.pop_last() else { return Ok(()) };
        if known.place != Place::AtTheDoor {
            self.live.insert(id, known);
            return Ok(());
        }
        hold("nothing is accepted after `Drain`", !self.draining, &id)?;
        let loaded = self.models.contains_key(&known.request.model);
        let loaded = loaded && !self.memory.is_closed(known.request.model);
        hold("nothing is accepted for a model that is not loaded", loaded, &id)?;
        hold("queue and byte limits hold", !self.is_full(&known), &id)?;
        let counted = self.admit(now, &known)?;
        self.live.insert(id, Known { place: Place::Waits, counted, ..known });
        Ok(())
    }
}
