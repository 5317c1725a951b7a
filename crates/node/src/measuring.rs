//! Measures a model in child processes: one tries it out, another, which does nothing else, finds out what
//! it takes of the memory.
//!
//! Each reads its task from its standard input and writes its answer to its standard output, as TOML. A model
//! that kills such a process or hangs in it costs its figures and nothing else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{
    Batching, EngineKind, Engines, LaneSpec, ModelSource, Occupancy, OnnxRuntime, ProbeOptions, Profile,
    load, occupancy, probe,
};
use quadrant_types::{Clock, CoreSet, Shape};
use serde::{Deserialize, Serialize};

use crate::MonotonicClock;
use crate::node::single_lanes;
use crate::opening::engine_version;
use crate::profiles::{MemoryLines, ProfileStore};

/// How long a child may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of an answer; more is none.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A model, and where it is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The program that is this one, for its command `measure`.
    pub(crate) program: &'a Path,
    pub(crate) model: &'a Path,
    pub(crate) engine: EngineKind,
    pub(crate) onnxruntime: Option<&'a Path>,
    pub(crate) cores: CoreSet,
}

/// Why there are no figures.
#[derive(Debug)]
pub(crate) enum ChildError {
    /// The child was killed: the model is dangerous.
    Died(String),
    /// It said why, or could not even be started.
    Failed(String),
}

/// What a child is told.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Task {
    program: PathBuf,
    model: PathBuf,
    engine: String,
    onnxruntime: Option<PathBuf>,
    cores: Vec<usize>,
    what: What,
}

/// What is to be measured.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum What {
    /// All, to be kept in this folder.
    Profile { folder: PathBuf, batching: String, rows_max: usize, width: Option<usize>, budget_ms: u64 },
    /// What it takes of the memory when it is served like this.
    Memory { widths: Vec<usize>, rows_max: usize, shapes: Vec<Vec<usize>> },
}

impl Task {
    fn new(subject: &Subject<'_>, what: What) -> Self {
        Self {
            program: subject.program.to_owned(),
            model: subject.model.to_owned(),
            engine: subject.engine.name().to_owned(),
            onnxruntime: subject.onnxruntime.map(Path::to_owned),
            cores: subject.cores.cores().collect(),
            what,
        }
    }
}

/// Has a child measure the model and keep what it found in the store of this folder.
///
/// # Errors
/// Why there is nothing.
pub(crate) fn measured_in_child(
    subject: &Subject<'_>,
    options: &ProbeOptions,
    folder: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<(), ChildError> {
    let what = What::Profile {
        folder: folder.to_owned(),
        batching: options.batching.name().to_owned(),
        rows_max: options.rows_max,
        width: options.width,
        budget_ms: u64::try_from(options.budget.as_millis()).unwrap_or(u64::MAX),
    };
    in_child(&Task::new(subject, what), clock).map(drop)
}

/// Has a child find out what the model takes when it is served like this.
///
/// # Errors
/// Why there is no figure.
pub(crate) fn occupancy_in_child(
    subject: &Subject<'_>,
    profile: &Profile,
    clock: &Arc<dyn Clock>,
) -> Result<Occupancy, ChildError> {
    let Profile { widths, rows_max, shapes, .. } = profile;
    let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
    let what = What::Memory { widths: widths.clone(), rows_max: *rows_max, shapes };
    let answer = in_child(&Task::new(subject, what), clock)?;
    let lines = toml::from_str::<MemoryLines>(&answer);
    lines.map(Occupancy::from).map_err(|error| ChildError::Failed(error.message().to_owned()))
}

fn in_child(task: &Task, clock: &Arc<dyn Clock>) -> Result<String, ChildError> {
    let failed = |error: &dyn std::fmt::Display| ChildError::Failed(error.to_string());
    let text = toml::to_string(task).map_err(|error| failed(&error))?;
    let mut command = Command::new(&task.program);
    command.args(["--log", "off", "measure"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let answer = converse(&mut child, &text, clock);
    // It has ended, or is to.
    drop(child.kill());
    let status = child.wait().map_err(|error| failed(&error))?;
    let (answer, complaint) = answer.map_err(ChildError::Failed)?;
    match status.code() {
        Some(0) => Ok(answer),
        Some(_) => Err(ChildError::Failed(complaint.trim().trim_start_matches("error: ").to_owned())),
        None => Err(ChildError::Died(format!("{status}"))),
    }
}

/// Gives the child its task and waits for what it writes, on threads that its end sets free.
fn converse(child: &mut Child, task: &str, clock: &Arc<dyn Clock>) -> Result<(String, String), String> {
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err("the child has no pipes".into());
    };
    let (answer, complaint) = (read(stdout)?, read(stderr)?);
    // One that has ended already says why.
    drop(stdin.write_all(task.as_bytes()));
    drop(stdin);
    let until = clock.now() + PATIENCE;
    let text = |reader: std::sync::mpsc::Receiver<String>| {
        let late = |_| format!("the process that measures it took over {PATIENCE:.0?}");
        reader.recv_timeout(until.since(clock.now())).map_err(late)
    };
    Ok((text(answer)?, text(complaint)?))
}

fn read(pipe: impl Read + Send + 'static) -> Result<std::sync::mpsc::Receiver<String>, String> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let read = move || {
        let mut bytes = Vec::new();
        drop(pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes));
        // Whoever lost patience no longer takes it.
        drop(sender.send(String::from_utf8_lossy(&bytes).into_owned()));
    };
    let thread = std::thread::Builder::new().name("measuring".into()).spawn(read);
    thread.map(|_| receiver).map_err(|error| error.to_string())
}

