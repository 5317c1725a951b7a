//! Loads the models of the repository, one after the other, on a thread of its own.
//!
//! Each is read, tried out on the lanes, given a runner on every lane of its width, and only then shown as
//! ready. A model that cannot be served fails alone, with its reason in the index.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{
    Batching as ProbeBatching, EngineError, Engines, LaneSpec, Model, ModelSource, ProbeOptions, Profile,
    load, probe,
};
use quadrant_policy::{Cost, Discipline, ModelTerms};
use quadrant_types::{LaneId, ModelId, ModelSpec};

use crate::message::Message;
use crate::node::single_lanes;
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
        Self { handle, engines, lanes, config, found }
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
        let written = match &files.config {
            Some(path) => pbtxt::read(path)?,
            None => pbtxt::ModelConfig::default(),
        };
        if !written.unused.is_empty() {
            self.handle.telemetry.settings_unused(name, &written.unused);
        }
        let outer = written.settings.or(&self.config.defaults);
        let settings = self.config.models.get(name).map_or_else(|| outer.clone(), |said| said.or(&outer));
        let source = ModelSource {
            name: name.into(),
            version,
            path: files.model.clone(),
            engine: settings.engine,
            labels: BTreeMap::new(),
        };
        let engine = source.engine_kind(&self.engines).map_err(reason)?.name();
        let model = load(&source, &self.engines).map_err(reason)?;
        written.check(model.spec())?;
        let mut spec = model.spec().clone();
        attach_labels(&mut spec, files, &written)?;
        let profile = self.try_out(&model, &settings);
        let own_lane = self.own_lane(id);
        self.install(id, &model, &profile.widths, own_lane)?;
        let rows_max = if profile.batches { rows_max(&settings) } else { 1 };
        let entry = ModelEntry {
            id,
            engine,
            rows_max,
            batches: profile.batches,
            width: profile.width,
            latency_objective: settings.latency_objective,
            priority: settings.priority.unwrap_or_default(),
            rationale: profile.reason.clone(),
            metrics: self.handle.telemetry.model(name, version),
            shapes: ShapeTable::default(),
            spec,
        };
        let terms = ModelTerms { lane: own_lane, ..terms(&profile, &settings, model.spec()) };
        Ok((entry, terms))
    }

    fn try_out(&self, model: &Arc<dyn Model>, settings: &ModelSettings) -> Profile {
        let single: Vec<LaneSpec> = single_lanes(self.config.cores).collect();
        let batching = match settings.batching() {
            Batching::Auto => ProbeBatching::Declared,
            Batching::Off => ProbeBatching::Never,
            Batching::UpTo(_) => ProbeBatching::Allowed,
        };
        let options = ProbeOptions {
            batching,
            rows_max: rows_max(settings) as usize,
            width: self.width(settings),
            budget: self.config.probe_budget,
        };
        probe(model, &single, &self.engines.clock, &options)
    }

    /// The disciplines to compare with run every step on all cores.
    fn width(&self, settings: &ModelSettings) -> Option<usize> {
        match self.config.discipline {
            Discipline::Quadrant => settings.width.map(|width| width.min(self.config.cores.len())),
            Discipline::Fifo | Discipline::Clockwork => Some(self.config.cores.len()),
        }
    }

    /// The lane that only this model uses, if models have their own.
    fn own_lane(&self, id: ModelId) -> Option<LaneId> {
        let fifo = self.config.discipline == Discipline::Fifo;
        self.lanes.get(id.0 as usize).filter(|_| fifo).map(|lane| lane.id)
    }

    /// Gives every lane of these widths what it needs to run the model, the widest first: from then on an
    /// engine can share weights.
    fn install(
        &self,
        id: ModelId,
        model: &Arc<dyn Model>,
        widths: &[usize],
        own_lane: Option<LaneId>,
    ) -> Result<(), String> {
        let wanted = |lane: &&LaneSpec| {
            widths.contains(&lane.cores.len()) && own_lane.is_none_or(|own_lane| own_lane == lane.id)
        };
        let mut lanes: Vec<_> = self.lanes.iter().filter(wanted).collect();
        lanes.sort_by_key(|lane| Reverse(lane.cores.len()));
        for lane in lanes {
            let mut runner = model.runner(lane).map_err(reason)?;
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
