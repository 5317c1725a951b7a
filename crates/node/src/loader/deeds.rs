//! What the loader does: finds out about a model, has it brought in, opens it to requests, and takes it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quadrant_engine::{Language, Model, Profile, Refusal, Runner, describe, describe_language};
use quadrant_policy::{Holding, Loaded, ModelTerms};
use quadrant_types::{Error, ErrorCode, LaneId, ModelId, ModelSpec, Time};

use super::bringing::{Brought, Fresh, Task};
use super::trying::Unknown;
use super::{Known, LANE_FULL_WAIT, Loader, State, tell};
use crate::measuring::ChildError;
use crate::message::Message;
use crate::opening::{
    engine_version, holding, is_isolated, probe_options, rows_max, settings, source, terms,
};
use crate::profiles::Stored;
use crate::registry::ShapeTable;
use crate::repository::{ModelFiles, Stamp};
use crate::{Config, ModelEntry};

/// How long a model that is to be measured waits for a moment without loads.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);
/// How long a lane may take to hand a model back. One that is stuck keeps it.
const HANDED_BACK_WITHIN: Duration = Duration::from_secs(10);

impl Known {
    /// What its files and the configuration say.
    pub(super) fn new(name: &str, version: u64, files: ModelFiles, config: &Config) -> Result<Self, String> {
        let (settings, _) = settings(name, &files, config)?;
        Ok(Self {
            name: name.to_owned(),
            version,
            stamp: Stamp::of(&files),
            files,
            settings,
            profile: None,
            state: State::Coming,
            entry: None,
            model: None,
            replaces: None,
            is_replaced: false,
            replies: Vec::new(),
        })
    }
}

impl Loader {
    /// What a child process is to find out about before it is loaded here; `None` if it is known, or tried
    /// out where it will run: in a process of its own, or here if there is no other way.
    pub(super) fn unknown(&self, id: ModelId, known: &Known) -> Option<Unknown> {
        let is_known = known.profile.as_ref().is_some_and(|profile| profile.occupancy.is_some());
        if is_known || is_isolated(&known.settings) {
            return None;
        }
        let Config { engine_host, profiles_dir, .. } = &*self.means.config;
        let source = source(&known.name, known.version, &known.files, &known.settings);
        Some(Unknown {
            id,
            command: engine_host.clone()?,
            folder: profiles_dir.clone()?,
            model: known.files.model.clone(),
            engine: source.engine_kind(&self.means.engines).ok()?,
            options: probe_options(&known.settings, &self.means.config),
        })
    }

    /// Has the next model that nobody knows measured: as soon as none is being loaded, which would disturb
    /// it, or when it has waited for that for long enough.
    pub(super) fn measure_next(&mut self) {
        let is_quiet =
            |since: Time| self.loading.is_empty() || self.means.handle.now() >= since + QUIET_PATIENCE;
        if self.is_measuring || !self.unknown.front().is_some_and(|(_, since)| is_quiet(*since)) {
            return;
        }
        if let Some((unknown, _)) = self.unknown.pop_front() {
            self.is_measuring = true;
            self.measurer.begin(unknown);
        }
    }

    /// A model was measured, or cannot be. One that killed its process would kill this one, too.
    pub(super) fn measured(&mut self, id: ModelId, result: Result<(), ChildError>) {
        self.is_measuring = false;
        let Some(mut known) = self.known.remove(&id) else { return };
        match result {
            Ok(()) => known.profile = self.stored_profile(&known),
            // Why it does not load is told when it is loaded here.
            Err(ChildError::Failed(reason)) => {
                self.means.handle.telemetry.occupancy_unknown(&known.name, &reason);
            }
            Err(ChildError::Died(how)) => {
                self.known.insert(id, known);
                let reason = format!("it killed the process that tried it out: {how}");
                return self.not_loaded(id, &Error::new(ErrorCode::Internal, reason));
            }
        }
        self.announce(id, &mut known);
        self.known.insert(id, known);
    }

    /// What was found out about a model on this machine.
    pub(super) fn stored_profile(&self, known: &Known) -> Option<Profile> {
        let source = source(&known.name, known.version, &known.files, &known.settings);
        let kind = source.engine_kind(&self.means.engines).ok()?;
        let store = self.means.profiles.as_ref()?;
        let engine = engine_version(&self.means.engines, kind, is_isolated(&known.settings));
        let (reader, model) = (store.clone(), known.files.model.clone());
        let key = self.aside.run(move || reader.key(&model, engine)).ok()?.ok()?;
        match store.find(&key, &probe_options(&known.settings, &self.means.config)) {
            Stored::Fits(profile) => Some(profile),
            Stored::Unusable(reason) => {
                self.means.handle.telemetry.profile_unusable(&known.name, &reason);
                None
            }
            Stored::Nothing => None,
        }
    }

