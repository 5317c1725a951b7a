//! What the loader does: reads a model, finds out about it, gives it to the lanes, and takes it back.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quadrant_engine::{EngineKind, LaneSpec, Model, Profile, Refusal, Runner, describe, run_once};
use quadrant_policy::{Discipline, Holding, Loaded, ModelTerms};
use quadrant_types::{CoreSet, Error, ErrorCode, LaneId, ModelId};

use super::{Known, Loader, State, tell};
use crate::measuring::{ChildError, Subject, measured_in_child};
use crate::message::Message;
use crate::node::single_lanes;
use crate::opening::{
    Opened, engine_version, holding, open, probe_options, reason, rows_max, settings, source, terms, try_out,
};
use crate::profiles::{ProfileStore, Stored};
use crate::registry::ShapeTable;
use crate::repository::{ModelFiles, Stamp};
use crate::{Config, Isolation, ModelEntry, ModelSettings};

/// How long to wait before offering something again to a lane that is full.
const LANE_FULL_WAIT: Duration = Duration::from_millis(1);
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
    /// What is known of a model before it is loaded here: as stored, or as a child process now finds out.
    /// `None` if it is to be tried out when it is loaded.
    ///
    /// # Errors
    /// If it killed the child: it would kill this process, too.
    pub(super) fn profile(&self, known: &Known) -> Result<Option<Profile>, String> {
        let stored = self.stored_profile(known);
        let can_measure = self.config.engine_host.is_some() && self.config.profiles_dir.is_some();
        if stored.as_ref().is_some_and(|profile| profile.occupancy.is_some() || !can_measure) {
            self.handle.telemetry.profile_reused(&known.name);
            return Ok(stored);
        }
        // What runs in a process of its own is tried out there.
        if is_isolated(&known.settings) {
            return Ok(stored);
        }
        let source = source(&known.name, known.version, &known.files, &known.settings);
        let (Some(command), Some(folder), Ok(engine)) =
            (&self.config.engine_host, &self.config.profiles_dir, source.engine_kind(&self.engines))
        else {
            return Ok(None);
        };
        let options = probe_options(&known.settings, &self.config);
        let (command, folder, model) = (command.clone(), folder.clone(), known.files.model.clone());
        let (config, clock) = (Arc::clone(&self.config), Arc::clone(&self.engines.clock));
        let measure = move || {
            let (program, onnxruntime) = (&*command.program, config.onnxruntime.as_deref());
            let subject = Subject { program, model: &model, engine, onnxruntime, cores: config.cores };
            measured_in_child(&subject, &options, &folder, &clock)
        };
        match self.aside.run(measure)? {
            Ok(()) => Ok(self.stored_profile(known)),
            Err(ChildError::Died(how)) => Err(format!("it killed the process that tried it out: {how}")),
            // Why it does not load is told when it is loaded here.
            Err(ChildError::Failed(reason)) => {
                self.handle.telemetry.occupancy_unknown(&known.name, &reason);
                Ok(stored)
            }
        }
    }

    fn stored_profile(&self, known: &Known) -> Option<Profile> {
        let source = source(&known.name, known.version, &known.files, &known.settings);
        let kind = source.engine_kind(&self.engines).ok()?;
        let store = self.profiles.as_ref()?;
        let engine = engine_version(&self.engines, kind, is_isolated(&known.settings));
        let (reader, model) = (store.clone(), known.files.model.clone());
        let key = self.aside.run(move || reader.key(&model, engine)).ok()?.ok()?;
        match store.find(&key, &probe_options(&known.settings, &self.config)) {
            Stored::Fits(profile) => Some(profile),
            Stored::Unusable(reason) => {
                self.handle.telemetry.profile_unusable(&known.name, &reason);
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
        let Ok(Some(spec)) = describe(&source, &self.engines) else { return false };
        let Ok(kind) = source.engine_kind(&self.engines) else { return false };
        known.state = State::Open;
        known.entry = Some(Arc::new(self.entry(id, known, (spec, kind.name()), &profile)));
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
        (ModelTerms { lane: self.own_lane(id), ..terms }, holding)
    }

    /// Loads a model whose memory is reserved.
    pub(super) fn load(&mut self, id: ModelId) {
        let began = self.handle.now();
        let Some(mut known) = self.known.remove(&id) else {
            // It was forgotten meanwhile, and the scheduler has been told.
            return;
        };
        let outcome = self.bring(id, &mut known);
        let took = self.handle.now().since(began);
        self.known.insert(id, known);
        match outcome {
            Ok(bytes) => self.loaded(id, bytes, took),
            Err(reason) => {
                // Some lanes may have it already.
                self.take_down(id, None);
                let text = format!("the model cannot be loaded: {reason}");
                let error = Error::new(ErrorCode::Unavailable, text);
                self.handle.driver.post(Message::LoadEnded(id, Err(error)));
                self.not_loaded(id, &Error::new(ErrorCode::Internal, reason));
            }
        }
    }

    /// Reads the model and gives it to the lanes. Returns the bytes that it takes.
    fn bring(&self, id: ModelId, known: &mut Known) -> Result<u64, String> {
        let (name, version, files) = (known.name.clone(), known.version, known.files.clone());
        let with = (self.engines.clone(), Arc::clone(&self.config), Arc::clone(&self.hosts));
        let opened = self.aside.run(move || open(&name, version, &files, (&with.0, &with.1, &with.2)))??;
        let Opened { model, spec, kind, unused, hosted, .. } = opened;
        if known.entry.is_none() && !unused.is_empty() {
            self.handle.telemetry.settings_unused(&known.name, &unused);
        }
        let profile = match known.profile.take() {
            Some(profile) => profile,
            None => self.tried_out(known, &model, kind),
        };
        if known.replaces.is_some() {
            let lanes: Vec<LaneSpec> = single_lanes(self.config.cores).collect();
            run_once(&model, &lanes, &self.engines.clock, &profile).map_err(reason)?;
        }
        self.install(id, &model, &profile.widths, self.own_lane(id))?;
        if known.entry.is_none() {
            let entry = self.entry(id, known, (spec, kind.name()), &profile);
            known.entry = Some(Arc::new(ModelEntry { hosted, ..entry }));
        }
        let bytes = holding(&known.files.model, Some(&profile), &known.settings).bytes;
        known.profile = Some(profile);
        known.model = Some(model);
        Ok(bytes)
    }

    /// Tries out a model that no child process did, and keeps what was found.
    fn tried_out(&self, known: &Known, model: &Arc<dyn Model>, engine: EngineKind) -> Profile {
        let options = probe_options(&known.settings, &self.config);
        let profile = try_out(model, &self.config, &self.engines, &options);
        // One that could not be tried out may be luckier next time.
        let store = self.profiles.as_ref().filter(|_| !profile.costs.is_empty());
        let keep = |store: &ProfileStore| {
            let key = store.key(
                &known.files.model,
                engine_version(&self.engines, engine, is_isolated(&known.settings)),
            )?;
            store.keep(&key, &options, &profile)
        };
        if let Some(Err(error)) = store.map(keep) {
            self.handle.telemetry.profile_not_stored(&known.name, &error);
        }
        profile
    }

    fn entry(
        &self,
        id: ModelId,
        known: &Known,
        (spec, engine): (quadrant_types::ModelSpec, &'static str),
        profile: &Profile,
    ) -> ModelEntry {
        let rows_max = if profile.batches { rows_max(&known.settings) } else { 1 };
        ModelEntry {
            id,
            engine,
            rows_max,
            batches: profile.batches,
            width: profile.width,
            terms: ModelTerms { lane: self.own_lane(id), ..terms(profile, &known.settings, &spec.inputs) },
            latency_objective: known.settings.latency_objective,
            priority: known.settings.priority.unwrap_or_default(),
            rationale: profile.reason.clone(),
            on_demand: known.settings.on_demand == Some(true),
            resident: AtomicBool::new(false),
            hosted: None,
            metrics: self.handle.telemetry.model(&known.name, known.version),
            shapes: ShapeTable::default(),
            spec,
        }
    }

    /// A model is in memory and with the lanes: tells the scheduler, and opens it to requests.
    fn loaded(&mut self, id: ModelId, bytes: u64, took: Duration) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let Some(entry) = known.entry.clone() else { return };
        entry.resident.store(true, Ordering::Relaxed);
        self.handle.telemetry.model_loaded(&entry, took, known.state == State::Coming);
        if let Some(hosted) = &entry.hosted {
            self.handle.driver.post(Message::Hosted(id, hosted.id));
        }
        let loaded = Loaded { terms: entry.terms.clone(), bytes, took };
        self.handle.driver.post(Message::LoadEnded(id, Ok(loaded)));
        if known.state != State::Coming {
            return known.replies.drain(..).for_each(|reply| tell(Some(reply), Ok(())));
        }
        known.state = State::Open;
        let name = known.name.clone();
        self.failed.remove(&name);
        let replaced = self.known.get_mut(&id).and_then(|known| known.replaces.take());
        let old = replaced.and_then(|old| self.known.get_mut(&old));
        let old_version = old.map(|old| {
            (old.state, old.is_replaced) = (State::Draining, true);
            old.version
        });
        self.handle.registry.ready(entry, old_version);
        self.names.insert(name, id);
        let replies = self.known.get_mut(&id).map(|known| std::mem::take(&mut known.replies));
        replies.into_iter().flatten().for_each(|reply| tell(Some(reply), Ok(())));
    }

    /// A model cannot be loaded. What serves in its place goes on.
    pub(super) fn not_loaded(&mut self, id: ModelId, error: &Error) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let (name, version, replaces) = (known.name.clone(), known.version, known.replaces);
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
            self.handle.telemetry.model_unloaded(entry);
        }
        self.handle.driver.post(Message::Unloaded(id));
        if self.known.get(&id).is_some_and(|known| known.state == State::Leaving) {
            self.gone(id);
        }
    }

    /// Takes a model from all lanes, and it and what they had of it down.
    fn take_down(&self, id: ModelId, model: Option<Arc<dyn Model>>) {
        let runners: Vec<Box<dyn Runner>> =
            self.lanes.iter().filter_map(|lane| self.take_back(lane.id, id)).collect();
        let down = move || {
            drop((runners, model));
            quadrant_sys::return_freed_memory();
        };
        // An engine that panics when it goes has said so.
        drop(self.aside.run(down));
    }

    fn take_back(&self, lane: LaneId, id: ModelId) -> Option<Box<dyn Runner>> {
        loop {
            match self.handle.driver.remove(lane, id) {
                Ok(removed) => return removed.recv_timeout(HANDED_BACK_WITHIN).ok(),
                Err(Refusal::Full) => std::thread::park_timeout(LANE_FULL_WAIT),
                Err(Refusal::Stopped) => return None,
            }
        }
    }

    /// The lane that only this model uses, if models have their own.
    fn own_lane(&self, id: ModelId) -> Option<LaneId> {
        let fifo = self.config.discipline == Discipline::Fifo;
        self.lanes.get(id.0 as usize).filter(|_| fifo).map(|lane| lane.id)
    }

    /// Gives every lane of these widths what it needs to run the model, the widest first: from then on an
    /// engine can share weights. A lane that only this model uses runs it with as many threads as its width,
    /// on whichever of the cores the operating system finds free.
    fn install(
        &self,
        id: ModelId,
        model: &Arc<dyn Model>,
        widths: &[usize],
        own_lane: Option<LaneId>,
    ) -> Result<(), String> {
        let narrowed = |lane: &LaneSpec| {
            let width = widths.first().copied().unwrap_or(1);
            LaneSpec { cores: CoreSet::from_cores(lane.cores.cores().take(width)), ..*lane }
        };
        let mut lanes: Vec<LaneSpec> = match own_lane {
            Some(own) => self.lanes.iter().filter(|lane| lane.id == own).map(narrowed).collect(),
            None => self.lanes.iter().filter(|lane| widths.contains(&lane.cores.len())).copied().collect(),
        };
        lanes.sort_by_key(|lane| Reverse(lane.cores.len()));
        for lane in lanes {
            let there = Arc::clone(model);
            let mut runner = self.aside.run(move || there.runner(&lane))?.map_err(reason)?;
            while let Err(refused) = self.handle.driver.install(lane.id, id, runner) {
                match refused.reason {
                    Refusal::Full => std::thread::park_timeout(LANE_FULL_WAIT),
                    Refusal::Stopped => return Err("the server is shutting down".into()),
                }
                runner = refused.returned;
            }
        }
        Ok(())
    }
}

fn is_isolated(settings: &ModelSettings) -> bool {
    settings.isolation == Some(Isolation::Process)
}
