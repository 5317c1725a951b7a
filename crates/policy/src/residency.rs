//! Which models are in memory, which are wanted there, and which would be missed least.
//!
//! Only data and the choice of what to evict; what is done about it is in `loads.rs`. A model is worth its
//! bytes by how soon it is likely to be used again and what a miss would cost: the longest load, most often,
//! for the fewest bytes stays (as in GreedyDual-Size-Frequency; Cherkasova, 1998). How often is counted over
//! the requests of all models rather than over time, so a quiet night forgets nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_types::{Error, ModelId, RequestId, Time};

use crate::{Eviction, Holding, Ledger, Purpose, Residency};

/// Requests after which a share of 1/e is left of what a use counted.
const USES_REMEMBERED: f64 = 1_000.0;
/// How many times as dear a miss is of a model that promises answers sooner than it loads: it is late, too.
const LATE_MISS: f64 = 2.0;
/// How long a load waits for models to become idle by themselves before busy ones are told to make room.
pub(crate) const CRAMPED_PATIENCE: Duration = Duration::from_millis(200);
/// How long a model waits that failed to load, until a request may make it be tried again;
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// twice as long each time, up to this.
const RETRY_MAX: Duration = Duration::from_mins(5);

/// Where a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Absent,
    Loading,
    Resident,
    Unloading,
}

/// Why a model is wanted in memory; the first is loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    /// Somebody said so.
    Told,
    /// This request waits for it.
    Request(RequestId),
    /// A request could not wait for it; the next may find it.
    Missed,
}

/// A model whose bytes the ledger knows.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) holding: Holding,
    pub(crate) stage: Stage,
    /// No request may use it: it was told to go.
    pub(crate) closed: bool,
    /// It makes room for another as soon as it has nothing more to do; its new requests wait outside.
    pub(crate) yielding: bool,
    pub(crate) told: bool,
    pub(crate) missed: bool,
    /// Requests that wait for it to be loaded, in the order in which they came.
    pub(crate) parked: BTreeSet<RequestId>,
    pub(crate) used_at: Time,
    /// When it is looked at whether it is idle.
    watched_at: Option<Time>,
    uses: f64,
    uses_at: f64,
    failures: u32,
    failed: Option<(Error, Time)>,
}

impl Held {
    /// Why it is wanted, if it is and is not there.
    pub(crate) fn call(&self) -> Option<Call> {
        if self.stage != Stage::Absent {
            return None;
        }
        let told = self.told.then_some(Call::Told);
        told.or_else(|| self.parked.first().map(|id| Call::Request(*id)))
            .or_else(|| self.missed.then_some(Call::Missed))
    }

    fn idle_after(&self) -> Option<Duration> {
        match self.holding.residency {
            Residency::Pinned => None,
            Residency::OnDemand { idle_after } => idle_after,
        }
    }

    pub(crate) fn may_be_evicted(&self) -> bool {
        let on_demand = matches!(self.holding.residency, Residency::OnDemand { .. });
        on_demand && self.stage == Stage::Resident && !self.closed && !self.yielding
    }

    /// Why it cannot be loaded at present, if it failed lately.
    pub(crate) fn failure(&self, now: Time) -> Option<(&Error, Duration)> {
        let (error, until) = self.failed.as_ref()?;
        (*until > now).then(|| (error, until.since(now)))
    }

    pub(crate) fn note_failure(&mut self, now: Time, error: Error) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures += 1;
        self.failed = Some((error, now + wait));
    }

    pub(crate) fn note_success(&mut self) {
        (self.failures, self.failed) = (0, None);
    }

    /// What a miss costs for each byte that it holds, times how often it is used.
    fn worth(&self, clock: f64) -> f64 {
        let Holding { load_time, bytes, objective, .. } = self.holding;
        let is_late = objective.is_some_and(|within| within < load_time);
        let miss = load_time.as_secs_f64() * if is_late { LATE_MISS } else { 1.0 };
        self.uses_by(clock) * miss / bytes.max(1) as f64
    }

    fn uses_by(&self, clock: f64) -> f64 {
        self.uses * ((self.uses_at - clock) / USES_REMEMBERED).exp()
    }
}

/// The memory of the device, and the models in it or to come.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) ledger: Ledger,
    held: BTreeMap<ModelId, Held>,
    /// Models that are wanted and absent, the first to be loaded first.
    calls: BTreeSet<(Call, ModelId)>,
    /// Resident models that are to go as soon as they have nothing to do.
    leaving: BTreeSet<ModelId>,
    /// When each model with an idle time-out is to be looked at.
    idle: BTreeSet<(Time, ModelId)>,
    /// The models that are being loaded, and since when.
    pub(crate) loading: Vec<(ModelId, Time)>,
    /// Bytes that are about to be free.
    pub(crate) unloading_bytes: u64,
    /// Since when the first call waits for room.
    pub(crate) cramped_since: Option<Time>,
    /// Requests for models that are known here, so far.
    clock: f64,
    eviction: Eviction,
}

