//! What the node is told, checked before it starts. Where it was written (flags, TOML, `config.pbtxt`) is
//! the business of whoever builds it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use quadrant_engine::{EngineKind, HostCommand};
use quadrant_policy::{Discipline, Limits, TenantTerms, Unmet};
use quadrant_types::{CoreSet, Priority};

use crate::Pace;

/// The configuration of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model repository.
    pub models_dir: PathBuf,
    /// The cores that compute. The sockets and timers are not confined to them.
    pub cores: CoreSet,
    /// ONNX Runtime's shared library, if there is one.
    pub onnxruntime: Option<PathBuf>,
    /// What starts a process for engines; without it no model can have one. The same program measures models
    /// in child processes, by its command `measure`; otherwise what they take is guessed from their files.
    pub engine_host: Option<HostCommand>,
    /// How requests are put in order and given lanes.
    pub discipline: Discipline,
    /// What tenants may have, by name, as the node starts; [`crate::Handle::set_tenants`] changes it.
    pub tenants: BTreeMap<String, TenantTerms>,
    /// The scheduler's bounds.
    pub limits: Limits,
    /// How long the measuring of one model at load may take.
    pub probe_budget: Duration,
    /// Where what was measured of models is kept from one start to the next; nowhere if not given.
    pub profiles_dir: Option<PathBuf>,
    /// How often the repository is looked at for new, changed and removed models; never if not given.
    pub poll: Option<Duration>,
    /// What holds for a model that does not say otherwise.
    pub defaults: ModelSettings,
    /// What single models say, by name.
    pub models: BTreeMap<String, ModelSettings>,
}

/// What can be said of a model. `None` means: whatever is said one level further out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSettings {
    /// Which engine runs it.
    pub engine: Option<EngineKind>,
    /// Whether requests share steps.
    pub batching: Option<Batching>,
    /// Cores of one step; measured at load if not given.
    pub width: Option<usize>,
    /// The most requests that wait.
    pub queue_max: Option<usize>,
    /// How long the first request of a batch may wait for others.
    pub delay_max: Option<Duration>,
    /// By when an answer is wanted, unless the request says so itself.
    pub latency_objective: Option<Duration>,
    /// How long the first token may take, and each other one, unless the request says so itself.
    pub pace: Pace,
    /// Bytes that the keys and values of its sequences may take, if it generates.
    pub kv_cache_bytes: Option<u64>,
    /// How important its requests are, unless they say so themselves.
    pub priority: Option<Priority>,
    /// What becomes of a request that cannot be answered in time.
    pub unmet: Option<Unmet>,
    /// Whether it is loaded when a request comes for it, and makes room for others.
    pub on_demand: Option<bool>,
    /// How long it may be unused until it goes, if it is loaded on demand.
    pub idle_after: Option<Duration>,
    /// Where its engine runs.
    pub isolation: Option<Isolation>,
    /// With which other models it shares a process; with none if not given.
    pub isolation_group: Option<String>,
    /// The memory that its process may hold.
    pub isolation_memory_bytes: Option<u64>,
}

/// Where the engine of a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// In the server's own process.
    #[default]
    None,
    /// In a process of its own.
    Process,
}

/// Whether requests of a model share steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// If the graph permits it and a probe shows that rows do not depend on each other.
    Auto,
    /// Never; the first dimension is not a batch dimension.
    Off,
    /// Up to this many rows, if the probe agrees.
    UpTo(u32),
}

/// Requests that wait for one model unless something else is said.
const QUEUE_MAX: usize = 256;

/// Bytes of keys and values unless something else is said.
const KV_CACHE_BYTES: u64 = 512 << 20;

impl ModelSettings {
    /// These settings, with `outer` filling what is not said.
    #[must_use]
    pub fn or(&self, outer: &Self) -> Self {
        Self {
            engine: self.engine.or(outer.engine),
            batching: self.batching.or(outer.batching),
            width: self.width.or(outer.width),
            queue_max: self.queue_max.or(outer.queue_max),
            delay_max: self.delay_max.or(outer.delay_max),
            latency_objective: self.latency_objective.or(outer.latency_objective),
            pace: self.pace.or(outer.pace),
            kv_cache_bytes: self.kv_cache_bytes.or(outer.kv_cache_bytes),
            priority: self.priority.or(outer.priority),
            unmet: self.unmet.or(outer.unmet),
            on_demand: self.on_demand.or(outer.on_demand),
            idle_after: self.idle_after.or(outer.idle_after),
            isolation: self.isolation.or(outer.isolation),
            isolation_group: self.isolation_group.clone().or_else(|| outer.isolation_group.clone()),
            isolation_memory_bytes: self.isolation_memory_bytes.or(outer.isolation_memory_bytes),
        }
    }

    /// Bytes that the keys and values of its sequences may take.
    pub fn kv_cache_bytes(&self) -> u64 {
        self.kv_cache_bytes.unwrap_or(KV_CACHE_BYTES)
    }

    /// How requests share steps.
    pub fn batching(&self) -> Batching {
        self.batching.unwrap_or(Batching::Auto)
    }

    /// The most requests that wait.
    pub fn queue_max(&self) -> usize {
        self.queue_max.unwrap_or(QUEUE_MAX)
    }

    /// How long the first request of a batch may wait for others. By default not at all: while all lanes
    /// are busy requests gather by themselves, and an idle lane is better used at once.
    pub fn delay_max(&self) -> Duration {
        self.delay_max.unwrap_or_default()
    }
}