    /// Opens a model to requests without loading it, if it is one that is loaded on demand and enough is
    /// known of it.
    pub(super) fn open_absent(&self, id: ModelId, known: &mut Known) -> bool {
        // Its process has to be there first.
        let may = known.settings.on_demand == Some(true) && !is_isolated(&known.settings);
        let Some(profile) = known.profile.clone().filter(|profile| may && profile.occupancy.is_some()) else {
            return false;
        };
        let source = source(&known.name, known.version, &known.files, &known.settings);
        let Ok(Some(spec)) = describe(&source, &self.means.engines) else { return false };
        let Ok(kind) = source.engine_kind(&self.means.engines) else { return false };
        let Ok(language) = describe_language(&source, &self.means.engines) else { return false };
        known.state = State::Open;
        known.entry = Some(Arc::new(self.entry(id, known, (spec, kind.name(), language), &profile)));
        true
    }

    /// What the scheduler is told of a model before it is loaded.
    pub(super) fn terms_of(&self, id: ModelId, known: &Known) -> (ModelTerms, Holding) {
        let holding = holding(&known.files.model, known.profile.as_ref(), &known.settings);
        let terms = match (&known.entry, &known.profile) {
            (Some(entry), _) => entry.terms.clone(),
            (None, profile) => {
                let unknown = Profile::unmeasured();
                terms(profile.as_ref().unwrap_or(&unknown), &known.settings, &[])
            }
        };
        (ModelTerms { lane: self.means.own_lane(id), ..terms }, holding)
    }

    /// Begins to load a model whose memory is reserved.
    pub(super) fn load(&mut self, id: ModelId) {
        // If it was forgotten meanwhile the scheduler has been told.
        let Some(known) = self.known.get(&id) else { return };
        self.loading.insert(id, self.means.handle.now());
        self.loading_lanes.begin(Task {
            id,
            name: known.name.clone(),
            version: known.version,
            files: known.files.clone(),
            settings: known.settings.clone(),
            profile: known.profile.clone(),
            runs_first: known.replaces.is_some(),
        });
    }

    /// A model is with the lanes, or cannot be loaded.
    pub(super) fn brought(&mut self, Brought { id, outcome }: Brought) {
        let now = self.means.handle.now();
        let took = self.loading.remove(&id).map_or(Duration::ZERO, |began| now.since(began));
        match outcome {
            Ok(fresh) => match self.known.remove(&id) {
                Some(known) => self.loaded(id, known, *fresh, took),
                // It was forgotten meanwhile.
                None => self.take_down(id, Some(fresh.model)),
            },
            Err(reason) => {
                // Some lanes may have it already.
                self.take_down(id, None);
                let text = format!("the model cannot be loaded: {reason}");
                let error = Error::new(ErrorCode::Unavailable, text);
                self.means.handle.driver.post(Message::LoadEnded(id, Err(error)));
                self.not_loaded(id, &Error::new(ErrorCode::Internal, reason));
            }
        }
    }