impl Memory {
    pub(crate) fn new(ledger: Ledger, eviction: Eviction) -> Self {
        Self {
            eviction,
            ledger,
            held: BTreeMap::new(),
            calls: BTreeSet::new(),
            leaving: BTreeSet::new(),
            idle: BTreeSet::new(),
            loading: Vec::new(),
            unloading_bytes: 0,
            cramped_since: None,
            clock: 0.0,
        }
    }

    pub(crate) fn get(&self, model: ModelId) -> Option<&Held> {
        self.held.get(&model)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ModelId, &Held)> {
        self.held.iter().map(|(model, held)| (*model, held))
    }

    /// Learns of a model, or what it holds.
    pub(crate) fn learn(&mut self, model: ModelId, holding: Holding) {
        let fresh = || Held {
            holding,
            stage: Stage::Absent,
            closed: false,
            yielding: false,
            told: false,
            missed: false,
            parked: BTreeSet::new(),
            used_at: Time::ZERO,
            watched_at: None,
            uses: 0.0,
            uses_at: 0.0,
            failures: 0,
            failed: None,
        };
        self.held.entry(model).or_insert_with(fresh).holding = holding;
    }

    /// The model is being loaded no more; false if it was not.
    pub(crate) fn loading_over(&mut self, model: ModelId) -> bool {
        let at = self.loading.iter().position(|(loading, _)| *loading == model);
        at.map(|at| self.loading.swap_remove(at)).is_some()
    }

    pub(crate) fn forget(&mut self, model: ModelId) {
        self.change(model, |held| {
            (held.told, held.missed) = (false, false);
            held.parked.clear();
            held.closed = false;
        });
        let watched = self.held.remove(&model).and_then(|held| held.watched_at);
        watched.map(|at| self.idle.remove(&(at, model)));
        self.leaving.remove(&model);
    }

    /// Changes a model, and keeps what is known of who calls and who leaves in step with it.
    pub(crate) fn change<T>(&mut self, model: ModelId, change: impl FnOnce(&mut Held) -> T) -> Option<T> {
        let held = self.held.get_mut(&model)?;
        let before = held.call();
        let result = change(held);
        let after = held.call();
        if before != after {
            before.map(|call| self.calls.remove(&(call, model)));
            after.map(|call| self.calls.insert((call, model)));
        }
        if held.stage == Stage::Resident && (held.closed || held.yielding) {
            self.leaving.insert(model);
        } else {
            self.leaving.remove(&model);
        }
        Some(result)
    }

    /// A request for a model came. `None` if nothing is known here of that model.
    pub(crate) fn note_use(&mut self, now: Time, model: ModelId) -> Option<&Held> {
        let held = self.held.get_mut(&model)?;
        self.clock += 1.0;
        held.uses = held.uses_by(self.clock) + 1.0;
        held.uses_at = self.clock;
        held.used_at = now;
        Some(held)
    }

    /// It is resident: from now on it may be idle for too long.
    pub(crate) fn watch(&mut self, now: Time, model: ModelId) {
        let Some(held) = self.held.get_mut(&model) else { return };
        let at = held.idle_after().map(|after| now + after);
        if let Some(before) = std::mem::replace(&mut held.watched_at, at) {
            self.idle.remove(&(before, model));
        }
        self.idle.extend(at.map(|at| (at, model)));
    }

    /// The models that were not used for as long as they may stay unused. Those that were are looked at
    /// again later.
    pub(crate) fn idle_too_long(&mut self, now: Time) -> Vec<ModelId> {
        let mut gone = Vec::new();
        while let Some((_, model)) = self.idle.first().filter(|(at, _)| *at <= now).copied() {
            self.idle.pop_first();
            let Some(held) = self.held.get_mut(&model) else { continue };
            held.watched_at = None;
            let Some(after) = held.idle_after().filter(|_| held.stage == Stage::Resident) else { continue };
            let used_at = held.used_at;
            if used_at + after <= now {
                gone.push(model);
            } else {
                self.watch(used_at, model);
            }
        }
        gone
    }

