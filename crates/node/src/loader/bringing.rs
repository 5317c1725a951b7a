//! Brings models in: reads them, finds out about them and gives them to the lanes, several at the same time.
//!
//! Each loading lane is two threads. One is of the class that gives way to every step, and does what takes
//! long; the other waits for it, and does what takes locks that requests take, too.

use std::cmp::Reverse;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use quadrant_engine::{EngineKind, Engines, LaneSpec, Model, Profile, Refusal, run_once};
use quadrant_policy::Discipline;
use quadrant_types::{CoreSet, LaneId, ModelId, ModelSpec, SchedulingClass};

use super::LANE_FULL_WAIT;
use super::aside::Aside;
use crate::isolation::{HostTable, Hosted};
use crate::node::single_lanes;
use crate::opening::{Opened, engine_version, is_isolated, open, probe_options, reason, try_out};
use crate::orders::Order;
use crate::profiles::ProfileStore;
use crate::repository::ModelFiles;
use crate::{Config, Handle, ModelSettings};

/// A model to be loaded; its memory is reserved.
pub(super) struct Task {
    pub(super) id: ModelId,
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) files: ModelFiles,
    pub(super) settings: ModelSettings,
    /// If there is none it is tried out.
    pub(super) profile: Option<Profile>,
    /// It has to run once before it is given to the lanes.
    pub(super) runs_first: bool,
}

/// How the load of a model ended: with the model, or with why there is none, for a person.
#[derive(Debug)]
pub(crate) struct Brought {
    pub(super) id: ModelId,
    pub(super) outcome: Result<Box<Fresh>, String>,
}

/// A model that is with the lanes.
pub(super) struct Fresh {
    pub(super) model: Arc<dyn Model>,
    pub(super) spec: ModelSpec,
    pub(super) kind: EngineKind,
    /// Fields of its `config.pbtxt` that mean nothing here.
    pub(super) unused: Vec<&'static str>,
    pub(super) hosted: Option<Hosted>,
    pub(super) profile: Profile,
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// What loading a model takes.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) handle: Handle,
    pub(super) engines: Engines,
    pub(super) lanes: Vec<LaneSpec>,
    pub(super) config: Arc<Config>,
    pub(super) profiles: Option<ProfileStore>,
    pub(super) hosts: Arc<HostTable>,
    /// Taken by who tries a model out: side by side they would disturb each other.
    pub(super) trying: Arc<Mutex<()>>,
}

/// The loading lanes. Their threads end when this is dropped, and their present loads have.
pub(super) struct LoadingLanes {
    tasks: SyncSender<Task>,
}

impl LoadingLanes {
    /// Starts so many.
    ///
    /// # Errors
    /// What the operating system answered.
    pub(super) fn start(count: usize, means: &Means) -> io::Result<Self> {
        // The scheduler has no more loads under way than there are lanes, so nobody waits.
        let (tasks, inbox) = sync_channel(1);
        let inbox = Arc::new(Mutex::new(inbox));
        for index in 0..count {
            let lane = LoadingLane {
                aside: Aside::start(&format!("loading-{index}"), means.config.cores)?,
                means: means.clone(),
            };
            let inbox = Arc::clone(&inbox);
            let serve = move || {
                while let Some(task) = next(&inbox) {
                    lane.serve(task);
                }
            };
            std::thread::Builder::new().name(format!("loader-{index}")).spawn(serve)?;
        }
        Ok(Self { tasks })
    }

    /// Begins to load a model; its end comes as an order.
    pub(super) fn begin(&self, task: Task) {
        // They serve until this sender is gone.
        drop(self.tasks.send(task));
    }
}

fn next(inbox: &Mutex<Receiver<Task>>) -> Option<Task> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

struct LoadingLane {
    aside: Aside,
    means: Means,
}

impl LoadingLane {
    fn serve(&self, task: Task) {
        let id = task.id;
        // A panic was printed when it happened.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.bring(task)))
            .unwrap_or_else(|_| Err("loading it panicked; the log says how".into()));
        self.means.handle.driver.orders.ended(Order::Brought(Brought { id, outcome }));
    }