/// What the child does: measures as the task says, and gives the answer.
///
/// # Errors
/// Why it cannot, for a person.
pub fn measure(task: &str) -> Result<String, String> {
    let task: Task = toml::from_str(task).map_err(|error| error.message().to_owned())?;
    let kind: EngineKind =
        task.engine.parse().map_err(|()| format!("there is no engine `{}`", task.engine))?;
    let open = |path: &PathBuf| OnnxRuntime::open(path).map_err(|error| error.to_string());
    let onnxruntime = task.onnxruntime.as_ref().map(open).transpose()?;
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
    let engines = Engines { onnxruntime, clock };
    let source = ModelSource {
        name: "model".into(),
        version: 1,
        path: task.model.clone(),
        engine: Some(kind),
        labels: BTreeMap::new(),
    };
    let lanes: Vec<LaneSpec> = single_lanes(CoreSet::from_cores(task.cores.iter().copied())).collect();
    match &task.what {
        What::Memory { widths, rows_max, shapes } => {
            let shapes = shapes.iter().map(|shape| Shape::from_slice(shape)).collect();
            let (widths, rows_max) = (widths.clone(), *rows_max);
            let profile = Profile { widths, rows_max, shapes, ..Profile::unmeasured() };
            let found = occupancy(|| load(&source, &engines), &lanes, &engines.clock, &profile);
            let found = found.map_err(|error| error.to_string())?;
            toml::to_string(&MemoryLines::from(&found)).map_err(|error| error.to_string())
        }
        What::Profile { folder, batching, rows_max, width, budget_ms } => {
            let batching = Batching::ALL.into_iter().find(|known| known.name() == batching);
            let options = ProbeOptions {
                batching: batching.unwrap_or(Batching::Never),
                rows_max: *rows_max,
                width: *width,
                budget: Duration::from_millis(*budget_ms),
            };
            profile(&task, (&source, kind), (&engines, &lanes), &options, folder)
        }
    }
}

fn profile(
    task: &Task,
    (source, kind): (&ModelSource, EngineKind),
    (engines, lanes): (&Engines, &[LaneSpec]),
    options: &ProbeOptions,
    folder: &Path,
) -> Result<String, String> {
    let model = load(source, engines).map_err(|error| error.to_string())?;
    let found = probe(&model, lanes, &engines.clock, options);
    drop(model);
    if found.costs.is_empty() {
        return Err(found.reason);
    }
    let subject = Subject {
        program: &task.program,
        model: &task.model,
        engine: kind,
        onnxruntime: task.onnxruntime.as_deref(),
        cores: CoreSet::from_cores(task.cores.iter().copied()),
    };
    // Without that figure the rest is still worth keeping.
    let occupancy = occupancy_in_child(&subject, &found, &engines.clock).ok();
    let store = ProfileStore::new(folder.to_owned(), lanes.len());
    let key = store.key(&task.model, engine_version(engines, kind, false));
    let kept = key.and_then(|key| store.keep(&key, options, &Profile { occupancy, ..found }));
    kept.map(|_| String::new()).map_err(|error| format!("the profile cannot be kept: {error}"))
}
