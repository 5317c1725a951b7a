//! Brings models into memory and lets them go.
//!
//! A request for a model that is absent is *parked*: it is live and expires like any other, but stands in no
//! queue until its model is there. Models are loaded in the order in which they were called for, so many at
//! the same time as the limits say. What a load needs is reserved before it begins. If that much is not free,
//! models make room that have nothing to do and would be missed least; if those do not suffice for a while,
//! busy ones are chosen, which then take no more requests until they are idle and can go.

use std::time::Duration;

use quadrant_types::{Ending, Error, ErrorCode, ModelId, Reason, Request, RequestId, Time};

use crate::admission::{Plan, expired, unloaded, unmeetable};
use crate::ledger::Purpose;
use crate::live::Live;
use crate::pages::Pages;
use crate::queue::ModelQueue;
use crate::residency::{CRAMPED_PATIENCE, Call, Held, Stage};
use crate::{Action, Discipline, Holding, Loaded, ModelTerms, Policy};

/// The share of the budget by which the process may be larger than its budget before requests are refused.
const OVERDRAWN_DIVISOR: u64 = 20;

impl Policy {
    /// The bytes of the device's memory, and who has them.
    pub fn ledger(&self) -> &crate::Ledger {
        &self.memory.ledger
    }

    pub(crate) fn known(&mut self, model: ModelId, terms: ModelTerms, holding: Holding) {
        self.take_terms(model, terms);
        self.memory.learn(model, holding);
    }

    /// What is measured anew replaces what was known; the same keeps what was learnt since.
    fn take_terms(&mut self, model: ModelId, terms: ModelTerms) {
        match self.models.get_mut(&model) {
            Some(queue) if queue.terms == terms || !queue.waiting.is_empty() => queue.terms = terms,
            _ => drop(self.models.insert(model, ModelQueue::new(terms, self.discipline))),
        }
    }

    pub(crate) fn load_wanted(&mut self, model: ModelId) {
        let may = !self.draining;
        self.memory.change(model, |held| {
            held.told = may && held.stage != Stage::Resident && held.stage != Stage::Loading;
            held.closed &= !may;
            held.note_success();
        });
    }

    pub(crate) fn unload_wanted(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        self.memory.change(model, |held| (held.closed, held.told, held.missed) = (true, false, false));
        self.end_parked(model, &unloaded(), actions);
    }

    /// What waits for this model to be loaded waits in vain.
    fn end_parked(&mut self, model: ModelId, error: &Error, actions: &mut Vec<Action>) {
        let parked = self.memory.get(model).map(|held| held.parked.clone());
        for id in parked.into_iter().flatten() {
            self.end(id, Ending::Failed(error.clone()), actions);
        }
    }

    pub(crate) fn drain(&mut self) {
        self.draining = true;
        let all: Vec<ModelId> = self.memory.iter().map(|(model, _)| model).collect();
        for model in all {
            self.memory.change(model, |held| (held.told, held.missed) = (false, false));
        }
    }

    /// A model is forgotten, wherever it is.
    pub(crate) fn forget_held(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        self.end_parked(model, &unloaded(), actions);
        let bytes = self.memory.ledger.of(Purpose::Model(model));
        match self.memory.change(model, |held| std::mem::replace(&mut held.stage, Stage::Absent)) {
            Some(Stage::Loading) => {
                self.memory.loading_over(model);
            }
            Some(Stage::Unloading) => self.memory.unloading_bytes -= bytes,
            Some(Stage::Absent | Stage::Resident) | None => {}
        }
        self.memory.ledger.release(Purpose::Model(model));
        self.memory.forget(model);
    }

    /// Whether requests for this model are to be parked.
    pub(crate) fn is_absent(&mut self, now: Time, model: ModelId) -> bool {
        let Some(held) = self.memory.note_use(now, model) else { return false };
        held.stage != Stage::Resident || held.yielding || held.closed
    }

    /// Whether the process is as large as it may be at most.
    pub(crate) fn memory_allows(&self) -> Result<(), Error> {
        let ledger = &self.memory.ledger;
        if ledger.overdrawn() <= ledger.budget() / OVERDRAWN_DIVISOR {
            return Ok(());
        }
        let (resident, budget) = (ledger.reserved() + ledger.unaccounted(), ledger.budget());
        let text = format!("the server takes `{resident}` bytes, more than its budget of `{budget}`");
        Err(memory_full(text).retry_after(Duration::from_secs(1)))
    }

    pub(crate) fn arrived_for_absent(&mut self, now: Time, request: Request, actions: &mut Vec<Action>) {
        let plan = self.best_effort_plan(now, &request);
        if let Err(error) = self.may_park(now, &request, plan.expires) {
            return self.refuse(request.id, error, actions);
        }
        self.live.insert(request.id, Live { parked: true, ..Live::new(request, plan) });
        self.expiries.insert((plan.expires, request.id));
        self.bytes_in += request.work.bytes_in();
        self.queued += 1;
        self.take_quota(now, &request);
        self.memory.change(request.model, |held| held.parked.insert(request.id));
    }

