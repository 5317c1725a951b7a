//! The checker's own books of the memory: which models are where, and what they take.

use std::collections::BTreeMap;

use quadrant_policy::{Event, Holding, Limits, Loaded, MemoryBudget, Residency};
use quadrant_types::{Error, ModelId};

use super::{Broken, hold, hold_or};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Memory {
    budget: MemoryBudget,
    loads_max: usize,
    models: BTreeMap<ModelId, Kept>,
}

#[derive(Debug)]
struct Kept {
    holding: Holding,
    place: Place,
    closed: bool,
    told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Absent,
    Loading,
    Resident,
    Unloading,
}

impl Memory {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { budget: limits.memory, loads_max: limits.loads_max, models: BTreeMap::new() }
    }

    pub(super) fn known(&mut self, model: ModelId, holding: Holding) {
        self.models.insert(model, Kept { holding, place: Place::Absent, closed: false, told: false });
    }

    pub(super) fn want(&mut self, model: ModelId, may: bool) {
        if let Some(kept) = self.models.get_mut(&model).filter(|_| may) {
            (kept.closed, kept.told) = (false, true);
        }
    }

    /// Whether it is not there, so that what waits for it ends.
    pub(super) fn close(&mut self, model: ModelId) -> bool {
        let Some(kept) = self.models.get_mut(&model) else { return false };
        (kept.closed, kept.told) = (true, false);
        kept.place != Place::Resident
    }

    pub(super) fn load(&mut self, model: ModelId) -> Result<(), Broken> {
        let loads = self.models.values().filter(|kept| kept.place == Place::Loading).count();
        hold("not too many models are loaded at the same time", loads < self.loads_max, &model)?;
        let taken: u64 = self.models.values().map(Kept::bytes).sum();
        let Some(kept) = self.models.get_mut(&model) else {
            return Err(("only models that there are are loaded", model.to_string()));
        };
        hold("only absent models are loaded", kept.place == Place::Absent, &model)?;
        kept.place = Place::Loading;
        let (needed, budget) =
            (taken + self.budget.process_bytes + kept.holding.load_bytes, self.budget.bytes);
        hold_or("models stay within the budget", needed <= budget, || {
            format!("{model}: {needed} of {budget}")
        })
    }

    pub(super) fn unload(&mut self, model: ModelId) -> Result<(), Broken> {
        let place = self.models.get(&model).map(|kept| kept.place);
        hold("only resident models are unloaded", place == Some(Place::Resident), &model)?;
        self.models.get_mut(&model).into_iter().for_each(|kept| kept.place = Place::Unloading);
        Ok(())
    }

    pub(super) fn refuse(&mut self, model: ModelId) -> Result<(), Broken> {
        let told = self.models.get_mut(&model).is_some_and(|kept| std::mem::take(&mut kept.told));
        hold("only loads that were told are refused", told, &model)
    }

    pub(super) fn load_ended(&mut self, model: ModelId, result: &Result<Loaded, Error>) {
        if let Some(kept) = self.models.get_mut(&model) {
            kept.place = if result.is_ok() { Place::Resident } else { Place::Absent };
            kept.told = false;
        }
    }

    pub(super) fn unloaded(&mut self, model: ModelId) {
        self.models.get_mut(&model).into_iter().for_each(|kept| kept.place = Place::Absent);
    }

    /// Whether its steps cannot run.
    pub(super) fn is_absent(&self, model: ModelId) -> bool {
        self.models.get(&model).is_some_and(|kept| kept.place != Place::Resident)
    }

    pub(super) fn is_loading(&self) -> bool {
        self.models.values().any(|kept| kept.place == Place::Loading)
    }

    /// Whether it may be told to make room.
    pub(super) fn may_yield(&self, model: ModelId) -> bool {
        self.models.get(&model).is_some_and(|kept| kept.holding.residency != Residency::Pinned)
    }

    /// Whether somebody wants a model loaded.
    pub(super) fn is_told(&self) -> bool {
        self.models.values().any(|kept| kept.told)
    }

    pub(super) fn is_closed(&self, model: ModelId) -> bool {
        self.models.get(&model).is_some_and(|kept| kept.closed)
    }

    /// Whether a request for it may end because it is unavailable.
    pub(super) fn may_fail(&self, model: ModelId, event: &Event) -> bool {
        let failed = matches!(event, Event::LoadEnded(failed, Err(_)) if *failed == model);
        // It may have failed shortly before.
        failed || self.is_closed(model) || self.is_absent(model)
    }
}

impl Kept {
    fn bytes(&self) -> u64 {
        match self.place {
            Place::Absent => 0,
            Place::Loading => self.holding.load_bytes,
            Place::Resident | Place::Unloading => self.holding.bytes,
        }
    }
}
