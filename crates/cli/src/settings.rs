//! The configuration, in two steps: what was written (a TOML file, then flags on top) becomes what is
//! meant, checked, before any port is bound. Every default stands here, once; `quadrant config` prints the
//! result, and its output is itself a valid file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::tenants::TenantFields;

/// What is written in `quadrant.toml`. Every field may be left out.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where HTTP is served. Loopback unless told otherwise.
    pub(crate) http_address: SocketAddr,
    /// Where gRPC is served.
    pub(crate) grpc_address: SocketAddr,
    /// Where Prometheus' metrics are served.
    pub(crate) metrics_address: SocketAddr,
    /// Sockets and timers.
    pub(crate) server: ServerSettings,
    /// What computes.
    pub(crate) device: DeviceSettings,
    /// Where models come from.
    pub(crate) repository: RepositorySettings,
    /// Who is served when.
    pub(crate) scheduler: SchedulerSettings,
    /// Bounds on everything.
    pub(crate) limits: LimitSettings,
    /// Objectives that requests refer to by name, with the header `x-gateway-inference-objective`.
    pub(crate) objectives: BTreeMap<String, ObjectiveFields>,
    /// A file with the tenants, instead of the table here; relative to the folder of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenants_file: Option<PathBuf>,
    /// Who may ask, and for how much, by name. While there are none, everybody may.
    pub(crate) tenants: BTreeMap<String, TenantFields>,
    /// What holds for a model that does not say otherwise.
    pub(crate) model_defaults: ModelFields,
    /// What single models say, by name. Stronger than their `config.pbtxt`.
    pub(crate) models: BTreeMap<String, ModelFields>,
    /// The file that was read.
    #[serde(skip)]
    pub(crate) read_from: Option<PathBuf>,
}

/// Sockets and timers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerSettings {
    /// Threads for sockets; 0 is one for each core they may use.
    pub(crate) threads: usize,
    /// Cores that the server's own threads are confined to; empty is all.
    pub(crate) cores: Vec<usize>,
    /// How long accepted requests may take to end after SIGTERM, in seconds.
    pub(crate) shutdown_s: f64,
}

/// What computes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DeviceSettings {
    /// Cores that compute; empty is all that the process may use.
    pub(crate) cores: Vec<usize>,
    /// ONNX Runtime's shared library: a path, `auto` to look in the usual places, or `off`.
    pub(crate) onnxruntime: String,
    /// How long one model may be tried out at load, in seconds.
    pub(crate) probe_s: f64,
    /// Mebibytes that the whole process may take; 0 is nine tenths of what the machine or its control group
    /// has.
    pub(crate) memory_mb: u64,
}

/// Where models come from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RepositorySettings {
    /// How often the models folder is looked at for new, changed and removed models, in seconds; 0 is never.
    pub(crate) poll_s: f64,
}

/// Who is served when.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SchedulerSettings {
    /// `quadrant`; or `fifo` and `clockwork`, to compare with.
    pub(crate) policy: String,
    /// The share of all core time that requests without a deadline get while they wait.
    pub(crate) best_effort_floor: f64,
    /// Which models make room for others: `worth`, those that would be missed least; `lru` to compare with.
    pub(crate) eviction: String,
    /// Models that are loaded at the same time; 0 is one for each core, and at most 4.
    pub(crate) load_threads: usize,
    /// The shares of best-effort time of tenants that the gateway's headers name; others have 1. Only while
    /// no tenant is configured: those have a `weight`.
    pub(crate) tenant_weights: BTreeMap<String, u32>,
}

/// Bounds on everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitSettings {
    /// Bytes of one request's body, after decompression.
    pub(crate) body_bytes: usize,
    /// Bytes of one answer.
    pub(crate) response_bytes: usize,
    /// Bytes of all requests' bodies at once.
    pub(crate) in_flight_bytes: usize,
    /// How deeply JSON may be nested.
    pub(crate) json_depth: usize,
    /// Connections of one protocol at once.
    pub(crate) connections: usize,
    /// Requests that wait, over all models.
    pub(crate) queued_requests: usize,
    /// The longest that any request waits for its answer, in seconds.
    pub(crate) request_s: f64,
    /// How long the headers of a request may take to arrive, in seconds.
    pub(crate) header_s: f64,
    /// How long the body of a request may take to arrive, in seconds.
    pub(crate) body_s: f64,
    /// A step that runs this many times its prediction marks its lane as stalled,
    pub(crate) stall_factor: u32,
    /// but not before this time, in seconds.
    pub(crate) stall_s: f64,
}

