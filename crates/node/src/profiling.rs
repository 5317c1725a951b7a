//! Measures models afresh, without serving them, and stores what it finds for the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quadrant_engine::{Engines, HostCommand, HostEvent, HostSink, Profile};

use crate::isolation::HostTable;
use crate::measuring::{Subject, occupancy_in_child};
use crate::node::engines;
use crate::opening::{Opened, engine_version, open, probe_options, try_out};
use crate::profiles::ProfileStore;
use crate::repository::{self, Found};
use crate::{Config, StartError};

/// What was found out about one model.
#[derive(Debug)]
pub struct ModelProfile {
    /// The name it would be served under.
    pub name: String,
    /// The engine that ran it, with its version; empty if none did.
    pub engine: String,
    /// How it is best served, or why it cannot be served.
    pub outcome: Result<Profile, String>,
    /// Bytes that its second width takes, where it keeps two.
    pub second_width_bytes: Option<u64>,
    /// Where the profile is stored; `None` if it is not to be stored or could not be tried out.
    pub stored: Option<Result<PathBuf, String>>,
}

/// Measures the models at `path`, a repository or one model file, for as long as
/// [`Config::probe_budget`] says for each, and hands each to `tell` when it is done.
///
/// # Errors
/// If the path or ONNX Runtime cannot be read, before anything is measured.
pub fn profile_models(
    config: &Config,
    path: &Path,
    mut tell: impl FnMut(ModelProfile),
) -> Result<(), StartError> {
    let found = find(path).map_err(|source| StartError::Repository { path: path.to_owned(), source })?;
    let engines = engines(config)?;
    let folder = config.profiles_dir.clone();
    let store = folder.map(|folder| ProfileStore::new(folder, config.cores.len()));
    let (command, library) = (config.engine_host.clone(), config.onnxruntime.clone());
    let sinks = Box::new(|_, _: &str| Arc::new(Nobody) as Arc<dyn HostSink>);
    let hosts = HostTable::new(command, library, Arc::clone(&engines.clock), sinks);
    for model in found {
        tell(profile(&model, (&engines, config, &hosts), store.as_ref()));
    }
    Ok(())
}

/// The models of a repository, or the one with this file, under the name and with the settings that it has
/// in its repository.
fn find(path: &Path) -> io::Result<Vec<Found>> {
    if path.is_dir() {
        return repository::scan(path);
    }
    let path = path.canonicalize()?;
    let is_this = |model: &Found| model.files.as_ref().is_ok_and(|files| files.model == path);
    // As `NAME/VERSION/model.onnx` or `NAME/model.safetensors`, where that folder may be read, or beside it.
    for folder in [3, 2, 1].map(|above| path.ancestors().nth(above)).into_iter().flatten() {
        let models = repository::scan(folder).unwrap_or_default();
        if let Some(model) = models.into_iter().find(is_this) {
            return Ok(vec![model]);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "no model that would be served has this file"))
}

/// Why a process of engines ended is told by the error of whoever used it.
struct Nobody;

impl HostSink for Nobody {
    fn report(&self, _event: HostEvent) {}
}

fn profile(
    model: &Found,
    with: (&Engines, &Config, &HostTable),
    store: Option<&ProfileStore>,
) -> ModelProfile {
    let (engines, config, _) = with;
    let name = model.name.clone();
    let failed = |reason| ModelProfile {
        name: name.clone(),
        engine: String::new(),
        outcome: Err(reason),
        second_width_bytes: None,
        stored: None,
    };
    let files = match &model.files {
        Ok(files) => files,
        Err(reason) => return failed(reason.clone()),
    };
    let Opened { model, kind, settings, hosted, .. } = match open(&name, model.version, files, with) {
        Ok(opened) => opened,
        Err(reason) => return failed(reason),
    };
    let options = probe_options(&settings, config);
    let found = try_out(&model, config, engines, &options);
    let measure = |command: &HostCommand| {
        let program = &*command.program;
        let (onnxruntime, cores) = (config.onnxruntime.as_deref(), config.cores);
        let subject = Subject { program, model: &files.model, engine: kind, onnxruntime, cores };
        occupancy_in_child(&subject, &found, &engines.clock).ok()
    };
    let occupancy =
        config.engine_host.as_ref().filter(|_| !found.costs.is_empty() && hosted.is_none()).and_then(measure);
    let found = Profile { occupancy, ..found };
    let engine = engine_version(engines, kind, hosted.is_some());
    let keep = |store: &ProfileStore| {
        let key = store.key(&files.model, engine.clone());
        key.and_then(|key| store.keep(&key, &options, &found)).map_err(|error| error.to_string())
    };
    let stored = store.filter(|_| !found.costs.is_empty()).map(keep);
    let footprint = model.footprint();
    let second_width_bytes =
        (found.widths.len() > 1).then_some(footprint.repacked_bytes + footprint.further_width_bytes);
    ModelProfile { name, engine, outcome: Ok(found), second_width_bytes, stored }
}
