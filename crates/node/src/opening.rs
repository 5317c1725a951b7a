//! Makes of a model's files and settings what the engine and the scheduler need to know.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{
    Batching as ProbeBatching, EngineError, EngineKind, Engines, LaneSpec, Model, ModelSource,
    PROBE_TEXT_BYTES, ProbeOptions, Profile, SequenceProfile, load, probe,
};
use quadrant_policy::{Cost, Discipline, Holding, ModelTerms, Residency, SequenceTerms};
use quadrant_types::{ModelSpec, TensorSpec};

use crate::isolation::{HostTable, Hosted};
use crate::node::single_lanes;
use crate::repository::{ModelFiles, labels_fit, read_labels};
use crate::{Batching, Config, Isolation, ModelSettings, pbtxt};

/// Rows of one request of a model that batches, unless configured.
const ROWS_MAX: u32 = 128;

/// The cost of a step of a model that could not be tried out. Long enough that its first real steps do not
/// look stalled; they replace it.
const UNKNOWN_COST: Duration = Duration::from_secs(1);

/// What a model is taken to occupy that was never measured: this many times its file,
const UNKNOWN_FACTOR: u64 = 4;
/// and so many bytes besides.
const UNKNOWN_BYTES: u64 = 32 << 20;
/// How long such a model is taken to load.
const UNKNOWN_LOAD: Duration = Duration::from_millis(500);

/// A model that was loaded, with what is to hold for it.
pub(crate) struct Opened {
    pub(crate) model: Arc<dyn Model>,
    /// What it takes and gives, with the names of its classes.
    pub(crate) spec: ModelSpec,
    pub(crate) kind: EngineKind,
    pub(crate) settings: ModelSettings,
    /// Fields of its `config.pbtxt` that mean nothing here.
    pub(crate) unused: Vec<&'static str>,
    /// The process that its engine runs in, if it has one.
    pub(crate) hosted: Option<Hosted>,
}

/// Loads the files of a model.
///
/// # Errors
/// Why it cannot be served, for a person.
pub(crate) fn open(
    name: &str,
    version: u64,
    files: &ModelFiles,
    (engines, config, hosts): (&Engines, &Config, &HostTable),
) -> Result<Opened, String> {
    let (settings, written) = settings(name, files, config)?;
    let mut source = source(name, version, files, &settings);
    let kind = source.engine_kind(engines).map_err(reason)?;
    source.engine = Some(kind);
    if kind == EngineKind::Language && settings.isolation == Some(Isolation::Process) {
        return Err(
            "a language model cannot run in a process of its own: set `isolation = \"none\"` for it".into()
        );
    }
    let (model, hosted) = match hosts.load(&source, &settings).map_err(reason)? {
        Some((model, hosted)) => (model, Some(hosted)),
        None => (load(&source, engines).map_err(reason)?, None),
    };
    written.check(model.spec())?;
    let mut spec = model.spec().clone();
    attach_labels(&mut spec, files, &written)?;
    Ok(Opened { model, spec, kind, settings, unused: written.unused, hosted })
}

/// What holds for a model, and what its `config.pbtxt` says.
///
/// # Errors
/// What is wrong with that file.
pub(crate) fn settings(
    name: &str,
    files: &ModelFiles,
    config: &Config,
) -> Result<(ModelSettings, pbtxt::ModelConfig), String> {
    let written = match &files.config {
        Some(path) => pbtxt::read(path)?,
        None => pbtxt::ModelConfig::default(),
    };
    let outer = written.settings.or(&config.defaults);
    Ok((config.models.get(name).map_or_else(|| outer.clone(), |said| said.or(&outer)), written))
}

pub(crate) fn source(name: &str, version: u64, files: &ModelFiles, settings: &ModelSettings) -> ModelSource {
    let (name, path) = (name.into(), files.model.clone());
    ModelSource { name, version, path, engine: settings.engine, labels: BTreeMap::new() }
}

/// What the model takes of the memory: as measured, or a safe guess from the size of its file.
pub(crate) fn holding(path: &Path, profile: Option<&Profile>, settings: &ModelSettings) -> Holding {
    let measured = profile.and_then(|profile| profile.occupancy.as_ref());
    let (bytes, load_bytes) = match measured {
        Some(occupancy) => (occupancy.bytes(), occupancy.load_bytes.max(occupancy.bytes())),
        None => {
            let file = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            let guess = file.saturating_mul(UNKNOWN_FACTOR).saturating_add(UNKNOWN_BYTES);
            (guess, guess)
        }
    };
    let pages = profile
        .and_then(|profile| profile.sequences)
        .map_or(0, |sequences| u64::from(pages(&sequences, settings)) * sequences.page_bytes as u64);
    let (bytes, load_bytes) = (bytes + pages, load_bytes.max(bytes + pages));
    let residency = match settings.on_demand {
        Some(true) => Residency::OnDemand { idle_after: settings.idle_after },
        Some(false) | None => Residency::Pinned,
    };
    let load_time = measured.map_or(UNKNOWN_LOAD, |occupancy| occupancy.load_time);
    Holding { bytes, load_bytes, load_time, residency, objective: settings.latency_objective }
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

/// The engine as profiles name it. In a process of its own it takes a little longer.
pub(crate) fn engine_version(engines: &Engines, kind: EngineKind, isolated: bool) -> String {
    let apart = if isolated { " in a process" } else { "" };
    format!("{} {}{apart}", kind.name(), engines.version(kind))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn reason(error: EngineError) -> String {
    error.to_string()
}

/// Whether its engine runs in a process of its own.
pub(crate) fn is_isolated(settings: &ModelSettings) -> bool {
    settings.isolation == Some(Isolation::Process)
}

pub(crate) fn rows_max(settings: &ModelSettings) -> u32 {
    match settings.batching() {
        Batching::UpTo(rows) => rows.max(1),
        Batching::Auto => ROWS_MAX,
        Batching::Off => 1,
    }
}

/// What the scheduler is told: how many rows share a step is what was measured to be worth it, which may be
/// fewer than one request may bring.
pub(crate) fn terms(profile: &Profile, settings: &ModelSettings, inputs: &[TensorSpec]) -> ModelTerms {
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
    let row_bytes = inputs.iter().zip(&profile.shapes).map(|(input, shape)| {
        (shape.iter().product::<usize>() * input.datatype.size().unwrap_or(PROBE_TEXT_BYTES)) as u64
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
        sequences: profile.sequences.map(|sequences| SequenceTerms {
            page_tokens: u32::try_from(sequences.page_tokens).unwrap_or(u32::MAX),
            pages: pages(&sequences, settings),
            tokens_max: u32::try_from(sequences.tokens_max).unwrap_or(u32::MAX),
            thousand_keys: sequences.thousand_keys,
        }),
    }
}

/// Pages of keys and values that there are room for; at least one.
fn pages(sequences: &SequenceProfile, settings: &ModelSettings) -> u32 {
    let pages = settings.kv_cache_bytes() / (sequences.page_bytes as u64).max(1);
    u32::try_from(pages).unwrap_or(u32::MAX).max(1)
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