    fn may_park(&mut self, now: Time, request: &Request, expires: Time) -> Result<(), Error> {
        self.within_bounds(request)?;
        self.quotas.check(now, request)?;
        let model = request.model;
        let held = self.memory.get(model).expect("its stage was just looked at");
        if held.closed {
            return Err(unloaded());
        }
        if let Some((error, wait)) = held.failure(now) {
            return Err(error.clone().retry_after(wait));
        }
        if expires <= now {
            return Err(expired());
        }
        self.fits_ever(model)?;
        let wait = self.load_wait(now, model);
        if now + wait > expires {
            self.memory.change(model, |held| held.missed = true);
            let text = format!("its model is absent, and would be loaded in about {wait:.1?}");
            return Err(unmeetable(&text).retry_after(wait));
        }
        Ok(())
    }

    fn fits_ever(&self, model: ModelId) -> Result<(), Error> {
        let need = self.memory.get(model).map_or(0, |held| held.holding.load_bytes);
        let (most, budget) = (self.memory.most(model), self.memory.ledger.budget());
        if need <= most {
            return Ok(());
        }
        Err(memory_full(format!(
            "the model needs `{need}` bytes, and at most `{most}` of the budget of `{budget}` can be had for it"
        )))
    }

    /// How long it takes until this absent model is there, if nothing else comes first.
    fn load_wait(&self, now: Time, model: ModelId) -> Duration {
        let load_time = |held: &Held| held.holding.load_time;
        let of = |model| self.memory.get(model).map_or(Duration::ZERO, load_time);
        let left = |(loading, since): &(ModelId, Time)| of(*loading).saturating_sub(now.since(*since));
        let loading = &self.memory.loading;
        if let Some(own) = loading.iter().find(|(loading, _)| *loading == model) {
            return left(own);
        }
        // When each of the loads that there may be at the same time is over, and the next can begin.
        let mut over: Vec<Duration> = loading.iter().map(left).collect();
        over.resize(self.limits.loads_max.max(over.len()), Duration::ZERO);
        let mut ends = |load_time: Duration| {
            let first = over.iter_mut().min().expect("there may be one load at least");
            *first = first.saturating_add(load_time);
            *first
        };
        for held in self.memory.ahead_of(model) {
            ends(load_time(held));
        }
        ends(of(model))
    }

    /// A parked request waits no more for its model.
    pub(crate) fn unpark(&mut self, model: ModelId, id: RequestId) {
        self.memory.change(model, |held| held.parked.remove(&id));
        self.queued -= 1;
    }

    pub(crate) fn load_ended(
        &mut self,
        now: Time,
        model: ModelId,
        result: Result<Loaded, Error>,
        actions: &mut Vec<Action>,
    ) {
        if !self.memory.loading_over(model) {
            return;
        }
        match result {
            Ok(loaded) => self.loaded(now, model, loaded, actions),
            Err(error) => self.load_failed(now, model, &error, actions),
        }
    }

    fn loaded(&mut self, now: Time, model: ModelId, loaded: Loaded, actions: &mut Vec<Action>) {
        let Loaded { terms, bytes, took } = loaded;
        self.take_terms(model, terms);
        if let Some(queue) = self.models.get_mut(&model) {
            // What was in its pages went with it.
            queue.pages = queue.terms.sequences.map(|sequences| Pages::new(sequences.pages));
        }
        self.memory.ledger.reserve_up_to(Purpose::Model(model), bytes);
        let parked = self.memory.change(model, |held| {
            held.stage = Stage::Resident;
            (held.told, held.missed, held.used_at) = (false, false, now);
            held.holding.bytes = bytes;
            held.holding.load_bytes = held.holding.load_bytes.max(bytes);
            held.holding.load_time = (held.holding.load_time + took) / 2;
            held.note_success();
            held.parked.clone()
        });
        self.memory.watch(now, model);
        for id in parked.into_iter().flatten() {
            let Live { request, plan: parked, .. } = self.live[&id];
            self.unpark(model, id);
            self.live.remove(&id);
            self.expiries.remove(&(parked.expires, id));
            let plan = self.plan(now, &request);
            let has_room = plan.key.easy || self.discipline != Discipline::Quadrant || {
                let pace = self.keeps_pace(now, &request);
                pace.and_then(|pace| self.find_room(now, &request, (&plan, pace), actions)).is_ok()
            };
            // It was accepted; what comes late for the load is still of use.
            let plan = if has_room { plan } else { self.best_effort_plan(now, &request) };
            // The load was part of its wait.
            let plan = Plan { expires: parked.expires, ..plan };
            self.let_in(now, request, plan);
        }
    }

    fn load_failed(&mut self, now: Time, model: ModelId, error: &Error, actions: &mut Vec<Action>) {
        self.memory.ledger.release(Purpose::Model(model));
        self.memory.change(model, |held| {
            held.stage = Stage::Absent;
            (held.told, held.missed) = (false, false);
            held.note_failure(now, error.clone());
        });
        self.end_parked(model, error, actions);
    }