    /// When something here is due.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let idle = self.idle.first().map(|(at, _)| *at);
        let cramped = self.cramped_since.map(|since| since + CRAMPED_PATIENCE);
        [idle, cramped].into_iter().flatten().min()
    }

    pub(crate) fn first_call(&self) -> Option<(Call, ModelId)> {
        self.calls.first().copied()
    }

    /// The models that are loaded before this one, if it is called for.
    pub(crate) fn ahead_of(&self, model: ModelId) -> impl Iterator<Item = &Held> {
        let before = self.calls.iter().take_while(move |(_, other)| *other != model);
        before.filter_map(|(_, other)| self.held.get(other))
    }

    pub(crate) fn leaving(&self) -> impl Iterator<Item = ModelId> {
        self.leaving.iter().copied()
    }

    /// The most that a model may need: all that neither the process nor pinned models hold.
    pub(crate) fn most(&self, model: ModelId) -> u64 {
        let stays = |(other, held): &(ModelId, &Held)| {
            *other != model
                && held.holding.residency == Residency::Pinned
                && matches!(held.stage, Stage::Resident | Stage::Loading)
        };
        let pinned: u64 = self.iter().filter(stays).map(|(_, held)| held.holding.bytes).sum();
        let [process, tensors] = [Purpose::Process, Purpose::Tensors].map(|purpose| self.ledger.of(purpose));
        self.ledger.budget().saturating_sub(pinned).saturating_sub(process).saturating_sub(tensors)
    }

    /// The models of least worth, of those that `may` go, that together free `missing` bytes: no more of them
    /// than needed. `None` if all of them do not.
    pub(crate) fn victims(&self, missing: u64, may: impl Fn(ModelId) -> bool) -> Option<Vec<ModelId>> {
        let mut candidates: Vec<(f64, ModelId, u64)> = self
            .iter()
            .filter(|(model, held)| held.may_be_evicted() && may(*model))
            .map(|(model, held)| {
                let worth = match self.eviction {
                    Eviction::Worth => held.worth(self.clock),
                    Eviction::Lru => held.uses_at,
                };
                (worth, model, self.ledger.of(Purpose::Model(model)))
            })
            .collect();
        candidates.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        let (mut chosen, mut freed) = (Vec::new(), 0_u64);
        for candidate in candidates {
            if freed >= missing {
                break;
            }
            freed = freed.saturating_add(candidate.2);
            chosen.push(candidate);
        }
        if freed < missing {
            return None;
        }
        // A large one chosen last may have made smaller ones needless; the one worth most stays first.
        for index in (0..chosen.len()).rev() {
            if freed - chosen[index].2 >= missing {
                freed -= chosen.remove(index).2;
            }
        }
        Some(chosen.into_iter().map(|(_, model, _)| model).collect())
    }

    /// Whether the books agree with each other.
    pub(crate) fn is_sound(&self) -> bool {
        let calls = |(model, held): (ModelId, &Held)| {
            held.call().is_none_or(|call| self.calls.contains(&(call, model)))
        };
        let called = self.held.values().filter(|held| held.call().is_some()).count();
        let unloading = self.iter().filter(|(_, held)| held.stage == Stage::Unloading);
        let unloading: u64 = unloading.map(|(model, _)| self.ledger.of(Purpose::Model(model))).sum();
        let is_loading = |(model, held): (ModelId, &Held)| {
            let listed = self.loading.iter().filter(|(loading, _)| *loading == model).count();
            listed == usize::from(held.stage == Stage::Loading)
        };
        self.ledger.is_sound()
            && self.iter().all(calls)
            && called == self.calls.len()
            && unloading == self.unloading_bytes
            && self.iter().all(is_loading)
            && self.loading.iter().all(|(model, _)| self.held.contains_key(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(models: &[(u64, u64, u32)]) -> Memory {
        let mut memory = Memory::new(Ledger::new(1_000), Eviction::Worth);
        for (index, (bytes, load_ms, uses)) in (0..).zip(models) {
            let model = ModelId(index);
            memory.learn(
                model,
                Holding {
                    bytes: *bytes,
                    load_bytes: *bytes,
                    load_time: Duration::from_millis(*load_ms),
                    residency: Residency::OnDemand { idle_after: None },
                    objective: None,
                },
            );
            memory.change(model, |held| held.stage = Stage::Resident);
            assert!(memory.ledger.reserve(Purpose::Model(model), *bytes));
            for _ in 0..*uses {
                memory.note_use(Time::ZERO, model);
            }
        }
        memory
    }

    fn victims(models: &[(u64, u64, u32)], missing: u64) -> Option<Vec<u32>> {
        let chosen = memory(models).victims(missing, |_| true)?;
        Some(chosen.into_iter().map(|model| model.0).collect())
    }

    #[test]
    fn who_is_missed_least_goes() {
        // Equal but for one thing: used less, loaded sooner, larger.
        assert_eq!(victims(&[(10, 5, 9), (10, 5, 2)], 10), Some(vec![1]));
        assert_eq!(victims(&[(10, 50, 3), (10, 5, 3)], 10), Some(vec![1]));
        assert_eq!(victims(&[(10, 5, 3), (30, 5, 3)], 10), Some(vec![1]));
        assert_eq!(victims(&[(10, 5, 3), (10, 5, 3)], 21), None);
    }

    #[test]
    fn no_more_go_than_must() {
        // The two small ones are worth least, but the third that is needed makes them needless.
        assert_eq!(victims(&[(5, 5, 1), (5, 5, 1), (100, 500, 9)], 90), Some(vec![2]));
    }

    #[test]
    fn what_is_long_past_counts_for_little() {
        let mut memory = memory(&[(10, 5, 40), (10, 5, 0), (10, 5, 20_000)]);
        memory.note_use(Time::ZERO, ModelId(1));
        assert_eq!(memory.victims(10, |_| true), Some(vec![ModelId(0)]));
    }
}
