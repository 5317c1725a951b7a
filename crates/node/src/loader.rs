//! Loads the models of the repository, one after the other, on a thread of its own.
//!
//! Each is read, tried out on the lanes, given a runner on every lane of its width, and only then shown as
//! ready. A model that cannot be served fails alone, with its reason in the index.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{
    Batching as ProbeBatching, EngineError, EngineKind, Engines, LaneSpec, Model, ModelSource, ProbeOptions,
    Profile, load, probe,
};
use quadrant_policy::{Cost, Discipline, ModelTerms};
use quadrant_types::{CoreSet, LaneId, ModelId, ModelSpec};

use crate::message::Message;
use crate::node::single_lanes;
use crate::profiles::{ProfileStore, Stored};
use crate::registry::ShapeTable;
use crate::repository::{Found, ModelFiles, labels_fit, read_labels};
use crate::{Batching, Config, Handle, ModelEntry, ModelSettings, pbtxt};

/// Rows of one request of a model that batches, unless configured.
const ROWS_MAX: u32 = 128;

/// The cost of a step of a model that could not be tried out. Long enough that its first real steps do not
/// look stalled; they replace it.
const UNKNOWN_COST: Duration = Duration::from_secs(1);

/// How long to wait before offering a runner again to a lane that is full.
const LANE_FULL_WAIT: Duration = Duration::from_millis(1);

pub(crate) struct Loader {
    handle: Handle,
    engines: Engines,
    lanes: Vec<LaneSpec>,
    config: Config,
    profiles: Option<ProfileStore>,
    found: Vec<Found>,
}

impl Loader {
    /// A loader for what was found. The models are listed as loading, or with why they cannot be.
    pub(crate) fn new(
        handle: Handle,
        engines: Engines,
        lanes: Vec<LaneSpec>,
        config: Config,
        found: Vec<Found>,
    ) -> Self {
        for model in &found {
            match &model.files {
                Ok(_) => handle.registry.loading(&model.name, model.version),
                Err(reason) => {
                    handle.telemetry.model_failed(&model.name, model.version, reason);
                    handle.registry.unavailable(&model.name, model.version, reason.clone());
                }
            }
        }
        let folder = config.profiles_dir.clone();
        let profiles = folder.map(|folder| ProfileStore::new(folder, config.cores.len()));
        Self { handle, engines, lanes, config, profiles, found }
    }

    pub(crate) fn run(mut self) {
        for (index, model) in std::mem::take(&mut self.found).into_iter().enumerate() {
            let Found { name, version, files: Ok(files) } = model else { continue };
            let id = ModelId(u32::try_from(index).expect("fewer models than numbers"));
            let began = self.handle.now();
            match self.load(id, &name, version, &files) {
                Ok((entry, terms)) => {
                    let entry = Arc::new(entry);
                    self.handle.telemetry.model_ready(&entry, self.handle.now().since(began));
                    self.handle.driver.post(Message::ModelUp(id, terms));
                    self.handle.registry.ready(entry);
                }
                Err(reason) => {
                    self.handle.telemetry.model_failed(&name, version, &reason);
                    self.handle.registry.unavailable(&name, version, reason);
                }
            }
        }
    }

    fn load(
        &self,
        id: ModelId,
        name: &str,
        version: u64,
        files: &ModelFiles,
    ) -> Result<(ModelEntry, ModelTerms), String> {
        let Opened { model, spec, kind, settings, unused } =
            open(name, version, files, (&self.engines, &self.config))?;
        if !unused.is_empty() {
            self.handle.telemetry.settings_unused(name, &unused);
        }
        let own_lane = self.own_lane(id);
        let profile = self.profile(&model, kind, &files.model, &settings);
        self.install(id, &model, &profile.widths, own_lane)?;
        let rows_max = if profile.batches { rows_max(&settings) } else { 1 };
        let terms = ModelTerms { lane: own_lane, ..terms(&profile, &settings, model.spec()) };
        let entry = ModelEntry {
            id,
            engine: kind.name(),
            rows_max,
            batches: profile.batches,
            width: profile.width,
            terms: terms.clone(),
            latency_objective: settings.latency_objective,
            priority: settings.priority.unwrap_or_default(),
            rationale: profile.reason.clone(),
            metrics: self.handle.telemetry.model(name, version),
            shapes: ShapeTable::default(),
            spec,
        };
        Ok((entry, terms))
    }

    /// The stored profile if it fits; otherwise what the model shows when it is tried out, which is stored.
    fn profile(
        &self,
        model: &Arc<dyn Model>,
        kind: EngineKind,
        path: &Path,
        settings: &ModelSettings,
    ) -> Profile {
        let telemetry = &self.handle.telemetry;
        let options = probe_options(settings, &self.config);
        let name = &*model.spec().name;
        let key = |store: &ProfileStore| store.key(path, engine_version(&self.engines, kind));
        // A file that was just loaded can be read; if not, it is measured like one without a store.
        let kept = self.profiles.as_ref().and_then(|store| Some((store, key(store).ok()?)));
        match kept.as_ref().map_or(Stored::Nothing, |(store, key)| store.find(key, &options)) {
            Stored::Fits(profile) => {
                telemetry.profile_reused(name);
                return profile;
            }
            Stored::Unusable(reason) => telemetry.profile_unusable(name, &reason),
            Stored::Nothing => (),
        }
        let profile = try_out(model, &self.config, &self.engines, &options);
        // One that could not be tried out may be luckier next time.
        if let Some((store, key)) = kept.filter(|_| !profile.costs.is_empty())
            && let Err(error) = store.keep(&key, &options, &profile)
        {
            telemetry.profile_not_stored(name, &error);
        }
        profile
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
            let mut runner = model.runner(&lane).map_err(reason)?;
            while let Err(refused) = self.handle.driver.install(lane.id, id, runner) {
                match refused.reason {
                    quadrant_engine::Refusal::Full => std::thread::park_timeout(LANE_FULL_WAIT),
                    quadrant_engine::Refusal::Stopped => return Err("the server is shutting down".into()),
                }
                runner = refused.returned;
            }
        }
        Ok(())
    }
}