    fn entry(
        &self,
        id: ModelId,
        known: &Known,
        (spec, engine, language): (ModelSpec, &'static str, Option<Arc<Language>>),
        profile: &Profile,
    ) -> ModelEntry {
        let rows_max = if profile.batches { rows_max(&known.settings) } else { 1 };
        ModelEntry {
            id,
            engine,
            rows_max,
            batches: profile.batches,
            width: profile.width,
            terms: ModelTerms {
                lane: self.means.own_lane(id),
                ..terms(profile, &known.settings, &spec.inputs)
            },
            latency_objective: known.settings.latency_objective,
            pace: known.settings.pace,
            language,
            priority: known.settings.priority.unwrap_or_default(),
            rationale: profile.reason.clone(),
            on_demand: known.settings.on_demand == Some(true),
            resident: AtomicBool::new(false),
            hosted: None,
            metrics: self.means.handle.telemetry.model(&known.name, known.version),
            shapes: ShapeTable::default(),
            spec,
        }
    }

    /// A model is in memory and with the lanes: tells the scheduler, and opens it to requests.
    fn loaded(&mut self, id: ModelId, mut known: Known, fresh: Fresh, took: Duration) {
        let Fresh { model, spec, kind, unused, hosted, profile } = fresh;
        if known.entry.is_none() && !unused.is_empty() {
            self.means.handle.telemetry.settings_unused(&known.name, &unused);
        }
        let entry = match &known.entry {
            Some(entry) => Arc::clone(entry),
            None => {
                let entry = self.entry(id, &known, (spec, kind.name(), model.language()), &profile);
                Arc::new(ModelEntry { hosted, ..entry })
            }
        };
        let bytes = holding(&known.files.model, Some(&profile), &known.settings).bytes;
        (known.entry, known.profile, known.model) = (Some(Arc::clone(&entry)), Some(profile), Some(model));
        entry.resident.store(true, Ordering::Relaxed);
        self.means.handle.telemetry.model_loaded(&entry, took, known.state == State::Coming);
        if let Some(hosted) = &entry.hosted {
            self.means.handle.driver.post(Message::Hosted(id, hosted.id));
        }
        let loaded = Loaded { terms: entry.terms.clone(), bytes, took };
        self.means.handle.driver.post(Message::LoadEnded(id, Ok(loaded)));
        if known.state == State::Coming {
            self.open(id, &mut known, entry);
        }
        // Who waits for one that is to go waits for that.
        if known.state == State::Open {
            known.replies.drain(..).for_each(|reply| tell(Some(reply), Ok(())));
        }
        self.known.insert(id, known);
    }

    /// From now on requests find this model under its name.
    fn open(&mut self, id: ModelId, known: &mut Known, entry: Arc<ModelEntry>) {
        known.state = State::Open;
        self.failed.remove(&known.name);
        let replaced = known.replaces.take().and_then(|old| self.known.get_mut(&old));
        let old_version = replaced.map(|old| {
            (old.state, old.is_replaced) = (State::Draining, true);
            old.version
        });
        self.means.handle.registry.ready(entry, old_version);
        self.names.insert(known.name.clone(), id);
    }

    /// A model cannot be loaded. What serves in its place goes on.
    pub(super) fn not_loaded(&mut self, id: ModelId, error: &Error) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let (name, version, replaces) = (known.name.clone(), known.version, known.replaces);
        match known.state {
            State::Coming | State::Open | State::Closed => {}
            // It was to go anyway, and now is gone.
            State::Draining => return,
            State::Leaving => return self.gone(id),
        }
        let mut replies = std::mem::take(&mut known.replies);
        let serving = if known.state == State::Coming { replaces } else { Some(id) };
        if known.state == State::Coming {
            self.forget(id);
            if let Some(old) = replaces {
                self.names.insert(name.clone(), old);
            }
        }
        let last = replies.pop();
        for reply in replies {
            tell(Some(reply), Err(error.clone()));
        }
        self.cannot_load(&name, version, serving, &error.message, last);
    }

    /// Takes a model back from the lanes and gives its memory back.
    pub(super) fn unload(&mut self, id: ModelId) {
        let model = self.known.get_mut(&id).and_then(|known| known.model.take());
        self.take_down(id, model);
        if let Some(entry) = self.known.get(&id).and_then(|known| known.entry.as_ref()) {
            entry.resident.store(false, Ordering::Relaxed);
            self.means.handle.telemetry.model_unloaded(entry);
        }
        self.means.handle.driver.post(Message::Unloaded(id));
        if self.known.get(&id).is_some_and(|known| known.state == State::Leaving) {
            self.gone(id);
        }
    }

    /// Takes a model from all lanes, and it and what they had of it down.
    fn take_down(&self, id: ModelId, model: Option<Arc<dyn Model>>) {
        let runners: Vec<Box<dyn Runner>> =
            self.means.lanes.iter().filter_map(|lane| self.take_back(lane.id, id)).collect();
        let down = move || {
            drop((runners, model));
            quadrant_sys::return_freed_memory();
        };
        // An engine that panics when it goes has said so.
        drop(self.aside.run(down));
    }

    fn take_back(&self, lane: LaneId, id: ModelId) -> Option<Box<dyn Runner>> {
        loop {
            match self.means.handle.driver.remove(lane, id) {
                Ok(removed) => return removed.recv_timeout(HANDED_BACK_WITHIN).ok(),
                Err(Refusal::Full) => std::thread::park_timeout(LANE_FULL_WAIT),
                Err(Refusal::Stopped) => return None,
            }
        }
    }
}