    pub(crate) fn unloaded(&mut self, model: ModelId) {
        if self.memory.get(model).is_none_or(|held| held.stage != Stage::Unloading) {
            return;
        }
        self.memory.unloading_bytes -= self.memory.ledger.of(Purpose::Model(model));
        self.memory.ledger.release(Purpose::Model(model));
        self.memory.change(model, |held| held.stage = Stage::Absent);
        if let Some(queue) = self.models.get_mut(&model) {
            queue.warm.clear();
        }
    }

    /// What is there beyond what was reserved has to come from somewhere.
    pub(crate) fn note_resident(&mut self, bytes: u64, actions: &mut Vec<Action>) {
        self.memory.ledger.note_resident(bytes);
        let missing = self.memory.ledger.overdrawn().saturating_sub(self.memory.unloading_bytes);
        if missing > 0
            && let Some(victims) = self.memory.victims(missing, |model| self.is_idle(model))
        {
            victims.into_iter().for_each(|model| self.unload(model, actions));
        }
    }

    /// Nothing of it waits or runs; what is parked until it is loaded again needs it no more.
    fn is_idle(&self, model: ModelId) -> bool {
        self.models.get(&model).is_none_or(|queue| queue.waiting.is_empty())
            && self.aside(model) == 0
            && self.running.iter().all(|step| step.model != model)
            && !self
                .sequences
                .keys()
                .any(|id| self.live.get(id).is_some_and(|live| live.request.model == model && !live.parked))
    }

    fn unload(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        self.memory.unloading_bytes += self.memory.ledger.of(Purpose::Model(model));
        self.memory.change(model, |held| (held.stage, held.yielding) = (Stage::Unloading, false));
        actions.push(Action::Unload(model));
    }

    /// Lets go what is to go, and begins the next loads if there is room or room can be made.
    pub(crate) fn manage_memory(&mut self, now: Time, actions: &mut Vec<Action>) {
        for model in self.memory.idle_too_long(now) {
            match self.is_idle(model) {
                true => self.unload(model, actions),
                false => self.memory.watch(now, model),
            }
        }
        let done: Vec<ModelId> = self.memory.leaving().filter(|model| self.is_idle(*model)).collect();
        done.into_iter().for_each(|model| self.unload(model, actions));
        while self.memory.loading.len() < self.limits.loads_max {
            let Some((call, model)) = self.memory.first_call() else {
                self.memory.cramped_since = None;
                return;
            };
            if let Err(error) = self.fits_ever(model) {
                self.refuse_load(call, model, &error, actions);
                continue;
            }
            let need = self.memory.get(model).map_or(0, |held| held.holding.load_bytes);
            if !self.memory.ledger.reserve(Purpose::Model(model), need) {
                return self.make_room(now, (call, model), need, actions);
            }
            self.memory.cramped_since = None;
            self.memory.change(model, |held| held.stage = Stage::Loading);
            self.memory.loading.push((model, now));
            actions.push(Action::Load(model));
        }
    }

    fn make_room(&mut self, now: Time, first: (Call, ModelId), need: u64, actions: &mut Vec<Action>) {
        let ledger = &self.memory.ledger;
        let leaving: u64 = self.memory.leaving().map(|model| ledger.of(Purpose::Model(model))).sum();
        let soon = ledger.free().saturating_add(self.memory.unloading_bytes).saturating_add(leaving);
        // What nobody reserved must be made good for, too.
        let missing = need.saturating_add(ledger.overdrawn()).saturating_sub(soon);
        if missing == 0 {
            self.memory.cramped_since = None;
            return;
        }
        if let Some(victims) = self.memory.victims(missing, |model| self.is_idle(model)) {
            self.memory.cramped_since = None;
            return victims.into_iter().for_each(|model| self.unload(model, actions));
        }
        let since = *self.memory.cramped_since.get_or_insert(now);
        if now.since(since) < CRAMPED_PATIENCE {
            return;
        }
        self.memory.cramped_since = None;
        if let Some(victims) = self.memory.victims(missing, |_| true) {
            for model in victims {
                self.memory.change(model, |held| held.yielding = true);
            }
        } else if self.memory.unloading_bytes == 0 && leaving == 0 && self.memory.loading.is_empty() {
            let (free, unaccounted) = (self.memory.ledger.free(), self.memory.ledger.unaccounted());
            let text = format!(
                "the model needs `{need}` bytes; `{free}` are free, nothing can make room, and `{unaccounted}` \
                 are taken by what nobody reserved"
            );
            self.refuse_load(first.0, first.1, &memory_full(text), actions);
        }
    }

    fn refuse_load(&mut self, call: Call, model: ModelId, error: &Error, actions: &mut Vec<Action>) {
        self.memory.change(model, |held| (held.told, held.missed) = (false, false));
        self.end_parked(model, error, actions);
        if call == Call::Told {
            actions.push(Action::LoadRefused(model, error.clone()));
        }
    }
}

fn memory_full(text: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, text).because(Reason::MemoryFull)
}