/// A model that was loaded, with what is to hold for it.
pub(crate) struct Opened {
    pub(crate) model: Arc<dyn Model>,
    /// What it takes and gives, with the names of its classes.
    pub(crate) spec: ModelSpec,
    pub(crate) kind: EngineKind,
    pub(crate) settings: ModelSettings,
    /// Fields of its `config.pbtxt` that mean nothing here.
    pub(crate) unused: Vec<&'static str>,
}

/// Loads the files of a model.
///
/// # Errors
/// Why it cannot be served, for a person.
pub(crate) fn open(
    name: &str,
    version: u64,
    files: &ModelFiles,
    (engines, config): (&Engines, &Config),
) -> Result<Opened, String> {
    let written = match &files.config {
        Some(path) => pbtxt::read(path)?,
        None => pbtxt::ModelConfig::default(),
    };
    let outer = written.settings.or(&config.defaults);
    let settings = config.models.get(name).map_or_else(|| outer.clone(), |said| said.or(&outer));
    let source = ModelSource {
        name: name.into(),
        version,
        path: files.model.clone(),
        engine: settings.engine,
        labels: BTreeMap::new(),
    };
    let kind = source.engine_kind(engines).map_err(reason)?;
    let model = load(&source, engines).map_err(reason)?;
    written.check(model.spec())?;
    let mut spec = model.spec().clone();
    attach_labels(&mut spec, files, &written)?;
    Ok(Opened { model, spec, kind, settings, unused: written.unused })
}

/// How a model with these settings is tried out.
pub(crate) fn probe_options(settings: &ModelSettings, config: &Config) -> ProbeOptions {
    let batching = match settings.batching() {
        Batching::Auto => ProbeBatching::Declared,
        Batching::Off => ProbeBatching::Never,
        Batching::UpTo(_) => ProbeBatching::Allowed,
    };
    ProbeOptions {
        batching,
        rows_max: rows_max(settings) as usize,
        // The disciplines to compare with have one width: all cores, or under `fifo` what is configured.
        width: match config.discipline {
            Discipline::Quadrant => settings.width.map(|width| width.min(config.cores.len())),
            Discipline::Fifo => Some(settings.width.unwrap_or(usize::MAX).min(config.cores.len())),
            Discipline::Clockwork => Some(config.cores.len()),
        },
        budget: config.probe_budget,
    }
}

/// Tries a model out on the lanes of one core.
pub(crate) fn try_out(
    model: &Arc<dyn Model>,
    config: &Config,
    engines: &Engines,
    options: &ProbeOptions,
) -> Profile {
    let single: Vec<LaneSpec> = single_lanes(config.cores).collect();
    probe(model, &single, &engines.clock, options)
}

/// The engine as profiles name it.
pub(crate) fn engine_version(engines: &Engines, kind: EngineKind) -> String {
    format!("{} {}", kind.name(), engines.version(kind))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn reason(error: EngineError) -> String {
    error.to_string()
}

fn rows_max(settings: &ModelSettings) -> u32 {
    match settings.batching() {
        Batching::UpTo(rows) => rows.max(1),
        Batching::Auto => ROWS_MAX,
        Batching::Off => 1,
    }
}

/// What the scheduler is told: how many rows share a step is what was measured to be worth it, which may be
/// fewer than one request may bring.
fn terms(profile: &Profile, settings: &ModelSettings, spec: &ModelSpec) -> ModelTerms {
    let cost = |cost: &quadrant_engine::Cost| Cost {
        rows: u32::try_from(cost.rows).unwrap_or(u32::MAX),
        width: cost.width,
        beside: cost.beside,
        time: cost.step,
    };
    let mut costs: Vec<Cost> = profile.costs.iter().map(cost).collect();
    if costs.is_empty() {
        costs.push(Cost { rows: 1, width: profile.width, beside: false, time: UNKNOWN_COST });
    }
    let row_bytes =
        spec.inputs.iter().zip(&profile.shapes).map(|(input, shape)| {
            (shape.iter().product::<usize>() * input.datatype.size().unwrap_or(8)) as u64
        });
    ModelTerms {
        rows_max: u32::try_from(profile.rows_max).unwrap_or(1),
        widths: profile.widths.clone(),
        lane: None,
        queue_max: settings.queue_max(),
        delay_max: settings.delay_max(),
        costs,
        row_bytes: row_bytes.sum(),
        unmet: settings.unmet.unwrap_or_default(),
    }
}

/// Names the classes of outputs: those that the configuration names, else those of the file beside the
/// model, for every output with as many classes as it has lines.
fn attach_labels(
    spec: &mut ModelSpec,
    files: &ModelFiles,
    written: &pbtxt::ModelConfig,
) -> Result<(), String> {
    if let Some(path) = &files.labels {
        let labels = read_labels(path)?;
        let fitting = spec.outputs.iter().filter(|output| labels_fit(&labels, output));
        spec.labels = fitting.map(|output| (Arc::clone(&output.name), Arc::clone(&labels))).collect();
    }
    for (output, file) in &written.label_files {
        spec.labels.insert(output.as_str().into(), read_labels(&files.folder.join(file))?);
    }
    Ok(())
}
