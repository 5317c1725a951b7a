//! Starts a node, and ends it.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use quadrant_engine::{EngineError, Engines, Lane, LaneSink, LaneSpec, OnnxRuntime, SchedulingClass};
use quadrant_policy::{Discipline, LaneShape, Limits, MemoryBudget, Policy};
use quadrant_types::{CoreSet, LaneId};

use crate::driver::Driver;
use crate::registry::Registry;
use crate::telemetry::Telemetry;
use crate::tenants::Tenants;
use crate::{Config, Handle, MonotonicClock, loader, memory, repository};

/// Threads of models that each have their own; beyond it, models share the first.
const FIFO_LANES_MAX: usize = 1_024;

/// What connections, threads and books take besides models and requests' inputs.
const PROCESS_BYTES: u64 = 16 << 20;

/// What a lane may be told while a step runs on it, the next step included.
const LANE_COMMANDS_MAX: usize = 64;

/// Why a node could not start. All of it is said before a port answers.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model repository cannot be read.
    #[error("cannot read the models folder `{path}`: {source}", path = path.display())]
    Repository {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// ONNX Runtime was asked for and cannot be used.
    #[error("cannot use ONNX Runtime from `{path}`: {source}", path = path.display())]
    OnnxRuntime {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        source: EngineError,
    },
    /// A thread could not be started on its cores.
    #[error("cannot start the lanes on cores `{cores}`: {source}")]
    Lanes {
        /// The cores asked for.
        cores: CoreSet,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A running node. Dropping it ends it without draining.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    /// The ticker's and that of the memory.
    threads: Vec<JoinHandle<()>>,
    loader: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts the lanes and begins to load the models. Returns at once; [`Handle::is_ready`] says when
    /// every model was loaded or has failed.
    ///
    /// # Errors
    /// [`StartError`], before anything runs.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let found = repository::scan(&config.models_dir)
            .map_err(|source| StartError::Repository { path: config.models_dir.clone(), source })?;
        let engines = engines(&config)?;
        let clock = Arc::clone(&engines.clock);
        let tenants = Arc::new(Tenants::default());
        let telemetry = Arc::new(Telemetry::new(Arc::clone(&tenants)));
        let lanes = lane_specs(config.cores, config.discipline, found.len());
        let shape = |lane: &LaneSpec| LaneShape { id: lane.id, cores: lane.cores, class: lane.class };
        let limits = with_process_bytes(config.limits);
        let policy = Policy::new(lanes.iter().map(shape).collect(), limits, config.discipline);
        let driver = Driver::new(
            Arc::clone(&clock),
            policy,
            preemptible(&lanes, config.discipline),
            Arc::clone(&telemetry),
        );
        // While a step runs, many models' runners may come and go; the loader waits if it is more.
        let capacity = LANE_COMMANDS_MAX;
        let start = |spec: &LaneSpec| {
            let sink = Arc::clone(&driver) as Arc<dyn LaneSink>;
            Lane::start(*spec, Arc::clone(&clock), sink, capacity)
        };
        let cores = config.cores;
        let lane_error = |source| StartError::Lanes { cores, source };
        driver.adopt(lanes.iter().map(start).collect::<Result<_, _>>().map_err(lane_error)?);
        let registry = Arc::new(Registry::default());
        let handle = Handle { clock: Arc::clone(&clock), driver, registry, telemetry, tenants };
        handle.set_tenants(&config.tenants);
        let ticking = Arc::clone(&handle.driver);
        let ticker = spawn("ticker", move || ticking.run_ticker()).map_err(lane_error)?;
        let watched = handle.clone();
        let memory = spawn("memory", move || memory::watch(&watched)).map_err(lane_error)?;
        let loading = loader::Loader::new(handle.clone(), engines, lanes, config).map_err(lane_error)?;
        loading.list(&found);
        let run = move || loading.run(found);
        let loader = spawn("loader", run).map_err(lane_error)?;
        Ok(Self { handle, threads: vec![ticker, memory], loader: Some(loader) })
    }

    /// The way in for the protocols.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Refuses new requests and resolves when the last accepted one has ended.
    pub fn drain(&self) -> impl Future<Output = ()> + use<> {
        let drained = self.handle.driver.drain();
        async move {
            // The sender lives as long as the driver; if it is gone, so is everything to wait for.
            drop(drained.await);
        }
    }

    /// Ends the lanes, giving each `patience` to finish its step.
    pub fn stop(mut self, patience: Duration) {
        self.end(patience);
    }

    fn end(&mut self, patience: Duration) {
        self.handle.driver.stop(patience);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            drop(thread.join());
        }
        // A load cannot be interrupted; its thread is left to the end of the process.
        drop(self.loader.take());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Duration::from_secs(1));
        }
    }
}

/// The limits, with what the process has now and what it will need besides models and requests.
fn with_process_bytes(limits: Limits) -> Limits {
    let now = quadrant_sys::resident_bytes().unwrap_or(0);
    let memory = MemoryBudget { process_bytes: now + PROCESS_BYTES, ..limits.memory };
    Limits { memory, ..limits }
}

/// What models are loaded with.
pub(crate) fn engines(config: &Config) -> Result<Engines, StartError> {
    let open = |path: &PathBuf| {
        OnnxRuntime::open(path).map_err(|source| StartError::OnnxRuntime { path: path.clone(), source })
    };
    let onnxruntime = config.onnxruntime.as_ref().map(open).transpose()?;
    Ok(Engines { onnxruntime, clock: Arc::new(MonotonicClock::new()) })
}

/// The lanes that a discipline wants. Quadrant's: one for each core, one for all of them together, and the
/// same in the idle class, on which long steps are preempted by urgent ones.
fn lane_specs(cores: CoreSet, discipline: Discipline, models: usize) -> Vec<LaneSpec> {
    let wide = LaneSpec { id: LaneId(0), cores, class: SchedulingClass::Urgent };
    let lanes: Vec<LaneSpec> = match discipline {
        Discipline::Quadrant => {
            let lanes = || single_lanes(cores).chain((cores.len() > 1).then_some(wide));
            let idle = lanes().map(|lane| LaneSpec { class: SchedulingClass::Idle, ..lane });
            lanes().chain(idle).collect()
        }
        Discipline::Fifo => vec![wide; models.clamp(1, FIFO_LANES_MAX)],
        Discipline::Clockwork => vec![wide],
    };
    (0..).zip(lanes).map(|(id, lane)| LaneSpec { id: LaneId(id), ..lane }).collect()
}

/// The lanes whose steps another lane's step can preempt: those of the idle class, and all where they share
/// the cores.
fn preemptible(lanes: &[LaneSpec], discipline: Discipline) -> BTreeSet<LaneId> {
    let can_be = |lane: &&LaneSpec| lane.class == SchedulingClass::Idle || discipline == Discipline::Fifo;
    lanes.iter().filter(can_be).map(|lane| lane.id).collect()
}

/// An urgent lane for each core.
pub(crate) fn single_lanes(cores: CoreSet) -> impl Iterator<Item = LaneSpec> {
    let spec =
        |core| LaneSpec { id: LaneId(0), cores: CoreSet::from_cores([core]), class: SchedulingClass::Urgent };
    cores.cores().map(spec)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}