    /// Reads the model and gives it to the lanes.
    fn bring(&self, task: Task) -> Result<Box<Fresh>, String> {
        let Task { id, name, version, files, settings, profile, runs_first } = task;
        let Means { engines, config, hosts, .. } = self.means.clone();
        let (place, of) = (files.model.clone(), name.clone());
        let opened = self.aside.run(move || open(&name, version, &files, (&engines, &config, &hosts)))??;
        let Opened { model, spec, kind, unused, hosted, .. } = opened;
        let profile = match profile {
            Some(profile) => profile,
            None => self.tried_out((&of, &place), &settings, &model, kind),
        };
        if model.language().is_some() && profile.sequences.is_none() {
            // There is no safest way to serve it in: without its pages nothing can be generated.
            return Err(format!("it cannot generate here: {}", profile.reason));
        }
        if runs_first {
            let lanes: Vec<LaneSpec> = single_lanes(self.means.config.cores).collect();
            run_once(&model, &lanes, &self.means.engines.clock, &profile).map_err(reason)?;
        }
        self.install(id, &model, &profile.widths)?;
        Ok(Box::new(Fresh { model, spec, kind, unused, hosted, profile }))
    }

    /// Tries out a model that no child process did, and keeps what was found.
    fn tried_out(
        &self,
        (name, file): (&str, &std::path::Path),
        settings: &ModelSettings,
        model: &Arc<dyn Model>,
        engine: EngineKind,
    ) -> Profile {
        let Means { config, engines, profiles, handle, trying, .. } = &self.means;
        let options = probe_options(settings, config);
        let alone = trying.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = try_out(model, config, engines, &options);
        drop(alone);
        // One that could not be tried out may be luckier next time.
        let store = profiles.as_ref().filter(|_| !profile.costs.is_empty());
        let keep = |store: &ProfileStore| {
            let key = store.key(file, engine_version(engines, engine, is_isolated(settings)))?;
            store.keep(&key, &options, &profile)
        };
        if let Some(Err(error)) = store.map(keep) {
            handle.telemetry.profile_not_stored(name, &error);
        }
        profile
    }

    /// Gives every lane of these widths what it needs to run the model, the widest first: from then on an
    /// engine can share weights. A lane that only this model uses runs it with as many threads as its width,
    /// on whichever of the cores the operating system finds free.
    fn install(&self, id: ModelId, model: &Arc<dyn Model>, widths: &[usize]) -> Result<(), String> {
        let narrowed = |lane: &LaneSpec| {
            let width = widths.first().copied().unwrap_or(1);
            LaneSpec { cores: CoreSet::from_cores(lane.cores.cores().take(width)), ..*lane }
        };
        let lanes = self.means.lanes.iter();
        let mut lanes: Vec<LaneSpec> = match self.means.own_lane(id) {
            Some(own) => lanes.filter(|lane| lane.id == own).map(narrowed).collect(),
            // What runs once is never preempted on all cores, so it needs nothing there.
            None => lanes
                .filter(|lane| widths.contains(&lane.cores.len()))
                .filter(|lane| {
                    lane.cores.len() == 1
                        || lane.class == SchedulingClass::Urgent
                        || model.language().is_some()
                })
                .copied()
                .collect(),
        };
        lanes.sort_by_key(|lane| Reverse(lane.cores.len()));
        for lane in lanes {
            let there = Arc::clone(model);
            let mut runner = self.aside.run(move || there.runner(&lane))?.map_err(reason)?;
            while let Err(refused) = self.means.handle.driver.install(lane.id, id, runner) {
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

impl Means {
    /// The lane that only this model uses, if models have their own.
    pub(super) fn own_lane(&self, id: ModelId) -> Option<LaneId> {
        let fifo = self.config.discipline == Discipline::Fifo;
        self.lanes.get(id.0 as usize).filter(|_| fifo).map(|lane| lane.id)
    }
}