/// An objective that requests refer to by name.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ObjectiveFields {
    /// By when an answer is wanted, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_ms: Option<f64>,
    /// How important it is; 1 is the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
}

/// What can be said of a model.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ModelFields {
    /// `ort`, `rten`, `encoder`, `language` or `emulated`; by default what reads the file, ONNX Runtime if it
    /// was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<String>,
    /// `auto`, `off`, or the most rows of one request and of one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batching: Option<BatchingField>,
    /// Cores of one step; measured at load if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) width: Option<usize>,
    /// The most requests that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<usize>,
    /// How long the first request of a batch may wait for others, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay_ms: Option<f64>,
    /// By when an answer is wanted unless the request says so, in milliseconds; best effort if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_objective_ms: Option<f64>,
    /// How long the first token of an answer may take unless the request says so, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttft_objective_ms: Option<f64>,
    /// How long each further token may take on average unless the request says so, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tpot_objective_ms: Option<f64>,
    /// Megabytes for the keys and values of all sequences of a model that generates; 512 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_cache_mb: Option<usize>,
    /// How important its requests are unless they say so; 1 is the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    /// What becomes of a request that cannot be answered in time: `refuse` or `demote` to best effort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unmet: Option<String>,
    /// `pinned`: loaded at the start, stays; `on-demand`: loaded when a request comes, makes room for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) residency: Option<String>,
    /// How long a model that is loaded on demand may be unused until it goes, in seconds; for ever if not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_s: Option<f64>,
    /// Where its engine runs: `none` is within the server, `process` in a process of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation: Option<String>,
    /// Models that say the same share one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation_group: Option<String>,
    /// The memory that the process may hold, in MiB; any if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation_memory_mb: Option<u64>,
}

/// `auto`, `off` or a number.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum BatchingField {
    Rows(u32),
    Word(String),
}

impl Default for Settings {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            http_address: local(8000),
            grpc_address: local(8001),
            metrics_address: local(8002),
            server: ServerSettings::default(),
            device: DeviceSettings::default(),
            repository: RepositorySettings::default(),
            scheduler: SchedulerSettings::default(),
            limits: LimitSettings::default(),
            objectives: BTreeMap::new(),
            tenants_file: None,
            tenants: BTreeMap::new(),
            model_defaults: ModelFields::default(),
            models: BTreeMap::new(),
            read_from: None,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { threads: 0, cores: Vec::new(), shutdown_s: 30.0 }
    }
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self { cores: Vec::new(), onnxruntime: "auto".to_owned(), probe_s: 1.5, memory_mb: 0 }
    }
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self {
            policy: "quadrant".to_owned(),
            best_effort_floor: 0.05,
            eviction: "worth".to_owned(),
            load_threads: 0,
            tenant_weights: BTreeMap::new(),
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            response_bytes: 256 << 20,
            in_flight_bytes: 1 << 30,
            json_depth: 100,
            connections: 4_096,
            queued_requests: 16_384,
            request_s: 60.0,
            header_s: 60.0,
            body_s: 30.0,
            stall_factor: 10,
            stall_s: 1.0,
        }
    }
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// With line and column, if it does not exist or is not understood.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration `{}`", path.display()))?;
        let settings: Self =
            toml::from_str(&text).with_context(|| format!("in the configuration `{}`", path.display()))?;
        let beside = |file: PathBuf| path.parent().map_or(file.clone(), |folder| folder.join(file));
        let tenants_file = settings.tenants_file.map(beside);
        Ok(Self { tenants_file, read_from: Some(path.to_owned()), ..settings })
    }

    /// The settings as a file.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).context("cannot print the configuration")
    }
}

/// Where ONNX Runtime's library is, if it is wanted.
///
/// # Errors
/// If a path was given and nothing is there.
pub(crate) fn find_onnxruntime(wish: &str, places: &[PathBuf]) -> Result<Option<PathBuf>> {
    match wish {
        "off" => Ok(None),
        "auto" => Ok(places.iter().find(|place| place.is_file()).cloned()),
        path => {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("no ONNX Runtime library at `{}`; give its path, `auto` or `off`", path.display());
            }
            Ok(Some(path))
        }
    }
}
